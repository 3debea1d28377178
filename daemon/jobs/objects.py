"""The daemon's store as a worker sees it: the ObjectStore protocol over the worker's socket.

Bytes travel in memory files (`millpond.daemon.memfd`), a few requests in flight, so that this process reads files
while the daemon hashes, compresses and writes the ones before.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from millpond.daemon import memfd
from millpond.daemon.errors import BusyError, CancelledError, MillpondError, ProtocolError
from millpond.daemon.jobs.batches import Batch, Keeping, Memory, piece_batches
from millpond.daemon.jobs.hashing import hash_files
from millpond.daemon.jobs.reading import Counter, in_order, read_batches
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data, Keep, Piece, Put, Slice, Tick

# Feeds of 16 MiB on their way. MD5 of one file is one thread's work: with so many of them the next file's begins beside it.
IN_FLIGHT = 5
# Of contents that are hashed beside each other anyway: more of them would take memory alone, here and in the daemon.
IN_FLIGHT_BESIDE = 3
# Names in one request; those of contents that are fetched: at first, and beside twice as many as were answered.
MAX_NAMES = 2000
_FIRST_NAMES, _LEAST_NAMES = 1000, 100


class Peer(Protocol):
    """What this module needs of `millpond.daemon.rpc.client.Client`."""

    def call(
        self, method: str, params: dict[str, Any], *, fds: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]: ...
    def start(self, method: str, params: dict[str, Any], fds: Sequence[int] = ()) -> Any: ...
    def wait(self, request: Any) -> tuple[dict[str, Any], list[int]]: ...
    def notify(self, method: str, params: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Session:
    """Puts that the daemon knows: `own`: it is this user's; up to `strands` contents of `least_bytes` may come beside each other."""

    number: int
    own: bool
    strands: int
    least_bytes: int


class DaemonObjectStore:
    """ObjectStore over one worker connection. One session of puts at a time, ended by `commit`."""

    def __init__(self, peer: Peer, context: dict[str, Any] | None = None) -> None:
        self._peer = peer
        # Of a source: what its user's verbs would run with.
        self._context = context
        self._session: _Session | None = None
        # After files that could not be put: requests whose answers nobody took yet, and whether contents were begun that will not end.
        self._unanswered: list[Any] = []
        self._is_broken_off = False
        self.new_bytes = 0

    def put_files(self, paths: Iterable[str], *, tick: Tick | None = None, store: bool = True) -> Iterator[Put]:
        """See ObjectStore.put_files; files are read with sendfile, never mapped. After an error, or when it is closed early, others
        may be put, and what was put before it is named by `commit`."""
        if not store:
            yield from hash_files(paths, tick)
            return
        try:
            yield from in_order(self._put_files(paths, Counter(tick)))
        except BaseException:
            self._is_broken_off = True
            raise

    def _put_files(self, paths: Iterable[str], counter: Counter) -> Iterator[tuple[int, Put]]:
        """Each file with its place among `paths`, as they end."""
        session = self._begin()

        def batches(memory: Memory) -> Iterator[Batch]:
            return read_batches(paths, memory, session.strands, session.least_bytes)

        with closing(self._flow(batches)) as flow:
            for batch, stored in flow:
                counter.add(len(batch.ends), batch.size)
                if len(stored) != len(batch.ends):
                    raise ProtocolError(f"the daemon stored {len(stored)} contents where {len(batch.ends)} were sent")
                for file, (value, size, new_bytes) in zip(batch.ends, stored, strict=True):
                    self.new_bytes += new_bytes
                    yield file.number, Put(file.path, ObjectName("md5", value), size, file.stat)

    def put_bytes(self, data: bytes, *, is_dir: bool = False, like: ObjectName | None = None) -> ObjectName:
        """See ObjectStore.put_bytes."""
        like = like if like is not None and like.is_sound_dir else None
        if len(data) > memfd.BATCH_BYTES:  # copied here while the daemon works on what came before
            ((name, _),) = self.put_pieces([(data, True, is_dir)], like=like)
            return name
        session = self._begin()
        with memfd.sent(data) as fd:
            reply, _ = self._peer.call("store.feed", self._feed(session, [(len(data), True, is_dir)], like), fds=[fd])
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
        self._unanswered.clear()

    def commit(self) -> None:
        """See ObjectStore.commit. Without puts it does nothing."""
        if self._session is not None:
            session, self._session = self._session, None
            reply, _ = self._peer.call("store.commit", {"session": session.number})
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

    def _begin(self) -> _Session:
        while self._unanswered:
            request = self._unanswered.pop()
            try:
                self._peer.wait(request)
            except CancelledError:
                raise
            except MillpondError:  # what comes next is told as well
                pass
        if self._session is None:
            self._is_broken_off = False
            reply, _ = self._peer.call("store.begin", {} if self._context is None else {"context": self._context})
            strands, least = reply.get("strands", (1, 0))  # a daemon from before them says none
            self._session = _Session(int(reply["session"]), bool(reply["own"]), int(strands), int(least))
        return self._session

    def _send(self, session: _Session, batch: Batch, like: ObjectName | None) -> Any:
        if batch.view is None:
            memfd.seal(batch.fd)
        return self._peer.start("store.feed", self._feed(session, batch.pieces, like), fds=[batch.fd])

    def _feed(self, session: _Session, pieces: Sequence[Slice], like: ObjectName | None) -> dict[str, Any]:
        """What `store.feed` is asked; `like` is a former manifest."""
        asked: dict[str, Any] = {"session": session.number, "pieces": pieces}
        if like is not None:
            asked["like"] = str(like)
        if self._is_broken_off:
            self._is_broken_off, asked["anew"] = False, True
        return asked

    def _flow(
        self,
        batches: Callable[[Memory], Iterator[Batch]],
        keep: Keep | None = None,
        like: ObjectName | None = None,
    ) -> Generator[tuple[Batch, list[Any]], None, None]:
        """Send what `batches` fills, a few on their way; each batch with [md5, size, new bytes] of the contents that end in it."""
        session = self._begin()
        memory = Memory(reuse=session.own)
        flying: deque[tuple[Any, Batch]] = deque()
        waiting: Batch | None = None
        with closing(memory), closing(Keeping(memory, keep)) as keeping:
            try:
                for waiting in batches(memory):
                    while len(flying) >= (IN_FLIGHT_BESIDE if waiting.has_strands else IN_FLIGHT):
                        yield self._landed(*flying.popleft(), keeping)
                    flying.append((self._send(session, waiting, like), waiting))
                    like = waiting = None  # it is told once
                while flying:
                    yield self._landed(*flying.popleft(), keeping)
                keeping.finish()
            finally:
                if waiting is not None:
                    memory.give_back(waiting)
                for request, batch in flying:  # after a failure; the daemon has these files open itself
                    self._unanswered.append(request)
                    memory.give_back(batch)

    def _landed(self, request: Any, batch: Batch, keeping: Keeping) -> tuple[Batch, list[Any]]:
        names = None
        try:
            reply, _ = self._peer.wait(request)
            names = [ObjectName("md5", value) for value, _, _ in reply["stored"]] if keeping.is_wanted else None
        finally:
            keeping.take(batch, names)
        return batch, reply["stored"]


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
