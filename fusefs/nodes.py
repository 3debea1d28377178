"""The directories that the kernel knows, by the numbers it knows them by, and how often it was told each.

Files need none of this: their numbers are the index's. A directory must be unique by its path, so it gets a number when it is
looked at, and loses it when the kernel forgets it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from millpond.daemon.store.folders import FILE_INODE_BIT
from millpond.fusefs.attributes import FileError

ROOT = 1
HIDDEN_DIR = 2
_FIRST_DYNAMIC = 16


@dataclass(slots=True)
class Node:
    """A directory (or a changing link, or a text) that the kernel knows: `lookups` times told and not forgotten."""

    inode: int
    key: tuple[int, bytes]
    folder: bytes | None
    target: bytes | None = None
    extra: Any = None
    text: bytes | None = None
    lookups: int = 0


class Table(Protocol):
    """Where other processes look up the folders of numbers; see serving/directories.py."""

    def tell(self, inode: int, folder: bytes) -> None:
        """A number is about to be told to the kernel."""

    def drop(self, inode: int) -> None:
        """The kernel forgot a number."""


class Nodes:
    """Numbers to directories and back. The root is always known."""

    def __init__(self, root: bytes | None) -> None:
        self.root = Node(ROOT, (ROOT, b""), root)
        self._by_number: dict[int, Node] = {ROOT: self.root}
        self._by_key: dict[tuple[int, bytes], Node] = {}
        self.next = _FIRST_DYNAMIC
        self._table: Table | None = None

    def __len__(self) -> int:
        return len(self._by_number)

    def __contains__(self, inode: int) -> bool:
        return inode in self._by_number

    def __iter__(self) -> Iterator[Node]:
        return iter(self._by_number.values())

    def get(self, inode: int) -> Node | None:
        """The node of a number, if the kernel knows it."""
        return self._by_number.get(inode)

    def known(self, inode: int) -> Node:
        """The node of a number. Raises FileError: ENOTDIR for a file's, ESTALE for what nobody knows."""
        try:
            return self._by_number[inode]
        except KeyError:
            raise FileError(errno.ENOTDIR if inode & FILE_INODE_BIT else errno.ESTALE) from None

    def remember(
        self, parent: int, name: bytes, folder: bytes | None, *, target: bytes | None = None, extra: Any = None
    ) -> Node:
        """The node of a directory or changing link, told to the kernel once more."""
        node = self._by_key.get((parent, name))
        if node is None:
            node = Node(self.next, (parent, name), None)
            self.next += 1
            self._by_number[node.inode] = self._by_key[node.key] = node
        if self._table is not None and folder is not None and folder != node.folder:
            self._table.tell(node.inode, folder)
        node.folder, node.target, node.extra = folder, target, extra
        node.lookups += 1
        return node

    def forget(self, inode: int, count: int) -> None:
        """The kernel drops `count` of its references."""
        node = self._by_number.get(inode)
        if node is None or node is self.root:
            return
        node.lookups -= count
        if node.lookups <= 0:
            del self._by_number[inode]
            self._by_key.pop(node.key, None)
            if self._table is not None:
                self._table.drop(inode)

    def share(self, table: Table) -> None:
        """Have other processes know the directories, now and from now on."""
        self._table = table
        for node in self:
            if node.folder is not None:
                table.tell(node.inode, node.folder)
