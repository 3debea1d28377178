"""Files of a mount that only a remote has: read through the source, which fills what is asked for."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from millpond.daemon.errors import RemoteError
from millpond.daemon.names import ObjectName
from millpond.daemon.remote.partial import WHOLE_BYTES
from millpond.daemon.store.folders import FILE, Entry, FolderReader
from millpond.daemon.store.reader import Bytes, StoreReader
from millpond.fusefs.asking import SILENCE_S
from millpond.fusefs.reader import ForeignFile, StoredFile
from millpond.fusefs.sources import Sources

# Files that are told ahead at once, from the third on that was not here, and entries looked at together.
_NEAR, _AFTER, _PAGE = 256, 2, 64
# Bytes that may be brought ahead at first, and for each byte that was not here.
_FIRST_BYTES, _FACTOR = 8 << 20, 8
_FOLDERS = 256

Ask = Callable[[Callable[[Any], Any], Any], Awaitable[Any]]


class LazyFile(ForeignFile):
    """An open file that fills while it is read: the descriptor is of the source's sparse file. What is known to be there is read at
    once."""

    def __init__(self, source: Sources, ask: Ask, waits: Waits, name: ObjectName, fd: int, size: int) -> None:
        super().__init__(fd, size)
        self._source = source
        self._ask = ask
        self._waits = waits
        self.name = name
        self._inode = os.fstat(fd).st_ino
        # What is read in place of the file once it is known to be stored.
        self.stored: StoredFile | None = None
        # The range that is there for certain, around where the last reader was.
        self._there = 0, 0

    def ready(self, offset: int, size: int) -> list[Bytes] | None:
        """What `read` gives, when it is there and in the page cache; else None."""
        if self.stored is not None:
            return self.stored.ready(offset, size)
        return super().ready(offset, size) if self._is_there(offset, size) else None

    async def read(self, offset: int, size: int) -> list[Bytes]:
        """Bytes from `offset`, fewer only at the end. Raises OSError, MillpondError."""
        if self.stored is not None:
            return await self.stored.read(offset, size)
        if not self._is_there(offset, size):
            with self._waits:
                self._there = await self._brought(offset, min(size, self.size - offset))
        return await super().read(offset, size)

    def close(self) -> None:
        """No more reads come."""
        if self.stored is not None:
            self.stored.close()
        super().close()

    async def _brought(self, offset: int, size: int) -> tuple[int, int]:
        """The range around what is asked for that is there. What comes as a whole is waited for as long as more of it comes."""
        seen, since = -1, trio.current_time()
        while True:
            found: tuple[int, int] | int = await self._ask(
                lambda source: source.ensure(self.name, self.size, self._inode, offset, size), self._source
            )
            if not isinstance(found, int):
                return found
            if found != seen:
                seen, since = found, trio.current_time()
            elif trio.current_time() - since > SILENCE_S:
                raise RemoteError(f"nothing of object {self.name} came from the remote in {SILENCE_S:g} s")

    def _is_there(self, offset: int, size: int) -> bool:
        start, end = self._there
        return offset >= self.size or (start <= offset and min(offset + size, self.size) <= end)


class Waits:
    """How often, and how long in all, readers of one mount waited for what was not here."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self._waiting = 0
        self._since = 0.0

    def __enter__(self) -> None:
        now = time.monotonic()
        if self._waiting:
            self.seconds += (now - self._since) * self._waiting
        self._since = now
        self._waiting += 1
        self.count += 1

    def __exit__(self, *_: object) -> None:
        now = time.monotonic()
        self.seconds += (now - self._since) * self._waiting
        self._since = now
        self._waiting -= 1


class Walks:
    """Sees which folders are looked into, and tells which of their files are not here yet: some with each file that was not here.

    What is told ahead is bounded by what was asked for: `_FIRST_BYTES`, and `_FACTOR` times the bytes of files that were not here. So who
    reads a few files of many does not bring them all, and who reads all of them waits for one in some.
    """

    def __init__(self, folders: FolderReader, reader: StoreReader, uid: int) -> None:
        self._folders = folders
        self._reader = reader
        self._uid = uid
        self._misses = 0
        self._left = _FIRST_BYTES
        # Folders that were looked into, the last one at the end, and each one's next entry to be told; None: all are.
        self._seen: OrderedDict[bytes, int | None] = OrderedDict()

    def looked(self, folder: bytes) -> None:
        """A folder was listed, or a name looked up in it."""
        if folder in self._seen:
            self._seen.move_to_end(folder)
            return
        self._seen[folder] = 0
        if len(self._seen) > _FOLDERS:
            self._seen.popitem(last=False)

    def missed(self, size: int) -> list[ObjectName]:
        """A file of `size` bytes was not here: others that may be wanted soon."""
        self._misses += 1
        self._left += size * _FACTOR
        found: list[ObjectName] = []
        if self._misses <= _AFTER:
            return found
        for folder, start in reversed(list(self._seen.items())):
            while start is not None and self._left > 0 and len(found) < _NEAR:
                page = self._folders.list(folder, start, _PAGE)
                start = self._seen[folder] = start + len(page) if page else None
                found += self._lacking(page)
        return found

    def _lacking(self, page: list[Entry]) -> list[ObjectName]:
        """The small files of a page that are not in the store, paid for."""
        names, sizes = [], []
        for entry in page:
            if entry.type == FILE and entry.size <= WHOLE_BYTES:
                record = self._folders.inode(entry.inode)
                if record is not None and record.name is not None:
                    names.append(record.name)
                    sizes.append(entry.size)
        contents = self._reader.resolve(names, self._uid)
        lacking = [number for number, content in enumerate(contents) if content is None]
        self._left -= sum(sizes[number] for number in lacking)
        return [names[number] for number in lacking]
