"""Files of a workspace on their way to the daemon: opened without ever blocking, read once, and looked at again behind that.

Files come one after the other, back to back in batches. Those that are worth it come beside each other, each on a strand of its
own, because MD5 of several contents takes far less time than of one after the other (see md5/kernels.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from millpond.daemon import memfd
from millpond.daemon.errors import DiskFullError, FileChangedError, TargetError
from millpond.daemon.jobs.batches import MAX_PIECES, Batch, Memory, OpenFile
from millpond.daemon.objects import Tick

T = TypeVar("T")

# Bytes of the first batch; each next one has twice as many, until they are as large as they may be: the daemon is not kept waiting for the first.
_FIRST_BYTES = 4 << 20
# What a strand puts into a batch at least, before the next one has its turn.
_TURN_BYTES = 1 << 20
# Files that go by, at most, while one before them waits for others or is read beside them: what is known of each is kept until then.
MOST_BEHIND = 10_000
_NOT_REGULAR = {
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Counter:
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


@dataclass(slots=True)
class _Source:
    """A file being read; `strand` is 0 where it is read alone."""

    number: int
    path: str
    fd: int
    before: os.stat_result
    strand: int = 0
    offset: int = 0

    @property
    def size(self) -> int:
        return self.before.st_size


class _Filler:
    """Fills batches one after the other; who takes one gives it back to `memory`."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        # Taken when something is to be put into it: while the one before waits to be sent, others come back.
        self._batch: Batch | None = None
        # Bytes of the batch that is being filled, once it is full.
        self.most = _FIRST_BYTES

    def take(self, file: _Source, most: int) -> Iterator[Batch]:
        """Read up to `most` bytes on; each batch that this fills. Raises as `read_batches`."""
        most = min(most, file.size - file.offset)
        last = False
        while not last and (most or not file.size):
            batch = self._batch = self._batch or self._memory.take()
            room = min(self.most - batch.size, most)
            _copy(file.path, file.fd, batch, file.offset, room)
            file.offset += room
            most -= room
            batch.size += room
            last = file.offset == file.size
            if last:
                check_unchanged(file.path, file.fd, file.before)
                batch.ends.append(OpenFile(file.path, file.before, file.number))
            batch.pieces.append((room, last, False, file.strand) if file.strand else (room, last, False))
            if batch.size >= self.most or len(batch.pieces) >= MAX_PIECES:
                self.most = min(2 * self.most, memfd.BATCH_BYTES)
                self._batch = None
                yield batch

    def finish(self) -> Iterator[Batch]:
        """The last batch, if anything is in it."""
        if self._batch is not None and self._batch.pieces:
            batch, self._batch = self._batch, None
            yield batch

    def close(self) -> None:
        if self._batch is not None:
            self._memory.give_back(self._batch)


def read_batches(
    paths: Iterable[str], memory: Memory, strands: int = 1, least_bytes: int = 0
) -> Generator[Batch, None, None]:
    """Fill memory files with the contents of `paths`; a large file runs on over several. Who takes a batch gives it back to `memory`.

    Up to `strands` files of `least_bytes` are read beside each other, so files end in another order than that of `paths`. Raises
    TargetError, FileChangedError, DiskFullError.
    """
    filler = _Filler(memory)
    # By strand, the one that came first at the head. They wait here until there are enough of them, small files going by.
    beside: dict[int, _Source] = {}
    try:
        for number, path in enumerate(paths):
            fd, before = open_regular(path)
            file = _Source(number, path, fd, before)
            if strands > 1 and file.size >= least_bytes:
                file.strand = next(strand for strand in range(1, strands + 1) if strand not in beside)
                beside[file.strand] = file
                if len(beside) == strands:
                    yield from _side_by_side(filler, beside, until=strands - 1)
            else:
                try:
                    yield from filler.take(file, file.size)
                finally:
                    os.close(fd)
            if beside and number - next(iter(beside.values())).number >= MOST_BEHIND:
                yield from _side_by_side(filler, beside, until=0)
        yield from _side_by_side(filler, beside, until=0)
        yield from filler.finish()
    finally:
        for file in beside.values():
            os.close(file.fd)
        filler.close()


def _side_by_side(filler: _Filler, beside: dict[int, _Source], until: int) -> Iterator[Batch]:
    """Read files in turns until only so many are left."""
    for file in beside.values():
        if not file.offset:  # it may have changed while it waited
            file.before = os.fstat(file.fd)
            file.strand = file.strand if len(beside) > 1 else 0
    while len(beside) > until:
        turn = max(_TURN_BYTES, filler.most // len(beside))
        for strand, file in list(beside.items()):
            yield from filler.take(file, turn)
            if file.offset == file.size:
                del beside[strand]
                os.close(file.fd)


def in_order(numbered: Iterable[tuple[int, T]]) -> Iterator[T]:
    """Items by their numbers, which are 0, 1, 2... in any order."""
    waiting: dict[int, T] = {}
    wanted = 0
    for number, item in numbered:
        waiting[number] = item
        while wanted in waiting:
            yield waiting.pop(wanted)
            wanted += 1


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
