"""Which files are brought into the page cache, and when not: decided from what was listed and what was read. No file is touched here."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from math import inf
from zlib import crc32

from millpond.fusefs.filling.feed import MAX_BYTES, TOGETHER, WITHIN_S

# Listed folders that are known at most, and files of those that were looked into.
MOST_FOLDERS = 8192
MOST_FILES = 1 << 17
# Files among which the last TOGETHER that were read must not lie all: who reads in order is served as fast by READ, and would be met at each file.
NEAR_FILES = 128
# Files that were read after they had been taken, remembered until others are taken.
_MOST_LATE = 4096
# Files of a folder that are read before its others are brought.
READ_OF_FOLDER = 2
# Bytes brought, at most: so many times those read, and some to begin with.
TIMES, FIRST_BYTES = 8, 4 << 20
# Neighbours that one filler of several brings; the next ones are another's.
SHARED_FILES = 32
# Seconds without a READ after which nothing more is brought, and after which all is as at the beginning.
PAUSE_S, QUIET_S = 1.0, 10.0


@dataclass(slots=True)
class _Folder:
    """Inodes and bytes of a folder's small files, the first one's number, and whose its first share is; how many were read; where to go on, with bringing and with
    looking up."""

    inodes: array[int]
    sizes: array[int]
    first: int
    parity: int
    read: int = 0
    next: int = 0
    ahead: int = 0

    @property
    def is_done(self) -> bool:
        """Whether all were read or brought."""
        return not self.inodes


class Plan:
    """`files_of(folder, largest, most)` tells inodes and bytes of the files in a folder; `room()` how many bytes of memory may be filled; `share` is which of how
    many fillers this is: all are told the same, and each brings its part. Times are seconds of one clock."""

    def __init__(
        self,
        files_of: Callable[[bytes, int, int], tuple[array[int], array[int]]],
        room: Callable[[], int],
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._files_of = files_of
        self._room_of = room
        self._share, self._shares = share
        # Folders that were told, and not looked into yet.
        self._told: OrderedDict[bytes, None] = OrderedDict()
        self._known: OrderedDict[bytes, _Folder] = OrderedDict()
        # Numbers of the files that were neither read nor brought: all files are numbered in the order in which they were listed.
        self._left: dict[int, int] = {}
        self._folders: list[_Folder] = []
        self._numbered = 0
        self._due: deque[_Folder] = deque()
        self._folders_ahead: deque[_Folder] = deque()
        # When the last ones were read, and their numbers.
        self._recent: deque[tuple[float, int]] = deque(maxlen=TOGETHER)
        self._late: set[int] = set()
        self._going = False
        self._last = -inf
        self._room = 0
        # Changes when all was forgotten.
        self.generation = 0
        self._read_bytes = self._brought_bytes = 0

    def listed(self, folders: Iterable[bytes]) -> None:
        """The kernel knows the inodes of these folders' files."""
        for folder in folders:
            known = self._known.get(folder)
            if known is not None and known.is_done:  # the kernel had forgotten its entries, so the pages, too
                del self._known[folder]
            if folder not in self._known:
                self._told[folder] = None
        while len(self._told) + len(self._known) > MOST_FOLDERS and self._told:
            self._told.popitem(last=False)

    def read(self, files: Iterable[tuple[int, int]], now: float) -> None:
        """READs brought these (inode, bytes)."""
        if now - self._last > QUIET_S:
            if self._last > -inf:
                self.rest()
            self._room = self._room_of()
        self._last = now
        self._look_into()
        for inode, size in files:
            number = self._left.pop(inode, None)
            if number is None:
                self._late.add(inode)
                continue
            self._read_bytes += size
            self._recent.append((now, number))
            folder = self._folders[bisect_right(self._folders, number, key=_first) - 1]
            folder.read += 1
            if folder.read == READ_OF_FOLDER:
                self._due.append(folder)
        if len(self._late) > _MOST_LATE:
            self._late.clear()
        if len(self._recent) == TOGETHER and now - self._recent[0][0] <= WITHIN_S:
            numbers = [number for _, number in self._recent]
            self._going = max(numbers) - min(numbers) >= NEAR_FILES

    def take(self, most: int, now: float) -> list[int]:
        """The next files to bring, `most` at most; none when there is nothing to do for now. They count as brought."""
        found: list[int] = []
        self._late.clear()
        if not self.is_going(now):
            return found
        left = min(TIMES * self._read_bytes + FIRST_BYTES, self._room) // self._shares - self._brought_bytes
        while self._due and len(found) < most:
            folder = self._due[0]
            for number in self._mine(folder, folder.next):
                inode, size = folder.inodes[number], folder.sizes[number]
                if len(found) >= most or size > left:
                    folder.next = number
                    return found
                # Equal files of several folders are one inode.
                if self._left.pop(inode, None) is not None:
                    found.append(inode)
                    left -= size
                    self._brought_bytes += size
            self._due.popleft()
            # All of them were read or brought: its name alone is kept.
            folder.inodes, folder.sizes = array("Q"), array("I")
        return found

    def ahead(self, most: int) -> list[int]:
        """Files that may be brought one day and were not told here before, `most` at most: for who has time to look up where they lie."""
        self._look_into()
        found: list[int] = []
        while self._folders_ahead and len(found) < most:
            folder = self._folders_ahead[0]
            for number in self._mine(folder, folder.ahead):
                if len(found) >= most:
                    folder.ahead = number
                    return found
                found.append(folder.inodes[number])
            self._folders_ahead.popleft()
        return found

    def _mine(self, folder: _Folder, start: int) -> Iterator[int]:
        """Which of a folder's files this filler brings, from `start` on."""
        if self._shares == 1:
            yield from range(start, len(folder.inodes))
            return
        while start < len(folder.inodes):
            share = start // SHARED_FILES
            end = min((share + 1) * SHARED_FILES, len(folder.inodes))
            if (share + folder.parity) % self._shares == self._share:
                yield from range(start, end)
            start = end

    def resume(self, now: float) -> None:
        """Time has passed since the last READ, if there was one, that nobody could use."""
        if self._recent:
            self._last = max(self._last, now)

    def was_read(self, inode: int) -> bool:
        """Whether a READ has brought a file meanwhile that `take` gave last."""
        return inode in self._late

    def is_going(self, now: float) -> bool:
        """Whether somebody reads many small files just now."""
        if now - self._last > PAUSE_S:
            self._going = False
        return self._going

    def rest(self) -> None:
        """Nobody reads: be as at the beginning, and know folders' names alone."""
        self._told = OrderedDict.fromkeys(islice([*self._told, *self._known], MOST_FOLDERS))
        self._drop()
        self._last = -inf
        self._going = False
        self._read_bytes = self._brought_bytes = 0

    def give_up(self) -> None:
        """The kernel does not know the inodes any more: forget all folders. They count again when they are listed."""
        self._told.clear()
        self._drop()

    def _drop(self) -> None:
        self.generation += 1
        self._known.clear()
        self._left.clear()
        self._folders.clear()
        self._due.clear()
        self._folders_ahead.clear()
        self._recent.clear()
        self._late.clear()
        self._numbered = 0

    def _look_into(self) -> None:
        """Learn the files of told folders, as far as there is room: of one that takes more than half of it perhaps not all."""
        while self._told and len(self._left) <= MOST_FILES // 2:
            key, _ = self._told.popitem(last=False)
            inodes, sizes = self._files_of(key, MAX_BYTES, MOST_FILES - len(self._left))
            folder = self._known[key] = _Folder(inodes, sizes, self._numbered, crc32(key))
            if inodes:
                self._folders.append(folder)
                self._folders_ahead.append(folder)
                self._left.update(zip(inodes, count(self._numbered)))
                self._numbered += len(inodes)


def _first(folder: _Folder) -> int:
    return folder.first
