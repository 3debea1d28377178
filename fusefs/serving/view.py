"""The tree as a server sees it: what the store and the table of directories tell at once. All else is HandOver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, cast

import trio

from millpond.daemon.store.folders import FILE_INODE_BIT, Entry
from millpond.daemon.store.reader import StoreReader
from millpond.fusefs.attributes import Attributes
from millpond.fusefs.filesystem import Filesystem
from millpond.fusefs.image.format import BLOCK_BITS
from millpond.fusefs.image.image import Image, Piece
from millpond.fusefs.nodes import HIDDEN_DIR, Node, Nodes
from millpond.fusefs.reader import ChunkCache
from millpond.fusefs.serving.shared import Directories

# Memory of a server's unpacked chunks, in bytes: what a few readers have under way.
CACHE_BYTES = 8 << 20


class HandOver(Exception):
    """A request is the holder's to answer."""


class ReadyChunks(ChunkCache):
    """Chunks that are to be had without waiting; what must be waited for is not begun here. A process of its own unpacks at once,
    for whom it will."""

    def __init__(self, reader: StoreReader) -> None:
        # The nursery is for what must be waited for.
        super().__init__(reader, cast(trio.Nursery, None), CACHE_BYTES)

    @property
    def is_shared(self) -> bool:
        return False

    def load(self, ids: Sequence[bytes], *, drop: bool, around: int = 0) -> None:
        """The holder does."""


class SharedNodes(Nodes):
    """The directories of the holder's table. Who is told one is counted, and only the holder counts."""

    def __init__(self, directories: Directories) -> None:
        super().__init__(None)
        self._directories = directories

    def __contains__(self, inode: int) -> bool:
        return not inode & FILE_INODE_BIT

    def get(self, inode: int) -> Node | None:
        folder = self._directories.folder(inode)
        return None if folder is None else Node(inode, (0, b""), folder)

    def known(self, inode: int) -> Node:
        node = self.get(inode)
        if node is None:
            raise HandOver
        return node

    def remember(
        self, parent: int, name: bytes, folder: bytes | None, *, target: bytes | None = None, extra: Any = None
    ) -> Node:
        raise HandOver

    def forget(self, inode: int, count: int) -> None:
        """Of a file or link: nothing is counted."""


class ServedImage(Image):
    """The files' data of an image. What else is in it depends on what the holder gave out, who makes it."""

    def read(self, offset: int, size: int) -> list[bytes | Piece]:
        self._space.learn()
        if self.place(offset >> BLOCK_BITS) is None or self.place((offset + size - 1) >> BLOCK_BITS) is None:
            raise HandOver
        return super().read(offset, size)


class ServedFilesystem(Filesystem):
    """A mount's tree without its source. What fails is tried again by the holder, which tells why."""

    nodes: SharedNodes

    def __init__(self, reader: StoreReader, directories: Directories, uid: int) -> None:
        super().__init__(reader, ReadyChunks(reader), None, root=None, uid=uid, totals=(0, 0))
        self.nodes = SharedNodes(directories)

    @property
    def last_folder(self) -> bytes | None:
        """The folder that was looked into last."""
        return self._last_folder

    async def readdir(self, inode: int, start: int) -> list[tuple[bytes, Entry | None, int]]:
        page = await super().readdir(inode, start)
        if inode != HIDDEN_DIR:
            self._last_folder = self.nodes.known(inode).folder
        return page

    def failed(self, text: str, error: Exception | None = None) -> NoReturn:
        raise HandOver

    def _hidden(self) -> Attributes:
        raise HandOver
