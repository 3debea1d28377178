"""What lies around small files that are read is brought into the page cache by reading the image there, a window at a time, in a thread.

A program that reads many small files in any order then finds most of them there, a thousand files for a few requests. It is done as any reader
would do it, so nothing can wait for itself: the thread waits for answers, and who answers waits for no thread.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue

from millpond.daemon.mounts import syscalls
from millpond.fusefs.image.format import BLOCK, BLOCK_BITS
from millpond.fusefs.image.image import Image, Place

WINDOW_BLOCKS = 256
_WINDOW_BYTES = WINDOW_BLOCKS * BLOCK
# Requests for a directory's files before anything is brought, and windows that each more is good for.
_FIRST, _TIMES = 2, 4
# Windows on their way, and such as are remembered; directories whose requests are counted.
_MOST_WAITING, _MOST_DONE, _MOST_COUNTED = 64, 1 << 16, 8192
# How often it is looked whether a window is there, and the pause between, in seconds.
_TRIES, _PAUSE_S = 100, 0.001
# Files of more blocks than this are read ahead by the kernel itself.
_LARGE_BLOCKS = WINDOW_BLOCKS
# Seconds after which a window may be brought again, and without a request after which all is as at the beginning.
_AGAIN_S, _QUIET_S = 30.0, 10.0


@dataclass(slots=True)
class _Read:
    """Of one directory: requests for its files that were not brought, and windows that were."""

    requests: int = 0
    windows: int = 0


class Ahead:
    """For one image; `room` tells how many bytes of memory may be filled."""

    def __init__(self, image: Image, room: Callable[[], int]) -> None:
        self._image = image
        self._room_of = room
        self._directories: OrderedDict[int, _Read] = OrderedDict()
        self._done: OrderedDict[int, float] = OrderedDict()
        self._queue: SimpleQueue[int | None] = SimpleQueue()
        self._room = 0
        self._last = -_QUIET_S
        # The thread that reads, whose own requests do not count.
        self._thread = -1
        self.brought = 0

    def read(self, pid: int, offset: int, size: int) -> None:
        """A thread has asked for a part of the image."""
        if pid == self._thread:
            return
        place = self._image.place(offset >> BLOCK_BITS)
        if place is None or place.blocks > _LARGE_BLOCKS:
            return
        now = time.monotonic()
        if now - self._last >= _QUIET_S:
            self._directories.clear()
            self._room = self._room_of()
        self._last = now
        if not self._is_due((offset >> BLOCK_BITS) // WINDOW_BLOCKS, now):
            return
        read = self._directories.setdefault(place.record, _Read())
        self._directories.move_to_end(place.record)
        if len(self._directories) > _MOST_COUNTED:
            self._directories.popitem(last=False)
        read.requests += 1
        self._want(read, place, (offset >> BLOCK_BITS) // WINDOW_BLOCKS, now)

    def _want(self, read: _Read, place: Place, window: int, now: float) -> None:
        """Add windows of a directory, this one first, as many as its requests are good for."""
        more = min((read.requests - _FIRST + 1) * _TIMES - read.windows, _MOST_WAITING - self._queue.qsize())
        for each in _from(window, place.first // WINDOW_BLOCKS, (place.end - 1) // WINDOW_BLOCKS):
            if more <= 0 or self._room < _WINDOW_BYTES:
                break
            if self._is_due(each, now):
                self._done[each] = now
                self._done.move_to_end(each)
                self._queue.put(each)
                self._room -= _WINDOW_BYTES
                read.windows += 1
                more -= 1
        while len(self._done) > _MOST_DONE:
            self._done.popitem(last=False)

    def _is_due(self, window: int, now: float) -> bool:
        return now - self._done.get(window, -_AGAIN_S) >= _AGAIN_S

    def run(self, fd: int) -> None:
        """Bring what is wanted, of the image that is open as `fd`, until `end`. For a thread of its own: it goes from one window to the next
        without waiting for the loop, which is busy with answers."""
        self._thread = threading.get_native_id()
        before = -1
        while (window := self._queue.get()) is not None:
            # What cannot be read is for those to hear of who ask for it.
            with contextlib.suppress(OSError):
                os.posix_fadvise(fd, window * _WINDOW_BYTES, _WINDOW_BYTES, os.POSIX_FADV_WILLNEED)
            if before >= 0:
                self._await(fd, before)
            before = window
            if self._queue.empty():
                self._await(fd, before)
                before = -1
            self.brought += _WINDOW_BYTES

    def _await(self, fd: int, window: int) -> None:
        """Wait a while for the last of a window, which is there when all is. It is looked for, and not read: a thread that waits in the kernel
        for an answer of its own process would keep that, when it is killed, from ending, and so all readers waiting, for ever."""
        last = (window + 1) * _WINDOW_BYTES - BLOCK
        with contextlib.suppress(OSError):
            for _ in range(_TRIES):
                if syscalls.is_cached(fd, last // mmap.PAGESIZE * mmap.PAGESIZE):
                    break
                time.sleep(_PAUSE_S)

    def end(self) -> None:
        """Have `run` return."""
        self._queue.put(None)


def _from(start: int, first: int, last: int) -> Iterator[int]:
    """From `start` on to `last`, then from `first` to it."""
    yield from range(start, last + 1)
    yield from range(first, start)
