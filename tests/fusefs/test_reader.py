"""The reader: any ranges by any readers are the content's; each chunk is read once; memory is bounded; damage is contained."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.lowlevel
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fusefs.helpers import UID, mixed, open_store, put

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.store.index import Content
from millpond.daemon.store.reader import StoreReader
from millpond.fusefs import reader as module
from millpond.fusefs.reader import AHEAD_BYTES, CACHE_BYTES, ChunkCache, ForeignFile, StoredFile

T = TypeVar("T")
LARGE = mixed(12_000_000, 21)
RANDOM = random.Random(22).randbytes(7_000_000)
SMALL = b"a small content"
CONTENTS = {"large": LARGE, "random": RANDOM, "small": SMALL, "empty": b"", "zeros": bytes(5_000_000)}


class Library:
    """A store with a few contents, read by a process that is not its writer."""

    def __init__(self, path: Path) -> None:
        store = open_store(path / "store")
        names = put(store, list(CONTENTS.values()))
        store.close()
        self.path = path / "store"
        self.reader = StoreReader.open(self.path)
        found = self.reader.resolve(names, UID)
        self.contents: dict[str, Content] = {}
        for key, content in zip(CONTENTS, found, strict=True):
            assert content is not None
            self.contents[key] = content

    def file(self, cache: ChunkCache, key: str) -> StoredFile:
        return StoredFile(cache, self.reader, self.contents[key])

    def run(self, work: Callable[[ChunkCache], Awaitable[T]], budget: int = CACHE_BYTES) -> T:
        """Run `work` with a cache of its own; nothing may be under way when it is done."""

        async def main() -> T:
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    cache = ChunkCache(self.reader, nursery, budget)
                    result = await work(cache)
            assert not cache.working and not cache._streams
            return result

        return trio.run(main)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    made = Library(tmp_path_factory.mktemp("reader"))
    yield made
    made.reader.close()


def cold(library: Library) -> None:
    """Let the kernel drop what it has of the store."""
    for segment in sorted((library.path / "segments").iterdir()):
        fd = os.open(segment, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


RANGES = st.lists(
    st.tuples(st.sampled_from(sorted(CONTENTS)), st.integers(0, 13_000_000), st.integers(0, 1_200_000)), max_size=12
)


@settings(max_examples=40, deadline=None)
@given(RANGES, st.booleans(), st.sampled_from([1, 1 << 20, CACHE_BYTES]))
def test_any_ranges_are_the_contents(
    library: Library, ranges: list[tuple[str, int, int]], drop: bool, budget: int
) -> None:
    if drop:
        cold(library)

    async def work(cache: ChunkCache) -> None:
        files = {key: library.file(cache, key) for key in CONTENTS}

        async def read(key: str, offset: int, size: int) -> None:
            assert b"".join(await files[key].read(offset, size)) == CONTENTS[key][offset : offset + size]

        async with trio.open_nursery() as nursery:
            for each in ranges:
                nursery.start_soon(read, *each)
        for file in files.values():
            file.close()

    library.run(work, budget)


def test_the_cache_keeps_no_more_memory_than_its_budget(library: Library) -> None:
    """Raw chunks are parts of the run that was read: one that stays keeps all of it."""
    budget = 4 << 20
    layout = library.reader.layout(library.contents["random"])
    ids = [layout.id(number) for number in range(len(layout))]
    runs = [ids[start : start + 4] for start in range(0, len(ids), 4)]
    cold(library)

    async def work(cache: ChunkCache) -> None:
        for run in runs:
            cache.load(run, drop=False)
            while cache.working:
                await trio.lowlevel.checkpoint()
            for chunk_id in run[1:]:
                cache.drop(chunk_id)
            views = [data for data in cache._chunks.values() if isinstance(data, memoryview)]
            assert len(views) == len(cache._chunks)
            assert sum({id(view.obj): memoryview(view.obj).nbytes for view in views}.values()) == cache._held <= budget
        assert cache._chunks
        for chunk_id in ids:
            cache.drop(chunk_id)
        assert not cache._held and not cache._parts

    library.run(work, budget)


@pytest.mark.parametrize("request_bytes", [4096, 131_072, 524_288, 1 << 20])
@pytest.mark.parametrize("is_cold", [False, True], ids=["hot", "cold"])
@pytest.mark.parametrize("key", ["large", "random", "zeros"])
def test_a_sequential_reader_gets_all_and_each_chunk_is_read_once(
    library: Library, key: str, request_bytes: int, is_cold: bool
) -> None:
    size = min(len(CONTENTS[key]), 600 * request_bytes)
    if is_cold:
        cold(library)

    async def work(cache: ChunkCache) -> int:
        file = library.file(cache, key)
        for offset in range(0, size, request_bytes):
            assert b"".join(await file.read(offset, request_bytes)) == CONTENTS[key][offset : offset + request_bytes]
        file.close()
        while cache.working:
            await trio.lowlevel.checkpoint()
        return cache.bytes_read

    # What was read ahead beyond the last request counts too; nothing was read twice.
    assert library.run(work) <= size + AHEAD_BYTES + 3 * module.BATCH_BYTES


def test_readers_of_one_chunk_share_its_load(library: Library) -> None:
    cold(library)

    async def work(cache: ChunkCache) -> int:
        files = [library.file(cache, "random") for _ in range(30)]

        async def read(file: StoredFile) -> None:
            assert b"".join(await file.read(1_000_000, 4096)) == RANDOM[1_000_000:1_004_096]
            file.close()

        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(read, file)
        return cache.bytes_read

    assert library.run(work) <= 3 << 20


def test_many_sequential_readers_share_the_cache_without_reading_twice(library: Library) -> None:
    cold(library)

    async def work(cache: ChunkCache) -> tuple[int, int]:
        step, most = 131_072, 0

        async def read(shift: int) -> None:
            nonlocal most
            file = library.file(cache, "random")
            for offset in range(shift, len(RANDOM), step):
                assert b"".join(await file.read(offset, step)) == RANDOM[offset : offset + step]
                most = max(most, cache._held)
            file.close()

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(read, number * 100_000)
        return cache.bytes_read, most

    read, most = library.run(work, 8 << 20)
    assert read <= 3 * len(RANDOM)
    assert most <= 9 << 20, "the cache holds more than it may"


def test_the_cache_is_bounded(library: Library) -> None:
    async def work(cache: ChunkCache) -> int:
        file = library.file(cache, "large")
        most = 0
        for offset in range(0, len(LARGE), 1 << 20):
            await file.read(offset, 1 << 20)
            most = max(most, cache._held)
        file.close()
        return most

    assert library.run(work, 4 << 20) <= 5 << 20


@pytest.mark.parametrize("is_cold", [False, True], ids=["hot", "cold"])
def test_a_lone_sequential_reader_with_requests_in_flight_leaves_nothing_behind(
    library: Library, is_cold: bool
) -> None:
    if is_cold:
        cold(library)
    step = 1 << 19

    async def work(cache: ChunkCache) -> int:
        file = library.file(cache, "large")
        offsets = iter(range(0, len(LARGE), step))
        most = 0

        async def some() -> None:
            """As the kernel: the next request is sent while the last one is under way."""
            nonlocal most
            for offset in offsets:
                parts = file.ready(offset, step)
                if parts is None:
                    parts = await file.read(offset, step)
                assert b"".join(parts) == LARGE[offset : offset + step]
                most = max(most, cache._held)
                del parts
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(some)
        file.close()
        return most

    assert library.run(work) <= 7 << 20, "chunks stay after they were passed on"


def test_damage_is_told_to_those_who_read_it_and_to_nobody_else(tmp_path: Path) -> None:
    library = Library(tmp_path)
    needle = RANDOM[4_000_000:4_000_064]
    for segment in sorted((library.path / "segments").iterdir()):
        data = segment.read_bytes()
        if (position := data.find(needle)) >= 0:
            segment.write_bytes(data[: position + 9] + bytes([data[position + 9] ^ 1]) + data[position + 10 :])

    for is_cold in (False, True):
        if is_cold:
            cold(library)

        async def work(cache: ChunkCache) -> tuple[int, int]:
            """Read all in order, then where it failed, alone; how many requests failed, how many read."""
            file = library.file(cache, "random")
            failed = fine = 0
            for offset in range(0, len(RANDOM), 131_072):
                try:
                    data = await file.read(offset, 131_072)
                except StoreDamagedError:
                    failed += 1
                    continue
                assert b"".join(data) == RANDOM[offset : offset + 131_072]
                fine += 1
            file.close()
            return failed, fine

        failed, fine = library.run(work)
        assert 1 <= failed <= 10 and fine >= 40
    library.reader.close()


def test_a_cancelled_reader_leaves_the_chunk_to_the_others(library: Library) -> None:
    cold(library)

    async def work(cache: ChunkCache) -> None:
        first, second = library.file(cache, "random"), library.file(cache, "random")

        async def cancelled() -> None:
            with trio.move_on_after(0):
                await first.read(2_000_000, 500_000)
            first.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled)
            assert b"".join(await second.read(2_000_000, 500_000)) == RANDOM[2_000_000:2_500_000]
        second.close()
        assert b"".join(await first.read(2_000_000, 500_000)) == RANDOM[2_000_000:2_500_000]
        first.close()

    library.run(work)


@pytest.mark.parametrize("size", [0, 1, 4096, 300_000])
def test_a_foreign_file_reads_to_its_end_and_no_further(tmp_path: Path, size: int) -> None:
    data = mixed(size, size)
    (tmp_path / "file").write_bytes(data)

    async def main() -> None:
        file = ForeignFile(os.open(tmp_path / "file", os.O_RDONLY), size)
        for offset in (0, 1, size // 2, max(0, size - 1), size, size + 1, size + 100_000):
            for length in (0, 1, 5000, size, size + 5000):
                assert b"".join(await file.read(offset, length)) == data[offset : offset + length]
        os.truncate(tmp_path / "file", size // 3)
        if size:
            with pytest.raises(OSError, match="shorter"):
                await file.read(0, size)
        file.close()

    trio.run(main)
