"""Contents to bytes: chunks read, checked and unpacked once, kept for neighbours, and fetched ahead of a sequential reader.

A chunk that is in the page cache and not compressed is read at once, on the loop; everything else in a thread, so that
the loop never waits for a disk (invariant P3). One chunk is read once however many readers wait for it. What is read
ahead counts against the same bounded cache.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict

import trio

from millpond.daemon.store.index import Content
from millpond.daemon.store.reader import StoreReader
from millpond.daemon.store.recipes import Layout
from millpond.daemon.store.records import Kind

# Unpacked chunks kept, in bytes; a chunk has at most 1 MiB.
CACHE_BYTES = 24 << 20
# Chunks read ahead of a sequential reader.
AHEAD_MAX = 8
# A chunk up to this size is unpacked on the loop: a thread would cost more.
INLINE_BYTES = 64 << 10
# Threads that read and unpack.
THREADS = 4


class ChunkCache:
    """Unpacked chunks, least recently used out first; one load a chunk."""

    def __init__(self, reader: StoreReader, nursery: trio.Nursery, budget: int = CACHE_BYTES) -> None:
        self._reader = reader
        self._nursery = nursery
        self._budget = budget
        self._held = 0
        self._chunks: OrderedDict[bytes, bytes] = OrderedDict()
        self._loading: dict[bytes, _Load] = {}
        self._threads = trio.CapacityLimiter(THREADS)
        self.hits = 0
        self.misses = 0
        self.bytes_read = 0

    async def get(self, chunk_id: bytes, length: int) -> bytes:
        """A chunk's bytes. Raises StoreDamagedError."""
        data = self._chunks.get(chunk_id)
        if data is not None:
            self.hits += 1
            self._chunks.move_to_end(chunk_id)
            return data
        load = self._loading.get(chunk_id)
        if load is None:
            if length <= INLINE_BYTES:
                data = self._reader.read_chunk_nowait(chunk_id)
                if data is not None:
                    self.hits += 1
                    self._keep(chunk_id, data)
                    return data
            self.misses += 1
            load = self._start(chunk_id)
        return await load.result()

    def ahead(self, chunk_id: bytes, length: int) -> None:
        """Begin to load a chunk that will be wanted, if the threads are not all busy with what is wanted now."""
        if chunk_id not in self._chunks and chunk_id not in self._loading and len(self._loading) < AHEAD_MAX:
            self._start(chunk_id)

    def _start(self, chunk_id: bytes) -> _Load:
        load = self._loading[chunk_id] = _Load()
        self._nursery.start_soon(self._load, chunk_id, load)
        return load

    async def _load(self, chunk_id: bytes, load: _Load) -> None:
        try:
            load.data = await trio.to_thread.run_sync(self._reader.read_chunk, chunk_id, limiter=self._threads)
            self._keep(chunk_id, load.data)
        except Exception as error:  # given to every reader that waits for this chunk
            load.error = error
        finally:
            del self._loading[chunk_id]
            load.done.set()

    def _keep(self, chunk_id: bytes, data: bytes) -> None:
        self.bytes_read += len(data)
        if chunk_id in self._chunks:
            return
        self._chunks[chunk_id] = data
        self._held += len(data)
        while self._held > self._budget and len(self._chunks) > 1:
            _, dropped = self._chunks.popitem(last=False)
            self._held -= len(dropped)


class _Load:
    """A chunk under way."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.data: bytes | None = None
        self.error: Exception | None = None

    async def result(self) -> bytes:
        await self.done.wait()
        if self.error is not None:
            raise self.error
        assert self.data is not None
        return self.data


class StoredFile:
    """An open file whose content is in the store."""

    def __init__(self, cache: ChunkCache, reader: StoreReader, content: Content) -> None:
        self._cache = cache
        self._reader = reader
        self._content = content
        self._layout = Layout.single(content.id, content.size) if content.kind == Kind.CHUNK else None
        self._next = 0
        self._streak = 0

    async def read(self, offset: int, size: int) -> bytes:
        """Bytes from `offset`, fewer only at the end. Raises StoreDamagedError."""
        if self._layout is None:
            self._layout = await trio.to_thread.run_sync(self._reader.layout, self._content)
        layout = self._layout
        end = min(offset + size, layout.size)
        if offset >= end:
            return b""
        first = layout.find(offset)
        self._read_ahead(layout, first, offset, end)
        parts = []
        number = first
        while offset < end:
            begin, stop = layout.offsets[number], layout.offsets[number + 1]
            data = await self._cache.get(layout.id(number), stop - begin)
            parts.append(data[offset - begin : min(end, stop) - begin])
            offset = stop
            number += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Nothing to give back."""

    def _read_ahead(self, layout: Layout, first: int, offset: int, end: int) -> None:
        """Widen while the reader goes on where he stopped (parallel requests may come slightly out of order)."""
        near = self._next - (1 << 20) <= offset <= self._next + (1 << 20)
        self._streak = min(self._streak + 1, AHEAD_MAX) if near else 0
        self._next = max(self._next, end) if near else end
        if self._streak >= 2:
            last = layout.find(end - 1)
            for number in range(last + 1, min(last + 1 + self._streak, len(layout))):
                self._cache.ahead(layout.id(number), layout.offsets[number + 1] - layout.offsets[number])


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
