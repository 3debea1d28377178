"""Contents to bytes: chunks read, checked and unpacked once, kept for neighbours, and fetched ahead of a sequential reader.

A chunk that is in the page cache and cheap to unpack is read at once, on the loop; everything else in a thread, so that
the loop never waits for a disk (invariant P3). A thread reads many neighbouring chunks in one go, because handing work
over costs as much as copying a chunk. One chunk is read once however many readers wait for it. What is read ahead counts
against the same bounded cache.
"""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import trio

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.store.index import Content
from millpond.daemon.store.reader import Bytes, StoreReader
from millpond.daemon.store.recipes import Layout
from millpond.daemon.store.records import Kind

L = TypeVar("L", Layout, Layout | None)

# Memory of the unpacked chunks that are kept, in bytes; a chunk has at most 1 MiB.
CACHE_BYTES = 16 << 20
# Memory that is used again for reading them: the cache's raw chunks, and what is under way.
BUFFER_BYTES = 24 << 20
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
# Bytes after which it is seen whether a sequential reader's chunks are in the page cache now.
_LOOK_AGAIN = 8 << 20
# Bytes behind a missed chunk that the kernel is asked to read too.
AROUND_MIN, AROUND_MAX = 128 << 10, 2 << 20
# Requests of all sequential readers after which one that is silent is not counted, times their number.
_STREAM_MEMORY = 32
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
        # How many chunks here are parts of a buffer, by its id: it lives, whole, as long as one of them is here.
        self._parts: dict[int, int] = {}
        self._loading: dict[bytes, _Load] = {}
        self._jobs = 0
        self._threads = trio.CapacityLimiter(THREADS)
        # Sequential readers, who share the cache between them, and when each came last, in requests of them all.
        self._streams: dict[int, int] = {}
        self._stream_requests = 0
        # How much is read of what lies behind a chunk that was missed, and reads since then that needed no waiting.
        self._around = AROUND_MIN
        self._lucky = 0
        self.hits = 0
        self.misses = 0
        self.bytes_read = 0
        # How long readers waited in all for chunks to be checked and unpacked, and for the disk that they lie on.
        self.waited_unpacking_s = self.waited_disk_s = 0.0

    @property
    def window(self) -> int:
        """How many bytes each sequential reader may be kept ahead of, so that nobody's are dropped before they are used."""
        return min(AHEAD_BYTES, self._budget // (2 * max(1, len(self._streams))))

    @property
    def is_shared(self) -> bool:
        """Whether there are several sequential readers."""
        return len(self._streams) > 1

    @property
    def busy(self) -> bool:
        """Whether nothing more should be read ahead now."""
        return self._jobs >= JOBS

    @property
    def working(self) -> bool:
        """Whether anything is being read."""
        return self._jobs > 0

    def streaming(self, stream: int) -> None:
        """A sequential reader reads on. Who was not heard of for a while has stopped: nobody tells when."""
        self._stream_requests += 1
        self._streams[stream] = self._stream_requests
        if len(self._streams) > 1:
            oldest = self._stream_requests - _STREAM_MEMORY * len(self._streams)
            for each in [each for each, last in self._streams.items() if last < oldest]:
                del self._streams[each]

    def streamed(self, stream: int) -> None:
        """A sequential reader is at the end, or elsewhere."""
        self._streams.pop(stream, None)

    async def get(self, chunk_id: bytes) -> Bytes:
        """A chunk's bytes. Raises StoreDamagedError."""
        while True:
            if self.has(chunk_id):
                return self.take(chunk_id)
            load = self._loading.get(chunk_id) or self._start([chunk_id], drop=False)
            began = time.monotonic()
            await load.done.wait()
            waited = time.monotonic() - began
            self.waited_unpacking_s += waited * load.busy
            self.waited_disk_s += waited * (1.0 - load.busy)
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
        began = time.monotonic()
        data = self._reader.read_chunk_nowait(chunk_id, INLINE_BYTES if self.is_shared else ALONE_BYTES)
        if data is None:
            return False
        self.waited_unpacking_s += time.monotonic() - began
        self._lucky += 1
        self._keep(chunk_id, data)
        return True

    def take(self, chunk_id: bytes) -> Bytes:
        """A chunk that is here."""
        self.hits += 1
        self._chunks.move_to_end(chunk_id)
        return self._chunks[chunk_id]

    def drop(self, chunk_id: bytes) -> None:
        """Nobody is expected to want a chunk again."""
        data = self._chunks.pop(chunk_id, None)
        if data is not None:
            self._let_go(data)

    def passed(self, size: int) -> None:
        """A chunk went to its reader without coming here: the kernel keeps small files whole."""
        self._lucky += 1
        self.hits += 1
        self.bytes_read += size

    def load(self, ids: Sequence[bytes], *, drop: bool, around: int = 0) -> None:
        """Begin to read those of `ids` that are neither here nor on their way, in one thread. With `drop` the kernel need
        not keep their stored form; with `around` it begins to read that many bytes from the first one's on."""
        wanted = [each for each in dict.fromkeys(ids) if each not in self._chunks and each not in self._loading]
        if wanted:
            self._start(wanted, drop=drop, around=around)

    def _start(self, ids: list[bytes], *, drop: bool, around: int = 0) -> _Load:
        load = _Load(alone=len(ids) == 1)
        self._loading.update(dict.fromkeys(ids, load))
        self.misses += len(ids)
        self._jobs += 1
        if load.alone and not around and not self._streams:
            # Small files lie next to each other: what is behind this one is wanted next, or soon if many are read at all.
            self._around = min(2 * self._around, AROUND_MAX) if self._lucky else max(self._around // 2, AROUND_MIN)
            self._lucky, around = 0, self._around
        self._nursery.start_soon(self._run, ids, load, drop, around)
        return load

    async def _run(self, ids: list[bytes], load: _Load, drop: bool, around: int) -> None:
        try:
            found, load.busy = await trio.to_thread.run_sync(self._read, ids, drop, around, limiter=self._threads)
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

    def _read(self, ids: list[bytes], drop: bool, around: int) -> tuple[list[Bytes], float]:
        """The chunks; and for which part of the time the processor was at work, the rest being the disk's."""
        began, busy = time.monotonic(), time.thread_time()
        if around:
            self._reader.will_need(ids[0], around)
        found = self._reader.read_chunks(ids, drop=drop)
        return found, min(1.0, (time.thread_time() - busy) / max(time.monotonic() - began, 1e-9))

    def _keep(self, chunk_id: bytes, data: Bytes) -> None:
        self.bytes_read += len(data)
        if chunk_id in self._chunks:
            return
        self._chunks[chunk_id] = data
        buffer = _buffer_of(data)
        parts = self._parts.get(id(buffer), 0)
        self._parts[id(buffer)] = parts + 1
        if not parts:
            self._held += len(buffer)
        while self._held > self._budget and len(self._chunks) > 1:
            _, dropped = self._chunks.popitem(last=False)
            self._let_go(dropped)

    def _let_go(self, data: Bytes) -> None:
        """A chunk left: its buffer is not held any more when it was the last part of it here."""
        buffer = _buffer_of(data)
        parts = self._parts.pop(id(buffer)) - 1
        if parts:
            self._parts[id(buffer)] = parts
        else:
            self._held -= len(buffer)


def _buffer_of(data: Bytes) -> Bytes | bytearray:
    """The memory that a chunk is a part of."""
    return data.obj if isinstance(data, memoryview) else data  # type: ignore[return-value]


class _Load:
    """Chunks under way in one thread; when `done`, what was `found`, or the `error`, and for which part of the time it was not the disk
    that was waited for (`busy`)."""

    __slots__ = ("alone", "busy", "done", "error", "found")

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        self.busy = 0.0
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
        # Where a sequential reader would go on; for how many requests he has; whether he had to wait, so that threads read
        # ahead for him, and from where on to see if he still must; and the first chunk not asked for ahead.
        self._next = 0
        self._streak = 0
        self._waits = False
        self._look_again = 0
        self._ahead = 0
        self._planned = (0, 0)
        # Held by a sequential reader's request that waits.
        self._turn = trio.Lock()

    @property
    def size(self) -> int:
        return self._content.size

    def ready(self, offset: int, size: int) -> list[Bytes] | None:
        """What `read` gives, when that takes no waiting; else None, and what is needed is on its way."""
        if self._layout is None:
            self._layout = self._sized(self._reader.layout_nowait(self._content))
            if self._layout is None:
                return None
        if self._turn.locked():
            return None
        parts: list[Bytes] = []
        layout, spans = self._layout, self._spans(self._layout, offset, size)
        for number, low, high in spans:
            chunk_id = layout.id(number)
            if not self._cache.has(chunk_id):
                return None
            parts.append(self._part(self._cache.take(chunk_id), layout, number, low, high))
        self._passed(layout, spans)
        return parts

    async def read(self, offset: int, size: int) -> list[Bytes]:
        """Bytes from `offset` in pieces, fewer only at the end. Raises StoreDamagedError."""
        if self._layout is None:
            self._layout = self._sized(await trio.to_thread.run_sync(self._reader.layout, self._content))
        if self._in_order:
            # What is asked for first is read first, or else the kernel would not know that it should read ahead.
            async with self._turn:
                self._load_on(self._layout, offset, size)
                return await self._pieces(self._layout, offset, size)
        return await self._pieces(self._layout, offset, size)

    async def _pieces(self, layout: Layout, offset: int, size: int) -> list[Bytes]:
        spans = self._spans(layout, offset, size)
        parts = [
            self._part(await self._cache.get(layout.id(number)), layout, number, low, high)
            for number, low, high in spans
        ]
        self._passed(layout, spans)
        return parts

    def _passed(self, layout: Layout, spans: list[tuple[int, int, int]]) -> None:
        """A sequential reader does not come back, and memory that is used again at once is in the processor's caches."""
        if self._in_order:
            for number, _, high in spans:
                if high == layout.offsets[number + 1] - layout.offsets[number]:
                    self._cache.drop(layout.id(number))

    def _load_on(self, layout: Layout, offset: int, size: int) -> None:
        """If anything of a request must be waited for, have what follows read with it, or else that would be waited for next."""
        end = min(offset + size, layout.size)
        for number in range(layout.find(offset), layout.find(end - 1) + 1) if offset < end else ():
            if not self._cache.has(layout.id(number)):
                behind = layout.find(min(end + BATCH_BYTES, layout.size) - 1) + 1
                self._cache.load([layout.id(each) for each in range(number, behind)], drop=False)
                return

    @property
    def _in_order(self) -> bool:
        """Whether this is the only sequential reader: for him the kernel reads the segment ahead, and no threads do."""
        return self._streak >= _SEQUENTIAL and not self._cache.is_shared

    def _sized(self, layout: L) -> L:
        """The layout, if it is for the size that the index says."""
        if layout is not None and layout.size != self._content.size:
            raise StoreDamagedError(f"the recipe of {self._content.id.hex()[:16]} is for another size")
        if layout is not None and layout.starts is not None:
            raise StoreDamagedError(f"recipe {self._content.id.hex()[:16]} is a manifest's, not a file's")
        return layout

    def _spans(self, layout: Layout, offset: int, size: int) -> list[tuple[int, int, int]]:
        """(chunk, from, to) that make a range of the content; what must be waited for is begun."""
        end = min(offset + size, layout.size)
        if offset >= end:
            return []
        number = layout.find(offset)
        if len(layout) > 1 and (offset, end) != self._planned:
            self._planned = (offset, end)
            self._plan(layout, number, offset, end)
        spans = []
        while offset < end:
            begin, stop = layout.offsets[number], layout.offsets[number + 1]
            spans.append((number, offset - begin, min(end, stop) - begin))
            offset = stop
            number += 1
        return spans

    def _part(self, data: Bytes, layout: Layout, number: int, low: int, high: int) -> Bytes:
        if len(data) != layout.offsets[number + 1] - layout.offsets[number]:
            raise StoreDamagedError(f"a chunk of {self._content.id.hex()[:16]} has not the length that its recipe says")
        return data if high - low == len(data) else memoryview(data)[low:high]

    def close(self) -> None:
        """Make room for other readers."""
        self._streak_is(0)

    def _plan(self, layout: Layout, first: int, offset: int, end: int) -> None:
        """Have what must be waited for read together; and what comes next, for a reader who goes on where he stopped."""
        near = abs(offset - self._next) <= _NEAR_BYTES
        self._streak_is(self._streak + 1 if near and end < layout.size else 0)
        self._next = max(self._next, end) if near else end
        if self._in_order:
            self._waits = False
            return
        if not self._waits:
            if self._cache.has(layout.id(first)):
                return
            self._waits, self._ahead, self._look_again = True, first, end + _LOOK_AGAIN
        elif end >= self._look_again:
            far = min(end + self._cache.window + BATCH_BYTES, layout.size - 1)
            self._waits = not self._cache.has(layout.id(layout.find(far)))
            self._look_again = end + _LOOK_AGAIN
        behind = layout.find(end - 1) + 1
        if self._streak < _SEQUENTIAL:
            # Who begins at the beginning reads on, mostly.
            around = 0 if offset else AROUND_MAX
            self._cache.load([layout.id(number) for number in range(first, behind)], drop=False, around=around)
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
        self._streak = streak
        if streak >= _SEQUENTIAL:
            self._cache.streaming(id(self))
        else:
            self._cache.streamed(id(self))
        if not streak:
            self._waits = False


class ForeignFile:
    """An open file that is not in the store, read by the descriptor that its source gave. A file that became shorter
    is an error: the kernel would show zeros, and keep them."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size

    def ready(self, offset: int, size: int) -> list[Bytes] | None:
        """What `read` gives, when it is in the page cache; else None."""
        wanted = min(size, self.size - offset)
        if wanted <= 0:
            return []
        buffer = bytearray(wanted)
        try:
            done = os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError:
            return None
        return [memoryview(buffer)] if done == wanted else None

    async def read(self, offset: int, size: int) -> list[Bytes]:
        """Bytes from `offset`, fewer only at the end. Raises OSError."""
        parts = self.ready(offset, size)
        if parts is None:
            parts = [await trio.to_thread.run_sync(_pread_all, self._fd, min(size, self.size - offset), offset)]
        return parts

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
