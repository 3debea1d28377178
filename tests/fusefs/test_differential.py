"""The same calls, in any order, on the mounts of both engines and on plain files: the same results and errors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fusefs.helpers import ENGINES, File, Link, Node, mixed, mount, open_store, put_tree, share, write_plain

from millpond.daemon.mounts.engines import EROFS
from millpond.daemon.mounts.kernel import why_no_image

pytestmark = pytest.mark.fuse

TREE: dict[bytes, Node] = {
    b"empty": File(b""),
    b"page": File(mixed(4096, 1)),
    b"run": File(b"#!/bin/sh\n", executable=True),
    b"folder/odd \xff\n": File(mixed(70_001, 2)),
    b"folder/inner/large": File(mixed(1_500_000, 3)),
    b"folder/link": Link(b"inner/large"),
    b"loop": Link(b"loop"),
    b"away": Link(b"../../nowhere"),
    b"to folder": Link(b"folder/inner"),
    **{b"many/%03d" % number: File(b"%d" % number) for number in range(150)},
}
FEW = [path for path in TREE if not path.startswith(b"many/")]
PATHS = [*FEW, b"many/007", b".", b"folder", b"folder/inner", b"many"]
PATHS += [b"folder/link/x", b"to folder/large", b"many/999", b"page/", b"no/thing"]
SIZES = st.sampled_from([0, 1, 4095, 4096, 4097, 65_536, 131_073, 2_000_000])
OFFSETS = st.one_of(
    st.integers(0, 1_600_000), st.sampled_from([0, 4096, 70_001, 1_499_999, 1_500_000, 2**40, 2**63 - 4097])
)
FLAGS = [0, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_PATH, os.O_NOATIME, os.O_NONBLOCK, os.O_DIRECT]
CALLS = st.one_of(
    st.tuples(st.just("open"), st.sampled_from(PATHS), st.sampled_from(FLAGS)),
    st.tuples(st.just("close"), st.integers(0, 5)),
    st.tuples(st.just("pread"), st.integers(0, 5), OFFSETS, SIZES),
    st.tuples(st.just("read"), st.integers(0, 5), SIZES),
    st.tuples(
        st.just("seek"),
        st.integers(0, 5),
        OFFSETS,
        st.sampled_from([os.SEEK_SET, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE]),
    ),
    st.tuples(st.just("map"), st.integers(0, 5), OFFSETS),
    st.tuples(st.just("fadvise"), st.integers(0, 5), st.sampled_from([os.POSIX_FADV_DONTNEED, os.POSIX_FADV_RANDOM])),
    st.tuples(st.just("fstat"), st.integers(0, 5)),
    st.tuples(st.just("fdlist"), st.integers(0, 5)),
    st.tuples(st.just("lock"), st.integers(0, 5), st.sampled_from([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN])),
    st.tuples(st.just("fsync"), st.integers(0, 5)),
    st.tuples(st.just("stat"), st.sampled_from(PATHS), st.booleans()),
    st.tuples(st.just("list"), st.sampled_from(PATHS)),
    st.tuples(st.just("readlink"), st.sampled_from(PATHS)),
    st.tuples(st.just("access"), st.sampled_from(PATHS), st.sampled_from([os.F_OK, os.R_OK, os.X_OK])),
    st.tuples(st.just("xattrs"), st.sampled_from(PATHS)),
)


class Program:
    """Makes the calls in one place, and remembers what came of each."""

    def __init__(self, place: Path) -> None:
        self._place = os.fsencode(place)
        self._fds: list[int] = []

    def run(self, calls: list[tuple[Any, ...]]) -> list[object]:
        try:
            return [self._outcome(*call) for call in calls]
        finally:
            for fd in self._fds:
                os.close(fd)

    def _outcome(self, name: str, *arguments: Any) -> object:
        try:
            return getattr(self, "_" + name)(*arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def _path(self, path: bytes) -> bytes:
        return os.path.join(self._place, path)

    def _fd(self, number: int) -> int:
        if not self._fds:
            raise OSError(errno.EBADF, "nothing is open")
        return self._fds[number % len(self._fds)]

    def _open(self, path: bytes, flags: int) -> object:
        self._fds.append(os.open(self._path(path), os.O_RDONLY | flags))
        return "opened"

    def _close(self, number: int) -> object:
        fd = self._fd(number)
        self._fds.remove(fd)
        os.close(fd)
        return "closed"

    def _pread(self, number: int, offset: int, size: int) -> object:
        fd = self._fd(number)
        if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            return os.pread(fd, size, offset)
        with mmap.mmap(-1, 1 << 20) as buffer:  # memory and offset as the disk of the plain files wants them
            return buffer[: os.preadv(fd, [buffer], min(offset, 1 << 40) & ~4095)]

    def _read(self, number: int, size: int) -> object:
        fd = self._fd(number)
        return None if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT else os.read(fd, size)

    def _seek(self, number: int, offset: int, whence: int) -> object:
        fd = self._fd(number)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return None  # a position in a directory is the file system's own affair
        return os.lseek(fd, min(offset, 1 << 40), whence)

    def _map(self, number: int, offset: int) -> object:
        fd = self._fd(number)
        size = os.fstat(fd).st_size
        if not stat.S_ISREG(os.fstat(fd).st_mode) or not size:
            return None
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as area:
            return area[offset % size : offset % size + 9000]

    def _fadvise(self, number: int, advice: int) -> None:
        os.posix_fadvise(self._fd(number), 0, 0, advice)

    def _fstat(self, number: int) -> object:
        return shown(os.fstat(self._fd(number)))

    def _fdlist(self, number: int) -> object:
        return sorted(os.listdir(self._fd(number)))

    def _lock(self, number: int, kind: int) -> None:
        fcntl.flock(self._fd(number), kind | fcntl.LOCK_NB)

    def _fsync(self, number: int) -> None:
        os.fsync(self._fd(number))

    def _stat(self, path: bytes, follow: bool) -> object:
        return shown(os.stat(self._path(path), follow_symlinks=follow))

    def _list(self, path: bytes) -> object:
        with os.scandir(self._path(path)) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries)

    def _readlink(self, path: bytes) -> object:
        return os.readlink(self._path(path))

    def _access(self, path: bytes, mode: int) -> object:
        return os.access(self._path(path), mode)

    def _xattrs(self, path: bytes) -> object:
        with contextlib.suppress(OSError):
            return [name for name in os.listxattr(self._path(path)) if name.startswith("user.")]
        return []


def shown(found: os.stat_result) -> tuple[int, int | None, int]:
    """(mode, size, owner): a directory's size is the file system's own."""
    return found.st_mode, None if stat.S_ISDIR(found.st_mode) else found.st_size, found.st_uid


@pytest.fixture(scope="module")
def places() -> Iterator[list[Path]]:
    """The tree as plain files, mounted by each engine, and served by two processes."""
    with (
        tempfile.TemporaryDirectory(prefix="mp-fs-", ignore_cleanup_errors=True) as folder,
        contextlib.ExitStack() as stack,
    ):
        base = Path(folder)
        write_plain(base / "plain", TREE)
        store = open_store(base / "store")
        totals = put_tree(store, TREE)
        store.close()
        # Else the root of an image is its owner's alone.
        mounts = [
            stack.enter_context(mount(base / "store", totals, base / name, engine=name, allow_other=name == EROFS))
            for name in ENGINES
            if name != EROFS or not why_no_image()
        ]
        shared = stack.enter_context(mount(base / "store", totals, base / "shared", engine="direct", serving=2))
        share(shared)
        yield [base / "plain", *(each.place for each in (*mounts, shared))]


@given(opened=st.lists(st.sampled_from(FEW), min_size=2, max_size=3), calls=st.lists(CALLS, min_size=12, max_size=25))
def test_any_calls_have_the_same_outcome_everywhere(
    places: list[Path], opened: list[bytes], calls: list[tuple[Any, ...]]
) -> None:
    calls = [*(("open", path, 0) for path in opened), *calls]
    plain, *mounted = places
    here = Program(plain).run(calls)
    for place in mounted:
        if place.name != "erofs":
            assert Program(place).run(calls) == here
            continue
        fewer = as_an_image_has(calls)
        assert Program(place).run(fewer) == Program(plain).run(fewer)


def as_an_image_has(calls: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Without what the kernel does not offer for images in files: reading directly, and syncing what never changes (EINVAL)."""
    kept = [call for call in calls if call[0] != "fsync"]
    return [("open", call[1], call[2] & ~os.O_DIRECT) if call[0] == "open" else call for call in kept]
