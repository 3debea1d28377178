"""Large trees: memory and start-up grow with what is looked at, not with what is there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fusefs.helpers import ENGINES, File, Mounted, mixed, mount, open_store, put, put_tree, used_inodes

from millpond.daemon.names import ObjectName
from millpond.daemon.store.folders import Totals
from millpond.daemon.store.store import Store
from millpond.daemon.store.trees import TreeEntry, build_tree

pytestmark = pytest.mark.fuse

# What a holder may take, whatever was looked at.
MAX_KIB = 80 << 10


def names_only(count: int, per_folder: int) -> Iterator[TreeEntry]:
    """Many files of objects that nobody has: for programs that look at names and sizes."""
    for number in range(count):
        path = b"%05d/file-number-%07d.jpg" % (number // per_folder, number)
        yield TreeEntry(path, number, name=ObjectName("md5", hashlib.md5(b"%d" % number).hexdigest()))


def find_all(mounted: Mounted) -> int:
    done = subprocess.run(
        ["find", mounted.place, "-type", "f", "-size", "+0", "-printf", "x"],
        capture_output=True,
        timeout=600,
        check=True,
    )
    return len(done.stdout)


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_a_path_longer_than_a_path_may_be(base: Path) -> None:
    """Reached folder by folder, as on other file systems."""
    names = [b"%04d" % number + b"n" * 196 for number in range(40)]
    path = b"/".join(names)
    store = open_store(base / "store")
    totals = put_tree(store, {path + b"/bottom": File(b"reached")})
    store.close()
    assert len(path) > 2 * 4000
    with mount(base / "store", totals, base / "m") as mounted:
        with pytest.raises(OSError, match="too long"):
            os.stat(os.path.join(os.fsencode(mounted.place), path))
        fd = os.open(mounted.place, os.O_RDONLY)
        for name in names:
            assert os.listdir(fd) == [os.fsdecode(name)]
            inner = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        bottom = os.open("bottom", os.O_RDONLY, dir_fd=fd)
        assert os.read(bottom, 100) == b"reached"
        os.close(bottom)
        os.close(fd)


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_a_hundred_thousand_entries_in_one_folder(base: Path) -> None:
    count = 100_000
    store = open_store(base / "store")
    name = put(store, [b"each the same"])[0]
    totals = build_tree(store, (TreeEntry(b"flat/%06d" % number, 13, name=name) for number in range(count)))
    store.close()
    with mount(base / "store", totals, base / "m") as mounted:
        listed = os.listdir(mounted.place / "flat")
        assert len(listed) == count and sorted(listed) == [f"{number:06d}" for number in range(count)]
        assert (
            subprocess.run(["ls", "-lU", mounted.place / "flat"], capture_output=True, check=True).stdout.count(b"\n")
            == count + 1
        )
        for number in (0, 50_000, 99_999):
            assert (mounted.place / f"flat/{number:06d}").read_bytes() == b"each the same"
        assert not (mounted.place / "flat/100000").exists()
        assert mounted.memory_kib() < MAX_KIB
        assert used_inodes(mounted) == count


def look_at_everything(base: Path, store: Store, totals: Totals, count: int) -> None:
    """Mount quickly, find all within the memory allowed, and find it again."""
    store.close()
    started = time.monotonic()
    with mount(base / "store", totals, base / "m", life_s=900) as mounted:
        assert len(os.listdir(mounted.place)) == -(-count // 1000)
        assert time.monotonic() - started < 10, "mounting must not depend on the number of files"
        assert mounted.memory_kib() < 60 << 10
        assert find_all(mounted) == count - 1  # the first is empty
        assert mounted.memory_kib() < MAX_KIB
        assert find_all(mounted) == count - 1
        assert mounted.memory_kib() < MAX_KIB
        assert mounted.memory_kib("VmHWM") < MAX_KIB


def test_finding_many_files_takes_little_memory(base: Path) -> None:
    count = 60_000
    store = open_store(base / "store")
    look_at_everything(base, store, build_tree(store, names_only(count, 1000)), count)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_finding_a_million_files_takes_little_memory(base: Path) -> None:
    count = 1_000_000
    store = open_store(base / "store")
    look_at_everything(base, store, build_tree(store, names_only(count, 1000)), count)


def test_reading_much_takes_little_memory(base: Path) -> None:
    store = open_store(base / "store")
    totals = put_tree(
        store,
        {b"%d" % number: File(mixed(12 << 20, number) if number % 2 else os.urandom(12 << 20)) for number in range(8)},
    )
    store.close()
    with mount(base / "store", totals, base / "m") as mounted:
        readers = [
            subprocess.Popen(["md5sum", mounted.place / str(number)], stdout=subprocess.DEVNULL) for number in range(8)
        ]
        assert [reader.wait(60) for reader in readers] == [0] * 8
        assert find_all(mounted) == 8
        assert mounted.memory_kib("VmHWM") < MAX_KIB
