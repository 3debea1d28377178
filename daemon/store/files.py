"""The store's system calls, in one place, so that a test can make the n-th one fail."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from millpond.daemon.errors import DiskFullError, MillpondError, StoreDamagedError

_SYNC_FILE_RANGE_WRITE = 2
_FALLOC_KEEP_SIZE = 1


class Files:
    """Every operation by which the store changes what is on disk. Raises OSError as the kernel does."""

    def create(self, path: Path, mode: int) -> int:
        """A new file, open for reading and writing, of exactly this mode whatever the umask is."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchmod(fd, mode)
        return fd

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        """Bytes written, fewer than asked at times."""
        return os.pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def begin_writing(self, fd: int, offset: int, size: int) -> None:
        """Have the kernel begin to write a range to the disk, so that `fdatasync` finds less left. A hint: what fails here is
        told there."""
        libc = ctypes.CDLL(None)
        libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)

    def take_room(self, fd: int, offset: int, size: int) -> None:
        """Have the disk's blocks for a range behind a file's end; its size stays. A hint: not every file system can."""
        libc = ctypes.CDLL(None)
        libc.fallocate(fd, _FALLOC_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(size))

    def fsync_dir(self, path: Path) -> None:
        """Make a directory's entries durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def truncate(self, path: Path, size: int) -> None:
        os.truncate(path, size)

    def commit(self, txn: Any) -> None:
        """Commit an LMDB write transaction."""
        txn.commit()


def write_durably(files: Files, path: Path, data: bytes, mode: int) -> None:
    """Temp beside, write, fsync, rename, fsync of the directory."""
    temp = path.with_name(path.name + ".tmp")
    temp.unlink(missing_ok=True)
    fd = files.create(temp, mode)
    try:
        files.pwritev(fd, [data], 0)
        files.fdatasync(fd)
    finally:
        os.close(fd)
    files.rename(temp, path)
    files.fsync_dir(path.parent)


def as_store_error(error: OSError, path: Path) -> MillpondError:
    """The error a user should see for a failed write to the store."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return disk_full(path)
    reason = os.strerror(error.errno) if error.errno else str(error)
    return StoreDamagedError(f"cannot write to the store in '{path}': {reason}", path=str(path), hint="check the disk")


def over_limit(path: Path, limit: int) -> DiskFullError:
    """The store has reached the size that its user gave it."""
    return DiskFullError(
        f"the store '{path.parent}' has reached its limit of {_shown(limit)}; nothing that was stored before is touched",
        path=str(path.parent),
        hint="remove what no version needs (millpond gc), or raise the limit (millpond cache limit SIZE)",
        details={"limit": limit},
    )


def _shown(size: float) -> str:
    """Bytes as the command line shows them."""
    unit = 0
    while size >= 999.5 and unit < 4:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"


def disk_full(path: Path) -> DiskFullError:
    """The disk that holds `path` is full, or filled up to the reserve."""
    return DiskFullError(
        f"no room is left for the store in '{path}'; nothing that was stored before is touched",
        path=str(path),
        hint="free some space, or set MILLPOND_STORE to a larger disk",
    )
