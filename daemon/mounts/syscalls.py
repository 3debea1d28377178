"""mount(2), umount2(2), and file systems mounted nowhere (fsopen(2), Linux 5.2), for processes that may call them."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Mapping
from enum import IntFlag


class MountFlag(IntFlag):
    """Flags of mount(2)."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOATIME = 1024


_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8


def mount(source: bytes, target: bytes, fstype: bytes, flags: MountFlag, options: bytes) -> None:
    """mount(2). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source, target, fstype, ctypes.c_ulong(flags), options):
        raise _failure()


# The same number on every architecture that has them.
_OPEN_TREE, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 430, 431, 432
_AT_FDCWD, _OPEN_TREE_CLONE = -100, 1
_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOATIME = 1, 2, 4, 0x10


def mount_nowhere(fstype: str, options: Mapping[str, str], *, writable: bool = False) -> int:
    """A mount that is in no directory, read-only unless `writable`: a descriptor of its root, which lives as long as that or anything of it is open. An
    option without a value is a flag. Raises OSError."""
    context = _syscall(_FSOPEN, fstype.encode(), _CLOEXEC)
    try:
        for name, value in options.items():
            if value:
                _syscall(_FSCONFIG, context, _SET_STRING, name.encode(), os.fsencode(value), 0)
            else:
                _syscall(_FSCONFIG, context, _SET_FLAG, name.encode(), None, 0)
        _syscall(_FSCONFIG, context, _CREATE, None, None, 0)
        attributes = _ATTR_NOSUID | _ATTR_NODEV | _ATTR_NOATIME | (0 if writable else _ATTR_RDONLY)
        return _syscall(_FSMOUNT, context, _CLOEXEC, attributes)
    finally:
        os.close(context)


def clone(place: bytes) -> int:
    """Another mount of what is mounted at a path, in no directory (open_tree(2), Linux 5.2): a descriptor of its root. Who has something of it open does not
    keep the one at the path from being unmounted. Raises OSError: for who may mount alone."""
    return _syscall(_OPEN_TREE, _AT_FDCWD, place, _OPEN_TREE_CLONE | os.O_CLOEXEC)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    given = [ctypes.c_long(each) if isinstance(each, int) else ctypes.c_char_p(each) for each in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *given))
    if result < 0:
        raise _failure()
    return result


def is_cached(fd: int, offset: int) -> bool:
    """Whether a file's page at a multiple of the page's size is in the page cache and as it should be (mincore(2)). Nothing is read for it, nor is
    the file's own file system asked. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size = ctypes.c_size_t(mmap.PAGESIZE)
    at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(offset))
    if at == ctypes.c_void_p(-1).value:
        raise _failure()
    try:
        found = (ctypes.c_ubyte * 1)()
        if libc.mincore(ctypes.c_void_p(at), size, found):
            raise _failure()
        return bool(found[0] & 1)
    finally:
        libc.munmap(ctypes.c_void_p(at), size)


def umount(target: bytes, *, lazy: bool) -> None:
    """umount2(2) of a path whose last part is no link; with `lazy` it is detached now and ends when nobody uses it. Raises
    OSError."""
    _umount(target, _MNT_DETACH if lazy else 0)


def abort(target: bytes) -> None:
    """Have the requests of the FUSE mount at a path end with an error, for ever (MNT_FORCE); it is unmounted, too, if nobody uses it.
    Raises OSError."""
    try:
        _umount(target, _MNT_FORCE)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise


def _umount(target: bytes, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(target, _UMOUNT_NOFOLLOW | flags):
        raise _failure()


def _failure() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
