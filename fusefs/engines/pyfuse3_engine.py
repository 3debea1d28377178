"""The portable engine: pyfuse3 over libfuse. One mount in a process, because pyfuse3 keeps its session in the module.

The tree is immutable, so entries, attributes and pages are given to the kernel for ever. `notify_store` is never called
here: in `open`, or while a READ of the inode is under way, it deadlocks the mount.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pyfuse3
import trio

from millpond.daemon.errors import MillpondError, MountError
from millpond.daemon.store.folders import FOLDER
from millpond.fusefs.attributes import FOREVER_S, Attributes, FileError
from millpond.fusefs.engines import EngineSettings, mount_options
from millpond.fusefs.engines.readahead import ReadAhead
from millpond.fusefs.filesystem import Filesystem

log = logging.getLogger("millpond.fusefs")

_BLOCK = 512
# Requests under way at once. Those that wait for a source or a disk must not keep the others out.
MAX_REQUESTS = 256


class Operations(pyfuse3.Operations):
    """pyfuse3's callbacks, each a few lines over the Filesystem. Write operations never come: the mount is read-only."""

    enable_writeback_cache = False
    enable_acl = False
    supports_dot_lookup = False

    def __init__(self, filesystem: Filesystem, on_open: Callable[[int], None] | None) -> None:
        super().__init__()
        self._fs = filesystem
        self._on_open = on_open
        self._uid = filesystem.uid
        self._gid = os.getgid()
        self.initialised = trio.Event()

    def init(self) -> None:
        """The kernel's first request is being answered: when another task runs, it was."""
        self.initialised.set()

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any = None) -> Any:
        with self._errors():
            found = await self._fs.lookup(parent_inode, name)
        return self._missing(parent_inode) if found is None else self._entry(found)

    async def getattr(self, inode: int, ctx: Any = None) -> Any:
        with self._errors():
            return self._entry(self._fs.getattr(inode))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, count in inode_list:
            self._fs.forget(inode, count)

    async def opendir(self, inode: int, ctx: Any) -> Any:
        return inode  # a directory is its own handle

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        with self._errors():
            await self._fill(fh, start_id, token)

    async def _fill(self, fh: int, position: int, token: Any) -> None:
        """Tell entries from `position` on until the kernel's buffer is full."""
        while page := await self._fs.readdir(fh, position):
            for name, entry, following in page:
                if entry is None:
                    found = await self._fs.lookup(fh, name)
                    if found is None:
                        continue
                else:
                    found = self._fs.attributes_of(fh, entry)
                if not pyfuse3.readdir_reply(token, name, self._entry(found), following):
                    if entry is None or entry.type == FOLDER:
                        self._fs.forget(found.inode, 1)  # it did not fit: the kernel was not told
                    return
                position = following

    async def releasedir(self, fh: int) -> None:
        """Nothing was kept."""

    async def readlink(self, inode: int, ctx: Any) -> Any:
        with self._errors():
            return self._fs.readlink(inode)

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            raise pyfuse3.FUSEError(errno.EROFS)
        if self._on_open is not None:
            self._on_open(inode)
        with self._errors():
            return pyfuse3.FileInfo(fh=await self._fs.open(inode), keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> Any:
        with self._errors():
            parts = await self._fs.read(fh, off, size)
            return parts[0] if len(parts) == 1 else b"".join(parts)

    async def release(self, fh: int) -> None:
        self._fs.release(fh)

    async def flush(self, fh: int) -> None:
        """Nothing is ever dirty; after this answer the kernel asks no more, which saves a round trip a close."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def statfs(self, ctx: Any) -> Any:
        files, total = self._fs.statfs()
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = 4096
        found.f_blocks = (total + 4095) // 4096
        found.f_bfree = found.f_bavail = found.f_ffree = found.f_favail = 0
        found.f_files = files
        found.f_namemax = 255
        return found

    async def access(self, inode: int, mode: int, ctx: Any) -> bool:
        if mode & os.W_OK:
            raise pyfuse3.FUSEError(errno.EROFS)
        return True

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        with self._errors():
            return self._fs.getxattr(inode, name)

    async def listxattr(self, inode: int, ctx: Any) -> Any:
        with self._errors():
            return self._fs.listxattr(inode)

    def _entry(self, found: Attributes) -> Any:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = found.inode
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = found.ttl_s
        entry.st_mode = found.mode
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = self._uid, self._gid
        entry.st_size = found.size
        entry.st_blksize = 1 << 17
        entry.st_blocks = (found.size + _BLOCK - 1) // _BLOCK
        when = found.mtime_s * 1_000_000_000
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = when
        return entry

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Whatever goes wrong is that one request's errno: an exception that left it would end the whole mount."""
        try:
            yield
        except FileError as error:
            raise pyfuse3.FUSEError(error.errno) from None
        except Exception as error:
            if not isinstance(error, MillpondError):
                log.exception("a request failed")
            raise pyfuse3.FUSEError(self._fs.failed(str(error), error).errno) from None

    def _missing(self, parent_inode: int) -> Any:
        """An entry that is not there: for ever in a folder; elsewhere the kernel may remember it for a second."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = 1.0 if self._fs.must_ask(parent_inode) else FOREVER_S
        return entry


async def serve(filesystem: Filesystem, settings: EngineSettings, mounted: Callable[[], Awaitable[None]]) -> None:
    """See engines.Engine."""
    given = settings.mountpoint.startswith("/dev/fd/")
    options = set() if given else set(mount_options(settings))
    operations = Operations(filesystem, settings.on_open)
    ahead = ReadAhead(settings.read_ahead_kb)
    filesystem.more_statistics.append(ahead.statistics)
    try:
        pyfuse3.init(operations, settings.mountpoint, options)
    except RuntimeError as error:
        raise MountError(
            f"cannot mount on '{settings.place}': {error}",
            path=settings.place,
            hint="is /dev/fuse there, fusermount3 installed, and the directory yours? millpond doctor tells",
        ) from error
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_announce, operations, ahead, settings.place, mounted)
            await _main()
            filesystem.ended()
            nursery.cancel_scope.cancel()
    except BaseException:
        pyfuse3.close(unmount=True)  # nobody serves it any more
        raise
    pyfuse3.close(unmount=False)


async def _main() -> None:
    """Serve. The end of a mount that was detached may look like its being aborted: both are an end."""
    try:
        await pyfuse3.main(min_tasks=2, max_tasks=MAX_REQUESTS)
    except* OSError as errors:
        if errors.subgroup(lambda error: isinstance(error, OSError) and error.errno != errno.ECONNABORTED):
            raise


async def _announce(
    operations: Operations, ahead: ReadAhead, place: str, mounted: Callable[[], Awaitable[None]]
) -> None:
    """Once requests are answered: set what the answer to the first one would have reset, then say so."""
    await operations.initialised.wait()
    ahead.begin(place)
    await mounted()
