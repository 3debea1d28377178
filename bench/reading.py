"""Reading a tree and proving that it is the source's.

The clock runs while files are opened, read and closed; hashing what was read is outside it, except where several processes
read at once.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import os
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from bench.data import DataSet
from bench.host import BenchError

# What cat and cp ask for at once, and what programs do that mean to be fast.
COMMON, LARGE = 128 << 10, 1 << 20
# Readers that take longer are stuck.
_MOST_S = 1800


@dataclass(frozen=True, slots=True)
class Reading:
    """Seconds that reading took, bytes read and found equal."""

    seconds: float
    checked: int


def read(root: Path, made: DataSet, paths: Sequence[str], at_once: int = LARGE) -> Reading:
    """Read files in this order, `at_once` bytes a call. Raises BenchError where a byte differs or cannot be read."""
    try:
        return _read(root, made, paths, at_once)
    except OSError as error:
        raise BenchError(f"reading below {root}: {error}") from error


def _read(root: Path, made: DataSet, paths: Sequence[str], at_once: int) -> Reading:
    buffer = memoryview(bytearray(at_once))
    seconds, checked = 0.0, 0
    for path in paths:
        name, digest = str(root / path), xxhash.xxh3_128()
        began = time.perf_counter()
        fd = os.open(name, os.O_RDONLY)
        seconds += time.perf_counter() - began
        try:
            while True:
                began = time.perf_counter()
                got = os.readv(fd, [buffer])
                seconds += time.perf_counter() - began
                if not got:
                    break
                digest.update(buffer[:got])
                checked += got
        finally:
            began = time.perf_counter()
            os.close(fd)
            seconds += time.perf_counter() - began
        if digest.digest() != made.files[path][1]:
            raise BenchError(f"{name} does not hold what was stored")
    return Reading(seconds, checked)


def read_together(
    root: Path, made: DataSet, paths: Sequence[str], readers: int, *, first: Callable[[], None] | None = None
) -> Reading:
    """Read files in this order by `readers` processes, as a loader's workers do, each its share: they are there before the clock starts. The
    wall's time, hashing within it. `first` is done within it too, before they begin. Raises as `read`."""
    context = multiprocessing.get_context("fork")
    told: multiprocessing.queues.Queue[Reading | str] = context.Queue()
    begin, ready = context.Event(), context.Semaphore(0)

    def share(number: int) -> None:
        mine = paths[number::readers]
        ready.release()
        begin.wait()
        try:
            told.put(read(root, made, mine))
        except BenchError as error:
            told.put(str(error))

    workers = [context.Process(target=share, args=(number,), daemon=True) for number in range(readers)]
    try:
        for worker in workers:
            worker.start()
        for _ in workers:
            ready.acquire()
        began = time.perf_counter()
        if first is not None:
            first()
        begin.set()
        parts = [told.get(timeout=_MOST_S) for _ in workers]
        seconds = time.perf_counter() - began
    except queue.Empty:
        raise BenchError(f"those who read below {root} have not ended in {_MOST_S} s") from None
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()
    for part in parts:
        if isinstance(part, str):
            raise BenchError(part)
    return Reading(seconds, sum(part.checked for part in parts if isinstance(part, Reading)))


def list_and_read(root: Path, made: DataSet, paths: Sequence[str], readers: int) -> Reading:
    """As a loader of a folder of images begins: walk the tree, looking at no file, then read them in this order by `readers`. The walk
    counts. Raises as `read`."""

    def walk() -> None:
        count = sum(len(names) for _, _, names in os.walk(root))
        if count < len(made.files):
            raise BenchError(f"{root} lists {count} files, not {len(made.files)}")

    if readers > 1:
        return read_together(root, made, paths, readers, first=walk)
    began = time.perf_counter()
    walk()
    walked = time.perf_counter() - began
    got = read(root, made, paths)
    return Reading(walked + got.seconds, got.checked)


def check(root: Path, made: DataSet) -> int:
    """Every file of the data set is below `root` with its bytes, and no other; how many bytes that was."""
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    if found != sorted(made.paths):
        raise BenchError(f"{root} holds {len(found)} files, of {len(made.paths)} that were stored, or others")
    return read(root, made, made.paths).checked


def find(root: Path) -> tuple[float, int, int]:
    """As `find -size`: walk, and look at every file's attributes. Seconds, files, bytes of names and sizes seen."""
    began = time.perf_counter()
    files, size, pending = 0, 0, [str(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    files += 1
                    size += entry.stat(follow_symlinks=False).st_size
    return time.perf_counter() - began, files, size
