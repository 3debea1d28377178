"""Where in the image the directories lie that were looked at: places are given out when they are first asked for, and never change.

Areas, in blocks: the superblock's and the root's inode; names; data; inodes. Each area is given out from its beginning on, so who knows in which
order can find whose a block is. Behind each place for names or data some blocks are left free, and stay zeros: the kernel reads ahead, and keeps
what it was told; of a block that has not been given out it must be told nothing. A directory's record, 64 bytes, little endian:

    0   folder 32 bytes
    32  nid u64 | 40 parent's nid u64
    48  first child's record u32 | 52 names u32 | 56 data u32 | 60 inodes u32: first blocks, 0 where there is no place yet

Subdirectories of one have records side by side, in the order in which the folder counts them. Behind the records lies, for processes that help,
the order in which places for data were given: u64 how many, then a record's number u32 each.
"""

from __future__ import annotations

import errno
import mmap
import os
from array import array
from bisect import bisect_right
from enum import Enum
from struct import Struct

from millpond.daemon.mounts.left import memory_name
from millpond.fusefs.attributes import FileError
from millpond.fusefs.image.format import BLOCK, INODE_BYTES, INODES, MAX_BLOCK, NIDS

META_BLOCK = 1
ROOT_NID = NIDS
NAMES_BLOCK, DATA_BLOCK, INODES_BLOCK = 2, 1 << 28, MAX_BLOCK
# The names of folders that are lost: the last block of names is never given out, as free ones lie behind each place.
LOST_BLOCK = DATA_BLOCK - 1
END_BLOCK = INODES_BLOCK + (1 << 32)
IMAGE_BYTES = END_BLOCK * BLOCK
# Blocks left free: what is asked for at once, of data and of names.
DATA_GAP, NAMES_GAP = 256, 4
# Blocks of data that there is room for, in not too many directories: 15 TiB.
DATA_BLOCKS = INODES_BLOCK - DATA_BLOCK
ROOT = 0
# Directories of one mount at most; the memory of those that nobody looks at is never touched.
MOST = 1 << 23
_RECORD = Struct("<32sQQIIII")
_FOLDER = Struct("<32s")
_NIDS = Struct("<QQ")
_PLACE = Struct("<I")
_CHILD_AT, _NAMES_AT, _DATA_AT, _INODES_AT = 48, 52, 56, 60
_ORDER_AT = MOST * _RECORD.size
_COUNT = Struct("<Q")
_BYTES = _ORDER_AT + _COUNT.size + MOST * _PLACE.size


class Kind(Enum):
    """What a block is for."""

    HEAD = "head"
    NAMES = "names"
    DATA = "data"
    INODES = "inodes"


class _Area:
    """Blocks given out one after the other, from `first` to `end`, with `gap` free ones behind each place."""

    def __init__(self, first: int, end: int, gap: int = 0) -> None:
        self.next = first
        self._end = end
        self._gap = gap
        self._starts = array("Q")
        self._records = array("I")

    def give(self, record: int, blocks: int) -> int:
        """The first of so many blocks for a directory. Raises FileError when there are none left."""
        if blocks + self._gap > self._end - self.next:
            raise FileError(errno.EFBIG)
        first, self.next = self.next, self.next + blocks + self._gap
        self.note(record, first)
        return first

    def note(self, record: int, first: int) -> None:
        """A directory's place begins here, behind all others."""
        self._starts.append(first)
        self._records.append(record)

    def find(self, block: int) -> int | None:
        """The record of the directory that a block was given to, if it was to any."""
        at = bisect_right(self._starts, block) - 1
        return self._records[at] if at >= 0 else None


