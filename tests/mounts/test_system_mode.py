"""System mode, for real: daemon, worker and holder under three uids, and a caller who sees only what is his."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.helpers import System, system, until
from tests.jobs.reach import for_everyone
from tests.mounts.conftest import contents, expected, fill

from millpond.daemon.mounts import connections
from millpond.daemon.mounts.place import mounted_at

pytestmark = [pytest.mark.root, pytest.mark.fuse]

ALICE, BOB, CAROL, DAN, EVE = 41020, 41021, 41022, 41023, 41024


class Person:
    """A user of the machine, with a home and the command line."""

    def __init__(self, machine: System, uid: int) -> None:
        self.uid = uid
        self.home = machine.folder / f"home-{uid}"
        self.home.mkdir(mode=0o700)
        os.chown(self.home, uid, uid)
        self._socket = machine.socket
        # What is in this user's environment beside what each has.
        self.extra: dict[str, str] = {}

    def run(self, *command: str, cwd: Path | None = None, code: int = 0) -> str:
        env = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": for_everyone().path,
            "MILLPOND_SOCKET": str(self._socket),
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@example.org",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@example.org",
            **self.extra,
        }
        done = subprocess.run(
            command,
            user=self.uid,
            group=self.uid,
            extra_groups=[],
            env=env,
            cwd=cwd or self.home,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def millpond(self, *args: str, cwd: Path | None = None, code: int = 0) -> str:
        return self.run(for_everyone().python, "-P", "-m", "millpond.cli", *args, cwd=cwd, code=code)

    def repo(self) -> Path:
        """A Git repository with data, not tracked yet."""
        path = self.home / "repo"
        self.run("git", "init", "-q", str(path))
        fill(path / "data", 1)
        for each in [path / "data", *(path / "data").rglob("*")]:
            os.chown(each, self.uid, self.uid)
        self.millpond("init", "-q", cwd=path)
        return path

    def folder(self, name: str) -> Path:
        path = self.home / name
        path.mkdir()
        os.chown(path, self.uid, self.uid)
        return path


@pytest.fixture(scope="module")
def machine() -> Iterator[System]:
    with system() as found:
        yield found
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            place = line.split(" ")[4]
            if place.startswith(str(found.folder)):
                subprocess.run(["umount", "-l", place], check=False, timeout=20)


def uid_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}").st_uid


def test_daemon_worker_and_holder_are_three_users_and_the_data_is_only_the_callers(machine: System) -> None:
    alice, bob = Person(machine, ALICE), Person(machine, BOB)
    repo = alice.repo()
    alice.millpond("add", "data", cwd=repo)
    assert os.stat(repo / "data.dvc").st_uid == ALICE, "the worker acts as the caller"
    place = alice.folder("m")
    alice.millpond("mount", "--serving", "2", "data", str(place), cwd=repo)
    until(lambda: json.loads(alice.millpond("mounts", "--json"))["mounts"][0].get("serving") == 2)
    [mount] = json.loads(alice.millpond("mounts", "--json"))["mounts"]
    there = os.path.ismount(connections.CONTROL)
    assert mount["filling_why"].startswith("" if there else "in system mode only where /sys/fs/fuse/connections is")
    assert not mount["serving_why"] and not mount["servers_ended"]
    (server,) = Path(f"/proc/{mount['pid']}/task/{mount['pid']}/children").read_text().split()
    assert uid_of(int(server)) == System.holder_uid
    daemon = json.loads(alice.millpond("daemon", "status", "--json"))["pid"]
    assert uid_of(daemon) == System.daemon_uid
    assert uid_of(mount["pid"]) == System.holder_uid
    assert len({System.daemon_uid, System.holder_uid, ALICE}) == 3

    script = "import sys, pathlib; sys.stdout.write(str(sum(f.stat().st_size for f in pathlib.Path(sys.argv[1]).rglob('*'))))"
    total = sum(map(len, expected(1).values()))
    assert alice.run(for_everyone().python, "-c", script, str(place)) == str(total)
    alice.run("cmp", str(repo / "data/sub/deep/two.bin"), str(place / "sub/deep/two.bin"))
    with pytest.raises(PermissionError):
        contents(place)  # as root: the mount is the caller's alone

    assert json.loads(bob.millpond("mounts", "--json"))["mounts"] == []
    theirs = bob.repo()
    shutil.copy(repo / "data.dvc", theirs / "data.dvc")
    shutil.rmtree(theirs / "data")
    os.chown(theirs / "data.dvc", BOB, BOB)
    refused = bob.millpond("mount", "data", str(bob.folder("m")), cwd=theirs, code=8)
    assert "neither in the store nor in" in refused, "a manifest's name proves nothing"
    assert "only root or the daemon's own user" in bob.millpond("fsck", cwd=theirs, code=10)
    assert "not a mount of yours" in bob.millpond("umount", str(place), code=9)

    alice.millpond("umount", str(place))
    until(lambda: mounted_at(str(place)) is None)
    assert os.listdir(place) == []


READS = """
import sys, millpond
from millpond.daemon.api.contents import stored
from millpond.daemon.names import ObjectName
try:
    print(len(millpond.read("data/sub/one.bin", "rb")))
except millpond.MillpondError as error:
    print(error.kind)
try:
    print(stored(ObjectName("md5", sys.argv[1]), 0, 100)[0])
except millpond.MillpondError as error:
    print(error.kind)
"""


def test_a_program_reads_what_is_its_user_s(machine: System) -> None:
    dan, eve = Person(machine, DAN), Person(machine, EVE)
    repo, theirs = dan.repo(), eve.repo()
    dan.millpond("add", "data", cwd=repo)
    one = expected(1)["sub/one.bin"]
    digest = hashlib.md5(one).hexdigest()
    shutil.copy(repo / "data.dvc", theirs / "data.dvc")
    os.chown(theirs / "data.dvc", EVE, EVE)
    for place in (repo, theirs):
        shutil.rmtree(place / "data")
    python = for_everyone().python
    assert dan.run(python, "-c", READS, digest, cwd=repo).split() == [str(len(one))] * 2
    assert eve.run(python, "-c", READS, digest, cwd=theirs).split() == ["object-missing"] * 2


def test_the_store_is_closed_to_callers_and_to_writes_by_holders(machine: System) -> None:
    carol = Person(machine, CAROL)
    carol.millpond("add", "data", cwd=carol.repo())
    store = machine.folder / "store"
    for uid, gid, mode, allowed in (
        (CAROL, CAROL, os.R_OK, False),
        (System.holder_uid, System.store_gid, os.R_OK, True),
        (System.holder_uid, System.store_gid, os.W_OK, False),
    ):
        assert access(uid, gid, store / "index" / "data.mdb", mode) is allowed
        assert access(uid, gid, next((store / "segments").glob("*.seg")), mode) is allowed


def access(uid: int, gid: int, path: Path, mode: int) -> bool:
    code = "import os, sys; sys.exit(not os.access(sys.argv[1], int(sys.argv[2])))"
    command: list[Any] = [for_everyone().python, "-c", code, str(path), str(mode)]
    done = subprocess.run(command, user=uid, group=gid, extra_groups=[gid], check=False, timeout=30, cwd="/")
    return done.returncode == 0
