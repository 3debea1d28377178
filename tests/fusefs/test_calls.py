"""Calls that are rarer than read and stat, on both engines' mounts: none hangs, and each does what it does elsewhere."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fusefs import uring
from tests.fusefs.conftest import Pair
from tests.fusefs.helpers import ENGINES, TIMEOUT_S, File, mount, open_store, put_tree, run

from millpond.daemon.mounts.place import mount_table, mounted_at

pytestmark = pytest.mark.fuse

_IN_ACCESS, _IN_CLOSE_NOWRITE, _IN_OPEN = 0x1, 0x10, 0x20


def test_statx_tells_the_same_with_and_without_asking(pair: Pair) -> None:
    wanted = "--printf=%A|%s|%h|%F|%i|%Y|%b|%B"
    for name in ("same/one", "sizes", "links/nowhere", "big/mixed.bin"):
        shown = {run("stat", f"--cached={how}", wanted, pair.place / name) for how in ("default", "never", "always")}
        assert len(shown) == 1
    kinds = "--printf=%A|%s|%F"
    for name in ("same/one", "same/runs", "links/nowhere", "big/mixed.bin", "empty"):
        assert run("stat", kinds, pair.place / name) == run("stat", kinds, pair.plain / name)


def test_locks_are_the_kernels_own(pair: Pair) -> None:
    path = pair.place / "same/one"
    first, second = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(first, fcntl.LOCK_UN)
        fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.lockf(first, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(OSError, match="Bad file descriptor"):  # for writing, which this descriptor is not
            fcntl.lockf(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(first)
        os.close(second)


def test_inotify_sees_who_opens_and_reads(pair: Pair) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        for name in ("same", "sizes/4097"):
            assert libc.inotify_add_watch(watcher, os.fsencode(pair.place / name), 0xFFF) > 0
        (pair.place / "same/two").read_bytes()
        (pair.place / "sizes/4097").read_bytes()
        seen, names = 0, set()
        while select.select([watcher], [], [], 0.2)[0]:
            events, at = os.read(watcher, 1 << 16), 0
            while at < len(events):
                _, mask, _, length = struct.unpack_from("iIII", events, at)
                names.add(events[at + 16 : at + 16 + length].rstrip(b"\0"))
                seen |= mask
                at += 16 + length
        assert seen & 0xFFF == _IN_ACCESS | _IN_CLOSE_NOWRITE | _IN_OPEN and names == {b"two", b""}
    finally:
        os.close(watcher)


def test_descriptors_lead_back_to_their_paths(pair: Pair) -> None:
    fd = os.open(pair.place / "big", os.O_PATH | os.O_DIRECTORY)
    try:
        assert os.readlink(f"/proc/self/fd/{fd}") == os.fspath(pair.place / "big")
        inner = os.open(f"/proc/self/fd/{fd}/mixed.bin", os.O_RDONLY)
        assert os.fstat(inner).st_size == 9_000_017
        os.close(inner)
        assert os.stat("../same/one", dir_fd=fd).st_size == 16
    finally:
        os.close(fd)


@pytest.mark.parametrize("how", ["--sparse=always", "--sparse=never", "--reflink=auto"])
def test_cp_takes_what_the_file_system_has_not_for_an_answer(pair: Pair, tmp_path: Path, how: str) -> None:
    """Clones, copies by the kernel between file systems, and holes."""
    for name in ("big/zeros.bin", "sizes/65537"):
        run("cp", how, "--remove-destination", pair.place / name, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == (pair.plain / name).read_bytes()


def test_pollers_and_ioctls_are_answered(pair: Pair) -> None:
    fd = os.open(pair.place / "same/one", os.O_RDONLY)
    try:
        assert select.select([fd], [], [], 1)[0] == [fd]
        with pytest.raises(OSError, match="Inappropriate ioctl"):
            fcntl.ioctl(fd, 0x5401, bytes(64))  # TCGETS
    finally:
        os.close(fd)


@pytest.mark.parametrize("direct", [0, os.O_DIRECT])
def test_reads_by_io_uring(pair: Pair, direct: int) -> None:
    data = (pair.plain / "big/mixed.bin").read_bytes()
    ranges = [(number << 20, 300_000) for number in (8, 0, 3, 5, 1, 7, 9)]
    if direct and pair.engine == "erofs":  # the kernel has none for images in files
        with pytest.raises(OSError, match="Invalid argument"):
            os.open(pair.place / "big/mixed.bin", os.O_RDONLY | direct)
        return
    if direct:
        ranges = [(offset, 1 << 18) for offset, _ in ranges]
    fd = os.open(pair.place / "big/mixed.bin", os.O_RDONLY | direct)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        found = uring.read(fd, ranges)
    except uring.Unavailable as error:
        pytest.skip(f"no io_uring here: {error}")
    finally:
        os.close(fd)
    assert found == [data[offset : offset + length] for offset, length in ranges]


_STAYS = """
import os, sys
os.chdir(sys.argv[1])
print("there", flush=True)
sys.stdin.readline()
print(sorted(os.listdir(".")), open("inner/file").read(), flush=True)
"""


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_a_working_directory_holds_the_mount(base: Path) -> None:
    store = open_store(base / "store")
    totals = put_tree(store, {b"folder/inner/file": File(b"content"), b"folder/x": File(b"")})
    store.close()
    with mount(base / "store", totals, base / "m") as mounted:
        command = [sys.executable, "-c", _STAYS, os.fspath(mounted.place / "folder")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            assert "busy" in mounted.umount().stderr.lower()
            assert mounted.umount("-z").returncode == 0
            assert mounted.guard.poll() is None
            output, _ = process.communicate(b"\n", timeout=TIMEOUT_S)
            assert output == b"['inner', 'x'] content\n"
        assert mounted.ended() == 0


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_a_mount_over_a_mount_hides_it_and_gives_it_back(base: Path) -> None:
    store = open_store(base / "store")
    below, above = (put_tree(store, {b"file": File(data)}) for data in (b"below", b"above"))
    store.close()
    with mount(base / "store", below, base / "m") as first:
        if os.geteuid():  # fusermount3 does not look into what is its user's alone, not even as root
            with pytest.raises(AssertionError, match="Permission denied|fuse_session_mount failed"):
                mount(base / "store", above, base / "m").__enter__()
            return
        # fusermount3 and mount(2) alike mount on what is there.
        with mount(base / "store", above, base / "m") as second:
            assert (base / "m/file").read_bytes() == b"above"
            assert sum(entry.mountpoint == os.fspath(base / "m") for entry in mount_table()) == 2
            assert second.umount().returncode == 0
            assert second.ended() == 0
            assert (base / "m/file").read_bytes() == b"below"
            assert first.guard.poll() is None
            assert first.umount().returncode == 0
        assert first.ended() == 0
        assert mounted_at(os.fspath(base / "m")) is None
