"""Making folders (folders.py) of paths: a tree is built as its paths come, sorted by their parts.

What a million files need is done for many at once, by functions that loop in C: one entry at a time costs four times as
much.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, islice
from operator import lt
from typing import Any, NamedTuple

from blake3 import blake3

from millpond.daemon.errors import InternalError, TargetError
from millpond.daemon.names import ObjectName
from millpond.daemon.store.folders import (
    ENTRY,
    EXECUTABLE,
    FILE,
    FOLDER,
    HEAD,
    ID_BYTES,
    INODE,
    IS_LINK,
    LINK,
    MAGIC,
    MAX_NAME,
    Totals,
)
from millpond.daemon.store.inodes import Inodes
from millpond.daemon.store.store import Store

# Inodes (150 bytes each) and bytes of folders gathered for one transaction. Numbers are hashes, so each transaction
# writes most pages of `inodes` anew: few large ones are much less to write.
_INODES, _BLOBS = 200_000, 32 << 20
# Where an entry has its type; what a file has there, in the first of the entry's three words of 8 bytes: offset, length, type.
_TYPE = 6
_FILE_WORD = FILE << 8 * _TYPE
# Names that no entry has.
_NO_NAMES = frozenset((b"", b".", b".."))


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One path of a tree to be built: a file with its object, a link with its `target`, or a folder built before."""

    path: bytes
    size: int = 0
    executable: bool = False
    name: ObjectName | None = None
    target: bytes | None = None
    folder: bytes | None = None


def _check_name(name: bytes, path: bytes) -> None:
    """Raise TargetError for a name that the kernel would not take: it would fail the whole folder."""
    if not name or len(name) > MAX_NAME or name in (b".", b"..") or b"\0" in name:
        raise TargetError(f"{os.fsdecode(path)!r} cannot be a path in a mount")


class Run(NamedTuple):
    """Files that lie side by side in one folder, as far as its rows can be made without their objects: the folder's path, with a slash
    behind it if it is not the root; their names, and these back to back; the first 8 bytes of each row, offsets from the first name on;
    whether the names ascend."""

    prefix: bytes
    names: Sequence[bytes]
    joined: bytes
    words: array[int]
    ascending: bool


class Files(NamedTuple):
    """Files of a tree, none executable: their paths; the keys of their objects' names, as many; each key's size in bytes; their runs,
    where `runs` has made them already."""

    paths: Sequence[bytes]
    keys: Sequence[bytes]
    sizes: Mapping[bytes, int]
    runs: Sequence[Run] | None = None


class OutOfOrder(Exception):
    """A path came before one that it should have come after."""


