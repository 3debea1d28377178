"""Folders: directory listings made for mounts, in the index, so that a holder keeps nothing of them in memory.

A folder is named by the BLAKE3-256 of its blob and shared by all versions in which it is the same. Blob, little endian:

    0   magic u32 | 4 count u32 | 8 folders u32
    12  count entries of 24 bytes, sorted by name:
        0 name offset u32 | 4 name length u16 | 6 type u8 (1 file, 2 folder, 3 link) | 7 executable u8
        8 inode u64 | 16 size u64, of a folder its number among folders
    then the folders' ids (32 bytes each), then the names, back to back

An entry is found by binary search in the index's mapped memory. A file's inode number is a hash of what the inode is
(name, executable, size, or a link's target), with bit 61 set; directories, which must be unique by path, get small
numbers from the holder. `inodes`: u64be -> flags u8 (1 executable, 2 link), size u64, then the name's key or the target.
`listings`: uid u32be, name key -> root folder id, files u64, bytes u64, claimed u8: what a manifest was made into, for one user,
because sizes of objects outside the store are his claim; `claimed` is 0 where there was no such claim.
"""

from __future__ import annotations

import struct
from array import array
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.store.index import Index
from millpond.daemon.store.store import Store

MAGIC = 0x3246504D  # "MPF2"
HEAD = struct.Struct("<III")
ENTRY = struct.Struct("<IHBBQQ")
ID_BYTES = 32
INODE = struct.Struct("<BQ")
_LISTING = struct.Struct("<32sQQ")
_STORED, _CLAIMED = b"\0", b"\1"
FILE, FOLDER, LINK = 1, 2, 3
FILE_INODE_BIT = 1 << 61
EXECUTABLE, IS_LINK = 1, 2
# Entries of folders kept as dictionaries, about 200 bytes each.
CACHED_ENTRIES = 32_768
# Entries that are taken in in the time of one search; folders whose lookups are counted.
_WORTH, _COUNTED = 16, 4096
Blob = bytes | memoryview
T = TypeVar("T")
# Bytes of one name, as the kernel takes it.
MAX_NAME = 255


class Entry(NamedTuple):
    """An entry of a folder. `child` is a folder's id, None for others; `inode` 0 for folders."""

    name: bytes
    type: int
    executable: bool
    inode: int
    size: int
    child: bytes | None


class InodeRecord(NamedTuple):
    """What a file's inode is: its object, or a link's target."""

    executable: bool
    size: int
    name: ObjectName | None
    target: bytes | None


class Totals(NamedTuple):
    """A built tree: its root folder's id, the files below it and their bytes."""

    root: bytes
    files: int
    bytes: int


