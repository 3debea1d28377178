"""mount(2) and umount2(2), for processes that may call them."""

from __future__ import annotations

import ctypes
import errno
import os
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
