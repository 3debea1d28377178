"""A FUSE server that does nothing but FUSE: a folder's files, read-only, with what it tells the kernel the same as the direct engine.

What a mount costs when all is cached is the kernel's own work: it asks nobody. This peer shows how much that is, so that a
figure of millpond's beside the disk's can be told from what no server could better. Cold it costs a pread a request.

    python -m bench.barefuse TREE PLACE
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

from millpond.daemon.mounts import syscalls
from millpond.daemon.mounts.syscalls import MountFlag
from millpond.fusefs.engines import FSTYPE, protocol
from millpond.fusefs.engines.protocol import Init, Op

ROOT = 1
FOREVER_S = 365 * 86400
_FLAGS = MountFlag.RDONLY | MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOATIME
_WANTED = (
    Init.ASYNC_READ
    | Init.DO_READDIRPLUS
    | Init.NO_OPEN_SUPPORT
    | Init.PARALLEL_DIROPS
    | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS
    | Init.NO_OPENDIR_SUPPORT
    | Init.EXPLICIT_INVAL_DATA
)
_MAX_PAGES, _BACKGROUND = 256, 64


class BareFuse:
    """`fd` is a mounted /dev/fuse. Everything below `tree` is looked at beforehand."""

    def __init__(self, fd: int, tree: Path) -> None:
        self._fd = fd
        self._paths = [str(tree)]
        self._stats = [os.stat(tree)]
        self._children: dict[int, dict[bytes, int]] = {}
        self._fill(ROOT)

    def _fill(self, inode: int) -> None:
        self._children[inode] = {}
        for entry in sorted(os.scandir(self._paths[inode - ROOT]), key=lambda entry: entry.name):
            self._paths.append(entry.path)
            self._stats.append(entry.stat())
            number = self._children[inode][os.fsencode(entry.name)] = len(self._paths)
            if entry.is_dir():
                self._fill(number)

    def serve(self) -> None:
        """Answer until the mount is gone."""
        buffer = bytearray(256 << 10)
        while True:
            try:
                size = os.readv(self._fd, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                raise
            _, op, unique, inode, *_ = protocol.IN_HEADER.unpack_from(buffer)
            if op not in protocol.SILENT:
                self._answer(op, unique, inode, memoryview(buffer)[protocol.IN_HEADER.size : size])

    def _answer(self, op: int, unique: int, inode: int, body: memoryview) -> None:
        parts: list[bytes] = []
        number = 0
        if op == Op.INIT:
            parts = [self._agree(body)]
        elif op == Op.LOOKUP:
            found = self._children.get(inode, {}).get(bytes(body[:-1]), 0)
            parts = [self._entry(found)]
        elif op == Op.GETATTR:
            parts = [protocol.ATTR_OUT.pack(FOREVER_S, 0, 0, *self._attributes(inode))]
        elif op == Op.READ:
            parts = [self._read(inode, body)]
        elif op == Op.READDIRPLUS:
            parts = self._list(inode, body)
        elif op == Op.STATFS:
            parts = [protocol.STATFS_OUT.pack(0, 0, 0, len(self._paths), 0, 4096, 255, 4096, 0)]
        else:
            number = errno.ENOSYS
        head = protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size + sum(map(len, parts)), -number, unique)
        try:
            os.writev(self._fd, [head, *parts])
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _agree(self, body: memoryview) -> bytes:
        _, _, ahead, offered = protocol.INIT_IN.unpack_from(body)
        return protocol.INIT_OUT.pack(
            protocol.MAJOR, protocol.MINOR, ahead, offered & _WANTED, _BACKGROUND, _BACKGROUND * 3 // 4, 4096, 1,
            _MAX_PAGES, 0, 0, 0,
        )  # fmt: skip

    def _read(self, inode: int, body: memoryview) -> bytes:
        _, offset, size, *_ = protocol.READ_IN.unpack_from(body)
        fd = os.open(self._paths[inode - ROOT], os.O_RDONLY)
        try:
            return os.pread(fd, size, offset)
        finally:
            os.close(fd)

    def _list(self, inode: int, body: memoryview) -> list[bytes]:
        _, position, size, *_ = protocol.READ_IN.unpack_from(body)
        told: list[bytes] = []
        for name, number in list(self._children[inode].items())[position:]:
            padded = (len(name) + 7) & ~7
            size -= protocol.ENTRY_OUT.size + protocol.DIRENT.size + padded
            if size < 0:
                break
            position += 1
            kind = self._stats[number - ROOT].st_mode >> 12
            head = protocol.DIRENT.pack(number, position, len(name), kind)
            told.append(self._entry(number) + head + name.ljust(padded, b"\0"))
        return told

    def _entry(self, inode: int) -> bytes:
        if not inode:
            return protocol.ENTRY_OUT.pack(0, 0, FOREVER_S, 0, 0, 0, *[0] * 16)
        return protocol.ENTRY_OUT.pack(inode, 0, FOREVER_S, FOREVER_S, 0, 0, *self._attributes(inode))

    def _attributes(self, inode: int) -> tuple[int, ...]:
        found = self._stats[inode - ROOT]
        when, mode = int(found.st_mtime), found.st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
        size = 0 if stat.S_ISDIR(mode) else found.st_size
        return (
            inode,
            size,
            (size + 511) // 512,
            when,
            when,
            when,
            0,
            0,
            0,
            mode,
            1,
            os.getuid(),
            os.getgid(),
            0,
            1 << 17,
            0,
        )


def main() -> None:
    """Mount and serve in the foreground."""
    tree, place = Path(sys.argv[1]), sys.argv[2]
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions"
    syscalls.mount(b"barefuse", os.fsencode(place), FSTYPE.encode(), _FLAGS, options.encode())
    BareFuse(fd, tree).serve()


if __name__ == "__main__":
    main()