class FolderReader:
    """The read side, over any index; a call is one read transaction."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def lookup(self, folder: bytes, name: bytes) -> Entry | None:
        """The entry of a name. Raises StoreDamagedError when there is no such folder."""
        with self._index.begin() as txn:
            blob = self._blob(txn, folder)
            low, high = 0, HEAD.unpack_from(blob)[1]
            while low < high:
                middle = (low + high) // 2
                found = _name(blob, middle)
                if found < name:
                    low = middle + 1
                elif found > name:
                    high = middle
                else:
                    return _entry(blob, middle)
            return None

    def list(self, folder: bytes, start: int, limit: int) -> list[Entry]:
        """At most `limit` entries from number `start` on, in the order of names."""
        with self._index.begin() as txn:
            blob = self._blob(txn, folder)
            numbers = range(start, min(HEAD.unpack_from(blob)[1], start + limit))
            part = blob[HEAD.size + numbers.start * ENTRY.size : HEAD.size + numbers.stop * ENTRY.size]
            # Not by _entry for each: this is most of what a listing costs.
            return [
                Entry(bytes(blob[offset : offset + length]), kind, bool(executable), inode, size, None)
                if kind != FOLDER
                else _entry(blob, number)
                for number, (offset, length, kind, executable, inode, size) in zip(
                    numbers, ENTRY.iter_unpack(part), strict=True
                )
            ]

    def small_files(self, folder: bytes, largest: int, most: int) -> tuple[array[int], array[int]]:
        """Inodes and bytes of the first `most` files of a folder that have 1 to `largest` bytes. Raises StoreDamagedError."""
        inodes, sizes = array("Q"), array("I")
        with self._index.begin() as txn:
            blob = self._blob(txn, folder)
            end = HEAD.size + HEAD.unpack_from(blob)[1] * ENTRY.size
            for _, _, kind, _, inode, size in ENTRY.iter_unpack(blob[HEAD.size : end]):
                if kind == FILE and 0 < size <= largest:
                    inodes.append(inode)
                    sizes.append(size)
                    if len(inodes) >= most:
                        break
        return inodes, sizes

    def count(self, folder: bytes) -> int:
        """Entries of a folder."""
        with self._index.begin() as txn:
            return int(HEAD.unpack_from(self._blob(txn, folder))[1])

    def inode(self, number: int) -> InodeRecord | None:
        """What a file's inode number stands for."""
        with self._index.begin() as txn:
            value = txn.get(number.to_bytes(8, "big"), db=self._index.inodes)
            return None if value is None else _parse_inode(bytes(value))

    def object_key(self, number: int) -> tuple[int, bytes] | None:
        """(size, name's key) of a file's inode number; None for a link, or when there is none."""
        with self._index.begin() as txn:
            value = txn.get(number.to_bytes(8, "big"), db=self._index.inodes)
            if value is None:
                return None
            flags, size = INODE.unpack_from(value)
            return None if flags & IS_LINK else (size, bytes(value[INODE.size :]))

    def walk_path(self, root: bytes, path: bytes) -> Entry | None:
        """The entry at a path below a folder, None when there is none. The empty path is the folder itself."""
        entry: Entry | None = Entry(b"", FOLDER, False, 0, 0, root)
        for part in path.split(b"/") if path else []:
            if entry is None or entry.child is None:
                return None
            entry = self.lookup(entry.child, part)
        return entry

    def blob(self, folder: bytes) -> bytes:
        """A folder's bytes. Raises StoreDamagedError when there is no such folder."""
        with self._index.begin() as txn:
            return bytes(self._blob(txn, folder))

    def looked_at(self, folder: bytes, look: Callable[[memoryview], T]) -> T:
        """What `look` makes of a folder's blob, of which it may keep nothing. Raises StoreDamagedError."""
        with self._index.begin() as txn:
            return look(self._blob(txn, folder))

    def number_of_folder(self, folder: bytes, number: int) -> int:
        """Which of a folder's subfolders its entry with this number is."""
        with self._index.begin() as txn:
            return int(ENTRY.unpack_from(self._blob(txn, folder), HEAD.size + number * ENTRY.size)[5])

    def has(self, folder: bytes) -> bool:
        """Whether the folder is in the index (it is not after a rebuild, nor in another version's form)."""
        with self._index.begin() as txn:
            return _is_blob(txn.get(folder, db=self._index.folders))

    def listing(self, uid: int, name: ObjectName) -> Totals | None:
        """What a manifest was made into for `uid`, if it was."""
        with self._index.begin() as txn:
            value = txn.get(_listing_key(uid, name), db=self._index.listings)
            return None if value is None else Totals(*_LISTING.unpack_from(value))

    def is_claimed(self, uid: int, name: ObjectName) -> bool:
        """Whether sizes in that listing were told by somebody, a remote for instance, and not by the store."""
        with self._index.begin() as txn:
            value = txn.get(_listing_key(uid, name), db=self._index.listings)
            return value is not None and _is_claimed(value)

    def _blob(self, txn: Any, folder: bytes) -> memoryview:
        blob: memoryview | None = txn.get(folder, db=self._index.folders)
        if blob is None or not _is_blob(blob):
            raise StoreDamagedError(f"folder {folder.hex()[:16]} is not in the index", hint="mount the version again")
        return blob


