"""A filler that waits for a page which a READ has locked that nobody takes: whoever is killed then, nobody hangs."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fusefs import filling
from tests.fusefs.filling import HELD, gone, hold_up, large, state_of
from tests.fusefs.helpers import File, Mounted, eventually, mount, open_store, put_tree

from millpond.daemon.mounts import connections
from millpond.daemon.mounts.place import mounted_at
from millpond.fusefs.filling import keeper

pytestmark = [pytest.mark.fuse, filling.possible]
# What a reader is told by a mount that was ended.
GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}


@pytest.fixture
def mounted(base: Path) -> Iterator[Mounted]:
    store = open_store(base / "store")
    try:
        totals = put_tree(store, filling.tree())
    finally:
        store.close()
    with mount(base / "store", totals, base / "m", fill=1) as found:
        try:
            yield found
        finally:
            connections.abort(os.fspath(found.place), "")  # whatever failed: nothing may be left that waits


def told(reader: subprocess.Popen[str]) -> str:
    return reader.communicate(timeout=20)[0].strip()


def is_over(answer: str) -> bool:
    """The READ has failed; but the filler, whose turn was next, may have had the bytes."""
    return answer in {"right", *(f"errno {number}" for number in GONE)}


def test_both_go_on_when_the_holder_does(mounted: Mounted) -> None:
    filler, reader = hold_up(mounted.place, mounted.pid, mounted.stats)
    os.kill(mounted.pid, signal.SIGCONT)
    assert told(reader) == "right"
    eventually(lambda: state_of(filler) == "S", "the filler is through")
    assert mounted.stats()["fillers"] == [filler] and not mounted.stats()["filling_why"]
    for number in range(2, filling.LARGE_FILES):
        assert (mounted.place / f"b/{number:03}").read_bytes() == large(number)
    assert not mounted.umount().returncode and mounted.ended() == 0
    eventually(lambda: gone(filler), "the filler ends with the mount")


def test_the_holder_is_killed(mounted: Mounted) -> None:
    filler, reader = hold_up(mounted.place, mounted.pid, mounted.stats)
    began = time.monotonic()
    os.kill(mounted.pid, signal.SIGKILL)
    assert is_over(told(reader))
    eventually(lambda: gone(filler), "the filler ends")
    assert time.monotonic() - began < 5
    with pytest.raises(OSError) as refused:
        (mounted.place / f"b/{filling.NEVER:03}").read_bytes()
    assert refused.value.errno in GONE
    assert mounted_at(os.fspath(mounted.place)) is not None and not mounted.umount("-z").returncode


def test_the_filler_is_killed(mounted: Mounted) -> None:
    filler, reader = hold_up(mounted.place, mounted.pid, mounted.stats)
    filling.killed_and_replaced(filler, reader, mounted.pid, mounted.stats)
    assert not mounted.stats()["filling_why"]
    # Which knows what was listed, and has the reads that it needs.
    before = mounted.stats()["filled_files"]
    for number in range(190, 238, 2):
        assert (mounted.place / f"b/{number:03}").read_bytes() == large(number)
    eventually(lambda: mounted.stats()["filled_files"] > before + 20, "it brings files")
    assert (mounted.place / f"b/{HELD + 30:03}").read_bytes() == large(HELD + 30)
    (successor,) = mounted.stats()["fillers"]
    assert not mounted.umount().returncode and mounted.ended() == 0
    eventually(lambda: gone(successor), "the filler ends with the mount")


@pytest.mark.long
def test_one_that_is_killed_again_and_again_is_given_up(mounted: Mounted) -> None:
    filling.wake(mounted.place)
    for times in range(1, keeper.MOST_REPLACED + 2):
        eventually(lambda: mounted.stats()["fillers"] != [], "there is one")
        (filler,) = mounted.stats()["fillers"]
        os.kill(filler, signal.SIGKILL)
        eventually(lambda times=times: mounted.stats()["fillers_killed"] == times, "it is counted")  # type: ignore[misc]
    eventually(lambda: mounted.stats()["filling_why"] == keeper.KILLED, "the mount says so")
    assert mounted.stats()["fillers"] == []
    assert (mounted.place / f"b/{HELD:03}").read_bytes() == large(HELD)
    assert not mounted.umount().returncode and mounted.ended() == 0


@pytest.mark.parametrize("fusectl", [False, pytest.param(True, marks=[pytest.mark.root, pytest.mark.long])])
def test_both_are_killed_and_the_connection_is_aborted(
    mounted: Mounted, fusectl: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    filler, reader = hold_up(mounted.place, mounted.pid, mounted.stats)
    os.kill(filler, signal.SIGKILL)
    os.kill(mounted.pid, signal.SIGKILL)
    mounted.ended()
    time.sleep(0.3)
    # Nobody else can end it: this is why there is no filler where nobody may.
    assert state_of(filler) == "D" and reader.poll() is None
    if fusectl:
        monkeypatch.setattr(connections, "CONTROL", filling.fusectl(tmp_path))
    try:
        assert connections.abort(os.fspath(mounted.place), "")
        assert is_over(told(reader))
        eventually(lambda: gone(filler), "the filler ends")
        there = mounted_at(os.fspath(mounted.place))
        assert there is None or not mounted.umount("-z").returncode
        assert not connections.abort(os.fspath(mounted.place), "")
    finally:
        if fusectl:
            filling.drop_fusectl(tmp_path)


@pytest.mark.long
def test_a_reader_can_be_killed_whatever_happens(mounted: Mounted) -> None:
    filler, reader = hold_up(mounted.place, mounted.pid, mounted.stats)
    os.kill(filler, signal.SIGKILL)
    os.kill(mounted.pid, signal.SIGKILL)
    reader.kill()
    assert not told(reader) and reader.returncode == -signal.SIGKILL
    assert connections.abort(os.fspath(mounted.place), "")
    eventually(lambda: gone(filler), "the filler ends")


def test_a_detached_mount_loses_its_filler_and_is_read_to_the_end(mounted: Mounted) -> None:
    place = mounted.place
    filling.wake(place)
    eventually(lambda: mounted.stats()["filled_files"] > 0, "it is filled")
    (filler,) = mounted.stats()["fillers"]
    with open(place / f"b/{HELD + 40:03}", "rb") as file:
        assert not mounted.umount("-z").returncode
        eventually(lambda: gone(filler), "the filler ends")
        eventually(lambda: mounted.stats()["filling_why"] == "the mount was detached", "the mount says so")
        assert file.read() == large(HELD + 40)
    assert mounted.ended() == 0


def test_the_holder_of_a_detached_mount_is_killed_while_the_filler_waits(mounted: Mounted) -> None:
    """Nobody else could find its connection: it is at no place any more."""
    filler, reader = hold_up(mounted.place, mounted.pid, mounted.stats)
    assert not mounted.umount("-z").returncode
    time.sleep(1.5)
    assert state_of(filler) == "D" and reader.poll() is None
    os.kill(mounted.pid, signal.SIGKILL)
    mounted.ended()
    try:
        assert is_over(told(reader))
    finally:
        reader.kill()
    eventually(lambda: gone(filler), "the filler ends")


# Reads files again and again past the kernel's pages, and compares; ends with the first that fails.
_EPOCH = """
import hashlib, json, os, random, sys
place, seed = sys.argv[1], int(sys.argv[2])
sums = json.load(sys.stdin)
names = [os.path.join(top, name) for top, _, found in os.walk(place) for name in found if name in sums]
random.Random(seed).shuffle(names)
print("begun", flush=True)
try:
    for name in names:
        with open(name, "rb", buffering=0) as file:
            data = file.read()  # to the end: what was brought of it already is a short read, and the error comes with the next
        if hashlib.sha256(data).hexdigest() != sums[os.path.basename(name)]:
            print("wrong", name, len(data), os.stat(name).st_size)
            break
    else:
        print("right")
