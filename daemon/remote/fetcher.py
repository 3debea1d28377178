"""Lazy reads: what a mount's reader asks for and this machine has not, brought from the project's remotes.

Small objects come whole and are checked before a byte of them is given out; large ones by blocks (partial.py), checked as a whole
when the last one is there. Readers who wait for one block or object share its request. What comes ahead of need, the rest of a
folder being walked and the blocks behind a sequential reader, waits behind what somebody waits for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from millpond.daemon import memfd
from millpond.daemon.errors import (
    CredentialsError,
    MillpondError,
    RemoteChangedError,
    RemoteError,
    StoreDamagedError,
    from_wire,
)
from millpond.daemon.names import ObjectName
from millpond.daemon.remote.backend import Got
from millpond.daemon.remote.partial import BLOCK_BYTES, WHOLE_BYTES, Partial
from millpond.daemon.remote.places import Places, check
from millpond.daemon.remote.settling import Settler

log = logging.getLogger("millpond.source")

# Requests at once for those who wait, and ahead of need.
NOW, AHEAD = 32, 16
# So many who wait leave nothing for what comes ahead of need.
_BUSY = 24
# Blocks in one request, and the most that is brought behind a sequential reader; twice as far each time.
_JOINED = 8
_MOST_AHEAD = 64
# Names that wait to be brought ahead of need, and large objects with open files.
_MAX_HINTS, _MAX_PARTIALS = 4096, 64
# Who waits is told of a failure in this time.
DEADLINE_S = 50.0
# A refusal holds for so long: a thousand files do not ask a thousand times.
_REFUSED_S = 5.0
# So long an object that was changed cannot be read: the kernel asks twice, and its reader must be told that what he read
# before is of another one.
_CHANGED_S = 1.0


@dataclass(slots=True)
class _Large:
    """A large object being read; `flying` are blocks under way, `window` how many come behind a reader who is at `next`, and who
    knows that all before the block `told` is there."""

    partial: Partial
    inode: int
    flying: dict[int, Future[None]] = field(default_factory=dict)
    window: int = 1
    next: int = -1
    told: int = -1
    settling: bool = False
    damaged: bool = False


class Fetcher:
    """For one mount. `folder` is for what is read in part."""

    def __init__(self, places: Places, settler: Settler, folder: str) -> None:
        self._places = places
        self._settler = settler
        self._folder = folder
        self._lock = threading.Lock()
        # Told when fewer wait.
        self._calmer = threading.Condition(self._lock)
        self._now = ThreadPoolExecutor(NOW, thread_name_prefix="fetch")
        self._ahead = ThreadPoolExecutor(AHEAD, thread_name_prefix="ahead")
        self._flying: dict[ObjectName, Future[bytes]] = {}
        self._hints: OrderedDict[ObjectName, None] = OrderedDict()
        self._walking = 0
        self._waiting = 0
        self._large: OrderedDict[ObjectName, _Large] = OrderedDict()
        # Files that were whole and are stored now; readers may still have them open.
        self._stored: set[int] = set()
        self._refused: tuple[float, MillpondError] | None = None
        # When objects were found changed, the last few of them.
        self._changed: OrderedDict[ObjectName, float] = OrderedDict()

    @property
    def moved(self) -> tuple[int, int]:
        """Requests and bytes so far."""
        return self._places.moved

    def open(self, name: ObjectName, size: int) -> tuple[int, bool]:
        """(descriptor, whether all is there) of an object that is to have `size` bytes: of a memory file, or of one that `ensure`
        fills. Raises ObjectMissingError, StoreDamagedError, RemoteError, CredentialsError."""
        if size <= WHOLE_BYTES:
            return memfd.from_bytes(self._whole(name)), True
        large = self._opened(name, size)
        return os.dup(large.partial.fd), False

    def ensure(self, name: ObjectName, size: int, inode: int, offset: int, length: int) -> tuple[int, int]:
        """Have bytes [offset, offset + length) of a large object in its file, which is that of `open` with this inode number; the range
        around them that is there. Raises as `open`, and RemoteChangedError."""
        if inode in self._stored:
            return 0, size
        large = self._opened(name, size)
        if large.inode != inode:
            if inode in self._stored:  # since just now
                return 0, size
            raise _changed(name)
        if large.damaged:
            raise _damaged(name)
        last_block = max(offset, min(offset + length, size) - 1) // BLOCK_BYTES
        wanted = range(offset // BLOCK_BYTES, last_block + 1)
        tasks = self._bring(large, wanted, self._now)
        self._read_ahead(large, wanted)
        deadline = time.monotonic() + DEADLINE_S
        with self._someone_waits():
            for task in tasks:
                try:
                    task.result(max(0.0, deadline - time.monotonic()))
                except TimeoutError:
                    raise _late(name) from None
                except RemoteChangedError:
                    self._drop(name)
                    raise _changed(name) from None
        self._settle_if_whole(large)
        start, _ = large.partial.run(wanted[0])
        _, end = large.partial.run(wanted[-1])
        if large.window > 1:  # he is to ask again before he is through: then what follows is on its way by then
            end = min(end, (large.next + min(large.window // 2, _JOINED)) * BLOCK_BYTES)
        large.told = -(-end // BLOCK_BYTES)
        return start, end

    def hint(self, names: Sequence[ObjectName]) -> None:
        """These may be read soon: small objects of a folder that is being walked."""
        with self._lock:
            for name in names:
                if name not in self._flying and self._settler.get(name) is None and len(self._hints) < _MAX_HINTS:
                    self._hints[name] = None
            more = min(AHEAD - self._walking, len(self._hints))
            self._walking += more
        for _ in range(more):
            self._ahead.submit(self._walk)

    def close(self) -> None:
        """Nothing more is asked for; what came is stored."""
        with self._lock:
            self._hints.clear()
        for pool in (self._now, self._ahead):
            pool.shutdown(wait=False, cancel_futures=True)
        self._settler.close()

    # -- small objects --------------------------------------------------------------------------------------------

    def _whole(self, name: ObjectName) -> bytes:
        data = self._settler.get(name)
        if data is not None:
            return data
        with self._lock:
            self._hints.pop(name, None)
            future = self._flying.get(name)
            if future is None:
                future = self._flying[name] = self._now.submit(self._fetch, name)
        with self._someone_waits():
            try:
                return future.result(DEADLINE_S)
            except TimeoutError:
                raise _late(name) from None
            except MillpondError as error:
                raise from_wire(error.to_wire()) from None  # one error for each who waits

    def _fetch(self, name: ObjectName) -> bytes:
        try:
            data = bytes(self._get(name, 0, None).data)
            check(name, data)
            self._settler.keep(name, data)
            return data
        finally:
            with self._lock:
                self._flying.pop(name, None)

    def _walk(self) -> None:
        """Bring hinted objects, one after the other, while there is room and nobody waits for much else."""
        while True:
            with self._calmer:
                self._calmer.wait_for(lambda: self._waiting <= _BUSY)
                if not self._hints or not self._settler.room():
                    self._hints.clear()
                    self._walking -= 1
                    return
                name, _ = self._hints.popitem(last=False)
                mine: Future[bytes] | None = None
                if name not in self._flying:
                    mine = self._flying[name] = Future()
            if mine is not None:
                try:
                    mine.set_result(self._fetch(name))
                except Exception as error:  # whoever waits for it is told; nobody else needs to know
                    mine.set_exception(error)

    # -- large objects --------------------------------------------------------------------------------------------

    def _opened(self, name: ObjectName, size: int) -> _Large:
        with self._lock:
            large = self._large.get(name)
            if large is not None:
                self._large.move_to_end(name)
                return large
            if time.monotonic() - self._changed.get(name, -_CHANGED_S) < _CHANGED_S:
                raise _changed(name)
        first = self._get(name, 0, min(BLOCK_BYTES, size))
        if first.entry.size != size:
            raise StoreDamagedError(
                f"object {name} has {first.entry.size} bytes on the remote, and {size} were expected",
                hint="mount again",
            )
        with self._lock:
            large = self._large.get(name)
            if large is None:
                large = self._large[name] = self._new(name, size, first.entry.etag or "")
            while len(self._large) > _MAX_PARTIALS:  # its files are closed when nobody reads or fills them any more
                self._large.popitem(last=False)
        if not large.partial.has(0):
            large.partial.fill(0, memoryview(first.data).cast("B"))
        return large

    def _new(self, name: ObjectName, size: int, etag: str) -> _Large:
        try:
            partial = Partial(self._folder, name, size, etag)
        except BlockingIOError:  # another mount's
            partial = Partial(os.path.join(self._folder, f"{os.getpid()}"), name, size, etag)
        inode = os.fstat(partial.fd).st_ino
        self._stored.discard(inode)
        return _Large(partial, inode)

    def _bring(self, large: _Large, wanted: range, pool: ThreadPoolExecutor) -> list[Future[None]]:
        """Requests under way for the blocks that are not there, adjacent ones joined."""
        tasks: dict[Future[None], None] = {}
        with self._lock:
            run: list[int] = []

            def send() -> None:
                if run:
                    blocks = tuple(run)
                    task = pool.submit(self._blocks, large, blocks)
                    large.flying.update(dict.fromkeys(blocks, task))
                    tasks[task] = None
                    run.clear()

            for block in wanted:
                flying = large.flying.get(block)
                if flying is not None:
                    tasks[flying] = None
                if flying is not None or large.partial.has(block):
                    send()
                    continue
                run.append(block)
                if len(run) >= _JOINED:
                    send()
            send()
        return list(tasks)

    def _blocks(self, large: _Large, blocks: tuple[int, ...]) -> None:
        partial = large.partial
        start = blocks[0] * BLOCK_BYTES
        size = min(partial.size, (blocks[-1] + 1) * BLOCK_BYTES) - start
        try:
            got = self._get(partial.name, start, size, etag=partial.etag or None)
            if len(got.data) != size:
                raise RemoteError(
                    f"the remote gave {len(got.data)} bytes of object {partial.name} where {size} were asked for"
                )
            view = memoryview(got.data).cast("B")
            for number, block in enumerate(blocks):
                partial.fill(block, view[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES])
        finally:
            with self._lock:
                for block in blocks:
                    large.flying.pop(block, None)
        self._settle_if_whole(large)

    def _read_ahead(self, large: _Large, wanted: range) -> None:
        """Twice as far each time while the reader goes on where he was; from the beginning after a jump."""
        if large.next - 1 <= wanted[0] <= max(large.next, large.told):
            large.window = min(_MOST_AHEAD, large.window * 2)
        else:
            large.window = 1
        large.next = wanted[-1] + 1
        if large.window > 1:
            ahead = range(large.next, min(large.partial.blocks, large.next + large.window))
            if ahead:
                self._bring(large, ahead, self._ahead)

    def _settle_if_whole(self, large: _Large) -> None:
        with self._lock:
            if large.settling or not large.partial.is_whole:
                return
            large.settling = True

        name = large.partial.name

        def done(is_right: bool) -> None:
            large.damaged = not is_right
            large.partial.remove()
            if not is_right:
                log.error("object %s on the remote is not what its name says", name)
                return
            with self._lock:  # who reads on has the file; the room of ours is to come back
                self._stored.add(large.inode)
                if self._large.get(name) is large:
                    del self._large[name]

        self._settler.keep_file(name, large.partial.path, done)

    def _drop(self, name: ObjectName) -> None:
        """The object was changed on the remote: nothing of the other one is kept."""
        with self._lock:
            large = self._large.pop(name, None)
            self._changed[name] = time.monotonic()
            if len(self._changed) > _MAX_PARTIALS:
                self._changed.popitem(last=False)
        if large is not None:
            large.partial.remove()

    # -- both -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _someone_waits(self) -> Iterator[None]:
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._calmer:
                self._waiting -= 1
                self._calmer.notify_all()

    def _get(self, name: ObjectName, start: int, size: int | None, *, etag: str | None = None) -> Got:
        """Ask the remotes, unless they have refused just now."""
        refused = self._refused
        if refused is not None and time.monotonic() - refused[0] < _REFUSED_S:
            raise from_wire(refused[1].to_wire())
        try:
            return self._places.get(name, start, size, etag=etag)
        except CredentialsError as error:
            self._refused = time.monotonic(), error
            self._places.renew()
            raise


def _damaged(name: ObjectName) -> StoreDamagedError:
    return StoreDamagedError(
        f"object {name} on the remote is not what its name says",
        hint="push it again from where it is whole, then mount again",
    )


def _changed(name: ObjectName) -> RemoteChangedError:
    return RemoteChangedError(f"object {name} was changed on the remote while it was read", hint="open the file again")


def _late(name: ObjectName) -> RemoteError:
    return RemoteError(
        f"object {name} did not come from the remote in {DEADLINE_S:g} s", hint="the next read tries again"
    )
