"""What stat shows of a file, and the errors of operations."""

from __future__ import annotations

import errno
import stat
from typing import NamedTuple

FOREVER_S = 365 * 86400.0
# Modification times are spread over these years, by content: rsync and make then see another content as another time.
_TIME_BASE, _TIME_SPAN = 1_000_000_000, 500_000_000


class FileError(Exception):
    """An operation's errno."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number


class Attributes(NamedTuple):
    """What stat shows; `forever` when the kernel may keep entry and attributes, else it asks again after `ttl_s`."""

    inode: int
    mode: int
    size: int
    mtime_s: int
    ttl_s: float = FOREVER_S


_FILE_MODES = stat.S_IFREG | 0o444, stat.S_IFREG | 0o555


def of_file(inode: int, size: int, *, executable: bool) -> Attributes:
    """Of a file of the data."""
    return Attributes(inode, _FILE_MODES[executable], size, spread(inode))


def of_link(inode: int, size: int) -> Attributes:
    """Of a link of the data, whose target has `size` bytes."""
    return Attributes(inode, stat.S_IFLNK | 0o777, size, spread(inode))


def of_folder(inode: int, folder: bytes | None) -> Attributes:
    """Of a directory; without a folder of the index it may change."""
    when = _TIME_BASE if folder is None else spread(int.from_bytes(folder[:4], "little"))
    return Attributes(inode, stat.S_IFDIR | 0o555, 0, when, FOREVER_S if folder is not None else 1.0)


def spread(number: int) -> int:
    """Seconds since the epoch, a function of a content's number alone."""
    return _TIME_BASE + number % _TIME_SPAN
