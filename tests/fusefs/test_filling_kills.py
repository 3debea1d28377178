"""A filler that waits for a page which a READ has locked that nobody takes: whoever is killed then, nobody hangs."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fusefs import filling
from tests.fusefs.filling import HELD, gone, hold_up, large, state_of
from tests.fusefs.helpers import Mounted, eventually, mount, open_store, put_tree

from millpond.daemon.mounts import connections
from millpond.daemon.mounts.place import mounted_at

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
    with mount(base / "store", totals, base / "m", fill=True) as found:
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
    assert mounted.stats()["filler"] == filler and not mounted.stats()["filling_why"]
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
        (mounted.place / "b/100").read_bytes()
    assert refused.value.errno in GONE
    assert mounted_at(os.fspath(mounted.place)) is not None and not mounted.umount("-z").returncode


def test_the_filler_is_killed(mounted: Mounted) -> None:
    filler, reader = hold_up(mounted.place, mounted.pid, mounted.stats)
    os.kill(filler, signal.SIGKILL)
    time.sleep(0.2)
    assert state_of(filler) == "D" and reader.poll() is None
    os.kill(mounted.pid, signal.SIGCONT)
    assert told(reader) == "right"
    eventually(lambda: gone(filler), "the filler ends")
    eventually(lambda: mounted.stats()["filling_why"] == "its process was killed", "the mount says so")
    assert mounted.stats()["filler"] is None
    assert (mounted.place / f"b/{HELD + 30:03}").read_bytes() == large(HELD + 30)
    assert not mounted.umount().returncode and mounted.ended() == 0


@pytest.mark.parametrize("fusectl", [False, pytest.param(True, marks=pytest.mark.root)])
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
    filling.list_all(place)
    for number in range(14):
        (place / f"a/{number:03}").read_bytes()
    for number in range(2):
        (place / f"b/{number:03}").read_bytes()
    eventually(lambda: mounted.stats()["filled_files"] > 0, "it is filled")
    filler = int(mounted.stats()["filler"])
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
