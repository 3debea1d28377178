"""Directories listed ahead of who looks files up one by one: which, when, and that nothing of it is in anybody's way."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.fusefs import filling
from tests.fusefs.filling import gone
from tests.fusefs.helpers import File, Node, eventually, mount, open_store, put_tree
from tests.fusefs.test_filling import filled, many

from millpond.daemon.mounts.place import mounted_at
from millpond.fusefs.filling import unlisted
from millpond.fusefs.filling.lister import Lister
from millpond.fusefs.filling.tally import Tally
from millpond.fusefs.filling.unlisted import (
    LEAST,
    MOST_ENTRIES,
    OPENING,
    PART,
    QUIET_S,
    TOGETHER,
    WITHIN_S,
    WORTH,
    Unlisted,
)


class Looking:
    """Looks at directories, which are called as their numbers are; `entries` is how many each has, 50 if it does not say."""

    def __init__(self, entries: dict[int, int | None] | None = None) -> None:
        self._entries = entries or {}
        self._made = Unlisted(self._where)
        self.listed: list[int] = []

    def _where(self, directory: int) -> tuple[bytes, int] | None:
        entries = self._entries.get(directory, 50)
        return None if entries is None else (b"%d" % directory, entries)

    def at(self, directories: list[int], now: float = 0.0) -> list[int]:
        """What is to be listed then."""
        found = [self._made.looked_up(each, now) for each in directories]
        new = [int(each) for each in found if each is not None]
        self.listed += new
        return new

    def forget(self, directory: int) -> None:
        self._made.forget(directory)


def test_few_looks_or_slow_ones_list_nothing() -> None:
    looking = Looking()
    assert not looking.at(list(range(TOGETHER - 1)))
    for number in range(200):
        assert not looking.at([number % 7], 100 + number * WITHIN_S / (TOGETHER - 2))


def test_many_looks_list_each_directory_once() -> None:
    looking = Looking()
    assert not looking.at(list(range(50)) * (LEAST - 1))
    assert sorted(looking.at([*range(50), *range(50)])) == list(range(50))
    assert not looking.at(list(range(50)) * 50, 1.0)
    # The kernel may have forgotten them.
    assert sorted(looking.at(list(range(50)) * (LEAST + 2), 100.0)) == list(range(50))


def test_nothing_is_listed_of_which_it_would_bring_little() -> None:
    """Few files of many directories are looked up, or almost all that a directory has are by then: listing costs more than it spares."""
    few: dict[int, int | None] = {number: 2 * LEAST - 1 for number in range(1000)}
    looking = Looking(few | {2000: 1})
    assert not looking.at(list(range(1000)) * (2 * LEAST))
    assert not looking.at([2000] * 100)
    assert not looking.at(list(range(5000, 6000)) * (LEAST - 1))


def test_what_looks_have_cost_is_remembered_while_they_go_on() -> None:
    looking = Looking()
    others = 0
    for number in range(LEAST):
        others += 1000
        found = looking.at([7, *range(others, others + TOGETHER)], number * 2 * WITHIN_S)
        assert not found
    assert looking.at([7], (LEAST - 1) * 2 * WITHIN_S) == [7]


def test_a_large_directory_is_listed_when_many_of_its_files_are_looked_up() -> None:
    looking = Looking({1: PART * 100, 2: MOST_ENTRIES + 1, 3: None})
    looking.at(list(range(1000, 2000)))
    assert not looking.at([1] * 99)
    assert looking.at([1]) == [1]
    assert not looking.at([2, 3] * MOST_ENTRIES)


def test_listing_costs_no_more_than_so_many_times_what_looks_have_cost() -> None:
    looking = Looking({1: WORTH * 200 - OPENING})
    assert not looking.at([1] * 199)
    assert looking.at([1]) == [1]
    # Few files of many directories.
    sparse = Looking({number: 500 for number in range(200)})
    for number in range(200):
        sparse.at([number] * 8)
        assert len(sparse.listed) * (500 + OPENING) <= (number + 1) * 8 * WORTH
    assert len(sparse.listed) > 90


def test_no_more_than_so_many_entries_are_listed_in_one_go() -> None:
    each = 10_000
    looking = Looking({number: each for number in range(100)})
    for number in range(100):
        looking.at([number] * (each // PART + 1))
    assert len(looking.listed) == unlisted.MOST_TOGETHER // each
    looking.at([99] * (each // WORTH + 1 + TOGETHER), QUIET_S + 1)
    assert looking.listed[-1] == 99


def test_one_that_could_not_be_told_is_told_later() -> None:
    looking = Looking()
    assert looking.at([*range(100, 100 + TOGETHER), *[5] * LEAST]) == [5]
    looking.forget(5)
    assert looking.at([5] * LEAST) == [5]


@pytest.mark.fuse
@filling.possible
@pytest.mark.parametrize("engine", ["direct"], indirect=True)
def test_files_that_are_never_listed_are_brought_ahead(base: Path) -> None:
    """Few LOOKUPs and READs for many files, and every byte right; then it can be unmounted, and nobody is left."""
    tree = many(12, 150)
    order = sorted(tree)
    random.Random(3).shuffle(order)
    with filled(base, tree) as mounted:
        for number, path in enumerate(order):
            if not number % 100:
                time.sleep(0.02)  # whatever else this machine does, there is time to bring something
            node = tree[path]
            assert isinstance(node, File)
            assert (mounted.place / os.fsdecode(path)).read_bytes() == node.data
        found = mounted.stats()
        assert found["filled_files"] > len(tree) // 4 and found["reads"] < len(tree), found
        fillers = found["fillers"]

        def unmounted() -> bool:
            return not mounted.umount().returncode

        # A directory may be open that moment.
        eventually(unmounted, "it is unmounted", 3.0)
        eventually(lambda: all(map(gone, fillers)), "the fillers end")


@pytest.mark.fuse
@filling.possible
@pytest.mark.parametrize("engine", ["direct"], indirect=True)
@pytest.mark.parametrize("killed", ["holder", "both"])
def test_nobody_hangs_who_waits_for_a_listing(base: Path, killed: str) -> None:
    """The holder is stopped while directories are listed ahead, then killed, perhaps with the filler."""
    tree: dict[bytes, Node] = {b"%02d/%03d" % (n, m): File(b"%d %d" % (n, m)) for n in range(40) for m in range(60)}
    store = open_store(base / "store")
    try:
        totals = put_tree(store, tree)
    finally:
        store.close()
    order = sorted(tree)
    random.Random(4).shuffle(order)
    with mount(base / "store", totals, base / "m", fill=1) as mounted:
        (filler,) = mounted.stats()["fillers"]
        code = "import sys, json\nfor path in json.load(sys.stdin): open(path, 'rb').read()"
        reader = subprocess.Popen(["python3", "-c", code], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/")
        assert reader.stdin is not None
        reader.stdin.write(json.dumps([os.fspath(mounted.place / os.fsdecode(path)) for path in order]).encode())
        reader.stdin.close()
        eventually(lambda: mounted.stats()["known_directories"] > 30, "it reads")
        os.kill(mounted.pid, signal.SIGSTOP)
        if killed == "both":
            os.kill(filler, signal.SIGKILL)
        os.kill(mounted.pid, signal.SIGKILL)
        mounted.ended()
        assert reader.wait(20) in (0, 1)
        eventually(lambda: gone(filler), "the filler ends")
        assert mounted_at(os.fspath(mounted.place)) is not None


@pytest.mark.fuse
@filling.possible
@pytest.mark.parametrize("engine", ["direct"], indirect=True)
def test_nothing_is_listed_of_what_is_about_to_be_unmounted(base: Path) -> None:
    tree = many(6, 150)
    order = sorted(tree)
    random.Random(5).shuffle(order)
    with filled(base, tree) as mounted:
        mounted.ask("ending")
        for number, path in enumerate(order):
            if not number % 100:
                time.sleep(0.02)
            (mounted.place / os.fsdecode(path)).read_bytes()
        found = mounted.stats()
        assert not found["filled_files"], found


@pytest.mark.fuse
@filling.possible
@pytest.mark.parametrize("engine", ["direct"], indirect=True)
def test_a_large_directory_is_let_go_of_before_its_end(base: Path) -> None:
    tree: dict[bytes, Node] = {b"%d/%05d" % (n % 2, n): File(b"") for n in range(20_000)}
    with filled(base, tree) as mounted:
        entry = mounted_at(os.fspath(mounted.place))
        assert entry is not None
        tally = Tally()
        lister = Lister(os.fspath(mounted.place), entry.device, tally)
        lister._is_apart = False  # as for who may not mount

        def is_open() -> bool:
            inside = os.fspath(mounted.place) + "/"
            for number in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/self/fd/{number}").startswith(inside):
                        return True
            return False

        def open_s(path: bytes, *, is_kept_away: bool = False) -> float:
            """How long a directory is open that is listed."""
            lister.add(path)
            time.sleep(0.05)
            assert not is_open()  # nobody looks anything up
            deadline = time.monotonic() + 10
            while not is_open():
                tally.looked(time.monotonic())
                assert time.monotonic() < deadline
            began = time.monotonic()
            if is_kept_away:
                tally.keep_away(60.0)
            while is_open():
                time.sleep(0.0005)
            return time.monotonic() - began

        whole_s = open_s(b"0")
        assert open_s(b"1", is_kept_away=True) < whole_s / 2
        lister.join()


@pytest.mark.fuse
@pytest.mark.root
@filling.possible
@pytest.mark.parametrize("engine", ["direct"], indirect=True)
def test_who_may_mount_lists_apart_and_keeps_nobody_from_unmounting(base: Path) -> None:
    tree: dict[bytes, Node] = {b"large/%05d" % number: File(b"") for number in range(30_000)}
    with filled(base, tree) as mounted:
        entry = mounted_at(os.fspath(mounted.place))
        assert entry is not None
        lister = Lister(os.fspath(mounted.place), entry.device, Tally())

        def is_open() -> bool:
            for number in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/self/fd/{number}") == "/large":
                        return True
            return False

        lister.add(b"large")
        eventually(is_open, "it is listed")
        assert not mounted.umount().returncode and is_open()
        lister.join()
        assert not is_open() and mounted.ended() == 0
