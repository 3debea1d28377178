"""A version as a file system, without an engine: what each operation answers. Names are tree.py's; here are contents, where they
come from, and what was counted. All of a version's tree is immutable; engines may let the kernel keep it for ever.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from millpond.daemon.errors import MillpondError, RemoteChangedError, StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.store.folders import (
    FILE_INODE_BIT,
    InodeRecord,
)
from millpond.daemon.store.index import Content
from millpond.daemon.store.reader import Bytes, StoreReader
from millpond.daemon.store.scrubstate import state_of
from millpond.fusefs.asking import Told
from millpond.fusefs.attributes import FileError
from millpond.fusefs.lazy import LazyFile, Waits
from millpond.fusefs.openfile import OpenFile, Text
from millpond.fusefs.reader import ChunkCache, ForeignFile, StoredFile
from millpond.fusefs.sources import Sources
from millpond.fusefs.tree import Tree

log = logging.getLogger("millpond.fusefs")
A = TypeVar("A")
T = TypeVar("T")

# A file up to here is one chunk as a rule, and unpacked in less time than threads take to change.
MAX_WHOLE = 64 << 10
# Requests that wait for the source at once; threads of their own, so that they hold up no other read.
SOURCE_REQUESTS = 40


@dataclass(frozen=True, slots=True)
class Served:
    """What other processes served of this mount."""

    opens: int = 0
    reads: int = 0
    read_bytes: int = 0


class Filesystem(Tree):
    """All operations."""

    def __init__(
        self,
        reader: StoreReader,
        chunks: ChunkCache,
        source: Sources | None,
        *,
        root: bytes | None,
        uid: int,
        totals: tuple[int, int],
        xattrs: bool = False,
        verify: str = "blocks",
    ) -> None:
        super().__init__(reader, root=root, uid=uid, totals=totals, xattrs=xattrs)
        self._chunks = chunks
        self._source = source
        self._source_threads = trio.CapacityLimiter(SOURCE_REQUESTS)
        self._verify = verify
        # Handle -> the file, and what it is called in the log.
        self._open: dict[int, tuple[OpenFile, str]] = {}
        self._next_handle = 1
        # What the engine has to tell.
        self.more_statistics: list[Callable[[], dict[str, object]]] = []
        self.served: Callable[[], Served] = Served
        # What it does when somebody is about to unmount.
        self.when_ending: Callable[[], None] = _nothing
        self.opens = self.reads = self.read_bytes = self.errors = 0
        # Errors that were not for want of a remote, but for what is not as it should be: sizes, for one.
        self.wrong = 0
        # Who waits for files that are not here.
        self.waits = Waits()
        self.last_error = ""

    # -- contents -------------------------------------------------------------------------------------------------

    def whole(self, inode: int, limit: int) -> Bytes | None:
        """All of a small file that can be had without waiting; None means: open it."""
        self._map.looked()
        record = self.folders.object_key(inode) if inode & FILE_INODE_BIT else None
        if record is None or record[0] > min(limit, MAX_WHOLE):
            return None
        size, key = record
        data = self._reader.whole_nowait(key, self.uid, size)
        if data is not None:
            self.gave_whole(size)
        return data

    def gave_whole(self, size: int) -> None:
        """A small file of so many bytes was read, all of it at once."""
        self.opens += 1
        self.reads += 1
        self.read_bytes += size
        self._chunks.passed(size)

    @property
    def reader(self) -> StoreReader:
        """The store that contents come from."""
        return self._reader

    def size_of(self, inode: int) -> int:
        """A file's bytes; 0 for what is no file of the data."""
        found = self.folders.object_key(inode) if inode & FILE_INODE_BIT else None
        return 0 if found is None else found[0]

    def stored(self, inode: int) -> Content | None:
        """A file's content, None when it is not in the store. Raises FileError."""
        name = self._record(inode).name
        return None if name is None else self._reader.resolve([name], self.uid)[0]

    async def elsewhere(self, inode: int) -> int:
        """A descriptor of a file that is not in the store, whole and checked. Raises FileError, MillpondError."""
        record = self._record(inode)
        if record.name is None or self._source is None:
            raise FileError(errno.EIO)
        fd, _ = await self._from_source(record, record.name)
        return fd

    async def _from_source(
        self, record: InodeRecord, name: ObjectName, size: int | None = None, near: Sequence[ObjectName] = ()
    ) -> tuple[int, bool]:
        """A descriptor as SourceClient.open gives it, of the size it should have, and whether all is there. Raises
        MillpondError."""
        assert self._source is not None
        fd, found, whole = await self.ask_source(lambda source: source.open(name, size, near), self._source)
        try:
            _check_size(record, found)
        except StoreDamagedError:
            os.close(fd)
            raise
        return fd, whole

    def idle(self) -> None:
        """There is nothing to answer for the moment: do a little, microseconds, of what may be asked for next."""
        self._reader.unpack_ahead()

    def open_stored(self, inode: int) -> int | None:
        """A handle for `read` when the content is in the store (or no file's at all); None when the source must be asked.
        Raises FileError, StoreDamagedError."""
        if inode not in self.nodes:
            record = self._record(inode)
            if record.name is None:
                raise FileError(errno.EINVAL)
            content = self._reader.resolve([record.name], self.uid)[0]
            if content is None:
                return None
            _check_size(record, content.size)
            return self._opened(StoredFile(self._chunks, self._reader, content), str(record.name))
        text = self.nodes.known(inode).text
        if text is None:
            raise FileError(errno.EISDIR)
        return self._opened(Text(text), "a text of the mount's own")

    async def open(self, inode: int) -> int:
        """A handle for `read`. Raises FileError: EIO when the object cannot be had (the reason is logged)."""
        name: ObjectName | None = None
        try:
            handle = self.open_stored(inode)
            if handle is not None:
                return handle
            record = self._record(inode)
            name = record.name
            if self._source is None or name is None:
                raise FileError(errno.EIO)
            return self._opened(await self._foreign(record, name), str(name))
        except (MillpondError, OSError) as error:
            raise self.failed(
                f"cannot open {'inode ' + str(inode) if name is None else name}: {error}", error
            ) from error

    async def _foreign(self, record: InodeRecord, name: ObjectName) -> OpenFile:
        """A file that the store has not, from the source. Raises MillpondError, OSError."""
        assert self._source is not None
        size, near = record.size, self._walks.missed(record.size)
        with self.waits:
            fd, whole = await self._from_source(record, name, size, near)
        if whole:
            return ForeignFile(fd, size)
        return LazyFile(self._source, self.ask_source, self.waits, name, fd, size)

    async def _from_elsewhere(self, handle: int, gone: StoredFile, text: str, error: StoreDamagedError) -> OpenFile:
        """An open file whose content left the store (it was evicted), from the source. Raises `error` when it is still
        there, and as `_foreign`."""
        name = ObjectName(*text.split(":", 1))
        if self._source is None or self._reader.resolve([name], self.uid)[0] is not None:
            raise error
        file = await self._foreign(InodeRecord(False, gone.size, name, None), name)
        if handle not in self._open or self._open[handle][0] is not gone:  # closed, or another reader was faster
            file.close()
            if handle not in self._open:
                raise error
            return self._open[handle][0]
        self._open[handle] = file, text
        gone.close()
        return file

    def read_ready(self, handle: int, offset: int, size: int) -> list[Bytes] | None:
        """What `read` gives, when that takes no waiting; else None. Raises FileError as `read`."""
        file, name = self._open[handle]
        try:
            return self._counted(file.ready(offset, size))
        except (MillpondError, OSError) as error:
            raise self._unreadable(name, offset, size, error) from error

    async def read(self, handle: int, offset: int, size: int) -> list[Bytes]:
        """Bytes of an open file, in pieces. Raises FileError: EIO for what is damaged (logged), never wrong bytes."""
        file, name = self._open[handle]
        try:
            try:
                parts = await file.read(offset, size)
            except RemoteChangedError:
                # Its source is another one, which knows nothing of a file that was stored, checked, by the one before.
                if not isinstance(file, LazyFile) or not self._go_on_stored(file):
                    raise
                parts = await file.read(offset, size)
            except StoreDamagedError as error:
                if not isinstance(file, StoredFile):
                    raise
                parts = await (await self._from_elsewhere(handle, file, name, error)).read(offset, size)
        except (MillpondError, OSError) as error:
            raise self._unreadable(name, offset, size, error) from error
        self._counted(parts)
        return parts

    def _go_on_stored(self, file: LazyFile) -> bool:
        """Have an open file read from the store, if its content is there now."""
        content = self._reader.resolve([file.name], self.uid)[0]
        if content is None or content.size != file.size:
            return False
        file.stored = StoredFile(self._chunks, self._reader, content)
        return True

    def _unreadable(self, name: str, offset: int, size: int, error: Exception) -> FileError:
        return self.failed(f"cannot read {name}, {size} bytes from {offset}: {error}", error)

    def _counted(self, parts: list[Bytes] | None) -> list[Bytes] | None:
        if parts is not None:
            self.reads += 1
            self.read_bytes += sum(map(len, parts))
        return parts

    def release(self, handle: int) -> None:
        """An open file is closed."""
        found = self._open.pop(handle, None)
        if found is not None:
            found[0].close()

    def take_used(self) -> set[int]:
        """Segments of the store that were read since this was called last."""
        return self._reader.take_used()

    @property
    def working(self) -> bool:
        """Whether threads are reading for this mount."""
        return self._chunks.working

    def statistics(self) -> dict[str, Any]:
        """Counters of this mount, `waited_*` being how long readers waited in all: `waited_s` for what was not here, the others for
        what was; `hit_rate` is the part of all opens that did not wait for what was not here. And when the store was last read as a whole (0: never), and how many damaged records were
        found then and since."""
        scrub = state_of(self._reader.index)
        told = Told() if self._source is None else self._source.told
        served = self.served()
        opens = self.opens + served.opens
        more = {name: value for tell in self.more_statistics for name, value in tell().items()}
        return {
            "opens": opens,
            "reads": self.reads + served.reads,
            "read_bytes": self.read_bytes + served.read_bytes,
            "chunk_hits": self._chunks.hits,
            "chunk_misses": self._chunks.misses,
            "chunk_bytes": self._chunks.bytes_read,
            "open_files": len(self._open),
            "known_directories": len(self.nodes),
            "errors": self.errors,
            "wrong": self.wrong + bool(told.damaged),
            "last_error": self.last_error or told.damaged,
            "waits": self.waits.count,
            "waited_s": round(self.waits.seconds, 3),
            "waited_unpacking_s": round(self._chunks.waited_unpacking_s, 3),
            "waited_disk_s": round(self._chunks.waited_disk_s, 3),
            "hit_rate": round(1 - min(1.0, self.waits.count / max(opens, 1)), 4),
            "remote_requests": told.requests,
            "remote_bytes": told.bytes,
            "needs_credentials": told.refused,
            "verify": self._verify,
            "unverified": told.unverified,
            "damaged": told.damaged,
            "remote_rate": told.rate,
            "remote_jobs": told.jobs,
            "source_starts": self._source.started if self._source is not None else 0,
            "up_s": round(time.time() - self._started, 1),
            **more,
            "store_checked": scrub.passed,
            "store_damaged": scrub.passed_damaged + scrub.damaged,
        }

    async def ask_source(self, work: Callable[[A], T], argument: A) -> T:
        """Run a call of the source's client in a thread, of which there is a bounded number."""
        return await trio.to_thread.run_sync(work, argument, limiter=self._source_threads)

    def ended(self) -> None:
        """The mount is gone: nobody waits for the source any more."""
        if self._source is not None:
            self._source.close()

    def failed(self, text: str, error: Exception | None = None) -> FileError:
        """EIO, counted and logged with its reason."""
        self.errors += 1
        self.wrong += isinstance(error, (StoreDamagedError, RemoteChangedError))
        self.last_error = text
        log.error("%s", text)
        return FileError(errno.EIO)

    def _handle(self) -> int:
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        return handle

    def _opened(self, file: OpenFile, name: str) -> int:
        handle = self._handle()
        self._open[handle] = (file, name)
        self.opens += 1
        return handle


def _check_size(record: InodeRecord, size: int) -> None:
    """Sizes of objects outside the store were a claim when the tree was made; the kernel goes by them."""
    if size != record.size:
        raise StoreDamagedError(f"it has {size} bytes, and {record.size} were expected", hint="mount again")


def _nothing() -> None:
    """Of an engine that has nothing to do."""
