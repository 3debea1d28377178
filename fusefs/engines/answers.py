"""What each request of the kernel is answered, over a Filesystem: see RULES in protocol.py.

The tree is immutable, so the kernel is told once that opening and closing concerns nobody (ENOSYS to OPEN, OPENDIR, FLUSH):
from then on a file costs one LOOKUP and one READ, and one whose pages are cached costs nothing. Listings of folders and
targets of links are kept by the kernel too. A mount whose directories change (`Filesystem.immutable` is false) keeps
OPENDIR, and its changing directories and links are asked for again.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from millpond.daemon.errors import MountError
from millpond.daemon.store.folders import FILE_INODE_BIT, FOLDER, LINK
from millpond.fusefs.attributes import FOREVER_S, Attributes, FileError
from millpond.fusefs.engines import protocol, signals
from millpond.fusefs.engines.channel import Channel
from millpond.fusefs.engines.contents import Contents
from millpond.fusefs.engines.passthrough import CACHED, PASSED, Passthrough
from millpond.fusefs.engines.protocol import Init, Op
from millpond.fusefs.engines.readahead import ReadAhead
from millpond.fusefs.filesystem import Filesystem
from millpond.fusefs.filling.feed import MAX_BYTES, Feed

log = logging.getLogger("millpond.fusefs")
T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, None]]
Later = Callable[[int, Work], None]
Handler = Callable[[int, int, memoryview], object]
Tell = Callable[[int, int, int], Awaitable[tuple[list[bytes], list[int]]]]

_MISSING_S = 1
_DIR_TYPES = {FOLDER: 4, LINK: 10}
_REG_TYPE = 8


class Answers:
    """The handlers, in `table`. One that must wait gives its work to `later(unique, work)`, and returns. `on_open` is told
    the inode of each open, which costs a round trip for each; without it and `passthrough` the kernel does not ask. `feed` is told
    what the kernel has listed and read."""

    def __init__(
        self,
        filesystem: Filesystem,
        channel: Channel,
        later: Later,
        ahead: ReadAhead,
        on_open: Callable[[int], None] | None = None,
        passthrough: Passthrough | None = None,
        feed: Feed | None = None,
    ) -> None:
        self._fs = filesystem
        self._feed = feed
        self._passthrough = passthrough
        self._reply = channel.reply
        self._error = channel.error
        self._later = later
        self._on_open = on_open
        self._uid, self._gid = filesystem.uid, os.getgid()
        self._contents = Contents(filesystem, ahead)
        self._agreed = Init(0)
        # Whether kernel and we have agreed.
        self.initialised = False
        self.table: dict[int, Handler] = {
            Op.LOOKUP: self._lookup,
            Op.GETATTR: self._getattr,
            Op.READLINK: self._readlink,
            Op.OPEN: self._open,
            Op.READ: self._read,
            Op.RELEASE: self._release,
            Op.READDIRPLUS: self._readdirplus,
            Op.READDIR: self._readdir,
            Op.OPENDIR: self._opendir,
            Op.RELEASEDIR: self._nothing,
            Op.STATFS: self._statfs,
            Op.GETXATTR: self._getxattr,
            Op.LISTXATTR: self._listxattr,
            Op.FORGET: self._forget,
            Op.BATCH_FORGET: self._batch_forget,
            Op.INIT: self._init,
            Op.DESTROY: self._nothing,
        }

    # Nothing is answered slowly.
    is_behind = False

    def idle(self) -> bool:
        """As Filesystem.idle; nobody waits for it."""
        self._fs.idle()
        return False

    # -- the mount ------------------------------------------------------------------------------------------------

    def takes_back(self, pid: int) -> bool:
        """As in Handlers."""
        return signals.is_ending(pid)

    def _init(self, unique: int, inode: int, body: memoryview) -> None:
        """Agree. Raises MountError when the kernel is too old; a newer one asks again in our version."""
        if why := protocol.why_too_old(body):
            self._error(unique, errno.EPROTO)
            if self.initialised:  # then it is no kernel's, and ends nothing
                return
            raise MountError(why, hint="take --engine pyfuse3, or a kernel from 5.4 on")
        offered = protocol.offered(body)
        wanted = Init.ASYNC_READ | Init.DO_READDIRPLUS | Init.PARALLEL_DIROPS | Init.MAX_PAGES
        wanted |= Init.EXPLICIT_INVAL_DATA
        if self._passthrough is not None and Init.PASSTHROUGH not in offered:
            self._passthrough.why_not = "the kernel is older than 6.9, or made without it"
        if self._passthrough is not None and not self._passthrough.why_not:
            wanted |= Init.INIT_EXT | Init.PASSTHROUGH
        elif self._on_open is None:
            wanted |= Init.NO_OPEN_SUPPORT
        if self._fs.immutable:
            wanted |= Init.CACHE_SYMLINKS | Init.NO_OPENDIR_SUPPORT
        agreed = offered & wanted
        self._reply(unique, protocol.agreement(body, agreed))
        if protocol.is_ours(body):
            self._agreed = agreed
            self.initialised = True

    def _nothing(self, unique: int, inode: int, body: memoryview) -> None:
        self._reply(unique)

    def _statfs(self, unique: int, inode: int, body: memoryview) -> None:
        files, total = self._fs.statfs()
        self._reply(unique, protocol.STATFS_OUT.pack((total + 4095) // 4096, 0, 0, files, 0, 4096, 255, 4096, 0))

    # -- entries and attributes -----------------------------------------------------------------------------------

    def _lookup(self, unique: int, inode: int, body: memoryview) -> None:
        name = bytes(body[:-1])
        found = self._fs.lookup_stored(inode, name)
        if found is None and self._fs.must_ask(inode):
            self._later(unique, lambda: self._lookup_later(unique, inode, name))
        else:
            self._found(unique, found, _NEVER)
        if self._feed is not None and found is not None and found.inode & FILE_INODE_BIT and found.size <= MAX_BYTES:
            self._feed.looked_up(inode)

    async def _lookup_later(self, unique: int, inode: int, name: bytes) -> None:
        self._found(unique, await self._fs.lookup(inode, name), _NOT_YET)

    def _found(self, unique: int, found: Attributes | None, missing: bytes) -> None:
        if found is None:
            self._reply(unique, missing)
        elif not self._reply(unique, self._entry(found)):
            self._fs.forget(found.inode, 1)

    def _getattr(self, unique: int, inode: int, body: memoryview) -> None:
        found = self._fs.getattr(inode)
        self._reply(unique, protocol.ATTR_OUT.pack(int(found.ttl_s), 0, 0, *self._attributes(found)))

    def _readlink(self, unique: int, inode: int, body: memoryview) -> None:
        self._reply(unique, self._fs.readlink(inode))

    def _forget(self, unique: int, inode: int, body: memoryview) -> None:
        self._fs.forget(inode, protocol.FORGET_IN.unpack_from(body)[0])

    def _batch_forget(self, unique: int, inode: int, body: memoryview) -> None:
        count, _ = protocol.BATCH_FORGET_IN.unpack_from(body)
        begin, size = protocol.BATCH_FORGET_IN.size, protocol.FORGET_ONE.size
        for each, lookups in protocol.FORGET_ONE.iter_unpack(body[begin : begin + count * size]):
            self._fs.forget(each, lookups)

    def _getxattr(self, unique: int, inode: int, body: memoryview) -> None:
        size, _ = protocol.XATTR_IN.unpack_from(body)
        self._value(unique, size, self._fs.getxattr(inode, bytes(body[protocol.XATTR_IN.size : -1])))

    def _listxattr(self, unique: int, inode: int, body: memoryview) -> None:
        size, _ = protocol.XATTR_IN.unpack_from(body)
        self._value(unique, size, b"".join(name + b"\0" for name in self._fs.listxattr(inode)))

    def _value(self, unique: int, size: int, value: bytes) -> None:
        if not size:
            self._reply(unique, protocol.XATTR_OUT.pack(len(value), 0))
        elif len(value) > size:
            self._error(unique, errno.ERANGE)
        else:
            self._reply(unique, value)

    def _entry(self, found: Attributes) -> bytes:
        ttl = int(found.ttl_s)
        return protocol.ENTRY_OUT.pack(found.inode, 0, ttl, ttl, 0, 0, *self._attributes(found))

    def _attributes(self, found: Attributes) -> tuple[int, ...]:
        inode, mode, size, when, _ = found
        blocks = (size + 511) // 512
        return (inode, size, blocks, when, when, when, 0, 0, 0, mode, 1, self._uid, self._gid, 0, 1 << 17, 0)

    # -- directories ----------------------------------------------------------------------------------------------

    def _opendir(self, unique: int, inode: int, body: memoryview) -> None:
        if Init.NO_OPENDIR_SUPPORT in self._agreed:
            self._error(unique, errno.ENOSYS)  # and never again
            return
        flags = 0 if self._fs.must_ask(inode) else protocol.KEEP_CACHE | protocol.CACHE_DIR
        self._reply(unique, protocol.OPEN_OUT.pack(0, flags, 0))

    def _readdirplus(self, unique: int, inode: int, body: memoryview) -> None:
        self._list(unique, inode, body, self._entries_plus)

    def _readdir(self, unique: int, inode: int, body: memoryview) -> None:
        self._list(unique, inode, body, self._entries)

    def _list(self, unique: int, inode: int, body: memoryview, tell: Tell) -> None:
        _, position, size, *_ = protocol.READ_IN.unpack_from(body)

        async def answer() -> None:
            parts, counted = await tell(inode, position, min(size, protocol.MAX_ANSWER))
            if not self._reply(unique, b"".join(parts)):
                self._uncount(counted)
            elif counted and self._feed is not None and (folder := self._fs.folder_of(inode)) is not None:
                self._feed.listed(folder, len(counted))

        if self._fs.must_ask(inode):
            self._later(unique, answer)
        else:
            at_once(answer())

    def _uncount(self, inodes: list[int]) -> None:
        for inode in inodes:
            self._fs.forget(inode, 1)

    async def _entries_plus(self, inode: int, position: int, size: int) -> tuple[list[bytes], list[int]]:
        """Entries with their attributes, as many as fit, and the inodes that were counted as told."""
        told: list[bytes] = []
        counted: list[int] = []
        try:
            while page := await self._fs.readdir(inode, position):
                for name, entry, following in page:
                    padded = (len(name) + 7) & ~7
                    size -= protocol.ENTRY_OUT.size + protocol.DIRENT.size + padded
                    if size < 0:
                        return told, counted
                    found = (
                        await self._fs.lookup(inode, name) if entry is None else self._fs.attributes_of(inode, entry)
                    )
                    if found is not None:
                        counted.append(found.inode)
                        told.append(
                            protocol.PLUS[padded].pack(
                                found.inode, 0, ttl := int(found.ttl_s), ttl, 0, 0, *self._attributes(found),
                                found.inode, following, len(name), found.mode >> 12, name,
                            )
                        )  # fmt: skip
                    position = following
        except FileError:
            if not told:
                raise  # else it is met again by the next request, which begins there
        except BaseException:
            self._uncount(counted)
            raise
        return told, counted

    async def _entries(self, inode: int, position: int, size: int) -> tuple[list[bytes], list[int]]:
        """Names, types and numbers alone, as many as fit. None is counted."""
        told: list[bytes] = []
        while page := await self._fs.readdir(inode, position):
            for name, entry, following in page:
                padded = (len(name) + 7) & ~7
                size -= protocol.DIRENT.size + padded
                if size < 0:
                    return told, []
                kind = 0 if entry is None else _DIR_TYPES.get(entry.type, _REG_TYPE)
                number = (entry.inode if entry is not None else 0) or protocol.UNKNOWN_INODE
                told.append(protocol.DIRENT.pack(number, following, len(name), kind) + name.ljust(padded, b"\0"))
                position = following
        return told, []

    # -- contents -------------------------------------------------------------------------------------------------

    def _open(self, unique: int, inode: int, body: memoryview) -> None:
        if self._on_open is not None:
            self._on_open(inode)
        if Init.NO_OPEN_SUPPORT in self._agreed:
            self._error(unique, errno.ENOSYS)  # and never again
            return
        passthrough = self._passthrough if Init.PASSTHROUGH in self._agreed else None
        backing = passthrough.opened(inode) if passthrough is not None else 0
        handle, flags = (PASSED, protocol.PASSTHROUGH) if backing else (CACHED, protocol.KEEP_CACHE)
        taken = self._reply(unique, protocol.OPEN_OUT.pack(handle, flags, backing))
        if passthrough is not None and not taken:
            passthrough.closed(inode, handle)

    def _release(self, unique: int, inode: int, body: memoryview) -> None:
        if self._passthrough is not None:
            self._passthrough.closed(inode, protocol.RELEASE_IN.unpack_from(body)[0])
        self._reply(unique)

    def _read(self, unique: int, inode: int, body: memoryview) -> None:
        _, offset, size, *_ = protocol.READ_IN.unpack_from(body)
        size = min(size, protocol.MAX_ANSWER)
        parts = self._contents.ready(inode, offset, size)
        if parts is None:
            self._later(unique, lambda: self._read_later(unique, inode, offset, size))
            return
        whole = self._contents.gave_whole
        self._reply(unique, *parts)
        if whole:
            self._brought(inode, sum(map(len, parts)))

    async def _read_later(self, unique: int, inode: int, offset: int, size: int) -> None:
        parts = await self._contents.read(inode, offset, size)
        self._reply(unique, *parts)
        if offset == 0 and (length := sum(map(len, parts))) < size:
            self._brought(inode, length)

    def _brought(self, inode: int, size: int) -> None:
        """The kernel has all of a file now."""
        if self._feed is not None and inode & FILE_INODE_BIT:
            self._feed.read(inode, size)


# Entries that are not there: in a folder, which never changes, and in a directory that may.
_NEVER, _NOT_YET = (protocol.ENTRY_OUT.pack(0, 0, ttl, 0, 0, 0, *[0] * 16) for ttl in (int(FOREVER_S), _MISSING_S))


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("it waits")
