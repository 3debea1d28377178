"""Large files handed to the kernel whole (FUSE_PASSTHROUGH): it reads and maps a file on a disk in their place, and asks no more.

What is read through FUSE costs a copy of small pages even when it is cached; a file behind a mount does not. A mount made with
a budget answers OPEN, and when a large file is opened for the second time, its content is written out, chunk by checked
chunk, into a nameless file on the store's disk: nobody else can open it, and nothing is left of it after a crash. What lies
whole in DVC's cache is handed over as it is, by the descriptor that the source gave after it had checked it. From the next open
on the kernel reads that. Least recently used ones go when the budget is full.

The kernel refuses to have one inode open in both ways at once, so a file changes over only while it is not open at all. It tells
of every close. Only a process with CAP_SYS_ADMIN may hand files over; without it, and on kernels before 6.9, all stays as it is.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import trio

from millpond.daemon.errors import MillpondError
from millpond.daemon.mounts.kernel import is_privileged
from millpond.daemon.store.index import Content
from millpond.daemon.store.reader import StoreReader
from millpond.fusefs.attributes import FileError
from millpond.fusefs.filesystem import Filesystem

log = logging.getLogger("millpond.fusefs")

# Files from this size on are worth it.
LEAST_BYTES = 1 << 20
# Files whose first open is remembered, and that they cannot be handed over; files that are, each an open descriptor.
_MAX_SEEN = 4096
_MAX_BACKINGS = 1024
# Bytes of the disk that are left free.
_RESERVE = 1 << 30
# A file is written in blocks of this size, at multiples of it: they stay in the page cache in pieces as large as that allows, and
# are read faster from them than what was written chunk by chunk.
_BLOCK_BYTES = 4 << 20
# Handles of the answers to OPEN.
CACHED, PASSED = 0, 1
# linux/fuse.h: _IOW(229, 1, struct fuse_backing_map), _IOW(229, 2, u32)
_BACKING_OPEN, _BACKING_CLOSE = 0x4010E501, 0x4004E502
# fd i32, flags u32, padding u64
_BACKING_MAP = struct.Struct("=iIQ")


@dataclass(slots=True)
class _Backing:
    """A file that the kernel reads in place of one of the mount's: its number there, our descriptor, the bytes of the
    budget that it takes, and, of one that is not ours, what its stat was when it was checked."""

    id: int
    fd: int
    size: int
    checked: tuple[int, int, int] | None

    def is_changed(self) -> bool:
        """Whether somebody has written to it."""
        return self.checked is not None and _times(self.fd) != self.checked


@dataclass(slots=True)
class _Opens:
    """How often a file is open, by the pages of the mount and by its backing file."""

    cached: int = 0
    passed: int = 0


class Passthrough:
    """One mount's. `folder` is where contents are written out, at most `budget` bytes of them."""

    def __init__(
        self,
        device: int,
        filesystem: Filesystem,
        reader: StoreReader,
        nursery: trio.Nursery,
        *,
        folder: Path,
        budget: int,
    ) -> None:
        self._device = device
        self._fs = filesystem
        self._reader = reader
        self._nursery = nursery
        self._folder = folder
        self._budget = budget
        self._held = 0
        self._opens: dict[int, _Opens] = {}
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._refused: OrderedDict[int, None] = OrderedDict()
        self._backings: OrderedDict[int, _Backing] = OrderedDict()
        self._making: int | None = None
        self._ended = False
        self._passed = 0
        # Why nothing is handed over; "" when it is.
        self.why_not = "" if is_privileged() else "only root may hand files to the kernel"
        filesystem.more_statistics.append(self.statistics)

    def opened(self, inode: int) -> int:
        """A file is opened: the backing file's number that the answer is to have, 0 for none. Raises FileError when what the
        kernel reads in its place was changed and is still open: it is nobody's content then."""
        opens = self._opens.get(inode)
        backing = self._backings.get(inode)
        if backing is not None and backing.is_changed():
            if opens is not None and opens.passed:
                raise self._fs.failed(f"inode {inode}: its object in DVC's cache was changed while it was read")
            self._drop(inode)  # its source checks it again
            backing = None
        if opens is None:
            opens = self._opens[inode] = _Opens()
        if backing is not None and not opens.cached:
            opens.passed += 1
            self._passed += 1
            self._backings.move_to_end(inode)
            return backing.id
        opens.cached += 1
        if backing is None and not self.why_not:
            self._consider(inode)
        return 0

    def closed(self, inode: int, handle: int) -> None:
        """A file is closed, or nobody took the answer to its open."""
        opens = self._opens.get(inode)
        if opens is None:
            return
        if handle == PASSED:
            opens.passed -= 1
        else:
            opens.cached -= 1
        if opens.cached <= 0 and opens.passed <= 0:
            del self._opens[inode]

    def end(self) -> None:
        """The mount is gone."""
        self._ended = True
        for backing in self._backings.values():
            os.close(backing.fd)
        self._backings.clear()

    def statistics(self) -> dict[str, object]:
        """For the mount's statistics."""
        return {
            "passthrough": self.why_not or "on",
            "passthrough_files": len(self._backings),
            "passthrough_bytes": self._held,
            "passthrough_opens": self._passed,
        }

    def _consider(self, inode: int) -> None:
        """At its second open a large file is made ready for the third."""
        if inode not in self._seen:
            _remember(self._seen, inode)
        elif self._making is None and inode not in self._refused and self._fs.size_of(inode) >= LEAST_BYTES:
            self._making = inode
            self._nursery.start_soon(self._make, inode)

    async def _make(self, inode: int) -> None:
        try:
            content = self._fs.stored(inode)
            if not self._make_room(0 if content is None else content.size):
                return
            if content is None:
                fd, size = await self._fs.elsewhere(inode), 0
            else:
                size = content.size
                fd = await trio.to_thread.run_sync(self._write_out, content)
            try:
                # What it returns, and not only what it writes, is got with a buffer of ours.
                number = fcntl.ioctl(self._device, _BACKING_OPEN, bytearray(_BACKING_MAP.pack(fd, 0, 0)), True)
            except OSError:  # of a file on another file system of the kind, say
                os.close(fd)
                raise
            self._backings[inode] = _Backing(number, fd, size, None if content is not None else _times(fd))
            self._held += size
        except (MillpondError, FileError, OSError) as error:
            log.info("inode %d is not handed to the kernel: %s", inode, error)
            _remember(self._refused, inode)
        finally:
            self._making = None

    def _make_room(self, size: int) -> bool:
        """Let go of what was not used for longest, and is not open; whether `size` bytes fit now."""
        if size > self._budget:
            return False
        for inode in list(self._backings):
            if self._held + size <= self._budget and len(self._backings) < _MAX_BACKINGS:
                break
            if inode not in self._opens:
                self._drop(inode)
        found = os.statvfs(self._folder)
        fits = self._held + size <= self._budget and len(self._backings) < _MAX_BACKINGS
        return fits and (not size or found.f_bavail * found.f_frsize >= size + _RESERVE)

    def _drop(self, inode: int) -> None:
        backing = self._backings.pop(inode)
        self._held -= backing.size
        fcntl.ioctl(self._device, _BACKING_CLOSE, struct.pack("=I", backing.id))
        os.close(backing.fd)

    def _write_out(self, content: Content) -> int:
        """A nameless file with a content; in a thread. Raises StoreDamagedError, OSError."""
        fd = os.open(self._folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o400)
        try:
            os.posix_fallocate(fd, 0, content.size)
            done, block = 0, bytearray()
            for piece in self._reader.pieces(content):
                block += piece
                done += len(piece)
                if len(block) >= _BLOCK_BYTES or done == content.size:
                    whole = len(block) if done == content.size else len(block) // _BLOCK_BYTES * _BLOCK_BYTES
                    _write_all(fd, memoryview(block)[:whole])
                    block = block[whole:]
                if self._ended:
                    raise OSError("the mount is gone")
            if done != content.size:
                raise OSError(f"{done} bytes came of {content.size}")
            return fd
        except BaseException:
            os.close(fd)
            raise


def _remember(seen: OrderedDict[int, None], inode: int) -> None:
    seen[inode] = None
    if len(seen) > _MAX_SEEN:
        seen.popitem(last=False)


def _write_all(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]


def _times(fd: int) -> tuple[int, int, int]:
    found = os.fstat(fd)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
