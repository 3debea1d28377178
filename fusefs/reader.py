"""Contents to bytes: chunks read, checked and unpacked once, kept for neighbours, and fetched ahead of a sequential reader.

A chunk that is in the page cache and cheap to unpack is read at once, on the loop; everything else in a thread, so that
the loop never waits for a disk (invariant P3). A thread reads many neighbouring chunks in one go, because handing work
over costs as much as copying a chunk. One chunk is read once however many readers wait for it. What is read ahead counts
against the same bounded cache.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Sequence

import trio

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.store.index import Content
from millpond.daemon.store.reader import Bytes, StoreReader
from millpond.daemon.store.recipes import Layout
from millpond.daemon.store.records import Kind

# Unpacked chunks kept, in bytes; a chunk has at most 1 MiB.
CACHE_BYTES = 16 << 20
# Bytes that one thread fetches at once, and how far a reader is kept ahead of; jobs under way at most.
BATCH_BYTES = 1 << 20
AHEAD_BYTES = 4 << 20
JOBS = 6
# A packed chunk up to this size is unpacked on the loop: a thread would cost more.
INLINE_BYTES = 64 << 10
ALONE_BYTES = 1 << 20
# Threads that read and unpack.
THREADS = 4
# Requests of one reader may overtake each other by this much and still be sequential.
_NEAR_BYTES = 1 << 20
# Requests after which a reader is taken for sequential.
_SEQUENTIAL = 2


class ChunkCache:
    """Unpacked chunks, least recently used out first; one load a chunk."""

    def __init__(self, reader: StoreReader, nursery: trio.Nursery, budget: int = CACHE_BYTES) -> None:
        self._reader = reader
        self._nursery = nursery
        self._budget = budget
        self._held = 0
        self._chunks: OrderedDict[bytes, Bytes] = OrderedDict()
        self._loading: dict[bytes, _Load] = {}
        self._jobs = 0
        self._threads = trio.CapacityLimiter(THREADS)
        # Sequential readers, who share the cache between them.
        self.streams = 0
        self.hits = 0
        self.misses = 0
        self.bytes_read = 0

    @property
    def window(self) -> int:
        """How many bytes each sequential reader may be kept ahead of, so that nobody's are dropped before they are used."""
        return min(AHEAD_BYTES, self._budget // (2 * max(1, self.streams)))

    @property
    def busy(self) -> bool:
        """Whether nothing more should be read ahead now."""
        return self._jobs >= JOBS

    async def get(self, chunk_id: bytes) -> Bytes:
        """A chunk's bytes. Raises StoreDamagedError."""
        while True:
            data = self._chunks.get(chunk_id)
            if data is not None:
                self.hits += 1
                self._chunks.move_to_end(chunk_id)
                return data
            load = self._loading.get(chunk_id)
            if load is None:
                if self.has(chunk_id):
                    continue
                load = self._start([chunk_id], drop=False)
            await load.done.wait()
            if chunk_id in load.found:
                return load.found[chunk_id]
            if load.error is not None and load.alone:
                raise load.error

    def has(self, chunk_id: bytes) -> bool:
        """Whether a chunk is here; it is also when it could be had without waiting."""
        if chunk_id in self._chunks:
            return True
        if chunk_id in self._loading:
            return False
        # One reader is served best without a change of threads; several are unpacked for in parallel.
        data = self._reader.read_chunk_nowait(chunk_id, ALONE_BYTES if self.streams < 2 else INLINE_BYTES)
        if data is None:
            return False
        self._keep(chunk_id, data)
        return True

    def load(self, ids: Sequence[bytes], *, drop: bool) -> None:
        """Begin to read those of `ids` that are neither here nor on their way, in one thread. With `drop` the kernel need
        not keep their stored form."""
        wanted = [each for each in dict.fromkeys(ids) if each not in self._chunks and each not in self._loading]
        if wanted:
            self._start(wanted, drop=drop)

    def _start(self, ids: list[bytes], *, drop: bool) -> _Load:
        load = _Load(alone=len(ids) == 1)
        self._loading.update(dict.fromkeys(ids, load))
        self.misses += len(ids)
        self._jobs += 1
        self._nursery.start_soon(self._run, ids, load, drop)
        return load

    async def _run(self, ids: list[bytes], load: _Load, drop: bool) -> None:
        try:
            found = await trio.to_thread.run_sync(self._read, ids, drop, limiter=self._threads)
            load.found = dict(zip(ids, found, strict=True))
            for chunk_id, data in load.found.items():
                self._keep(chunk_id, data)
        except Exception as error:  # told to who waits; of several, each is asked for alone again
            load.error = error
        finally:
            self._jobs -= 1
            for chunk_id in ids:
                del self._loading[chunk_id]
            load.done.set()

    def _read(self, ids: list[bytes], drop: bool) -> list[Bytes]:
        return self._reader.read_chunks(ids, drop=drop)

    def _keep(self, chunk_id: bytes, data: Bytes) -> None:
        self.bytes_read += len(data)
        if chunk_id in self._chunks:
            return
        self._chunks[chunk_id] = data
        self._held += len(data)
        while self._held > self._budget and len(self._chunks) > 1:
            _, dropped = self._chunks.popitem(last=False)
            self._held -= len(dropped)


class _Load:
    """Chunks under way in one thread; when `done`, what was `found`, or the `error`."""

    __slots__ = ("alone", "done", "error", "found")

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        self.done = trio.Event()
        self.found: dict[bytes, Bytes] = {}
        self.error: Exception | None = None


class StoredFile:
    """An open file whose content is in the store."""

    def __init__(self, cache: ChunkCache, reader: StoreReader, content: Content) -> None:
        self._cache = cache
        self._reader = reader
        self._content = content
        self._layout = Layout.single(content.id, content.size) if content.kind == Kind.CHUNK else None
        # Where a sequential reader would go on; for how many requests he has; whether he had to wait since then, so that
        # threads read ahead for him; and the first chunk not asked for ahead.
        self._next = 0
        self._streak = 0
        self._waits = False
        self._ahead = 0

    async def read(self, offset: int, size: int) -> Bytes:
        """Bytes from `offset`, fewer only at the end. Raises StoreDamagedError."""
        if self._layout is None:
            self._layout = await trio.to_thread.run_sync(self._reader.layout, self._content)
            if self._layout.size != self._content.size:
                raise StoreDamagedError(f"the recipe of {self._content.id.hex()[:16]} is for another size")
        layout = self._layout
        end = min(offset + size, layout.size)
        if offset >= end:
            return b""
        number = layout.find(offset)
        if len(layout) > 1:
            self._plan(layout, number, offset, end)
        parts: list[Bytes] = []
        while offset < end:
            begin, stop = layout.offsets[number], layout.offsets[number + 1]
            data = await self._cache.get(layout.id(number))
            if len(data) != stop - begin:
                raise StoreDamagedError(
                    f"a chunk of {self._content.id.hex()[:16]} has not the length that its recipe says"
                )
            low, high = offset - begin, min(end, stop) - begin
            parts.append(data if high - low == len(data) else memoryview(data)[low:high])
            offset = stop
            number += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Make room for other readers."""
        self._streak_is(0)

    def _plan(self, layout: Layout, first: int, offset: int, end: int) -> None:
        """Have what must be waited for read together; and what comes next, for a reader who goes on where he stopped."""
        near = abs(offset - self._next) <= _NEAR_BYTES
        self._streak_is(self._streak + 1 if near else 0)
        self._next = max(self._next, end) if near else end
        if not self._waits:
            self._waits = not self._cache.has(layout.id(first))
            if not self._waits:
                return
            self._ahead = first
        behind = layout.find(end - 1) + 1
        if self._streak < _SEQUENTIAL:
            self._cache.load([layout.id(number) for number in range(first, behind)], drop=False)
            return
        start = max(first, self._ahead)
        limit = end + self._cache.window
        while start < len(layout) and layout.offsets[start] < limit and (start < behind or not self._cache.busy):
            stop = start + 1
            while stop < len(layout) and layout.offsets[stop + 1] - layout.offsets[start] <= BATCH_BYTES:
                stop += 1
            self._cache.load([layout.id(number) for number in range(start, stop)], drop=True)
            start = stop
        self._ahead = start

    def _streak_is(self, streak: int) -> None:
        self._cache.streams += (streak >= _SEQUENTIAL) - (self._streak >= _SEQUENTIAL)
        self._streak = streak
        if not streak:
            self._waits = False


class ForeignFile:
    """An open file that is not in the store, read by the descriptor that its source gave. A file that became shorter
    is an error: the kernel would show zeros, and keep them."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size

    async def read(self, offset: int, size: int) -> bytes:
        """Bytes from `offset`, fewer only at the end. Raises OSError."""
        buffer = bytearray(min(size, max(0, self.size - offset)))
        try:
            done = os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT) if buffer else 0
        except OSError:
            done = -1
        if done != len(buffer):
            return await trio.to_thread.run_sync(_pread_all, self._fd, len(buffer), offset)
        return bytes(buffer)

    def close(self) -> None:
        os.close(self._fd)


def _pread_all(fd: int, size: int, offset: int) -> bytes:
    parts = []
    while size:
        data = os.pread(fd, size, offset)
        if not data:
            raise OSError(errno.EIO, "the object became shorter")
        parts.append(data)
        offset += len(data)
        size -= len(data)
    return b"".join(parts)
