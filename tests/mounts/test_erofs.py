"""Mounts of the erofs engine as a person uses them: made of a repository of DVC's, busy, killed with and without the daemon, and made anew."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.cli.helpers import Home
from tests.fusefs import filling, helpers
from tests.mounts.conftest import DvcRepo, contents
from tests.mounts.test_filling import add_tree, below
from tests.mounts.test_kills import children
from tests.mounts.test_mounts import eventually, mounts

from millpond.daemon.mounts import left
from millpond.daemon.mounts.engines import EROFS
from millpond.daemon.mounts.kernel import why_no_image
from millpond.daemon.mounts.place import MARKER, mounted_at

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.skipif(bool(why_no_image()), reason="there is no EROFS of a file here"),
]


def is_mounted_anew(repo: DvcRepo, before: int) -> bool:
    (found,) = mounts(repo)
    return bool(found["state"] == "mounted" and found["pid"] != before)


def test_an_image_is_mounted_anew_whoever_was_killed(repo: DvcRepo) -> None:
    """And a program that has a file of the dead one open holds up nothing."""
    place = repo.place("m")
    repo.home.run("mount", "--engine", EROFS, "data@v1", str(place))
    there = mounted_at(os.fspath(place))
    assert there is not None and there.fstype == "erofs"
    (found,) = mounts(repo)
    assert found["engine"] == EROFS and contents(place) == repo.first
    with open(place / "sub/deep/two.bin", "rb") as held:
        done = repo.home.run("umount", str(place), code=9)
        assert f"pid {os.getpid()}" in done.stderr and "umount --lazy" in done.stderr
        os.kill(found["pid"], signal.SIGKILL)
        eventually(lambda: is_mounted_anew(repo, found["pid"]))
        assert contents(place) == repo.first and mounts(repo)[0]["engine"] == EROFS
        daemon = json.loads(repo.home.run("daemon", "status", "--json").stdout)["pid"]
        os.kill(daemon, signal.SIGKILL)
        assert held.readable() and contents(place) == repo.first, "the mount outlives the daemon"
        (found,) = mounts(repo)
        daemon = json.loads(repo.home.run("daemon", "status", "--json").stdout)["pid"]
        for pid in (daemon, found["pid"]):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: is_mounted_anew(repo, found["pid"]))
    assert contents(place) == repo.first
    repo.home.run("umount", str(place))
    eventually(lambda: mounts(repo) == [] and mounted_at(os.fspath(place)) is None)
    assert os.listdir(place) == []


@filling.possible
@pytest.mark.parametrize("killed", [pytest.param("holder and filler", marks=pytest.mark.long), "all"])
def test_what_was_killed_while_a_reader_and_the_filler_wait_is_made_again(home: Home, killed: str) -> None:
    add_tree(home, filling.image_tree())
    place = home.path / "m"
    place.mkdir()

    def shown() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(home.run("mounts", "--json").stdout)["mounts"][0]
        return found

    home.run("daemon", "stop")
    home.run("mount", "-q", "--engine", EROFS, "data", str(place), env={"MILLPOND_FILL": "1"})
    daemon = int(json.loads(home.run("daemon", "status", "--json").stdout)["pid"])
    holder = int(shown()["pid"])
    (filler,) = (pid for pid in children(holder) if Path(f"/proc/{pid}/comm").read_text() == "millpond-filler\n")
    try:
        reader = filling.hold_up_image(place, holder, filler, lambda: int(shown()["filled_files"]))
        for pid in [daemon, filler, *below(daemon), holder] if killed == "all" else [filler, holder]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Any command does: with the daemon gone, it starts another.
        home.run("mounts")
        answer = reader.communicate(timeout=20)[0].strip()
        assert answer.startswith("errno") or answer == "right"
        helpers.eventually(lambda: filling.gone(filler), "the filler ends")
        helpers.eventually(lambda: shown()["state"] == "mounted", "it is mounted again")
        assert int(shown()["pid"]) != holder
        assert (place / "1/20").read_bytes() == filling.of_image(1, 20)
        assert "brought ahead: " in home.run("mounts", "-v").stdout
    finally:
        left.abort(json.loads(home.run("mounts", "--json").stdout)["mounts"][0]["id"])
        home.run("umount", "--all", "--lazy", code=None)
        home.run("daemon", "stop", code=None)


@filling.possible
@pytest.mark.parametrize("first", ["filler", pytest.param("holder", marks=pytest.mark.long)])
def test_who_reads_what_was_detached_waits_for_nobody_who_was_killed(home: Home, first: str) -> None:
    add_tree(home, filling.image_tree())
    place = home.path / "m"
    place.mkdir()
    home.run("daemon", "stop")
    home.run("mount", "-q", "--engine", EROFS, "data", str(place), env={"MILLPOND_FILL": "1"})
    (found,) = json.loads(home.run("mounts", "--json").stdout)["mounts"]
    holder = int(found["pid"])
    (filler,) = (pid for pid in children(holder) if Path(f"/proc/{pid}/comm").read_text() == "millpond-filler\n")

    def filled() -> int:
        return int(json.loads(home.run("mounts", "--json").stdout)["mounts"][0]["filled_files"])

    try:
        reader = filling.hold_up_image(place, holder, filler, filled)
        home.run("umount", "--lazy", str(place))
        for pid in (filler, holder) if first == "filler" else (holder, filler):
            os.kill(pid, signal.SIGKILL)
        answer = reader.communicate(timeout=10)[0].strip()
        assert answer.startswith("errno") or answer == "right"
        helpers.eventually(lambda: filling.gone(filler), "the filler ends")
        assert mounted_at(os.fspath(place)) is None
    finally:
        left.abort(found["id"])
        home.run("daemon", "stop", code=None)


@pytest.mark.long
def test_an_interrupted_mount_leaves_no_mount_that_nobody_knows(repo: DvcRepo) -> None:
    """Interrupted as soon as it is in the kernel's table: it is there and known, or gone."""
    place = repo.place("m")
    home = repo.home
    home.run("daemon", "start")
    codes = []
    for _ in range(12):
        command = home.command("mount", "-q", "--engine", EROFS, "data", str(place))
        begun = subprocess.Popen(command, cwd=home.repo, env=home.env, stderr=subprocess.DEVNULL)
        while begun.poll() is None and mounted_at(os.fspath(place)) is None:
            pass
        begun.send_signal(signal.SIGINT)
        codes.append(begun.wait(30))
        eventually(lambda: len(mounts(repo)) == (mounted_at(os.fspath(place)) is not None))
        if mounts(repo):
            assert contents(place) == repo.second
            home.run("umount", str(place))
        assert os.listdir(place) == []
    assert 130 in codes


@pytest.mark.long
def test_an_image_is_made_of_dvcs_cache_and_of_what_is_stored_since(repo: DvcRepo) -> None:
    place = repo.place("m")
    repo.home.run("mount", "--engine", EROFS, "@v1", str(place))
    assert contents(place / "data") == repo.first and (place / "model.bin").read_bytes() == b"model one"
    assert (place / "code.py").read_text() == "print('one')\n"
    repo.home.run("add", "-q", "data")
    assert contents(place / "data") == repo.first
    assert not list(Path(place).rglob(MARKER))
