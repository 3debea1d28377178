"""The daemon's store as a worker sees it: the ObjectStore protocol over the worker's socket.

Bytes travel in memory files (`millpond.daemon.memfd`), a few requests in flight, so that this process reads files
while the daemon hashes, compresses and writes the ones before.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

from millpond.daemon import memfd
from millpond.daemon.errors import (
    BusyError,
    DiskFullError,
    FileChangedError,
    MillpondError,
    ProtocolError,
    TargetError,
)
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data, Keep, Piece, Put, Tick

# Feeds of 16 MiB on their way. MD5 of one file is one thread's work: with so many of them the next file's begins beside it.
IN_FLIGHT = 5
# Batches that landed and are still told of.
_KEPT = 2
# What is read at once to be hashed here; progress is told after each.
HASH_BYTES = 1 << 20
# Pieces in one feed: bounds a frame's size for a tree of empty files.
MAX_PIECES = 4096
# Names in one request; those of contents that are fetched: at first, and beside twice as many as were answered.
MAX_NAMES = 2000
_FIRST_NAMES, _LEAST_NAMES = 1000, 100
# A content of up to so many bytes that does not fit into what is left of a batch begins the next one.
WHOLE_BYTES = 1 << 20
_NOT_REGULAR = {
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Peer(Protocol):
    """What this module needs of `millpond.daemon.rpc.client.Client`."""

    def call(
        self, method: str, params: dict[str, Any], *, fds: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]: ...
    def start(self, method: str, params: dict[str, Any], fds: Sequence[int] = ()) -> Any: ...
    def wait(self, request: Any) -> tuple[dict[str, Any], list[int]]: ...
    def notify(self, method: str, params: dict[str, Any]) -> None: ...


@dataclass(slots=True)
class OpenFile:
    """A file being sent: where it is, and its stat from before its first byte was read."""

    path: str
    stat: os.stat_result


@dataclass(slots=True)
class Batch:
    """One memory file being filled: `pieces` as `store.feed` takes them, `ends` the files whose last byte is in it; `view`
    its bytes, when it is one that is used again; `goes_on`: its first piece goes on with a content of the batch before."""

    fd: int
    view: memoryview | None = None
    size: int = 0
    pieces: list[tuple[int, bool, bool]] = field(default_factory=list)
    ends: list[OpenFile] = field(default_factory=list)
    goes_on: bool = False


class Memory:
    """The memory files that batches are read into: sealed ones, each made anew, or with `reuse` the same ones again."""

    def __init__(self, *, reuse: bool) -> None:
        self._reuse = reuse
        self._free: list[tuple[int, memoryview]] = []

    def take(self) -> Batch:
        """An empty batch; give it back."""
        if self._free:
            return Batch(*self._free.pop())
        return Batch(*memfd.create_reusable()) if self._reuse else Batch(memfd.create())

    def give_back(self, batch: Batch) -> None:
        """Nobody looks at a batch any more."""
        if batch.view is None:
            os.close(batch.fd)
        else:
            self._free.append((batch.fd, batch.view))

    def close(self) -> None:
        """Let go of all that came back."""
        while self._free:
            fd, view = self._free.pop()
            view.release()
            os.close(fd)


class Keeping:
    """Tells `keep` of what landed, in a thread of its own: who waits for a network meanwhile must not be held up. A few batches wait."""

    def __init__(self, memory: Memory, keep: Keep | None) -> None:
        self._memory = memory
        self._keep = keep
        self._pool = None if keep is None else ThreadPoolExecutor(1, thread_name_prefix="keep")
        self._waiting: deque[tuple[Future[None], Batch]] = deque()

    @property
    def is_wanted(self) -> bool:
        """Whether anybody is to be told."""
        return self._keep is not None

    def take(self, batch: Batch, names: Sequence[ObjectName] | None) -> None:
        """A batch is done with, but for what is to be told of it (None: nothing). Raises what `keep` raised before."""
        if self._pool is None or self._keep is None or names is None:
            self._memory.give_back(batch)
            return
        self._waiting.append((self._pool.submit(tell_whole, batch, names, self._keep), batch))
        self.finish(_KEPT)

    def finish(self, left: int = 0) -> None:
        """Wait until all is told but so many batches. Raises what `keep` raised."""
        while len(self._waiting) > left:
            told, batch = self._waiting.popleft()
            try:
                told.result()
            finally:
                wait([told])  # also when this wait was broken off: its bytes are looked at until then
                self._memory.give_back(batch)

    def close(self) -> None:
        """Nobody is told of more."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for _, batch in self._waiting:
            self._memory.give_back(batch)
        self._waiting.clear()


