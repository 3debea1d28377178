"""Segments read by location."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from millpond.daemon.store import records
from millpond.daemon.store.buffers import Buffers
from millpond.daemon.store.records import Location
from millpond.daemon.store.segments import segment_path

_OPEN_FDS = 64
_NOWAIT_TRIES = 4


class SegmentReader:
    """Reads records by location, with a bounded set of open descriptors."""

    def __init__(self, folder: Path, buffers: Buffers) -> None:
        self._folder = folder
        self._buffers = buffers
        self._lock = threading.Lock()
        self._fds: OrderedDict[int, _Shared] = OrderedDict()

    def read(self, location: Location) -> bytes:
        """The whole record's bytes, fewer where the segment ends. Raises OSError."""
        shared = self._open(location.segment)
        try:
            return os.pread(shared.fd, records.HEADER.size + location.stored, location.offset)
        finally:
            self._release(shared)

    def read_nowait(self, location: Location) -> memoryview | None:
        """The whole record's bytes if they are in the page cache. Raises OSError."""
        view = self._buffers.take(records.HEADER.size + location.stored)
        shared = self._open(location.segment)
        done = tries = 0
        try:
            # What is there comes in several parts where the kernel had read ahead: a short read proves nothing.
            while done < len(view) and tries < _NOWAIT_TRIES:
                tries += 1
                with contextlib.suppress(BlockingIOError):
                    done += os.preadv(shared.fd, [view[done:]], location.offset + done, os.RWF_NOWAIT)
        finally:
            self._release(shared)
        return view if done == len(view) else None

    def peek(self, number: int, offset: int, size: int) -> memoryview:
        """Bytes of a segment that are in the page cache, fewer (or none) where they are not. Raises OSError."""
        view = self._buffers.take(size)
        shared = self._open(number)
        try:
            return view[: os.preadv(shared.fd, [view], offset, os.RWF_NOWAIT)]
        except BlockingIOError:
            return view[:0]
        finally:
            self._release(shared)

    def read_range(self, number: int, offset: int, size: int, *, drop: bool = False) -> memoryview:
        """Bytes of a segment, fewer only at its end; with `drop` the kernel is told that it need not keep them, because
        they are now cached elsewhere (in the mount's pages). Raises OSError."""
        view = self._buffers.take(size)
        shared = self._open(number)
        try:
            done = os.preadv(shared.fd, [view], offset)
            if drop:
                os.posix_fadvise(shared.fd, offset, size, os.POSIX_FADV_DONTNEED)
        finally:
            self._release(shared)
        return view[:done]

    def will_need(self, number: int, offset: int, size: int) -> None:
        """Have the kernel begin to read a range. Raises OSError."""
        shared = self._open(number)
        try:
            os.posix_fadvise(shared.fd, offset, size, os.POSIX_FADV_WILLNEED)
        finally:
            self._release(shared)

    def close(self) -> None:
        with self._lock:
            for shared in self._fds.values():
                os.close(shared.fd)
            self._fds.clear()

    def _open(self, number: int) -> _Shared:
        with self._lock:
            shared = self._fds.get(number)
            if shared is None:
                path = segment_path(self._folder, number)
                shared = _Shared(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                self._fds[number] = shared
                self._evict()
            self._fds.move_to_end(number)
            shared.users += 1
            return shared

    def let_go(self) -> None:
        """Close segments that were removed: their room on the disk comes back only when nobody has them open."""
        with self._lock:
            for number, shared in list(self._fds.items()):
                if os.fstat(shared.fd).st_nlink == 0:
                    del self._fds[number]
                    shared.gone = True
                    if shared.users == 0:
                        os.close(shared.fd)

    def _release(self, shared: _Shared) -> None:
        with self._lock:
            shared.users -= 1
            if shared.gone and shared.users == 0:
                os.close(shared.fd)

    def _evict(self) -> None:
        for number, shared in list(self._fds.items()):
            if len(self._fds) <= _OPEN_FDS:
                return
            if shared.users == 0 and shared is not next(reversed(self._fds.values())):
                os.close(shared.fd)
                del self._fds[number]


@dataclass(slots=True)
class _Shared:
    """An open segment and how many reads are using its descriptor."""

    fd: int
    users: int = 0
    gone: bool = False