except OSError as error:
    print("errno", error.errno)
"""


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victims", ["filler", "holder", "holder, filler", "filler, holder", "other, holder, filler"])
def test_killed_at_any_moment_of_an_epoch(base: Path, victims: str) -> None:
    files = {f"{number:05}": random.Random(number).randbytes(200 + number * 7) for number in range(3000)}
    sums = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    store = open_store(base / "store")
    try:
        totals = put_tree(store, {os.fsencode(f"{name[-2:]}/{name}"): File(data) for name, data in files.items()})
    finally:
        store.close()
    rng = random.Random(victims)
    filled = 0
    for _ in range(25):
        with mount(base / "store", totals, base / "m", fill=2) as mounted:
            place, fillers = os.fspath(mounted.place), [int(pid) for pid in mounted.stats()["fillers"]]
            assert len(fillers) == 2
            rng.shuffle(fillers)
            pids = {"holder": mounted.pid, "filler": fillers[0], "other": fillers[1]}
            command = [sys.executable, "-c", _EPOCH, place]
            reading = [
                subprocess.Popen([*command, str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for seed in range(4)
            ]
            for each in reading:
                assert each.stdin is not None and each.stdout is not None
                each.stdin.write(sums)
                each.stdin.close()
                each.stdin = None
            for each in reading:
                assert each.stdout is not None and each.stdout.readline() == "begun\n"
            time.sleep(rng.random() * 0.25)
            filled += int(mounted.stats()["filled_files"]) > 0
            for name in victims.split(", "):
                os.kill(pids[name], signal.SIGKILL)
            if "holder" in victims:
                mounted.ended()
                connections.abort(place, "")
            answers = {told(each) for each in reading}
            # What is aborted by umount2 is unmounted, too: who comes then finds an empty place.
            assert all(is_over(answer) or answer == f"errno {errno.ENOENT}" for answer in answers), answers
            assert "holder" in victims or answers == {"right"}
            ended = fillers if "holder" in victims else fillers[:1]
            eventually(lambda ended=ended: all(map(gone, ended)), "the fillers end")  # type: ignore[misc]
    assert filled > 3