class Space:
    """The records, in a memory file. One process gives places out; others look at those for data."""

    def __init__(self, fd: int) -> None:
        """`fd` from `create`; it may be closed afterwards."""
        self._map = mmap.mmap(fd, _BYTES)
        self._names, self._data = _Area(NAMES_BLOCK, DATA_BLOCK, NAMES_GAP), _Area(DATA_BLOCK, INODES_BLOCK, DATA_GAP)
        self._inodes = _Area(INODES_BLOCK, END_BLOCK)
        self._records = 1
        self._known = 0

    @staticmethod
    def create(name: str = "") -> int:
        """A memory file for a mount's records, by whose name (daemon/mounts/left.py) its processes are found; the caller closes it."""
        fd = os.memfd_create(memory_name(name), os.MFD_CLOEXEC)
        os.ftruncate(fd, _BYTES)
        return fd

    def begin(self, root: bytes) -> None:
        """The root's record."""
        _RECORD.pack_into(self._map, 0, root, ROOT_NID, ROOT_NID, 0, 0, 0, 0)

    def folder(self, record: int) -> bytes:
        """The folder that a directory shows."""
        return bytes(_FOLDER.unpack_from(self._map, record * _RECORD.size)[0])

    def nids(self, record: int) -> tuple[int, int]:
        """The numbers of a directory and of its parent."""
        return _NIDS.unpack_from(self._map, record * _RECORD.size + 32)

    def children(self, record: int, count: int) -> int:
        """The record of the first of a directory's `count` subdirectories. Raises FileError."""
        first = self._place(record, _CHILD_AT)
        if not first:
            if count > MOST - self._records:
                raise FileError(errno.EMFILE)
            first, self._records = self._records, self._records + count
            self._set(record, _CHILD_AT, first)
        return first

    def know(self, record: int, folder: bytes, nid: int, parent: int) -> None:
        """Fill in the record of a subdirectory, once: nothing in it depends on when; and what is written again is zeros for a moment, which other
        processes would see."""
        at = record * _RECORD.size
        if self.folder(record) == folder and self.nids(record) == (nid, parent):
            return
        _FOLDER.pack_into(self._map, at, folder)
        _NIDS.pack_into(self._map, at + 32, nid, parent)

    def given(self, block: int) -> tuple[Kind, int]:
        """What a block is for, and up to where blocks of this kind were given out."""
        if block < NAMES_BLOCK:
            return Kind.HEAD, NAMES_BLOCK
        if block < DATA_BLOCK:
            return Kind.NAMES, self._names.next
        if block < INODES_BLOCK:
            return Kind.DATA, self._data.next
        return Kind.INODES, self._inodes.next

    # -- places ---------------------------------------------------------------------------------------------------

    def names(self, record: int, blocks: int) -> int:
        """The first of the blocks of a directory's names. Raises FileError."""
        return self._placed(record, _NAMES_AT, self._names, blocks)

    def inodes(self, record: int, count: int) -> int:
        """The first of the blocks of inodes of a directory's entries. Raises FileError."""
        first = self._place(record, _INODES_AT)
        if not first:  # the first one is that of the area, so that it is no 0 in 32 bits
            first = self._inodes.give(record, max(1, -(-count // INODES))) - INODES_BLOCK + 1
            self._set(record, _INODES_AT, first)
        return first - 1 + INODES_BLOCK

    def data(self, record: int, blocks: int) -> int:
        """The first of the blocks of the data of a directory's files. Raises FileError."""
        before = self._place(record, _DATA_AT)
        first = self._placed(record, _DATA_AT, self._data, blocks)
        if not before:
            _PLACE.pack_into(self._map, _ORDER_AT + _COUNT.size + self._known * _PLACE.size, record)
            self._known += 1
            _COUNT.pack_into(self._map, _ORDER_AT, self._known)
        return first

    def data_place(self, record: int) -> int:
        """The first block of the data of a directory that has a place."""
        return self._place(record, _DATA_AT)

    def names_of(self, block: int) -> tuple[int, int] | None:
        """The directory that a block of names is of, and which of its blocks it is."""
        record = self._names.find(block)
        return None if record is None else (record, block - self._place(record, _NAMES_AT))

    def inodes_of(self, block: int) -> tuple[int, int] | None:
        """The same for a block of inodes."""
        record = self._inodes.find(block)
        return None if record is None else (record, block - self._place(record, _INODES_AT) + 1 - INODES_BLOCK)

    def data_of(self, block: int) -> tuple[int, int] | None:
        """The same for a block of data."""
        record = self._data.find(block)
        return None if record is None else (record, block - self._place(record, _DATA_AT))

    def learn(self) -> None:
        """Take in what another process has given out for data meanwhile."""
        (known,) = _COUNT.unpack_from(self._map, _ORDER_AT)
        while self._known < known:
            (record,) = _PLACE.unpack_from(self._map, _ORDER_AT + _COUNT.size + self._known * _PLACE.size)
            self._data.note(record, self._place(record, _DATA_AT))
            self._known += 1

    def _placed(self, record: int, at: int, area: _Area, blocks: int) -> int:
        first = self._place(record, at)
        if not first:
            first = area.give(record, blocks)
            self._set(record, at, first)
        return first

    def _place(self, record: int, at: int) -> int:
        return int(_PLACE.unpack_from(self._map, record * _RECORD.size + at)[0])

    def _set(self, record: int, at: int, place: int) -> None:
        _PLACE.pack_into(self._map, record * _RECORD.size + at, place)


def nid_of(block: int, number: int) -> int:
    """The number of the inode that is the `number`th of a block of inodes."""
    return ((block - META_BLOCK) * BLOCK + number * INODE_BYTES) // 32
