"""Buffers that are used again, for processes that read much.

Memory for a chunk comes fresh from the kernel each time, page by page, and that can cost more than reading the chunk. A
buffer is free when nobody but the pool refers to it: memory views of it, and views of those, are references to it. So
nothing has to be given back, and nothing can be given back too early.
"""

from __future__ import annotations

import sys
import threading

# Capacities: a quarter over powers of two, so that chunks with their headers fit.
CLASSES = tuple((128 << 10) * 5 // 4 << step for step in range(5))
# Below this the allocator keeps what is freed.
REUSED_BYTES = 64 << 10
# References to a free buffer while it is looked at: the list's, the variable's, and the call's.
_FREE = 3


class Buffers:
    """A bounded number of buffers; more than that are made and dropped as they are needed. Safe in threads."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._lock = threading.Lock()
        self._buffers: dict[int, list[bytearray]] = {capacity: [] for capacity in CLASSES}

    def take(self, size: int) -> memoryview:
        """A view of `size` bytes, with whatever is in them."""
        if size >= REUSED_BYTES:
            for capacity in CLASSES:
                if size <= capacity:
                    return memoryview(self._of(capacity))[:size]
        return memoryview(bytearray(size))

    def _of(self, capacity: int) -> bytearray:
        with self._lock:
            buffers = self._buffers[capacity]
            for buffer in buffers:
                if sys.getrefcount(buffer) == _FREE:
                    return buffer
            buffer = bytearray(capacity)
            if self._held + capacity <= self._limit:
                self._held += capacity
                buffers.append(buffer)
            return buffer