class DaemonObjectStore:
    """ObjectStore over one worker connection. One session of puts at a time, ended by `commit`."""

    def __init__(self, peer: Peer, context: dict[str, Any] | None = None) -> None:
        self._peer = peer
        # Of a source: what its user's verbs would run with.
        self._context = context
        self._session: tuple[int, bool] | None = None
        self.new_bytes = 0

    def put_files(self, paths: Iterable[str], *, tick: Tick | None = None, store: bool = True) -> Iterator[Put]:
        """See ObjectStore.put_files; files are read with sendfile, never mapped."""
        if not store:
            yield from hash_files(paths, tick)
            return
        counter = _Counter(tick)
        with closing(self._flow(lambda memory: read_batches(paths, memory))) as flow:
            for batch, stored in flow:
                counter.add(len(batch.ends), batch.size)
                if len(stored) != len(batch.ends):
                    raise ProtocolError(f"the daemon stored {len(stored)} contents where {len(batch.ends)} were sent")
                for file, (value, size, new_bytes) in zip(batch.ends, stored, strict=True):
                    self.new_bytes += new_bytes
                    yield Put(file.path, ObjectName("md5", value), size, file.stat)

    def put_bytes(self, data: bytes, *, is_dir: bool = False, like: ObjectName | None = None) -> ObjectName:
        """See ObjectStore.put_bytes."""
        like = like if like is not None and like.is_sound_dir else None
        if len(data) > memfd.BATCH_BYTES:  # copied here while the daemon works on what came before
            ((name, _),) = self.put_pieces([(data, True, is_dir)], like=like)
            return name
        session, _ = self._begin()
        with memfd.sent(data) as fd:
            reply, _ = self._peer.call("store.feed", _feed(session, [(len(data), True, is_dir)], like), fds=[fd])
        value, _, new_bytes = reply["stored"][0]
        self.new_bytes += new_bytes
        return ObjectName("md5", value)

    def put_pieces(
        self, pieces: Iterable[tuple[Data, bool, bool]], keep: Keep | None = None, *, like: ObjectName | None = None
    ) -> Generator[tuple[ObjectName, int], None, None]:
        """See ObjectStore.put_pieces; `like` is that of put_bytes, for the first of them."""
        try:
            with closing(self._flow(lambda memory: piece_batches(pieces, memory), keep, like)) as flow:
                for _, stored in flow:
                    for value, _, new_bytes in stored:
                        self.new_bytes += new_bytes
                        yield ObjectName("md5", value), new_bytes
        except BaseException:
            self._session = None  # a content may have been begun and never ended
            raise

    def forget(self) -> None:
        """The daemon of this session is gone: the next put begins another."""
        self._session = None

    def commit(self) -> None:
        """See ObjectStore.commit. Without puts it does nothing."""
        if self._session is not None:
            (session, _), self._session = self._session, None
            reply, _ = self._peer.call("store.commit", {"session": session})
            if reply.get("again"):
                raise BusyError("stored data was removed while it was added", hint="run the command again")

    def sizes(self, names: Sequence[ObjectName], *, evicted: bool = False) -> list[int | None]:
        """See ObjectStore.sizes."""
        found: list[int | None] = []
        asked: deque[Any] = deque()
        try:
            for start in range(0, len(names), MAX_NAMES):
                part = list(map(str, names[start : start + MAX_NAMES]))
                asked.append(self._peer.start("store.sizes", {"names": part, "evicted": evicted}))
                if len(asked) > 1:  # one is answered while the next one is written
                    found += self._peer.wait(asked.popleft())[0]["sizes"]
            while asked:
                found += self._peer.wait(asked.popleft())[0]["sizes"]
        finally:
            for request in asked:  # after an error: take the answer under way off the wire
                with contextlib.suppress(MillpondError):
                    self._peer.wait(request)
        return found

    def complete(self, name: ObjectName) -> bool:
        """See ObjectStore.complete."""
        reply, _ = self._peer.call("store.complete", {"name": str(name)})
        return bool(reply["complete"])

    def read(self, name: ObjectName) -> bytes:
        """See ObjectStore.read."""
        return b"".join(bytes(piece.data) for piece in self.fetch([name]))

    def fetch(self, names: Iterable[ObjectName]) -> Iterator[Piece]:
        """See ObjectStore.fetch; asks for the next batch before it hands out this one."""
        source = iter(names)
        wanted: list[ObjectName] = list(itertools.islice(source, _FIRST_NAMES))
        rest: list[ObjectName] = []
        with closing(Memory(reuse=True)) as memory:
            request = self._ask(wanted, 0, None)
            try:
                while request is not None:
                    (current, batch), request = request, None
                    try:
                        reply, fds = self._peer.wait(current)
                        sent = wanted
                        done, offset = reply["next"]
                        # About as many as will be answered: the daemon looks each of them up.
                        most = min(MAX_NAMES, _LEAST_NAMES + 2 * done)
                        rest = [*sent[done:], *rest]
                        rest += itertools.islice(source, max(0, most - len(rest)))
                        wanted, rest = rest[:most], rest[most:]
                        request = self._ask(wanted, offset, memory if reply.get("own") else None)
                        yield from _pieces(sent, reply["pieces"], fds, batch)
                    finally:
                        if batch is not None:
                            memory.give_back(batch)
            finally:
                if request is not None:  # the reader stopped early: take the answer under way off the wire
                    for fd in self._peer.wait(request[0])[1]:
                        os.close(fd)
                    if request[1] is not None:
                        memory.give_back(request[1])

    def _ask(self, wanted: Sequence[ObjectName], offset: int, memory: Memory | None) -> tuple[Any, Batch | None] | None:
        """Ask for contents, to be put into a batch of `memory`; the request and the batch, or None where nothing is wanted any more."""
        if not wanted:
            return None
        asked = {"names": list(map(str, wanted)), "offset": offset}
        if memory is None:
            return self._peer.start("store.fetch", asked), None
        batch = memory.take()
        try:
            return self._peer.start("store.fetch", asked, fds=[batch.fd]), batch
        except BaseException:
            memory.give_back(batch)
            raise

    def _begin(self) -> tuple[int, bool]:
        """The session, and whether the daemon is this user's own."""
        if self._session is None:
            reply, _ = self._peer.call("store.begin", {} if self._context is None else {"context": self._context})
            self._session = int(reply["session"]), bool(reply["own"])
        return self._session

    def _send(self, session: int, batch: Batch, like: ObjectName | None) -> Any:
        if batch.view is None:
            memfd.seal(batch.fd)
        return self._peer.start("store.feed", _feed(session, batch.pieces, like), fds=[batch.fd])

    def _flow(
        self,
        batches: Callable[[Memory], Iterator[Batch]],
        keep: Keep | None = None,
        like: ObjectName | None = None,
    ) -> Generator[tuple[Batch, list[Any]], None, None]:
        """Send what `batches` fills, a few on their way; each batch with [md5, size, new bytes] of the contents that end in it."""
        session, own = self._begin()
        memory = Memory(reuse=own)
        flying: deque[tuple[Any, Batch]] = deque()
        with closing(memory), closing(Keeping(memory, keep)) as keeping:
            try:
                for batch in batches(memory):
                    if len(flying) >= IN_FLIGHT:
                        yield self._landed(*flying.popleft(), keeping)
                    flying.append((self._send(session, batch, like), batch))
                    like = None  # it is told once
                while flying:
                    yield self._landed(*flying.popleft(), keeping)
                keeping.finish()
            finally:
                for _, batch in flying:  # after a failure; the daemon has these files open itself
                    memory.give_back(batch)

    def _landed(self, request: Any, batch: Batch, keeping: Keeping) -> tuple[Batch, list[Any]]:
        names = None
        try:
            reply, _ = self._peer.wait(request)
            names = [ObjectName("md5", value) for value, _, _ in reply["stored"]] if keeping.is_wanted else None
        finally:
            keeping.take(batch, names)
        return batch, reply["stored"]


