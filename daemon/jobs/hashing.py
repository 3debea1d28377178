"""Files of a workspace hashed where they are read, without storing them; several large ones at once where that can be done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from millpond.daemon.jobs.reading import MOST_BEHIND, Counter, check_unchanged, in_order, open_regular
from millpond.daemon.md5.kernels import WIDEST, Kernels
from millpond.daemon.md5.streams import Stream, single, update
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Put, Tick

# What is read at once of a file; progress is told after each.
READ_BYTES = 1 << 20
# Files of so many bytes wait for others; those that wait are hashed together when they have so many in all, because kernels are made anew in
# each process, in a tenth of a second.
_LEAST_BYTES, _WORTH_BYTES = 8 << 20, 256 << 20


def hash_files(paths: Iterable[str], tick: Tick | None) -> Iterator[Put]:
    """`ObjectStore.put_files` without storing: in order. Raises TargetError, FileChangedError."""
    yield from in_order(_hashed(paths, Counter(tick)))


@dataclass(slots=True)
class _Waiting:
    """A large file that was opened, and what was hashed of it."""

    number: int
    path: str
    fd: int
    before: os.stat_result

    def end(self, value: str) -> tuple[int, Put]:
        """What came of it. Raises FileChangedError."""
        check_unchanged(self.path, self.fd, self.before)
        return self.number, Put(self.path, ObjectName("md5", value), self.before.st_size, self.before)


def _hashed(paths: Iterable[str], counter: Counter) -> Iterator[tuple[int, Put]]:
    """Each file with its place among `paths`, as they end."""
    kernels = Kernels.of_here()
    buffer = memoryview(bytearray(READ_BYTES))
    waiting: list[_Waiting] = []
    try:
        for number, path in enumerate(paths):
            fd, before = open_regular(path)
            waiting.append(_Waiting(number, path, fd, before))
            if kernels is None or before.st_size < _LEAST_BYTES:
                yield _alone(None, waiting, buffer, counter)
            if len(waiting) == WIDEST or (waiting and number - waiting[0].number >= MOST_BEHIND):
                yield from _waited(kernels, waiting, buffer, counter)
        yield from _waited(kernels, waiting, buffer, counter)
    finally:
        for file in waiting:
            os.close(file.fd)


def _waited(
    kernels: Kernels | None, waiting: list[_Waiting], buffer: memoryview, counter: Counter
) -> Iterator[tuple[int, Put]]:
    """All that waits: together, where that is worth it."""
    for file in waiting:  # it may have changed meanwhile
        file.before = os.fstat(file.fd)
    size = sum(file.before.st_size for file in waiting)
    is_worth_it = kernels is not None and len(waiting) > 1 and (size >= _WORTH_BYTES or kernels.tried)
    if kernels is not None and is_worth_it and kernels.are_usable():
        yield from _together(kernels, waiting, counter)
    while waiting:
        yield _alone(kernels, waiting, buffer, counter)


def _alone(kernels: Kernels | None, waiting: list[_Waiting], buffer: memoryview, counter: Counter) -> tuple[int, Put]:
    """The last of those that wait, and it waits no more."""
    file = waiting[-1]
    digest = single(kernels)
    while length := os.readv(file.fd, [buffer]):
        digest.update(buffer[:length])
        counter.add(0, length)
    ended = file.end(digest.hexdigest())
    os.close(waiting.pop().fd)
    counter.add(1, 0)
    return ended


def _together(kernels: Kernels, waiting: list[_Waiting], counter: Counter) -> Iterator[tuple[int, Put]]:
    """All that wait, a part of each in turns."""
    streams = {file.number: Stream(kernels) for file in waiting}
    buffers = [memoryview(bytearray(READ_BYTES)) for _ in waiting]
    while waiting:
        parts = [
            buffer[: os.readv(file.fd, [buffer])] for file, buffer in zip(waiting, buffers[: len(waiting)], strict=True)
        ]
        update([streams[file.number] for file in waiting], parts)
        counter.add(0, sum(map(len, parts)))
        for file in [file for file, part in zip(waiting, parts, strict=True) if not part]:
            ended = file.end(streams[file.number].hexdigest())
            waiting.remove(file)
            os.close(file.fd)
            counter.add(1, 0)
            yield ended
