"""The image of a version: any range of it, as bytes, or as the parts of files that lie there."""

from __future__ import annotations

import errno
import stat
from bisect import bisect_left
from typing import NamedTuple

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.store.folders import FILE, LINK, Entry, FolderReader
from millpond.fusefs.attributes import FileError, of_file, of_folder, of_link
from millpond.fusefs.image import format, space
from millpond.fusefs.image.format import BLOCK, BLOCK_BITS, INODE_BYTES, INODES
from millpond.fusefs.image.shape import Shapes
from millpond.fusefs.image.space import Space, nid_of

_TYPES = {FILE: format.REGULAR, LINK: format.SYMLINK}


class Piece(NamedTuple):
    """`size` bytes of a file from `offset` on, then `zeros` of them."""

    inode: int
    offset: int
    size: int
    zeros: int


class Whole(NamedTuple):
    """A file, the first block of its data, and its bytes."""

    inode: int
    block: int
    size: int


class Place(NamedTuple):
    """Whose a block of data is: a directory's record, the first block of its files' data and the one behind them, and how many the file has."""

    record: int
    first: int
    end: int
    blocks: int


class Image:
    """Of the tree whose directories `space` has, all belonging to `uid` and `gid`. `closed`: nobody else may enter it."""

    def __init__(self, folders: FolderReader, places: Space, *, uid: int, gid: int, closed: bool) -> None:
        self._folders = folders
        self._space = places
        self._shapes = Shapes(folders)
        self._uid, self._gid = uid, gid
        self._root_mode = stat.S_IFDIR | (0o500 if closed else 0o555)
        # What statfs shows: files and bytes.
        self.totals = (0, 0)

    def read(self, offset: int, size: int) -> list[bytes | Piece]:
        """What lies there, in order; `offset` is a block's. Raises FileError, StoreDamagedError."""
        found: list[bytes | Piece] = []
        block, end = offset >> BLOCK_BITS, (offset + size) >> BLOCK_BITS
        while block < end:
            if space.DATA_BLOCK <= block < space.INODES_BLOCK:
                block = self._data(block, min(end, space.INODES_BLOCK), found)
                continue
            found.append(self._block(block))
            block += 1
        return found

    def given(self, block: int) -> tuple[space.Kind, int]:
        """As Space.given."""
        return self._space.given(block)

    def place(self, block: int) -> Place | None:
        """Whose a block is; None if it is no file's. Raises StoreDamagedError."""
        owner = self._space.data_of(block) if space.DATA_BLOCK <= block < space.INODES_BLOCK else None
        if owner is None:
            return None
        record, here = owner
        shape = self._shapes.measured(self._space.folder(record))
        if here >= shape.data_blocks:
            return None
        number = shape.at(here)
        return Place(
            record, block - here, block - here + shape.data_blocks, shape.starts[number + 1] - shape.starts[number]
        )

    def files(self, window: range, largest: int) -> list[Whole]:
        """Files of 1 to `largest` bytes whose data begins in a part of one directory's. Raises FileError, StoreDamagedError."""
        record, here = _given(self._space.data_of(window.start))
        folder = self._space.folder(record)
        shape = self._shapes.measured(folder)
        base = window.start - here
        first = bisect_left(shape.starts, here)
        last = bisect_left(shape.starts, window.stop - base)
        return [
            Whole(entry.inode, base + shape.starts[number], entry.size)
            for number, entry in enumerate(self._folders.list(folder, first, last - first), first)
            if entry.type == FILE and 0 < entry.size <= largest
        ]

    def _block(self, block: int) -> bytes:
        """One that is no file's."""
        if block == 0:
            files, total = self.totals
            return bytes(format.SUPER_OFFSET) + format.superblock(
                root_nid=space.ROOT_NID, meta_block=space.META_BLOCK, inodes=files, blocks=format.blocks_of(total)
            ).ljust(BLOCK - format.SUPER_OFFSET, b"\0")
        if block == space.META_BLOCK:
            return (bytes(INODE_BYTES) + self._directory(space.ROOT)).ljust(BLOCK, b"\0")
        if block == space.LOST_BLOCK:
            raise StoreDamagedError("a folder of the version is not in the index", hint="mount it again")
        if block < space.DATA_BLOCK:
            return self._names(*_given(self._space.names_of(block)))
        return self._inodes(*_given(self._space.inodes_of(block)))

    # -- directories ----------------------------------------------------------------------------------------------

    def _directory(self, record: int) -> bytes:
        """The inode of a directory, whose names have a place from then on."""
        folder = self._space.folder(record)
        shape = self._shapes.of(folder)
        nid, _ = self._space.nids(record)
        shown = of_folder(nid, folder)
        mode = self._root_mode if record == space.ROOT else shown.mode
        first = self._space.names(record, shape.name_blocks)
        return self._inode(mode, shape.name_blocks * BLOCK, first, nid, shown.mtime_s)

    def _subdirectory(self, record: int) -> bytes:
        """The same for one among others, which are not to be hurt if the index has lost it: its names cannot be read then."""
        try:
            return self._directory(record)
        except StoreDamagedError:
            nid, _ = self._space.nids(record)
            return self._inode(of_folder(nid, None).mode, BLOCK, space.LOST_BLOCK, nid, 0)

    def _names(self, record: int, number: int) -> bytes:
        folder = self._space.folder(record)
        shape = self._shapes.of(folder)
        first = number * shape.per_block
        last = min(first + shape.per_block, shape.count + 2)
        if number >= shape.name_blocks:
            return _free(number - shape.name_blocks, space.NAMES_GAP)
        inodes = self._space.inodes(record, shape.count)
        nid, parent = self._space.nids(record)
        dots = {shape.dots[0]: (b".", nid), shape.dots[1]: (b"..", parent)}
        numbers = [shape.entry(position) for position in range(first, last) if position not in dots]
        entries = iter(self._folders.list(folder, numbers[0], len(numbers)) if numbers else [])
        told: list[tuple[bytes, int, int]] = []
        number = numbers[0] if numbers else 0
        for position in range(first, last):
            if position in dots:
                told.append((*dots[position], format.DIRECTORY))
                continue
            entry = next(entries)
            told.append((entry.name, _nid(inodes, number), _TYPES.get(entry.type, format.DIRECTORY)))
            number += 1
        return format.dirents(told)

    def _inodes(self, record: int, number: int) -> bytes:
        folder = self._space.folder(record)
        shape = self._shapes.measured(folder)
        begin = number * INODES
        if begin >= max(shape.count, 1):
            raise FileError(errno.EIO)
        data = self._space.data(record, shape.data_blocks)
        inodes = self._space.inodes(record, shape.count)
        child = self._space.children(record, shape.folders) if shape.folders else 0
        told = []
        for at, entry in enumerate(self._folders.list(folder, begin, INODES), begin):
            if entry.child is not None:
                subdirectory = child + self._folders.number_of_folder(folder, at)
                self._space.know(subdirectory, entry.child, _nid(inodes, at), self._space.nids(record)[0])
                told.append(self._subdirectory(subdirectory))
            else:
                told.append(self._file(entry, data + shape.starts[at]))
        return b"".join(told).ljust(BLOCK, b"\0")

    def _file(self, entry: Entry, first: int) -> bytes:
        if entry.type == LINK:
            shown = of_link(entry.inode, entry.size)
        else:
            shown = of_file(entry.inode, entry.size, executable=entry.executable)
        return self._inode(shown.mode, entry.size, first, entry.inode, shown.mtime_s)

    def _inode(self, mode: int, size: int, first: int, number: int, mtime_s: int) -> bytes:
        return format.inode(mode, size, first, number=number, uid=self._uid, gid=self._gid, mtime_s=mtime_s)

    # -- files ----------------------------------------------------------------------------------------------------

    def _data(self, block: int, end: int, found: list[bytes | Piece]) -> int:
        """Add what lies in a directory's data from a block on; the block behind that."""
        record, here = _given(self._space.data_of(block))
        folder = self._space.folder(record)
        shape = self._shapes.measured(folder)
        behind = min(here + end - block, shape.data_blocks)
        if behind <= here:
            found.append(_free(here - shape.data_blocks, space.DATA_GAP))
            return block + 1
        first = shape.at(here)
        last = shape.at(behind - 1)
        for number, entry in enumerate(self._folders.list(folder, first, last + 1 - first), first):
            begin, beyond = max(here, shape.starts[number]), min(behind, shape.starts[number + 1])
            if beyond > begin:
                offset = (begin - shape.starts[number]) * BLOCK
                wanted = (beyond - begin) * BLOCK
                size = min(wanted, entry.size - offset)
                if entry.type == LINK:
                    found.append(self._target(entry, offset, size) + bytes(wanted - size))
                else:
                    found.append(Piece(entry.inode, offset, size, wanted - size))
        return block + behind - here

    def _target(self, entry: Entry, offset: int, size: int) -> bytes:
        record = self._folders.inode(entry.inode)
        if record is None or record.target is None:
            raise FileError(errno.ESTALE)
        return record.target[offset : offset + size]


def _given(place: tuple[int, int] | None) -> tuple[int, int]:
    if place is None:
        raise FileError(errno.EIO)
    return place


def _free(number: int, gap: int) -> bytes:
    """The `number`th block behind a place. Raises FileError for one that may be given out yet."""
    if number >= gap:
        raise FileError(errno.EIO)
    return bytes(BLOCK)


def _nid(inodes: int, number: int) -> int:
    """Of a directory's entry, its inodes beginning with the block `inodes`."""
    return nid_of(inodes + number // INODES, number % INODES)