def _feed(session: int, pieces: Sequence[tuple[int, bool, bool]], like: ObjectName | None) -> dict[str, Any]:
    """What `store.feed` is asked; `like` is a former manifest."""
    asked: dict[str, Any] = {"session": session, "pieces": pieces}
    return asked if like is None else {**asked, "like": str(like)}


def _pieces(sent: list[ObjectName], pieces: list[list[Any]], fds: list[int], batch: Batch | None) -> Iterator[Piece]:
    """What was answered: in `batch`, or in a memory file that came."""
    if len(fds) != (batch is None):
        for fd in fds:
            os.close(fd)
        raise ProtocolError("the daemon answered a fetch without its memory file")
    if batch is not None:
        assert batch.view is not None
        yield from _cut(batch.view, sent, pieces)
        return
    with memfd.mapped(fds[0]) as view:
        yield from _cut(view, sent, pieces)


def _cut(view: memoryview, sent: list[ObjectName], pieces: list[list[Any]]) -> Iterator[Piece]:
    start = 0
    for index, length, last in pieces:
        with view[start : start + length] as data:
            yield Piece(sent[index], data, last)
        start += length


class _Counter:
    """Files and bytes done, told to the caller's tick."""

    def __init__(self, tick: Tick | None) -> None:
        self._tick = tick
        self._files = 0
        self._bytes = 0

    def add(self, files: int, size: int) -> None:
        self._files += files
        self._bytes += size
        if self._tick is not None:
            self._tick(self._files, self._bytes)