class _Open:
    """A folder being built: rows, children and names as the blob will have them, offsets still from the first name
    on."""

    __slots__ = ("bytes", "children", "files", "last", "name", "names", "rows")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.rows = bytearray()
        self.children = bytearray()
        self.names = bytearray()
        self.last = b""
        self.files = 0
        self.bytes = 0

    def add(self, name: bytes, kind: int, executable: bool, inode: int, size: int) -> None:
        """Raises OutOfOrder; TargetError for a name that is here."""
        if name <= self.last:
            if name == self.last:
                both = self.rows[-ENTRY.size + _TYPE] != kind
                raise TargetError(f"{os.fsdecode(name)!r} is there {'as a file and as a folder' if both else 'twice'}")
            raise OutOfOrder(name)
        self.last = name
        self.rows += ENTRY.pack(len(self.names), len(name), kind, executable, inode, size)
        self.names += name

    def add_folder(self, name: bytes, child: bytes) -> None:
        """A folder whose id is known. Raises as `add`."""
        self.add(name, FOLDER, False, 0, len(self.children) // ID_BYTES)
        self.children += child

    def add_files(self, run: Run, inodes: Sequence[int], sizes: Sequence[int]) -> None:
        """`add` for many files that are not executable."""
        if run.ascending and run.names[0] > self.last:
            start = len(self.names)
            rows = array("Q", bytes(ENTRY.size * len(run.names)))
            rows[0::3] = array("Q", [word + start for word in run.words]) if start else run.words
            rows[1::3] = array("Q", inodes)
            rows[2::3] = array("Q", sizes)
            self.rows += rows.tobytes()
            self.names += run.joined
            self.last = run.names[-1]
        else:
            for name, inode, size in zip(run.names, inodes, sizes, strict=True):
                self.add(name, FILE, False, inode, size)

    def blob(self) -> bytes:
        """The folder's bytes."""
        count, start = len(self.rows) // ENTRY.size, HEAD.size + len(self.rows) + len(self.children)
        words = array("I", bytes(self.rows))
        every = slice(0, None, ENTRY.size // words.itemsize)
        words[every] = array("I", [offset + start for offset in words[every]])
        head = HEAD.pack(MAGIC, count, len(self.children) // ID_BYTES)
        return b"".join((head, words.tobytes(), self.children, self.names))


class TreeBuilder:
    """Builds folders from paths sorted by their parts; memory holds the folders on the way to the current path."""

    def __init__(self, store: Store, inodes: Inodes | None = None) -> None:
        """`inodes`: those that were made ahead for this tree."""
        self._store = store
        self._inodes = inodes or Inodes(store)
        self._stack = [_Open(b"")]
        # The path of the top folder, with a slash behind it if it is not the root.
        self._prefix = b""
        self._folders: dict[bytes, bytes] = {}
        self._unwritten = 0

    def add(self, entry: TreeEntry, totals: Totals | None = None) -> None:
        """Add a path; `totals` of a prebuilt folder are counted in. Raises OutOfOrder, TargetError for names no folder can
        have."""
        if entry.folder is not None:
            top, name = self._enter(entry.path)
            top.add_folder(name, entry.folder)
            if totals is not None:
                top.files += totals.files
                top.bytes += totals.bytes
        elif entry.target is not None:
            value = INODE.pack(IS_LINK, len(entry.target)) + entry.target
            self._add(entry.path, LINK, False, len(entry.target), value)
        elif entry.name is not None:
            value = INODE.pack(EXECUTABLE if entry.executable else 0, entry.size) + entry.name.key()
            self._add(entry.path, FILE, entry.executable, entry.size, value)
        else:
            raise InternalError(f"{entry.path!r} has neither object nor target")

    def add_files(self, files: Files) -> None:
        """Add files. Raises as `add`."""
        numbers, start = self._inodes.numbers(files.sizes), 0
        for run in runs(files.paths) if files.runs is None else files.runs:
            keys = files.keys[start : start + len(run.names)]
            start += len(keys)
            self._open(run.prefix, run.prefix + run.names[0])
            top, sizes = self._stack[-1], [files.sizes[key] for key in keys]
            top.add_files(run, [numbers[key] for key in keys], sizes)
            top.files += len(keys)
            top.bytes += sum(sizes)
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
        top.add(name, kind, executable, self._inodes.number(value), size)
        top.files += 1
        top.bytes += size

    def _enter(self, path: bytes) -> tuple[_Open, bytes]:
        """The folder of a path, opened, and the path's last part."""
        prefix, slash, name = path.rpartition(b"/")
        _check_name(name, path)
        self._open(prefix + slash, path)
        return self._stack[-1], name

    def _open(self, prefix: bytes, path: bytes) -> None:
        """Make the folder of a path, which begins with `prefix`, the top one."""
        if prefix == self._prefix:
            return
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

    def _close(self) -> None:
        done = self._stack.pop()
        parent = self._stack[-1]
        parent.add_folder(done.name, self._keep(done))
        parent.files += done.files
        parent.bytes += done.bytes

    def _keep(self, folder: _Open) -> bytes:
        """The id of a folder that is whole."""
        blob = folder.blob()
        folder_id = blake3(blob).digest()
        self._folders[folder_id] = blob
        self._unwritten += len(blob)
        return folder_id

    def _flush_some(self) -> None:
        if self._inodes.unwritten > _INODES or self._unwritten > _BLOBS:
            self._flush()

    def _flush(self) -> None:
        folders, inodes = self._folders, self._inodes

        def work(txn: Any) -> None:
            inodes.write(txn)
            with txn.cursor(db=self._store.reader.index.folders) as cursor:
                cursor.putmulti(sorted(folders.items()))

        inodes.settle()
        if folders or inodes.unwritten:
            self._store.write(work)
        self._folders, self._unwritten = {}, 0
        inodes.written()


def runs(paths: Sequence[bytes]) -> list[Run]:
    """The runs of a tree's paths, in their order. Raises TargetError for names no folder can have."""
    found = []
    for prefix, start, end in _folders(paths):
        skip, part = len(prefix), paths[start:end]
        names = [path[skip:] for path in part] if skip else part
        if not _are_names(names):
            for name, path in zip(names, part, strict=True):
                _check_name(name, path)
        lengths = list(map(len, names))
        offsets = accumulate(lengths, initial=0)
        words = array("Q", [at | length << 32 | _FILE_WORD for at, length in zip(offsets, lengths, strict=False)])
        ascending = all(map(lt, names, islice(names, 1, None)))
        found.append(Run(prefix, names, b"".join(names), words, ascending))
    return found


def _folders(paths: Sequence[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Runs of paths that lie side by side in one folder: the folder's path, with a slash behind it; the run's begin and end."""
    start, ascending = 0, all(map(lt, paths, islice(paths, 1, None)))
    while start < len(paths):
        prefix = paths[start][: paths[start].rfind(b"/") + 1]
        # Where all that is below this folder ends: a slash is followed by a 0.
        end = bisect_left(paths, prefix[:-1] + b"0", start) if prefix and ascending else len(paths)
        if ascending and b"".join(paths[start:end]).count(b"/") == prefix.count(b"/") * (end - start):
            yield prefix, start, end
        else:
            for folder, group in groupby([path[: path.rfind(b"/") + 1] for path in paths[start:end]]):
                stop = start + len(list(group))
                yield folder, start, stop
                start = stop
        start = end


def _are_names(names: Sequence[bytes]) -> bool:
    """Whether `_check_name` has nothing against any of them."""
    return max(map(len, names)) <= MAX_NAME and _NO_NAMES.isdisjoint(names) and b"\0" not in b"".join(names)


def build_tree(store: Store, entries: Iterable[TreeEntry]) -> Totals:
    """The tree of entries sorted by path parts."""
    builder = TreeBuilder(store)
    for entry in entries:
        builder.add(entry)
    return builder.finish()


def sorted_paths(paths: Iterable[bytes]) -> Iterator[bytes]:
    """Paths in the order that TreeBuilder needs."""
    yield from sorted(paths, key=lambda path: path.split(b"/"))
