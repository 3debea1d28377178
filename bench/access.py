"""Other ways to read than from the beginning to the end: at random, by a mapping, by a loader's worker processes."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import xxhash

from bench.data import DataSet
from bench.host import BenchError
from bench.reading import Reading

# A loader's batch, in files, and how many worker processes make batches.
BATCH, WORKERS = 32, 4


@dataclass(frozen=True, slots=True)
class Scatter:
    """Reads of `size` bytes at `offsets` of one file, and the digest of all that they give, one after the other."""

    path: str
    size: int
    offsets: Sequence[int]
    digest: bytes

    @classmethod
    def of(cls, made: DataSet, size: int, count: int) -> Scatter:
        """`count` reads at multiples of `size` in the data set's first file, at the same places each time."""
        path = made.paths[0]
        places = random.Random(f"scatter {size}").choices(range(made.files[path][0] // size), k=count)
        offsets = [place * size for place in places]
        with open(made.root / path, "rb") as file:
            digest = xxhash.xxh3_128(b"".join(os.pread(file.fileno(), size, offset) for offset in offsets)).digest()
        return cls(path, size, offsets, digest)

    @property
    def volume(self) -> int:
        return self.size * len(self.offsets)


def scattered(root: Path, scatter: Scatter) -> Reading:
    """Each read a pread. Raises BenchError where a byte differs."""
    fd = os.open(root / scatter.path, os.O_RDONLY)
    try:
        began = time.perf_counter()
        got = [os.pread(fd, scatter.size, offset) for offset in scatter.offsets]
        seconds = time.perf_counter() - began
    finally:
        os.close(fd)
    return _proven(scatter, got, seconds)


def scattered_mapped(root: Path, scatter: Scatter) -> Reading:
    """Each read a slice of a mapping. Raises BenchError where a byte differs."""
    with open(root / scatter.path, "rb") as file:
        began = time.perf_counter()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            got = [mapped[offset : offset + scatter.size] for offset in scatter.offsets]
        seconds = time.perf_counter() - began
    return _proven(scatter, got, seconds)


def _proven(scatter: Scatter, got: list[bytes], seconds: float) -> Reading:
    if xxhash.xxh3_128(b"".join(got)).digest() != scatter.digest:
        raise BenchError(f"{scatter.path} does not hold what was stored, read at random")
    return Reading(seconds, scatter.volume)


def mapped_whole(root: Path, made: DataSet) -> Reading:
    """The first file, hashed through a mapping: the hash is part of the time. Raises BenchError."""
    path = made.paths[0]
    with open(root / path, "rb") as file:
        began = time.perf_counter()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            digest = xxhash.xxh3_128(mapped).digest()
        seconds = time.perf_counter() - began
    if digest != made.files[path][1]:
        raise BenchError(f"{path} does not hold what was stored, read by a mapping")
    return Reading(seconds, made.files[path][0])


def epoch(root: Path, made: DataSet) -> Reading:
    """What a training loop's loader does in an epoch: worker processes take batches of a shuffled order, open, read and decode (here: a
    checksum and a compression of the first KiB). Their start is not part of the time. Raises BenchError."""
    paths = made.shuffled()
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    # Not a Pool: it ends its workers by SIGTERM, which the bench takes for an interruption.
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("fork")) as pool:
        pool.submit(os.getpid).result()
        began = time.perf_counter()
        found = dict(pair for batch in pool.map(partial(_batch, root), batches) for pair in batch)
        seconds = time.perf_counter() - began
    for path, (size, digest) in made.files.items():
        if found.get(path) != (size, digest):
            raise BenchError(f"{root / path} does not hold what was stored, read by a loader")
    return Reading(seconds, made.size)


def _batch(root: Path, paths: Sequence[str]) -> list[tuple[str, tuple[int, bytes]]]:
    """In a worker: what a batch's files hold."""
    made = []
    for path in paths:
        data = (root / path).read_bytes()
        zlib.compress(data[:1024])
        made.append((path, (len(data), xxhash.xxh3_128(data).digest())))
    return made


def opened(root: Path, made: DataSet) -> Reading:
    """Every file by Python's own open(), which may ask whether it is a terminal: FUSE keeps no answer to that. Raises BenchError."""
    seconds = 0.0
    for path, (_, digest) in made.files.items():
        began = time.perf_counter()
        with open(root / path, "rb") as file:
            data = file.read()
        seconds += time.perf_counter() - began
        if xxhash.xxh3_128(data).digest() != digest:
            raise BenchError(f"{root / path} does not hold what was stored")
    return Reading(seconds, made.size)


def skim(root: Path, made: DataSet, at_once: int) -> int:
    """Read all files in order and look at nothing; the bytes. For processor time, of which a hash would be a part."""
    buffer, done = [bytearray(at_once)], 0
    for path in made.paths:
        fd = os.open(root / path, os.O_RDONLY)
        try:
            while got := os.readv(fd, buffer):
                done += got
        finally:
            os.close(fd)
    return done