def open_regular(path: str) -> tuple[int, os.stat_result]:
    """Open a file for reading without ever blocking. Raises TargetError for what is no readable regular file."""
    try:
        # O_NONBLOCK: opening a pipe or a device must not hang.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise TargetError(f"cannot read '{path}': {_reason(error)}", path=path) from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        kind = _NOT_REGULAR.get(stat.S_IFMT(found.st_mode), "not a regular file")
        raise TargetError(f"cannot store '{path}': it is {kind}", path=path, hint="only regular files are stored")
    return fd, found


def check_unchanged(path: str, fd: int, before: os.stat_result) -> None:
    """Raise FileChangedError when the open file is not what it was before it was read."""
    after = os.fstat(fd)
    if (after.st_size, after.st_mtime_ns, after.st_ctime_ns) != (
        before.st_size,
        before.st_mtime_ns,
        before.st_ctime_ns,
    ):
        raise FileChangedError(
            f"'{path}' changed while it was read; nothing of it was stored", path=path, hint="try again"
        )


def _reason(error: OSError) -> str:
    if error.errno == errno.ENXIO:
        return "it is a socket"
    return os.strerror(error.errno) if error.errno else str(error)


def read_batches(paths: Iterable[str], memory: Memory) -> Iterator[Batch]:
    """Fill memory files with the contents of `paths`, back to back; a large file runs on over several. Who takes a batch gives
    it back to `memory`."""
    batch = memory.take()
    try:
        for path in paths:
            fd, before = open_regular(path)
            try:
                offset, last = 0, False
                while not last:
                    room = min(memfd.BATCH_BYTES - batch.size, before.st_size - offset)
                    _copy(path, fd, batch, offset, room)
                    offset += room
                    batch.size += room
                    last = offset == before.st_size
                    if last:
                        check_unchanged(path, fd, before)
                        batch.ends.append(OpenFile(path, before))
                    batch.pieces.append((room, last, False))
                    if batch.size >= memfd.BATCH_BYTES or len(batch.pieces) >= MAX_PIECES:
                        full, batch = batch, memory.take()
                        yield full
            finally:
                os.close(fd)
        if batch.pieces:
            full, batch = batch, memory.take()
            yield full
    finally:
        memory.give_back(batch)


