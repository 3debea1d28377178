"""Files' contents by their inodes: opened when they are read, and kept open between reads, as the kernel does not say when one is closed."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import trio

from millpond.daemon.store.reader import Bytes
from millpond.fusefs.attributes import FileError
from millpond.fusefs.engines.readahead import LARGE_BYTES, NEAR_BYTES, ReadAhead
from millpond.fusefs.filesystem import Filesystem

# Files kept open.
MAX_FILES = 128


@dataclass(slots=True)
class _File:
    """A file that was read from: its handle, how many requests are using it, and where the last large one ended."""

    handle: int
    users: int = 0
    end: int = 0


@dataclass(slots=True)
class _Opening:
    """A file that is being opened; when `done`, the `errno` if it could not be."""

    done: trio.Event = field(default_factory=trio.Event)
    errno: int = 0


class Contents:
    """Of one file system. `ahead` sees the large requests."""

    def __init__(self, filesystem: Filesystem, ahead: ReadAhead) -> None:
        self._fs = filesystem
        self._ahead = ahead
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._opening: dict[int, _Opening] = {}
        # Whether `ready` gave all of a file last.
        self.gave_whole = False

    def ready(self, inode: int, offset: int, size: int) -> list[Bytes] | None:
        """Bytes of a file, fewer only at its end, if that takes no waiting; else None, and `read` is to be asked. Raises FileError,
        StoreDamagedError."""
        self.gave_whole = False
        file = self._files.get(inode)
        if file is None:
            whole = self._fs.whole(inode, size) if offset == 0 else None
            if whole is not None:
                self.gave_whole = True
                return [whole]
            handle = self._fs.open_stored(inode)
            if handle is None:
                return None
            file = self._opened(inode, handle)
        else:
            self._files.move_to_end(inode)
        if offset and size >= LARGE_BYTES:
            self._ahead.seen(near=abs(offset - file.end) <= NEAR_BYTES)
        file.end = offset + size
        parts = self._fs.read_ready(file.handle, offset, size)
        if parts is not None and offset == 0 and sum(map(len, parts)) < size:
            self.gave_whole = True
            if not file.users:
                self._close(inode)  # the kernel has it now
        return parts

    async def read(self, inode: int, offset: int, size: int) -> list[Bytes]:
        """The same, with what must be waited for. Raises FileError."""
        file = self._files.get(inode) or await self._open_waiting(inode)
        file.users += 1
        try:
            return await self._fs.read(file.handle, offset, size)
        except FileError:
            # What was opened may be no good any more, as a remote object that was changed: the next read opens it anew.
            if self._files.get(inode) is file:
                del self._files[inode]
            raise
        finally:
            file.users -= 1
            if self._files.get(inode) is not file and not file.users:
                self._fs.release(file.handle)

    async def _open_waiting(self, inode: int) -> _File:
        """Open a file whose source may have to be asked: once for all who want it now, who share the failure too."""
        while (opening := self._opening.get(inode)) is not None:
            await opening.done.wait()
            if opening.errno:
                raise FileError(opening.errno)
            if inode in self._files:  # else who opened it was interrupted
                return self._files[inode]
        opening = self._opening[inode] = _Opening()
        try:
            return self._opened(inode, await self._fs.open(inode))
        except FileError as error:
            opening.errno = error.errno
            raise
        finally:
            del self._opening[inode]
            opening.done.set()

    def _opened(self, inode: int, handle: int) -> _File:
        file = self._files[inode] = _File(handle)
        while len(self._files) > MAX_FILES:
            self._close(next(iter(self._files)))
        return file

    def _close(self, inode: int) -> None:
        """Forget a file; its handle is released by its last user."""
        file = self._files.pop(inode)
        if not file.users:
            self._fs.release(file.handle)
