"""Folders: directory listings made for mounts, in the index, so that a holder keeps nothing of them in memory.

A folder is named by the BLAKE3-256 of its blob and shared by all versions in which it is the same. Blob, little endian:

    0   magic u32 | 4 count u32
    8   count entries of 56 bytes, sorted by name:
        0 name offset u32 | 4 name length u16 | 6 type u8 (1 file, 2 folder, 3 link) | 7 executable u8
        8 inode u64 | 16 size u64 | 24 child folder's id (32 bytes; zeros but for folders)
    then the names, back to back

An entry is found by binary search in the index's mapped memory. A file's inode number is a hash of what the inode is
(name, executable, size, or a link's target), with bit 61 set; directories, which must be unique by path, get small
numbers from the holder. `inodes`: u64be -> flags u8 (1 executable, 2 link), size u64, then the name's key or the target.
`listings`: uid u32be, name key -> root folder id, files u64, bytes u64: what a manifest was made into, for one user,
because sizes of objects outside the store are his claim.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from blake3 import blake3

from millpond.daemon.errors import InternalError, StoreDamagedError, TargetError
from millpond.daemon.names import ObjectName
from millpond.daemon.store.index import Index
from millpond.daemon.store.store import Store

MAGIC = 0x3146504D  # "MPF1"
_HEAD = struct.Struct("<II")
_ENTRY = struct.Struct("<IHBBQQ32s")
_INODE = struct.Struct("<BQ")
_LISTING = struct.Struct("<32sQQ")
FILE, FOLDER, LINK = 1, 2, 3
FILE_INODE_BIT = 1 << 61
_EXECUTABLE, _IS_LINK = 1, 2
_NO_CHILD = bytes(32)
# Inodes (150 bytes each) and bytes of folders gathered for one transaction. Numbers are hashes, so each transaction
# writes most pages of `inodes` anew: few large ones are much less to write.
_INODES, _BLOBS = 200_000, 32 << 20
# Entries of folders kept as dictionaries, about 200 bytes each.
CACHED_ENTRIES = 32_768
# Entries that are taken in in the time of one search; folders whose lookups are counted.
_WORTH, _COUNTED = 16, 4096
Blob = bytes | memoryview
MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One path of a tree to be built: a file with its object, a link with its `target`, or a folder built before."""

    path: bytes
    size: int = 0
    executable: bool = False
    name: ObjectName | None = None
    target: bytes | None = None
    folder: bytes | None = None


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
            low, high = 0, _HEAD.unpack_from(blob)[1]
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
            count = _HEAD.unpack_from(blob)[1]
            return [_entry(blob, number) for number in range(start, min(count, start + limit))]

    def count(self, folder: bytes) -> int:
        """Entries of a folder."""
        with self._index.begin() as txn:
            return int(_HEAD.unpack_from(self._blob(txn, folder))[1])

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
            flags, size = _INODE.unpack_from(value)
            return None if flags & _IS_LINK else (size, bytes(value[_INODE.size :]))

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

    def has(self, folder: bytes) -> bool:
        """Whether the folder is in the index (it is not after a rebuild)."""
        with self._index.begin() as txn:
            return txn.get(folder, db=self._index.folders) is not None

    def listing(self, uid: int, name: ObjectName) -> Totals | None:
        """What a manifest was made into for `uid`, if it was."""
        with self._index.begin() as txn:
            value = txn.get(_listing_key(uid, name), db=self._index.listings)
            return None if value is None else Totals(*_LISTING.unpack(value))

    def _blob(self, txn: Any, folder: bytes) -> memoryview:
        blob: memoryview | None = txn.get(folder, db=self._index.folders)
        if blob is None or len(blob) < _HEAD.size or _HEAD.unpack_from(blob)[0] != MAGIC:
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


def _name(blob: Blob, number: int) -> bytes:
    offset, length = struct.unpack_from("<IH", blob, _HEAD.size + number * _ENTRY.size)
    return bytes(blob[offset : offset + length])


