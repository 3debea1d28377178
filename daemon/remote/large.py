"""Large objects that are read lazily: blocks brought as they are asked for, and behind a sequential reader; or the object as a whole.

By default bytes are given out as they come, and the object is checked when its last block is there. Where the whole is to be
checked first (`mount --verify=whole`, and names of DVC 2, whose objects nobody else checks) a reader waits for all of it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from millpond.daemon.errors import (
    MillpondError,
    RemoteChangedError,
    RemoteError,
    StoreDamagedError,
    from_system,
    from_wire,
)
from millpond.daemon.names import ObjectName
from millpond.daemon.project.hashing import digest_of
from millpond.daemon.remote.backend import Got
from millpond.daemon.remote.gate import Gate
from millpond.daemon.remote.layout import LEGACY
from millpond.daemon.remote.pace import blocks_a_second
from millpond.daemon.remote.partial import BLOCK_BYTES, Partial, Partials
from millpond.daemon.remote.settling import Settler

log = logging.getLogger("millpond.source")
T = TypeVar("T")

# Blocks in one request, and the most that is brought behind a sequential reader; twice as far each time.
_JOINED = 8
_MOST_AHEAD = 64
# Large objects that are kept open while nobody reads them.
_MAX_IDLE, _IDLE_S = 64, 5.0
# Objects that are brought as a whole at once, and requests of each under way.
FILLED, _FILLING = 4, 6
# Who waits is told of a failure in this time; one who waits for a whole object hears in this time how far it is.
DEADLINE_S = 50.0
_COMING_S = 15.0
# So long an object that was changed cannot be read: the kernel asks twice, and its reader must be told that what he read
# before is of another one.
_CHANGED_S = 1.0
# So long one that is not what its name says is not asked for again.
_DAMAGED_S = 60.0
_MAX_STORED = 65536


@dataclass(slots=True)
class _Large:
    """A large object being read. `flying` are blocks under way and whether that is ahead of need; `window` how many come behind a
    reader who is at `next`, and who knows that all before the block `told` is there; `readers` wait for it now; `checked` when its bytes are what its name says, `whole` is for those who wait
    for that; `damaged` is when they were found not to be."""

    partial: Partial
    inode: int
    flying: dict[int, tuple[Future[None], bool]] = field(default_factory=dict)
    window: int = 1
    next: int = -1
    told: int = -1
    readers: int = 0
    used: float = 0.0
    settling: bool = False
    damaged: float | None = None
    checked: bool = False
    whole: Future[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nobody is at it, or about to be."""
        if time.monotonic() - self.used < _IDLE_S:
            return False
        return not (self.readers or self.flying or self.settling or (self.whole is not None and not self.whole.done()))


