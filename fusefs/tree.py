"""Names and attributes of a version: what a mount answers without a look at a file's content.

Nothing is kept for files: an inode number leads to its object through the index. Directories must be unique by path, so
they get numbers when they are looked at, and lose them when the kernel forgets them (nodes.py).
"""

from __future__ import annotations

import errno
import json
import stat
import time
from contextlib import AbstractContextManager
from typing import Any

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.store.folders import (
    FILE,
    FILE_INODE_BIT,
    LINK,
    MAX_NAME,
    Entry,
    FolderCache,
    FolderReader,
    InodeRecord,
)
from millpond.daemon.store.reader import StoreReader
from millpond.fusefs import attributes
from millpond.fusefs.attributes import Attributes, FileError
from millpond.fusefs.lazy import Walks
from millpond.fusefs.memory import MapTrimmer
from millpond.fusefs.nodes import HIDDEN_DIR, ROOT, Node, Nodes

HIDDEN = b".millpond"
STATS = b"stats"
# Entries taken from a folder in one read of the index.
_PAGE = 256
_PAGE_LOOKS = 8
XATTRS = (b"user.millpond.object", b"user.millpond.stored")


class Tree:
    """The operations on names. `uid` is the caller whose grants count and to whom all belongs; `totals` are (files, bytes).
    `immutable`: no directory of this tree ever changes, but for the hidden one."""

    immutable = True

    def __init__(
        self, reader: StoreReader, *, root: bytes | None, uid: int, totals: tuple[int, int], xattrs: bool
    ) -> None:
        self.folders = FolderReader(reader.index)
        self._lookups = FolderCache(self.folders)
        self._map = MapTrimmer(reader.index.path)
        self.uid = uid
        self._reader = reader
        self._totals = totals
        self._xattrs = xattrs
        self.nodes = Nodes(root)
        self._started = time.time()
        self._walks = Walks(self.folders, reader, uid)
        # The folder that was looked into last.
        self._last_folder: bytes | None = None

    def reading(self) -> AbstractContextManager[Any]:
        """All looks at the index within are one transaction. Nothing may be awaited."""
        return self._reader.index.begin()

    def statistics(self) -> dict[str, Any]:
        """What the hidden text shows; see filesystem.py."""
        return {}

    async def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """The entry `name` of a directory, counted as told to the kernel; None when there is none. Raises FileError."""
        found = self.lookup_stored(parent, name)
        if found is None and self.must_ask(parent):
            return await self.lookup_special(self.nodes.known(parent), name)
        return found

    def looked(self, count: int) -> None:
        """So many looks at the index were taken by others."""
        self._map.looked(count)

    def looked_into(self, folder: bytes) -> None:
        """Files of a folder were looked up by another process."""
        self._walks.looked(folder)

    def lookup_stored(self, parent: int, name: bytes) -> Attributes | None:
        """`lookup` without what must be asked for (`must_ask`)."""
        self._map.looked()
        if len(name) > MAX_NAME:
            raise FileError(errno.ENAMETOOLONG)
        if parent == HIDDEN_DIR:
            return self._snapshot() if name == STATS else None
        folder = self.nodes.known(parent).folder
        if folder is not None:
            entry = self._lookups.lookup(folder, name)
            if entry is not None:
                if folder is not self._last_folder:
                    self._last_folder = folder
                    self._walks.looked(folder)
                return self.attributes_of(parent, entry)
        if parent == ROOT and name == HIDDEN:  # unless the data itself has this name
            return self._hidden()
        return None

    async def lookup_special(self, node: Node, name: bytes) -> Attributes | None:
        """A lookup in a directory that is no folder of the index; see versions.py."""
        raise FileError(errno.ENOENT)

    def folder_of(self, inode: int) -> bytes | None:
        """The folder of the index that a directory is, if it is one."""
        node = self.nodes.get(inode)
        return None if node is None else node.folder

    def where(self, inode: int) -> tuple[bytes, int] | None:
        """A directory's path from the root, and how many entries it has, if it is a folder of the index."""
        folder = self.folder_of(inode)
        names: list[bytes] = []
        try:
            while inode != ROOT:
                inode, name = self.nodes.known(inode).key
                names.append(name)
            return None if folder is None else (b"/".join(reversed(names)), self.folders.count(folder))
        except (FileError, StoreDamagedError):  # the kernel forgot a directory on the way, or the index lost it
            return None

    def getattr(self, inode: int) -> Attributes:
        """Attributes of an inode the kernel knows. Raises FileError."""
        if inode == HIDDEN_DIR:
            return self._hidden()
        if inode & FILE_INODE_BIT:
            record = self._record(inode)
            if record.target is not None:
                return attributes.of_link(inode, len(record.target))
            return attributes.of_file(inode, record.size, executable=record.executable)
        return self.node_attributes(self.nodes.known(inode))

    def attributes_of(self, parent: int, entry: Entry) -> Attributes:
        """Attributes of a folder's entry, counted as told to the kernel."""
        if entry.type == FILE:
            return attributes.of_file(entry.inode, entry.size, executable=entry.executable)
        if entry.type == LINK:
            return attributes.of_link(entry.inode, entry.size)
        return self.node_attributes(self.nodes.remember(parent, entry.name, entry.child))

    def node_attributes(self, node: Node) -> Attributes:
        """Attributes of a node: a directory, a link that may change, or a text of the holder's own."""
        if node.text is not None:
            return Attributes(node.inode, stat.S_IFREG | 0o444, len(node.text), int(time.time()), 0.0)
        if node.target is not None:
            return Attributes(node.inode, stat.S_IFLNK | 0o777, len(node.target), int(self._started), 1.0)
        return attributes.of_folder(node.inode, node.folder)

    def forget(self, inode: int, count: int) -> None:
        """The kernel drops `count` of its references."""
        self.nodes.forget(inode, count)

    def must_ask(self, inode: int) -> bool:
        """Whether a directory is no folder of the index: its `lookup` and `readdir` may wait, its entries may change."""
        node = self.nodes.get(inode)
        return node is not None and node.folder is None and node.target is None and node.text is None

    async def readdir(self, inode: int, start: int) -> list[tuple[bytes, Entry | None, int]]:
        """A page of a directory from position `start`: (name, entry, next position); an entry that is None is to be
        looked up by name. Nothing is counted as told."""
        if inode == HIDDEN_DIR:
            return [(STATS, None, 1)] if start == 0 else []
        node = self.nodes.known(inode)
        if node.folder is None:
            return [(name, None, start + n + 1) for n, name in enumerate((await self.list_special(node))[start:])]
        self._map.looked(_PAGE_LOOKS)
        self._walks.looked(node.folder)
        page = self.folders.list(node.folder, start, _PAGE)
        return [(entry.name, entry, start + number + 1) for number, entry in enumerate(page)]

    async def list_special(self, node: Node) -> list[bytes]:
        """Names in a directory that is no folder of the index; see versions.py."""
        return []

    def readlink(self, inode: int) -> bytes:
        """A link's target. Raises FileError."""
        target = self._record(inode).target if inode & FILE_INODE_BIT else self.nodes.known(inode).target
        if target is None:
            raise FileError(errno.EINVAL)
        return target

    def statfs(self) -> tuple[int, int]:
        """(files, bytes) in all."""
        return self._totals

    def getxattr(self, inode: int, name: bytes) -> bytes:
        """The object of a file and whether it is in the store, when the mount has xattrs. Raises FileError."""
        if not self._xattrs:
            raise FileError(errno.ENOSYS)  # then the kernel asks no more
        record = self._record(inode) if inode & FILE_INODE_BIT else None
        if record is None or record.name is None or name not in XATTRS:
            raise FileError(errno.ENODATA)
        if name == XATTRS[0]:
            return str(record.name).encode()
        return b"yes" if self._reader.resolve([record.name], self.uid)[0] is not None else b"no"

    def listxattr(self, inode: int) -> tuple[bytes, ...]:
        """Names of a file's xattrs. Raises FileError."""
        if not self._xattrs:
            raise FileError(errno.ENOSYS)
        return XATTRS if inode & FILE_INODE_BIT and self._record(inode).name is not None else ()

    def _record(self, inode: int) -> InodeRecord:
        self._map.looked()
        record = self.folders.inode(inode)
        if record is None:
            raise FileError(errno.ESTALE)
        return record

    def _hidden(self) -> Attributes:
        return Attributes(HIDDEN_DIR, stat.S_IFDIR | 0o555, 0, int(self._started))

    def _snapshot(self) -> Attributes:
        """The statistics as they are now, as a file of its own: each look gets another inode, and so no old pages."""
        node = self.nodes.remember(HIDDEN_DIR, b"%s %d" % (STATS, self.nodes.next), None)
        node.text = json.dumps(self.statistics(), indent=1).encode() + b"\n"
        return self.node_attributes(node)
