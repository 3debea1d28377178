"""A FUSE file system that keeps files in a folder and writes down what it is asked to have durable: `python keeper.py PLACE FOLDER`. Lines on stdout:
`ready`; then `fsync PATH`, `fsyncdir PATH`, `rename PATH PATH`, below the folder."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import pyfuse3
import trio


class Keeper(pyfuse3.Operations):
    """Just as much as a remote's directory needs; inodes are never forgotten."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._paths = {pyfuse3.ROOT_INODE: folder}
        self._inodes = {folder: pyfuse3.ROOT_INODE}
        self._folder = folder

    def _say(self, *words: str) -> None:
        print(
            *(os.path.relpath(each, self._folder) if number else each for number, each in enumerate(words)), flush=True
        )

    def _entry(self, path: str) -> pyfuse3.EntryAttributes:
        try:
            found = os.lstat(path)
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        inode = self._inodes.setdefault(path, len(self._inodes) + 2)
        self._paths[inode] = path
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_size, entry.st_nlink = inode, found.st_mode, found.st_size, found.st_nlink
        entry.st_uid, entry.st_gid, entry.st_mtime_ns = found.st_uid, found.st_gid, found.st_mtime_ns
        return entry

    def _below(self, parent: int, name: bytes) -> str:
        return os.path.join(self._paths[parent], os.fsdecode(name))

    async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> Any:
        return self._entry(self._below(parent, name))

    async def getattr(self, inode: int, ctx: Any = None) -> Any:
        return self._entry(self._paths[inode])

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> Any:
        os.mkdir(self._below(parent, name), mode)
        return self._entry(self._below(parent, name))

    async def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        path = self._below(parent, name)
        fd = os.open(path, flags | os.O_CREAT, mode)
        return pyfuse3.FileInfo(fh=fd), self._entry(path)

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        return pyfuse3.FileInfo(fh=os.open(self._paths[inode], flags))

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def read(self, fd: int, offset: int, size: int) -> bytes:
        return os.pread(fd, size, offset)

    async def write(self, fd: int, offset: int, data: bytes) -> int:
        return os.pwrite(fd, data, offset)

    async def flush(self, fd: int) -> None:
        pass

    async def release(self, fd: int) -> None:
        os.close(fd)

    async def fsync(self, fd: int, datasync: bool) -> None:
        self._say("fsync", os.readlink(f"/proc/self/fd/{fd}"))

    async def fsyncdir(self, inode: int, datasync: bool) -> None:
        self._say("fsyncdir", self._paths[inode])

    async def rename(self, parent: int, name: bytes, to: int, new: bytes, flags: int, ctx: Any) -> None:
        before, after = self._below(parent, name), self._below(to, new)
        os.rename(before, after)
        inode = self._inodes.pop(before)
        self._inodes[after], self._paths[inode] = inode, after
        self._say("rename", before, after)


if __name__ == "__main__":
    pyfuse3.init(Keeper(sys.argv[2]), sys.argv[1], {"fsname=kept", "subtype=kept"})
    print("ready", flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)
