"""What a folder of the index takes in an image: how many blocks for its names, and where in its data each file begins.

Every block of names of one folder has the same number of entries, as many as would fit if all had its longest name: so it is known which
block an entry is in, and how many there are, without a look at every name.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from struct import Struct

from millpond.daemon.store.folders import ENTRY, FOLDER, HEAD, FolderReader
from millpond.fusefs.image.format import BLOCK, BLOCK_BITS, DIRENT

# Entries of folders whose shapes are kept, 8 bytes each, and how many a folder counts for beside its own; at least one folder is kept.
_MOST_ENTRIES, _KEPT = 1 << 20, 64
# Of an entry: where its name is and how long, and the places of that length and of its type.
_PLACE = Struct("<IH")
_LENGTH_AT, _KIND_AT = 4, 6


class Shape:
    """Of one folder. `dots` are the places of `.` and `..` among its names, which are in order."""

    __slots__ = ("count", "dots", "folders", "per_block", "starts")

    def __init__(self, blob: memoryview) -> None:
        self.count: int
        self.folders: int
        _, self.count, self.folders = HEAD.unpack_from(blob)
        entries = blob[HEAD.size : HEAD.size + self.count * ENTRY.size]
        longest = max(bytes(entries[_LENGTH_AT :: ENTRY.size]), default=1)
        self.per_block = BLOCK // (DIRENT.size + max(longest, 2))
        before = _before(blob, self.count, b"."), _before(blob, self.count, b"..")
        self.dots = before[0], before[1] + 1
        # Blocks of its data before each entry's, and in all, once they were measured.
        self.starts = array("Q")

    def measure(self, blob: memoryview) -> None:
        """Find where each file's data begins. A folder's data is none of it."""
        entries = bytes(blob[HEAD.size : HEAD.size + self.count * ENTRY.size])
        sizes = array("Q", entries)[2::3]
        if self.folders:
            kinds = entries[_KIND_AT :: ENTRY.size]
            sizes = array("Q", [0 if kind == FOLDER else size for kind, size in zip(kinds, sizes, strict=True)])
        self.starts = array("Q", accumulate([(size + BLOCK - 1) >> BLOCK_BITS for size in sizes], initial=0))

    @property
    def name_blocks(self) -> int:
        """Blocks of its names, with those of itself and its parent."""
        return -(-(self.count + 2) // self.per_block)

    @property
    def data_blocks(self) -> int:
        """Blocks of its files' data."""
        return int(self.starts[-1])

    def at(self, block: int) -> int:
        """The number of the entry whose data a block of it is."""
        return bisect_right(self.starts, block) - 1

    def entry(self, position: int) -> int:
        """The number of the entry at a position among all names, which is not that of one of `dots`."""
        return position - (position > self.dots[0]) - (position > self.dots[1])


class Shapes:
    """Shapes of folders, those that were wanted last kept."""

    def __init__(self, folders: FolderReader) -> None:
        self._folders = folders
        self._kept: OrderedDict[bytes, Shape] = OrderedDict()
        self._entries = 0

    def of(self, folder: bytes) -> Shape:
        """The shape of a folder. Raises StoreDamagedError when there is no such folder."""
        shape = self._kept.get(folder)
        if shape is not None:
            self._kept.move_to_end(folder)
            return shape
        shape = self._folders.looked_at(folder, Shape)
        self._kept[folder] = shape
        self._entries += _KEPT + shape.count
        while self._entries > _MOST_ENTRIES and len(self._kept) > 1:
            self._entries -= _KEPT + self._kept.popitem(last=False)[1].count
        return shape

    def measured(self, folder: bytes) -> Shape:
        """The same, with `starts`."""
        shape = self.of(folder)
        if not shape.starts:
            self._folders.looked_at(folder, shape.measure)
        return shape


def _before(blob: memoryview, count: int, name: bytes) -> int:
    """How many of a folder's names come before another one."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        offset, length = _PLACE.unpack_from(blob, HEAD.size + middle * ENTRY.size)
        if bytes(blob[offset : offset + length]) < name:
            low = middle + 1
        else:
            high = middle
    return low
