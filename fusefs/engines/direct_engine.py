"""The direct engine: the kernel's protocol spoken without a library, for what a library does not let one leave out.

The tree is immutable, so the kernel is told once that opening and closing concerns nobody (ENOSYS to OPEN, OPENDIR, FLUSH):
from then on a file costs one LOOKUP and one READ, and one whose pages are cached costs nothing. Listings of folders and
targets of links are kept by the kernel too. A mount whose directories change (`Filesystem.immutable` is false) keeps
OPENDIR, and its changing directories and links are asked for again.

Concurrency. One task reads requests and answers at once what takes no waiting, in between awaits of its own only; what must
wait becomes a task of its own, of which there is a bounded number. While there are none, the loop waits for the kernel in
poll, for a moment, before it lets trio do so: a program that asks for one thing after the other is answered twice as fast.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from millpond.daemon.errors import MillpondError
from millpond.daemon.store.folders import FOLDER, LINK
from millpond.daemon.store.reader import Bytes
from millpond.fusefs.engines import EngineSettings, fusermount, mount_options, protocol, set_read_ahead
from millpond.fusefs.engines.protocol import IN_HEADER, OUT_HEADER, Init, Op
from millpond.fusefs.filesystem import ROOT, Attributes, FileError, Filesystem

log = logging.getLogger("millpond.fusefs")
T = TypeVar("T")

# The longest request is a name, or forgets: the kernel fills what the buffer holds.
_BUFFER = 256 << 10
# Waiting requests at once; then no more are taken until one is done.
MAX_WAITING = 256
# Files kept open between reads. The kernel does not say when one is closed.
MAX_FILES = 128
# Requests answered in a row before other tasks run, and how long to wait for the next one, in ms.
_ROW = 64
_POLL_MS = 2
# Requests that the kernel may send ahead of need, and pages of one.
_MAX_BACKGROUND = 64
_MAX_PAGES = 256
_MISSING_S = 1
_DIR_TYPES = {FOLDER: 4, LINK: 10}
_REG_TYPE = 8


@dataclass(slots=True)
class _File:
    """A file that was read from: its handle, and how many requests are using it."""

    handle: int
    users: int = 0


class Session:
    """One mount: `fd` gives the kernel's requests and takes the answers."""

    def __init__(self, filesystem: Filesystem, fd: int, nursery: trio.Nursery) -> None:
        self._fs = filesystem
        self._fd = fd
        self._nursery = nursery
        self._uid, self._gid = filesystem.uid, os.getgid()
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._waiting = 0
        self._room = trio.Event()
        self.initialised = trio.Event()
        self._now: dict[int, Callable[[int, int, memoryview], None]] = {
            Op.INIT: self._init,
            Op.LOOKUP: self._lookup,
            Op.GETATTR: self._getattr,
            Op.READLINK: self._readlink,
            Op.READ: self._read,
            Op.READDIRPLUS: self._readdirplus,
            Op.READDIR: self._readdir,
            Op.OPENDIR: self._opendir,
            Op.RELEASEDIR: lambda unique, inode, body: self._reply(unique),
            Op.STATFS: self._statfs,
            Op.GETXATTR: self._getxattr,
            Op.LISTXATTR: self._listxattr,
            Op.FORGET: lambda unique, inode, body: self._fs.forget(inode, protocol.FORGET_IN.unpack_from(body)[0]),
            Op.BATCH_FORGET: self._batch_forget,
            Op.INTERRUPT: lambda unique, inode, body: None,
            Op.DESTROY: lambda unique, inode, body: self._reply(unique),
        }

    # -- the loop -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Answer until the mount is gone."""
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer).toreadonly()
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        row = 0
        while True:
            if row < _ROW and not self._waiting and poll.poll(_POLL_MS):
                row += 1
            else:
                row = 0
                await trio.lowlevel.wait_readable(self._fd)
            try:
                size = os.readv(self._fd, [buffer])
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return
                if error.errno in (errno.EAGAIN, errno.ENOENT, errno.EINTR):  # the request was taken back
                    continue
                raise
            self._handle(view[:size])
            while self._waiting >= MAX_WAITING:
                self._room = trio.Event()
                await self._room.wait()

    def _handle(self, request: memoryview) -> None:
        """Answer a request, or begin to."""
        _, op, unique, inode, *_ = IN_HEADER.unpack_from(request)
        work = self._now.get(op)
        if work is None:
            self._error(unique, errno.EROFS if op in protocol.CHANGES else errno.ENOSYS)
            return
        try:
            with self._fs.reading():
                work(unique, inode, request[IN_HEADER.size :])
        except Exception as error:
            self._failed(unique, error)

    def _later(self, unique: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Answer in a task of its own."""
        self._waiting += 1
        self._nursery.start_soon(self._wait, unique, work)

    async def _wait(self, unique: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception as error:
            self._failed(unique, error)
        finally:
            self._waiting -= 1
            self._room.set()

    def _failed(self, unique: int, error: Exception) -> None:
        """Whatever went wrong is this request's errno and nobody else's."""
        if not isinstance(error, FileError):
            if not isinstance(error, MillpondError):
                log.error("a request failed", exc_info=error)
            error = self._fs.failed(str(error))
        self._error(unique, error.errno)

    # -- requests -------------------------------------------------------------------------------------------------

    def _init(self, unique: int, inode: int, body: memoryview) -> None:
        major, minor, max_readahead, offered = protocol.INIT_IN.unpack_from(body)
        if major < protocol.MAJOR or (major == protocol.MAJOR and minor < protocol.MINOR):
            log.error("the kernel's FUSE %d.%d is older than %d.%d", major, minor, protocol.MAJOR, protocol.MINOR)
            self._error(unique, errno.EPROTO)
            return
        wanted = Init.ASYNC_READ | Init.DO_READDIRPLUS | Init.ASYNC_DIO | Init.PARALLEL_DIROPS | Init.MAX_PAGES
        wanted |= Init.NO_OPEN_SUPPORT
        if self._fs.immutable:
            wanted |= Init.CACHE_SYMLINKS | Init.NO_OPENDIR_SUPPORT
        threshold = _MAX_BACKGROUND * 3 // 4
        answer = protocol.INIT_OUT.pack(
            protocol.MAJOR, protocol.MINOR, max_readahead, offered & wanted, _MAX_BACKGROUND, threshold, 4096, 1, _MAX_PAGES
        )  # fmt: skip
        self._reply(unique, answer)
        self.initialised.set()

    def _lookup(self, unique: int, inode: int, body: memoryview) -> None:
        name = bytes(body[:-1])
        found = self._fs.lookup_stored(inode, name)
        if found is None and self._fs.must_ask(inode):
            self._later(unique, lambda: self._lookup_later(unique, inode, name))
        else:
            self._reply(unique, self._entry(found) if found is not None else _NO_ENTRY)

    async def _lookup_later(self, unique: int, inode: int, name: bytes) -> None:
        found = await self._fs.lookup(inode, name)
        self._reply(unique, self._entry(found) if found is not None else _NO_ENTRY)

    def _getattr(self, unique: int, inode: int, body: memoryview) -> None:
        found = self._fs.getattr(inode)
        self._reply(unique, protocol.ATTR_OUT.pack(int(found.ttl_s), 0, 0, *self._attributes(found)))

    def _readlink(self, unique: int, inode: int, body: memoryview) -> None:
        self._reply(unique, self._fs.readlink(inode))

    def _read(self, unique: int, inode: int, body: memoryview) -> None:
        _, offset, size, *_ = protocol.READ_IN.unpack_from(body)
        file = self._files.get(inode)
        if file is None:
            if offset == 0:
                whole = self._fs.whole(inode, size)
                if whole is not None:
                    self._reply(unique, whole)
                    return
            handle = self._fs.open_stored(inode)
            if handle is None:
                self._later(unique, lambda: self._read_later(unique, inode, offset, size))
                return
            file = self._opened(inode, handle)
        else:
            self._files.move_to_end(inode)
        parts = self._fs.read_ready(file.handle, offset, size)
        if parts is None:
            self._later(unique, lambda: self._read_later(unique, inode, offset, size))
            return
        self._reply(unique, *parts)
        if offset == 0 and not file.users and sum(map(len, parts)) < size:
            self._close(inode)  # all of it: the kernel has it now

    async def _read_later(self, unique: int, inode: int, offset: int, size: int) -> None:
        file = self._files.get(inode)
        if file is None:
            handle = await self._fs.open(inode)
            file = self._files.get(inode)
            if file is None:
                file = self._opened(inode, handle)
            else:  # another request was faster
                self._fs.release(handle)
        file.users += 1
        try:
            self._reply(unique, *await self._fs.read(file.handle, offset, size))
        finally:
            file.users -= 1
            if self._files.get(inode) is not file and not file.users:
                self._fs.release(file.handle)

    def _opendir(self, unique: int, inode: int, body: memoryview) -> None:
        if self._fs.immutable:
            self._error(unique, errno.ENOSYS)  # and never again
            return
        flags = 0 if self._fs.must_ask(inode) else protocol.KEEP_CACHE | protocol.CACHE_DIR
        self._reply(unique, protocol.OPEN_OUT.pack(0, flags, 0))

    def _readdirplus(self, unique: int, inode: int, body: memoryview) -> None:
        self._list(unique, inode, body, self._entries_plus)

    def _readdir(self, unique: int, inode: int, body: memoryview) -> None:
        self._list(unique, inode, body, self._entries)

    def _list(
        self, unique: int, inode: int, body: memoryview, tell: Callable[[int, int, int], Awaitable[list[bytes]]]
    ) -> None:
        _, position, size, *_ = protocol.READ_IN.unpack_from(body)

        async def answer() -> None:
            self._reply(unique, *await tell(inode, position, size))

        if self._fs.must_ask(inode):
            self._later(unique, answer)
        else:
            at_once(answer())

    async def _entries_plus(self, inode: int, position: int, size: int) -> list[bytes]:
        """Entries with their attributes, as many as fit. Each is counted as told."""
        told: list[bytes] = []
        while page := await self._fs.readdir(inode, position):
            for name, entry, following in page:
                padded = (len(name) + 7) & ~7
                size -= protocol.ENTRY_OUT.size + protocol.DIRENT.size + padded
                if size < 0:
                    return told
                found = await self._fs.lookup(inode, name) if entry is None else self._fs.attributes_of(inode, entry)
                if found is not None:
                    head = protocol.DIRENT.pack(found.inode, following, len(name), found.mode >> 12)
                    told.append(self._entry(found) + head + name.ljust(padded, b"\0"))
                position = following
        return told

    async def _entries(self, inode: int, position: int, size: int) -> list[bytes]:
        """Names, types and numbers alone, as many as fit."""
        told: list[bytes] = []
        while page := await self._fs.readdir(inode, position):
            for name, entry, following in page:
                padded = (len(name) + 7) & ~7
                size -= protocol.DIRENT.size + padded
                if size < 0:
                    return told
                kind = 0 if entry is None else _DIR_TYPES.get(entry.type, _REG_TYPE)
                number = (entry.inode if entry is not None else 0) or ROOT
                told.append(protocol.DIRENT.pack(number, following, len(name), kind) + name.ljust(padded, b"\0"))
                position = following
        return told

    def _statfs(self, unique: int, inode: int, body: memoryview) -> None:
        files, total = self._fs.statfs()
        self._reply(unique, protocol.STATFS_OUT.pack((total + 4095) // 4096, 0, 0, files, 0, 4096, 255, 4096, 0))

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

    def _batch_forget(self, unique: int, inode: int, body: memoryview) -> None:
        count, _ = protocol.BATCH_FORGET_IN.unpack_from(body)
        begin, size = protocol.BATCH_FORGET_IN.size, protocol.FORGET_ONE.size
        for each, lookups in protocol.FORGET_ONE.iter_unpack(body[begin : begin + count * size]):
            self._fs.forget(each, lookups)

    # -- files ----------------------------------------------------------------------------------------------------

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

    # -- answers --------------------------------------------------------------------------------------------------

    def _reply(self, unique: int, *parts: Bytes) -> None:
        head = OUT_HEADER.pack(OUT_HEADER.size + sum(map(len, parts)), 0, unique)
        # A listing has many small parts: more than the kernel takes at once.
        self._write([head, *parts] if len(parts) < 16 else [head, b"".join(parts)])

    def _error(self, unique: int, number: int) -> None:
        self._write([OUT_HEADER.pack(OUT_HEADER.size, -number, unique)])

    def _write(self, parts: Sequence[Bytes]) -> None:
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            # ENOENT: who asked was killed meanwhile; ENODEV: the mount is gone, which the loop will see.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED):
                raise

    def _entry(self, found: Attributes) -> bytes:
        ttl = int(found.ttl_s)
        return protocol.ENTRY_OUT.pack(found.inode, 0, ttl, ttl, 0, 0, *self._attributes(found))

    def _attributes(self, found: Attributes) -> tuple[int, ...]:
        when, size = found.mtime_s, found.size
        times = (when, when, when, 0, 0, 0)
        return (found.inode, size, (size + 511) // 512, *times, found.mode, 1, self._uid, self._gid, 0, 1 << 17, 0)


# An entry that is not there, which the kernel may remember for a second.
_NO_ENTRY = protocol.ENTRY_OUT.pack(0, 0, _MISSING_S, 0, 0, 0, *[0] * 16)


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("it waits")


async def serve(filesystem: Filesystem, settings: EngineSettings, mounted: Callable[[], Awaitable[None]]) -> None:
    """See engines.Engine."""
    given = settings.mountpoint.startswith("/dev/fd/")
    if given:
        fd = int(settings.mountpoint.removeprefix("/dev/fd/"))
    else:
        fd = await trio.to_thread.run_sync(fusermount.mount, settings.place, mount_options(settings))
    os.set_blocking(fd, False)
    try:
        async with trio.open_nursery() as nursery:
            session = Session(filesystem, fd, nursery)

            async def announce() -> None:
                """Once requests are answered: set what the answer to the first one would have reset, then say so."""
                await session.initialised.wait()
                set_read_ahead(settings.place, settings.read_ahead_kb)
                await mounted()

            nursery.start_soon(announce)
            await session.run()
            nursery.cancel_scope.cancel()
    except BaseException:
        if not given:
            with trio.CancelScope(shield=True), suppress(OSError):
                await trio.to_thread.run_sync(fusermount.umount, settings.place)  # nobody serves it any more
        raise
    finally:
        os.close(fd)
