"""Mounts of the erofs engine as a person uses them: made of a repository of DVC's, busy, killed with and without the daemon, and made anew."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from tests.mounts.conftest import DvcRepo, contents
from tests.mounts.test_mounts import eventually, mounts

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


@pytest.mark.long
def test_an_image_is_made_of_dvcs_cache_and_of_what_is_stored_since(repo: DvcRepo) -> None:
    place = repo.place("m")
    repo.home.run("mount", "--engine", EROFS, "@v1", str(place))
    assert contents(place / "data") == repo.first and (place / "model.bin").read_bytes() == b"model one"
    assert (place / "code.py").read_text() == "print('one')\n"
    repo.home.run("add", "-q", "data")
    assert contents(place / "data") == repo.first
    assert not list(Path(place).rglob(MARKER))