def piece_batches(pieces: Iterable[tuple[Data, bool, bool]], memory: Memory) -> Iterator[Batch]:
    """Fill memory files with bytes that are at hand; see `read_batches`. What is not large is not cut."""
    batch = memory.take()
    is_begun = False
    try:
        for data, last, is_dir in pieces:
            rest = memoryview(data).cast("B")
            if last and not is_begun and memfd.BATCH_BYTES - batch.size < len(rest) <= WHOLE_BYTES:
                full, batch = batch, memory.take()
                yield full
            while True:
                part, rest = rest[: memfd.BATCH_BYTES - batch.size], rest[memfd.BATCH_BYTES - batch.size :]
                _append(batch, part)
                is_begun = bool(rest) or not last
                batch.pieces.append((len(part), not is_begun, is_dir))
                if batch.size >= memfd.BATCH_BYTES or len(batch.pieces) >= MAX_PIECES:
                    full, batch = batch, memory.take()
                    batch.goes_on = is_begun
                    yield full
                if not rest:
                    break
        if batch.pieces:
            full, batch = batch, memory.take()
            yield full
    finally:
        memory.give_back(batch)


def tell_whole(batch: Batch, names: Sequence[ObjectName], keep: Keep) -> None:
    """Tell `keep` of the contents that lie in a batch from their first byte to their last; `names`: of all that end in it."""
    if len(names) != sum(last for _, last, _ in batch.pieces):
        raise ProtocolError(f"{len(names)} contents were stored of a batch with others")
    ended = iter(names)
    with contextlib.ExitStack() as stack:
        view = batch.view
        if view is None and batch.size:
            view = stack.enter_context(memfd.viewed(batch.fd, batch.size))
        start, is_begun = 0, batch.goes_on
        for length, last, is_dir in batch.pieces:
            if last:
                name = next(ended)
                if view is not None and not is_begun and not is_dir:
                    with view[start : start + length] as data:
                        keep(name, data)
            start, is_begun = start + length, not last


def _append(batch: Batch, part: memoryview) -> None:
    if batch.view is not None:
        batch.view[batch.size : batch.size + len(part)] = part
    else:
        rest = part
        while rest:
            rest = rest[os.write(batch.fd, rest) :]
    batch.size += len(part)


def _copy(path: str, source: int, batch: Batch, offset: int, length: int) -> None:
    """Append `length` bytes of a file to a memory file. Raises FileChangedError when the file became shorter."""
    done = 0
    while done < length:
        try:
            if batch.view is None:
                got = os.sendfile(batch.fd, source, offset + done, length - done)
            else:
                got = os.preadv(source, [batch.view[batch.size + done : batch.size + length]], offset + done)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise DiskFullError(
                    "no memory is left to read files into", hint="free some memory and try again"
                ) from error
            raise TargetError(f"cannot read '{path}': {_reason(error)}", path=path) from error
        if got == 0:
            raise FileChangedError(f"'{path}' became shorter while it was read; nothing of it was stored", path=path)
        done += got


def hash_files(paths: Iterable[str], tick: Tick | None) -> Iterator[Put]:
    """`put_files` without storing."""
    counter = _Counter(tick)
    buffer = memoryview(bytearray(HASH_BYTES))
    for path in paths:
        fd, before = open_regular(path)
        with os.fdopen(fd, "rb", buffering=0) as file:
            digest = hashlib.md5()
            while length := file.readinto(buffer):
                digest.update(buffer[:length])
                counter.add(0, length)
            check_unchanged(path, fd, before)
        counter.add(1, 0)
        yield Put(path, ObjectName("md5", digest.hexdigest()), before.st_size, before)
