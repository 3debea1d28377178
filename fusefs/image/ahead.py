"""What lies around small files that are read is brought into the page cache of the image, a window at a time.

A program that reads many small files in any order then finds most of them there, a thousand files for a few requests; and names and inodes of
directories, which come first, as who looks into some of them looks into others. Windows of files are brought by fillers, processes of their own
(fusefs/filling/windows.py); names and inodes, and files where there is no filler, by a thread that reads the image there. It does so as any reader
would, so nothing can wait for itself: the thread waits for answers, and who answers waits for no thread.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from millpond.daemon.mounts import syscalls
from millpond.fusefs.filling.windowfeed import WindowFeed
from millpond.fusefs.image.format import BLOCK, BLOCK_BITS
from millpond.fusefs.image.image import Image, Place
from millpond.fusefs.image.space import Kind

WINDOW_BLOCKS = 256
# Requests for names, or for inodes, before more of them are brought.
_LOOKS = 3
# Requests for a directory's files before anything is brought, or for files of all directories before one request does; and windows that each more
# is good for.
_FIRST, _MANY, _TIMES = 2, 16, 4
# Who reads files in order: so many requests in a row, each so many blocks behind the one before in its directory, at most. The kernel reads the
# image ahead of him, and nobody else need do so.
_ROW, _NEAR = 3, 64
# Windows on their way, and such as are remembered; directories whose requests are counted.
_MOST_WAITING, _MOST_DONE, _MOST_COUNTED = 64, 1 << 16, 8192
# How often it is looked whether a window is there, and the pause between, in seconds. Not for long: of a block that could not be read
# before, the kernel keeps an empty page, and asks for it only when somebody wants it.
_TRIES, _PAUSE_S = 12, 0.001
# Files of so many bytes on the average are read from the page cache of the image, where what lies around them can be brought; larger ones
# come directly, and are in memory once.
_SMALL_BYTES = 256 << 10
# Files of more blocks than this are read ahead by the kernel itself.
_LARGE_BLOCKS = WINDOW_BLOCKS
# Seconds after which a window may be brought again, and without a request after which all is as at the beginning.
_AGAIN_S, _QUIET_S = 30.0, 10.0


def is_of_use(files: int, size: int, *, far: bool) -> bool:
    """Whether a version of so many files and bytes is read ahead at all: what is `far` is read for who wants it alone, and for no neighbours."""
    return not far and size < files * _SMALL_BYTES


@dataclass(slots=True)
class _Read:
    """Of one directory: requests for its files that were not brought, windows that were, and the block behind what was asked for last."""

    requests: int = 0
    windows: int = 0
    end: int = 0


class Ahead:
    """For one image; `room` tells how many bytes of memory may be filled. Who is told windows is `fillers`, when there are any."""

    def __init__(self, image: Image, room: Callable[[], int]) -> None:
        self._image = image
        self._room_of = room
        self.fillers: WindowFeed | None = None
        self._directories: OrderedDict[int, _Read] = OrderedDict()
        self._done: OrderedDict[int, float] = OrderedDict()
        # Requests for names and for inodes, and up to where those of a window were brought.
        self._looks = {Kind.NAMES: 0, Kind.INODES: 0}
        self._up_to: OrderedDict[int, int] = OrderedDict()
        # Ranges of blocks, what is to come first on the left; how many there are; None is the end.
        self._queue: deque[range | None] = deque()
        self._count = threading.Semaphore(0)
        self._requests = 0
        # Requests in order.
        self._row = 0
        self._room = 0
        self._last = -_QUIET_S
        # The thread that reads, whose own requests do not count.
        self._thread = -1
        self.brought = 0

    def read(self, pid: int, offset: int, size: int) -> None:
        """A thread has asked for a part of the image."""
        if pid == self._thread:
            return
        now, block = time.monotonic(), offset >> BLOCK_BITS
        if now - self._last >= _QUIET_S:
            self._directories.clear()
            self._looks = dict.fromkeys(self._looks, 0)
            self._up_to.clear()
            self._requests = self._row = 0
            self._room = self._room_of()
            if self.fillers is not None:
                self.fillers.wake()
        self._last = now
        kind, end = self._image.given(block)
        if kind is not Kind.DATA:
            self._look(kind, block, end)
            return
        place = self._image.place(block)
        if place is None or place.blocks > _LARGE_BLOCKS or not self._is_due(block // WINDOW_BLOCKS, now):
            return
        read = self._directories.setdefault(place.record, _Read())
        self._directories.move_to_end(place.record)
        if len(self._directories) > _MOST_COUNTED:
            self._directories.popitem(last=False)
        if read.requests:
            self._row = self._row + 1 if 0 <= block - read.end <= _NEAR else 0
        read.end = block + (size >> BLOCK_BITS)
        read.requests += 1
        self._requests += 1
        if self._row < _ROW:
            self._want(read, place, block // WINDOW_BLOCKS, now)

    def _look(self, kind: Kind, block: int, end: int) -> None:
        """Names or inodes were asked for, of which places are given out up to `end`."""
        if kind not in self._looks:
            return
        self._looks[kind] += 1
        window = block // WINDOW_BLOCKS
        end = min(end, (window + 1) * WINDOW_BLOCKS)
        begin = max(self._up_to.get(window, block + 1), block + 1)
        if self._looks[kind] < _LOOKS or begin >= end or len(self._queue) >= 2 * _MOST_WAITING:
            return
        self._up_to[window] = end
        if len(self._up_to) > _MOST_DONE:
            self._up_to.popitem(last=False)
        self._queue.appendleft(range(begin, end))
        self._count.release()

    def _want(self, read: _Read, place: Place, window: int, now: float) -> None:
        """Add windows of a directory, this one first, as many as its requests are good for."""
        first = 1 if self._requests > _MANY else _FIRST
        more = (read.requests - first + 1) * _TIMES - read.windows
        for each in _from(window, place.first // WINDOW_BLOCKS, (place.end - 1) // WINDOW_BLOCKS):
            if more <= 0:
                break
            if not self._is_due(each, now):  # a large directory has thousands of them
                continue
            begin, end = each * WINDOW_BLOCKS, (each + 1) * WINDOW_BLOCKS
            blocks = range(max(begin, place.first), min(end, place.end))
            if self._room < len(blocks) * BLOCK or not self._tell(blocks):
                break
            self._done[each] = now
            self._done.move_to_end(each)
            self._room -= len(blocks) * BLOCK
            read.windows += 1
            more -= 1
        while len(self._done) > _MOST_DONE:
            self._done.popitem(last=False)

    def _tell(self, blocks: range) -> bool:
        """Have a part of a directory's data brought; whether it will be."""
        if self.fillers is not None and self.fillers.is_there:
            return self.fillers.tell(blocks)
        if len(self._queue) >= _MOST_WAITING:
            return False
        self._queue.append(blocks)
        self._count.release()
        return True

    def _is_due(self, window: int, now: float) -> bool:
        return now - self._done.get(window, -_AGAIN_S) >= _AGAIN_S

    def run(self, fd: int) -> None:
        """Bring what is wanted, of the image that is open as `fd`, until `end`. For a thread of its own: it goes from one window to the next
        without waiting for the loop, which is busy with answers."""
        self._thread = threading.get_native_id()
        before = range(0)
        while True:
            self._count.acquire()
            blocks = self._queue.popleft()
            if blocks is None:
                return
            # What cannot be read is for those to hear of who ask for it.
            with contextlib.suppress(OSError):
                os.posix_fadvise(fd, blocks.start * BLOCK, len(blocks) * BLOCK, os.POSIX_FADV_WILLNEED)
            self._await(fd, before)
            before = blocks
            if not self._queue:
                self._await(fd, before)
                before = range(0)
            self.brought += len(blocks) * BLOCK

    def _await(self, fd: int, blocks: range) -> None:
        """Wait a while for the last of a range, which is there when all is. It is looked for, and not read: a thread that waits in the kernel
        for an answer of its own process would keep that, when it is killed, from ending, and so all readers waiting, for ever."""
        if not blocks:
            return
        last = blocks.stop * BLOCK - BLOCK
        with contextlib.suppress(OSError):
            for _ in range(_TRIES):
                if syscalls.is_cached(fd, last // mmap.PAGESIZE * mmap.PAGESIZE):
                    break
                time.sleep(_PAUSE_S)

    def is_of(self, pid: int) -> bool:
        """Whether it is the thread that reads."""
        return pid == self._thread

    def end(self) -> None:
        """Have `run` return."""
        self._queue.appendleft(None)
        self._count.release()


def _from(start: int, first: int, last: int) -> Iterator[int]:
    """From `start` on to `last`, then from `first` to it."""
    yield from range(start, last + 1)
    yield from range(first, start)
