"""Every call that would change something is refused with EROFS, and nothing changes. (An image has no hidden folder: there is nothing to be
refused.)"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fusefs.conftest import Pair

pytestmark = pytest.mark.fuse

_FS_IOC_SETFLAGS = 0x40086602


def _open(flags: int) -> Callable[[Path], object]:
    return lambda place: os.open(place / "same/one", flags)


WRITES: dict[str, Callable[[Path], object]] = {
    "open for writing": _open(os.O_WRONLY),
    "open for both": _open(os.O_RDWR),
    "open and cut": _open(os.O_WRONLY | os.O_TRUNC),
    "open to append": _open(os.O_WRONLY | os.O_APPEND),
    "create": lambda place: os.open(place / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    "create beneath": lambda place: os.open(place / "same/new", os.O_CREAT | os.O_RDONLY),
    "unnamed": lambda place: os.open(place, os.O_TMPFILE | os.O_RDWR),
    "unlink": lambda place: os.unlink(place / "same/one"),
    "unlink a link": lambda place: os.unlink(place / "links/file"),
    "mkdir": lambda place: os.mkdir(place / "new"),
    "rmdir": lambda place: os.rmdir(place / "same"),
    "rename": lambda place: os.rename(place / "same/one", place / "same/three"),
    "replace": lambda place: os.replace(place / "same/one", place / "same/two"),
    "rename a folder": lambda place: os.rename(place / "same", place / "other"),
    "link": lambda place: os.link(place / "same/one", place / "same/three"),
    "symlink": lambda place: os.symlink("x", place / "new"),
    "fifo": lambda place: os.mkfifo(place / "new"),
    "device": lambda place: os.mknod(place / "new", 0o600 | 0o020000, os.makedev(1, 3)),
    "truncate": lambda place: os.truncate(place / "same/one", 0),
    "chmod": lambda place: os.chmod(place / "same/one", 0o777),
    "chmod a folder": lambda place: os.chmod(place / "same", 0o777),
    "chown": lambda place: os.chown(place / "same/one", 1, 1),
    "utime": lambda place: os.utime(place / "same/one", (1, 1)),
    "setxattr": lambda place: os.setxattr(place / "same/one", "user.x", b"1"),
    "removexattr": lambda place: os.removexattr(place / "same/one", "user.millpond.object"),
    "the root": lambda place: os.chmod(place, 0o777),
    "the hidden folder": lambda place: os.open(place / ".millpond/new", os.O_CREAT | os.O_WRONLY),
    "the hidden file": lambda place: os.open(place / ".millpond/stats", os.O_WRONLY),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_change_is_refused(pair: Pair, what: str) -> None:
    before = os.lstat(pair.place / "same/one")
    names = sorted(os.listdir(pair.place)), sorted(os.listdir(pair.place / "same"))
    with pytest.raises(OSError) as refused:
        WRITES[what](pair.place)
    not_there = pair.engine == "erofs" and what.startswith("the hidden")
    assert errno.errorcode[refused.value.errno or 0] == ("ENOENT" if not_there else "EROFS")
    assert os.lstat(pair.place / "same/one") == before
    assert (sorted(os.listdir(pair.place)), sorted(os.listdir(pair.place / "same"))) == names
    assert (pair.place / "same/one").read_bytes() == b"the same content"


def test_a_descriptor_for_reading_cannot_write(pair: Pair) -> None:
    fd = os.open(pair.place / "same/one", os.O_RDONLY)
    try:
        calls: list[Callable[[], object]] = [
            lambda: os.write(fd, b"x"),
            lambda: os.ftruncate(fd, 0),
            lambda: os.posix_fallocate(fd, 0, 10),
            lambda: os.fchmod(fd, 0o777),
            lambda: fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("l", 0)),
        ]
        for call in calls:
            with pytest.raises(OSError) as refused:
                call()
            assert refused.value.errno in (errno.EBADF, errno.EINVAL, errno.EROFS, errno.ENOTTY, errno.ENOSYS)
        if pair.engine == "erofs":  # as of every image of a file system that is never written
            with pytest.raises(OSError, match="Invalid argument"):
                os.fsync(fd)
        else:
            os.fsync(fd)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert os.pread(fd, 100, 0) == b"the same content"
    finally:
        os.close(fd)


def test_access_for_writing_is_denied_before_it_is_tried(pair: Pair) -> None:
    assert os.access(pair.place / "run.sh", os.R_OK | os.X_OK)
    assert not os.access(pair.place / "run.sh", os.W_OK)
    assert not os.access(pair.place, os.W_OK)
    assert os.access(pair.place / "same/one", os.R_OK)
    assert not os.access(pair.place / "same/one", os.X_OK)
