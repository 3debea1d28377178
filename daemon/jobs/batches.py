"""Batches: memory files that are filled with contents, sent to the daemon, and told of when they have landed."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from millpond.daemon import memfd
from millpond.daemon.errors import ProtocolError
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data, Keep, Slice

# Pieces in one feed: bounds a frame's size for a tree of empty files.
MAX_PIECES = 4096
# A content of up to so many bytes that does not fit into what is left of a batch begins the next one.
WHOLE_BYTES = 1 << 20
# Batches that landed and are still told of.
_KEPT = 2


@dataclass(slots=True)
class OpenFile:
    """A file being sent: where it is, its stat from before its first byte was read, and its place among all."""

    path: str
    stat: os.stat_result
    number: int


@dataclass(slots=True)
class Batch:
    """One memory file being filled: `pieces` as `store.feed` takes them, `ends` the files whose last byte is in it; `view`
    its bytes, when it is one that is used again; `goes_on`: its first piece goes on with a content of the batch before."""

    fd: int
    view: memoryview | None = None
    size: int = 0
    pieces: list[Slice] = field(default_factory=list)
    ends: list[OpenFile] = field(default_factory=list)
    goes_on: bool = False

    @property
    def has_strands(self) -> bool:
        """Whether any of it is of contents that come beside each other."""
        return any(len(piece) == 4 for piece in self.pieces)


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
    if len(names) != sum(piece[1] for piece in batch.pieces):
        raise ProtocolError(f"{len(names)} contents were stored of a batch with others")
    ended = iter(names)
    with contextlib.ExitStack() as stack:
        view = batch.view
        if view is None and batch.size:
            view = stack.enter_context(memfd.viewed(batch.fd, batch.size))
        start, is_begun = 0, batch.goes_on
        for length, last, is_dir, *_ in batch.pieces:
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