class FolderCache:
    """Lookups of the folders that are looked into again and again, by dictionaries instead of searches.

    A folder is taken in when its lookups have cost about as much as that will; least recently used ones go first.
    """

    def __init__(self, reader: FolderReader, max_entries: int = CACHED_ENTRIES) -> None:
        self._reader = reader
        self._max = max_entries
        # Entries held, of all folders.
        self.entries = 0
        self._folders: OrderedDict[bytes, tuple[bytes, dict[bytes, int]]] = OrderedDict()
        # Lookups in folders that are not here yet.
        self._lookups: dict[bytes, int] = {}

    def lookup(self, folder: bytes, name: bytes) -> Entry | None:
        """As FolderReader.lookup."""
        known = self._folders.get(folder)
        if known is None:
            known = self._take_in(folder)
            if known is None:
                return self._reader.lookup(folder, name)
        else:
            self._folders.move_to_end(folder)
        blob, numbers = known
        number = numbers.get(name)
        return None if number is None else _entry(blob, number)

    def _take_in(self, folder: bytes) -> tuple[bytes, dict[bytes, int]] | None:
        count = self._reader.count(folder)
        lookups = self._lookups.get(folder, 0) + 1
        if lookups * _WORTH < count or count > self._max // 4:
            if len(self._lookups) >= _COUNTED:
                self._lookups.clear()
            self._lookups[folder] = lookups
            return None
        self._lookups.pop(folder, None)
        blob = self._reader.blob(folder)
        known = self._folders[folder] = (blob, {_name(blob, number): number for number in range(count)})
        self.entries += count
        while self.entries > self._max:
            self.entries -= len(self._folders.popitem(last=False)[1][1])
        return known


def _is_blob(blob: Blob | None) -> bool:
    return blob is not None and len(blob) >= HEAD.size and HEAD.unpack_from(blob)[0] == MAGIC


def _name(blob: Blob, number: int) -> bytes:
    offset, length = struct.unpack_from("<IH", blob, HEAD.size + number * ENTRY.size)
    return bytes(blob[offset : offset + length])


def _entry(blob: Blob, number: int) -> Entry:
    offset, length, kind, executable, inode, size = ENTRY.unpack_from(blob, HEAD.size + number * ENTRY.size)
    name = bytes(blob[offset : offset + length])
    if kind != FOLDER:
        return Entry(name, kind, bool(executable), inode, size, None)
    at = HEAD.size + HEAD.unpack_from(blob)[1] * ENTRY.size + size * ID_BYTES
    return Entry(name, kind, False, inode, 0, bytes(blob[at : at + ID_BYTES]))


def _parse_inode(value: bytes) -> InodeRecord:
    flags, size = INODE.unpack_from(value)
    rest = value[INODE.size :]
    if flags & IS_LINK:
        return InodeRecord(False, size, None, rest)
    return InodeRecord(bool(flags & EXECUTABLE), size, ObjectName.from_key(rest), None)


def _listing_key(uid: int, name: ObjectName) -> bytes:
    return uid.to_bytes(4, "big") + name.key()


def _is_claimed(value: Blob) -> bool:
    # Earlier versions did not note it.
    return bytes(value[_LISTING.size :]) != _STORED


def save_listing(store: Store, uid: int, name: ObjectName, totals: Totals, *, claimed: bool) -> None:
    """Remember what a manifest was made into; `claimed`: sizes in it were told by somebody else than the store."""
    index = store.reader.index
    value = _LISTING.pack(*totals) + (_CLAIMED if claimed else _STORED)
    store.write(lambda txn: txn.put(_listing_key(uid, name), value, db=index.listings))


def forget_claimed(store: Store, uid: int) -> int:
    """Forget a user's listings with sizes that were claimed; how many there were."""
    index, prefix = store.reader.index, uid.to_bytes(4, "big")

    def forget(txn: Any) -> int:
        found = []
        with txn.cursor(db=index.listings) as cursor:
            going = cursor.set_range(prefix)
            while going and bytes(cursor.key()[:4]) == prefix:
                if _is_claimed(cursor.value()):
                    found.append(bytes(cursor.key()))
                going = cursor.next()
        for key in found:
            txn.delete(key, db=index.listings)
        return len(found)

    return store.write(forget)