def _entry(blob: Blob, number: int) -> Entry:
    offset, length, kind, executable, inode, size, child = _ENTRY.unpack_from(blob, _HEAD.size + number * _ENTRY.size)
    name = bytes(blob[offset : offset + length])
    return Entry(name, kind, bool(executable), inode, size, child if kind == FOLDER else None)


def _parse_inode(value: bytes) -> InodeRecord:
    flags, size = _INODE.unpack_from(value)
    rest = value[_INODE.size :]
    if flags & _IS_LINK:
        return InodeRecord(False, size, None, rest)
    return InodeRecord(bool(flags & _EXECUTABLE), size, ObjectName.from_key(rest), None)


def _listing_key(uid: int, name: ObjectName) -> bytes:
    return uid.to_bytes(4, "big") + name.key()


def _check_name(name: bytes, path: bytes) -> None:
    """Raise TargetError for a name that the kernel would not take: it would fail the whole folder."""
    if not name or len(name) > MAX_NAME or name in (b".", b"..") or b"\0" in name:
        raise TargetError(f"{os.fsdecode(path)!r} cannot be a path in a mount")


class OutOfOrder(Exception):
    """A path came before one that it should have come after."""


class _Open:
    """A folder being built: rows and names as the blob will have them, offsets still from the first name on."""

    __slots__ = ("bytes", "files", "last", "name", "names", "rows")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.rows = bytearray()
        self.names = bytearray()
        self.last = b""
        self.files = 0
        self.bytes = 0

    def add(self, name: bytes, kind: int, executable: bool, inode: int, size: int, child: bytes) -> None:
        """Raises OutOfOrder; TargetError for a name that is here."""
        if name <= self.last:
            if name == self.last:
                raise TargetError(f"{name!r} is twice in one folder")
            raise OutOfOrder(name)
        self.last = name
        self.rows += _ENTRY.pack(len(self.names), len(name), kind, executable, inode, size, child)
        self.names += name

    def blob(self) -> bytes:
        """The folder's bytes."""
        count, start = len(self.rows) // _ENTRY.size, _HEAD.size + len(self.rows)
        words = memoryview(self.rows).cast("I")
        for number in range(0, len(words), _ENTRY.size // words.itemsize):
            words[number] += start
        return b"".join((_HEAD.pack(MAGIC, count), self.rows, self.names))


class TreeBuilder:
    """Builds folders from paths sorted by their parts; memory holds the folders on the way to the current path."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._index = store.reader.index
        self._stack = [_Open(b"")]
        # The path of the top folder, with a slash behind it if it is not the root.
        self._prefix = b""
        self._folders: dict[bytes, bytes] = {}
        self._inodes: dict[int, bytes] = {}
        self._unwritten = 0

    def add(self, entry: TreeEntry, totals: Totals | None = None) -> None:
        """Add a path; `totals` of a prebuilt folder are counted in. Raises OutOfOrder, TargetError for names no folder can
        have."""
        if entry.folder is not None:
            top, name = self._enter(entry.path)
            top.add(name, FOLDER, False, 0, 0, entry.folder)
            if totals is not None:
                top.files += totals.files
                top.bytes += totals.bytes
        elif entry.target is not None:
            value = _INODE.pack(_IS_LINK, len(entry.target)) + entry.target
            self._add(entry.path, LINK, False, len(entry.target), value)
        elif entry.name is not None:
            value = _INODE.pack(_EXECUTABLE if entry.executable else 0, entry.size) + entry.name.key()
            self._add(entry.path, FILE, entry.executable, entry.size, value)
        else:
            raise InternalError(f"{entry.path!r} has neither object nor target")

    def add_files(self, rows: Iterable[tuple[bytes, int, bytes]]) -> None:
        """Add files that are not executable: path, size, key of the object's name. Raises as `add`."""
        with self._index.begin():
            for path, size, key in rows:
                self._put(path, FILE, False, size, _INODE.pack(0, size) + key)
        self._flush_some()

    def finish(self) -> Totals:
        """Write what is left; the tree."""
        while len(self._stack) > 1:
            self._close()
        top = self._stack[0]
        root = self._keep(top)
        self._flush()
        return Totals(root, top.files, top.bytes)

    def _add(self, path: bytes, kind: int, executable: bool, size: int, value: bytes) -> None:
        self._put(path, kind, executable, size, value)
        self._flush_some()

    def _put(self, path: bytes, kind: int, executable: bool, size: int, value: bytes) -> None:
        top, name = self._enter(path)
        top.add(name, kind, executable, self._inode(value), size, _NO_CHILD)
        top.files += 1
        top.bytes += size

    def _enter(self, path: bytes) -> tuple[_Open, bytes]:
        """The folder of a path, opened, and the path's last part."""
        prefix, slash, name = path.rpartition(b"/")
        prefix += slash
        _check_name(name, path)
        if prefix != self._prefix:
            parents, depth = prefix.split(b"/")[:-1], 0
            while depth < min(len(parents), len(self._stack) - 1) and self._stack[depth + 1].name == parents[depth]:
                depth += 1
            while len(self._stack) > depth + 1:
                self._close()
            for part in parents[depth:]:
                _check_name(part, path)
                if part < self._stack[-1].last:
                    raise OutOfOrder(path)
                self._stack.append(_Open(part))
            self._prefix = prefix
        return self._stack[-1], name

    def _close(self) -> None:
        done = self._stack.pop()
        parent = self._stack[-1]
        parent.add(done.name, FOLDER, False, 0, 0, self._keep(done))
        parent.files += done.files
        parent.bytes += done.bytes

    def _keep(self, folder: _Open) -> bytes:
        """The id of a folder that is whole."""
        blob = folder.blob()
        folder_id = blake3(blob).digest()
        self._folders[folder_id] = blob
        self._unwritten += len(blob)
        return folder_id

    def _inode(self, value: bytes) -> int:
        number = int.from_bytes(blake3(value).digest()[:8], "little") & (FILE_INODE_BIT - 1) | FILE_INODE_BIT
        with self._index.begin() as txn:
            while True:
                there = self._inodes.get(number) or txn.get(number.to_bytes(8, "big"), db=self._index.inodes)
                if there is None or there == value:
                    break
                number = (number + 1) & (FILE_INODE_BIT - 1) | FILE_INODE_BIT
        if there is None:
            self._inodes[number] = value
        return number

    def _flush_some(self) -> None:
        if len(self._inodes) > _INODES or self._unwritten > _BLOBS:
            self._flush()

    def _flush(self) -> None:
        folders, inodes, index = self._folders, self._inodes, self._index

        def work(txn: Any) -> None:
            for number, value in sorted(inodes.items()):
                key = number.to_bytes(8, "big")
                if not txn.put(key, value, db=index.inodes, overwrite=False) and txn.get(key, db=index.inodes) != value:
                    raise InternalError("two builds chose the same inode number", hint="run the command again")
            for folder_id, blob in folders.items():
                txn.put(folder_id, blob, db=index.folders)

        if folders or inodes:
            self._store.write(work)
        self._folders, self._inodes, self._unwritten = {}, {}, 0


def build_tree(store: Store, entries: Iterable[TreeEntry]) -> Totals:
    """The tree of entries sorted by path parts."""
    builder = TreeBuilder(store)
    for entry in entries:
        builder.add(entry)
    return builder.finish()


def save_listing(store: Store, uid: int, name: ObjectName, totals: Totals) -> None:
    """Remember what a manifest was made into."""
    index = store.reader.index
    store.write(lambda txn: txn.put(_listing_key(uid, name), _LISTING.pack(*totals), db=index.listings))


def sorted_paths(paths: Iterable[bytes]) -> Iterator[bytes]:
    """Paths in the order that TreeBuilder needs."""
    yield from sorted(paths, key=lambda path: path.split(b"/"))
