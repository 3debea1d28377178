"""Trying the kernel before it is trusted with an image in a file.

Kernels up to 7.0 (mended there, and in 6.12, 6.18 and 6.19's later updates, by "erofs: set fileio bio failed in short read case") take what a
failed or interrupted read has not brought for zeros, and keep these as what the file holds. So a small image is mounted first, nowhere, that has one file
of two blocks, of which the second one cannot be read: a kernel that tells anything else than an error is not to be used.
"""

from __future__ import annotations

import errno
import os
import stat

from millpond.daemon.mounts import syscalls
from millpond.fusefs.attributes import FileError
from millpond.fusefs.image import format
from millpond.fusefs.image.format import BLOCK, INODE_BYTES

NAME = b"trial"
_FILE = b"f"
_FILL = b"millpond" * (BLOCK // 8)
# Blocks: superblock, inodes, names, the file's two.
_META, _NAMES, _DATA = 1, 2, 3
BYTES = (_DATA + 2) * BLOCK
_ROOT_NID, _FILE_NID = format.NIDS, 2 * format.NIDS


def read(offset: int, size: int) -> bytes:
    """Bytes of the image. Raises FileError for those of the file's second block."""
    if offset + size > (_DATA + 1) * BLOCK and offset < BYTES:
        raise FileError(errno.EIO)
    return _IMAGE[offset : offset + size]


def fails(mount: int) -> str:
    """Why images behind the file system of descriptor `mount` are not to be trusted to the kernel; "" when it is right."""
    try:
        place = syscalls.mount_nowhere("erofs", {"source": f"/proc/self/fd/{mount}/{NAME.decode()}"})
    except OSError as error:
        return f"the kernel mounts no EROFS image that is a file ({error.strerror})"
    try:
        fd = os.open(_FILE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=place)
        try:
            return _judged(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return f"the kernel does not read EROFS images as expected ({error.strerror})"
    finally:
        os.close(place)


def _judged(fd: int) -> str:
    whole = os.pread(fd, 2 * BLOCK, 0)
    if whole != _FILL:
        return "the kernel takes what it could not read for zeros"
    try:
        os.pread(fd, BLOCK, BLOCK)
    except OSError as error:
        return "" if error.errno == errno.EIO else f"the kernel tells {error.strerror} for what cannot be read"
    return "the kernel takes what it could not read for zeros"


def _inode(mode: int, size: int, first: int) -> bytes:
    return format.inode(mode, size, first, number=1, uid=0, gid=0, mtime_s=0)


def _made() -> bytes:
    head = bytes(format.SUPER_OFFSET) + format.superblock(
        root_nid=_ROOT_NID, meta_block=_META, inodes=2, blocks=_DATA + 2
    )
    inodes = (
        bytes(INODE_BYTES)
        + _inode(stat.S_IFDIR | 0o500, BLOCK, _NAMES)
        + _inode(stat.S_IFREG | 0o400, 2 * BLOCK, _DATA)
    )
    names = format.dirents(
        [
            (b".", _ROOT_NID, format.DIRECTORY),
            (b"..", _ROOT_NID, format.DIRECTORY),
            (_FILE, _FILE_NID, format.REGULAR),
        ]
    )
    return head.ljust(BLOCK, b"\0") + inodes.ljust(BLOCK, b"\0") + names + _FILL


_IMAGE = _made()