class LargeObjects:
    """Those of one mount. `now` are threads for those who wait, `ahead` for what comes ahead of need; `changed` is called when one that
    was here in part is checked."""

    def __init__(
        self,
        gate: Gate,
        settler: Settler,
        partials: Partials,
        *,
        now: ThreadPoolExecutor,
        ahead: ThreadPoolExecutor,
        check_first: bool = False,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._gate = gate
        self._settler = settler
        self._partials = partials
        self._now = now
        self._ahead = ahead
        self._filling = ThreadPoolExecutor(FILLED, thread_name_prefix="whole")
        self._check_first = check_first
        self._tell = changed
        self._lock = threading.Lock()
        self._opening: dict[ObjectName, Future[_Large]] = {}
        self._large: OrderedDict[ObjectName, _Large] = OrderedDict()
        # Files that were whole and are stored now; readers may still have them open.
        self._stored: OrderedDict[int, None] = OrderedDict()
        # When objects were found changed, the last few of them.
        self._changed: OrderedDict[ObjectName, float] = OrderedDict()
        # What is to be said of the last object that was not what its name says.
        self.last_damaged = ""
        # Blocks that came, of objects that are brought as a whole.
        self._came = 0

    @property
    def unverified(self) -> int:
        """Objects of which bytes may have been given out, and that nobody has checked as a whole yet."""
        with self._lock:
            return sum(
                1
                for name, each in self._large.items()
                if not (each.checked or each.damaged is not None or self._is_first(name))
            )

    def open(self, name: ObjectName, size: int) -> int:
        """A descriptor of the file that `ensure` fills. Raises as `ensure`."""
        return os.dup(self._opened(name, size).partial.fd)

    def ensure(self, name: ObjectName, size: int, inode: int, offset: int, length: int) -> tuple[int, int] | int:
        """Have bytes [offset, offset + length) in the file that `open` gave, which has this inode number; the range around them that is
        there. Where the whole is checked first and is still coming: how many blocks came so far of all such objects; it is to be asked
        again. Raises ObjectMissingError, StoreDamagedError, RemoteError, RemoteChangedError, CredentialsError, DiskFullError."""
        if inode in self._stored:
            return 0, size
        large = self._opened(name, size)
        if large.inode != inode:
            if inode in self._stored:  # since just now
                return 0, size
            raise _changed(name)
        if large.damaged is not None:
            raise damaged(name)
        with self._reading(large):
            if self._is_first(name):
                return self._wait_for_whole(large)
            return self._wait_for_blocks(large, offset, length)

    def close(self) -> None:
        """Nothing more is asked for; locks are let go of."""
        self._filling.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for each in self._large.values():
                each.partial.unlock()

    def _is_first(self, name: ObjectName) -> bool:
        return self._check_first or name.algo == LEGACY

    @contextmanager
    def _reading(self, large: _Large) -> Iterator[None]:
        with self._lock:
            large.readers += 1
        try:
            yield
        finally:
            with self._lock:
                large.readers -= 1

    # -- opening --------------------------------------------------------------------------------------------------

    def _opened(self, name: ObjectName, size: int) -> _Large:
        """The object; who asks for it meanwhile shares its first request."""
        with self._lock:
            large = self._large.get(name)
            if large is not None and (large.damaged is None or time.monotonic() - large.damaged < _DAMAGED_S):
                self._large.move_to_end(name)
                large.used = time.monotonic()
                return large
            if time.monotonic() - self._changed.get(name, -_CHANGED_S) < _CHANGED_S:
                raise _changed(name)
            opening = self._opening.get(name)
            if opening is None:
                opening = self._opening[name] = self._now.submit(self._open, name, size)
        return result_of(opening, name, time.monotonic() + DEADLINE_S)

    def _open(self, name: ObjectName, size: int) -> _Large:
        try:
            first = self._gate.get(name, 0, min(BLOCK_BYTES, size), accept=lambda got: _check_size(name, got, size))
            with _disk(name):
                partial = self._partials.open(name, size, first.entry.etag or "")
                if not partial.has(0):
                    partial.fill(0, memoryview(first.data).cast("B"))
            large = _Large(partial, os.fstat(partial.fd).st_ino, used=time.monotonic())
            with self._lock:
                self._stored.pop(large.inode, None)
                self._large[name] = large
                # Their files are closed; what is there is found again.
                idle = [each for each, one in self._large.items() if one.is_idle and one is not large]
                for each in idle[: max(0, len(self._large) - _MAX_IDLE)]:
                    del self._large[each]
            self._settle_if_whole(large)
            return large
        finally:
            with self._lock:
                self._opening.pop(name, None)

    # -- blocks ---------------------------------------------------------------------------------------------------

    def _wait_for_blocks(self, large: _Large, offset: int, length: int) -> tuple[int, int]:
        partial = large.partial
        last_block = max(offset, min(offset + length, partial.size) - 1) // BLOCK_BYTES
        wanted = range(offset // BLOCK_BYTES, last_block + 1)
        tasks = self._bring(large, wanted, self._now)
        self._read_ahead(large, wanted)
        deadline = time.monotonic() + DEADLINE_S
        for task in tasks:
            self._outcome(large, task, deadline)
        self._settle_if_whole(large)
        start, _ = partial.run(wanted[0])
        _, end = partial.run(wanted[-1])
        if large.window > 1:  # he is to ask again before he is through: then what follows is on its way by then
            end = min(end, (large.next + min(large.window // 2, _JOINED)) * BLOCK_BYTES)
        large.told = -(-end // BLOCK_BYTES)
        return start, end

    def _outcome(self, large: _Large, task: Future[None], deadline: float) -> None:
        name = large.partial.name
        try:
            result_of(task, name, deadline)
        except RemoteChangedError:
            self._drop(large)
            raise _changed(name) from None

    def _bring(self, large: _Large, wanted: range, pool: ThreadPoolExecutor) -> list[Future[None]]:
        """Requests under way for the blocks that are not there, adjacent ones joined."""
        lacking = [block for block in wanted if not large.partial.has(block)]  # reads the disk: not while others wait
        tasks: dict[Future[None], None] = {}
        bound = self._gate.limits.rate
        joined = min(_JOINED, blocks_a_second(bound)) if bound else _JOINED
        with self._lock:
            run: list[int] = []

            def send() -> None:
                if run:
                    blocks = tuple(run)
                    task = pool.submit(self._blocks, large, blocks)
                    large.flying.update(dict.fromkeys(blocks, (task, pool is self._ahead)))
                    tasks[task] = None
                    run.clear()

            for block in lacking:
                flying, is_early = large.flying.get(block, (None, False))
                if flying is not None and is_early and pool is self._now and flying.cancel():
                    # It has not begun: whoever waits does not stand behind what nobody waits for.
                    for each in [each for each, (task, _) in large.flying.items() if task is flying]:
                        del large.flying[each]
                    flying = None
                if flying is not None:
                    tasks[flying] = None
                    send()
                    continue
                if large.partial.is_sure(block):  # since just now
                    continue
                if run and block != run[-1] + 1:
                    send()
                run.append(block)
                if len(run) >= joined:
                    send()
            send()
        return list(tasks)

    def _blocks(self, large: _Large, blocks: tuple[int, ...]) -> None:
        partial = large.partial
        start = blocks[0] * BLOCK_BYTES
        size = min(partial.size, (blocks[-1] + 1) * BLOCK_BYTES) - start
        try:
            got = self._gate.get(partial.name, start, size, etag=partial.etag or None)
            if len(got.data) != size:
                raise RemoteError(
                    f"the remote gave {len(got.data)} bytes of object {partial.name} where {size} were asked for"
                )
            view = memoryview(got.data).cast("B")
            with _disk(partial.name):
                for number, block in enumerate(blocks):
                    partial.fill(block, view[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES])
        finally:
            with self._lock:
                self._came += len(blocks)
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

    # -- whole objects --------------------------------------------------------------------------------------------

    def _wait_for_whole(self, large: _Large) -> tuple[int, int] | int:
        with self._lock:
            if large.checked:
                return 0, large.partial.size
            if large.whole is None or (large.whole.done() and large.whole.exception() is not None):
                large.whole = self._filling.submit(self._fill, large)
            whole = large.whole
        wait([whole], _COMING_S)
        if not whole.done():
            with self._lock:
                return self._came
        self._outcome(large, whole, 0.0)
        return 0, large.partial.size

    def _fill(self, large: _Large) -> None:
        """Bring all of an object, then see whether it is what its name says."""
        partial = large.partial
        flying: deque[Future[None]] = deque()
        for start in range(0, partial.blocks, _JOINED):
            flying.extend(self._bring(large, range(start, min(start + _JOINED, partial.blocks)), self._now))
            while len(flying) > _FILLING:
                flying.popleft().result()
        while flying:
            flying.popleft().result()
        with _disk(partial.name), open(f"/proc/self/fd/{partial.fd}", "rb") as file:
            is_right = digest_of(file, partial.name.algo) == partial.name.hex
        if not is_right:
            self._is_damaged(large)
            raise damaged(partial.name)
        large.checked = True
        self._settle_if_whole(large)

    # -- the end --------------------------------------------------------------------------------------------------

    def _settle_if_whole(self, large: _Large) -> None:
        name = large.partial.name
        with self._lock:
            if large.settling or not large.partial.is_whole or (self._is_first(name) and not large.checked):
                return
            large.settling = True

        def done(is_right: bool) -> None:
            if not is_right:
                self._is_damaged(large)
                return
            large.checked = True
            with self._lock:  # who reads on has the file; the room of ours is to come back
                self._stored[large.inode] = None
                while len(self._stored) > _MAX_STORED:
                    self._stored.popitem(last=False)
                if self._large.get(name) is large:
                    del self._large[name]
            large.partial.remove()
            self._tell()

        self._settler.keep_file(name, large.partial.path, done)

    def _is_damaged(self, large: _Large) -> None:
        large.damaged = time.monotonic()
        if self._gate.is_damaged(large.partial.name):  # whoever opens it now gets another remote's
            large.damaged -= _DAMAGED_S
        large.partial.remove()
        self.last_damaged = str(damaged(large.partial.name))
        self._tell()
        log.error("%s", self.last_damaged)

    def _drop(self, large: _Large) -> None:
        """The object was changed on the remote: nothing of the other one is kept."""
        name = large.partial.name
        with self._lock:
            if self._large.get(name) is large:
                del self._large[name]
            self._changed[name] = time.monotonic()
            if len(self._changed) > _MAX_IDLE:
                self._changed.popitem(last=False)
        large.partial.remove()


def result_of(task: Future[T], name: ObjectName, deadline: float) -> T:
    """What a task brings; one error for each who waits."""
    try:
        return task.result(max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        raise late(name) from None
    except MillpondError as error:
        raise from_wire(error.to_wire()) from None


@contextmanager
def _disk(name: ObjectName) -> Iterator[None]:
    """What the user's own disk refuses, as an error that says so."""
    try:
        yield
    except OSError as error:
        raise from_system(error, f"keeping object {name}") from error


def _check_size(name: ObjectName, got: Got, size: int) -> None:
    if got.entry.size != size:
        raise StoreDamagedError(
            f"object {name} has {got.entry.size} bytes on the remote, and {size} were expected", hint="mount again"
        )


def damaged(name: ObjectName) -> StoreDamagedError:
    return StoreDamagedError(
        f"object {name} on the remote is not what its name says",
        hint="push it again from where it is whole, then mount again",
    )


def _changed(name: ObjectName) -> RemoteChangedError:
    return RemoteChangedError(f"object {name} was changed on the remote while it was read", hint="open the file again")


def late(name: ObjectName) -> RemoteError:
    return RemoteError(
        f"object {name} did not come from the remote in {DEADLINE_S:g} s", hint="the next read tries again"
    )
