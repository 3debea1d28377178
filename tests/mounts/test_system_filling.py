"""The page cache filled ahead in system mode, where the spawner alone may end what nobody can end any more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fusefs import filling
from tests.fusefs.filling import HELD, LARGE_FILES, TINY, gone, large, state_of, stopped
from tests.fusefs.helpers import ROOT, File, eventually
from tests.jobs.helpers import System, system, until
from tests.jobs.reach import for_everyone
from tests.mounts.test_system_mode import ALICE, Person, uid_of

from millpond.daemon.mounts import connections
from millpond.daemon.mounts.kernel import is_machines

pytestmark = [pytest.mark.root, pytest.mark.fuse]
OWN = "tests/mounts/test_system_filling.py::test_whoever_is_killed_the_spawner_ends_it_and_it_is_made_again"

# Lists a mount and reads these files of it, by their paths in it.
_READ = """
import os, sys
names = sum(len(found) for _, _, found in os.walk(sys.argv[1]))
for name in sys.argv[2:]:
    open(os.path.join(sys.argv[1], name), "rb", buffering=0).read()
"""


@pytest.mark.long
def test_in_a_namespace_where_connections_can_be_ended() -> None:
    """fusectl is mounted for one test alone."""
    if not is_machines("pid"):
        pytest.skip("there are no fillers here")
    program = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        "--import-mode=importlib",
    ]
    shell = f'mount -t fusectl none {connections.CONTROL} && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, "sh", *program, "--tb=short", OWN],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.skipif(not os.path.ismount(connections.CONTROL), reason="connections cannot be ended here")
@pytest.mark.parametrize("killed", ["holder and filler"])
def test_whoever_is_killed_the_spawner_ends_it_and_it_is_made_again(killed: str) -> None:
    with system(MILLPOND_FILL="1") as machine:
        alice = Person(machine, ALICE)
        repo, place = alice.repo(), alice.folder("m")
        try:
            put(repo / "data")
            alice.millpond("add", "-q", "data", cwd=repo)
            alice.millpond("mount", "-q", "data", str(place), cwd=repo)
            holder = int(shown(alice)["pid"])
            filler, reader = hold_up(alice, place, holder)
            assert uid_of(filler) == System.holder_uid
            for pid in (filler, holder):
                os.kill(pid, signal.SIGKILL)
            said = reader.communicate(timeout=20)[0].strip()
            assert said.startswith("errno") or said == "right"
            eventually(lambda: gone(filler), "the filler ends")
            until(lambda: shown(alice)["state"] == "mounted" and int(shown(alice)["pid"]) != holder)
            alice.run("cmp", str(repo / f"data/b/{HELD:03}"), str(place / f"b/{HELD:03}"))
            alice.millpond("umount", str(place))
        finally:
            subprocess.run(["umount", "-l", place], check=False, capture_output=True)


def put(folder: Path) -> None:
    """filling.tree(), beside what is there, as its owner's."""
    for path, node in filling.tree().items():
        full = folder / os.fsdecode(path)
        full.parent.mkdir(exist_ok=True)
        assert isinstance(node, File)
        full.write_bytes(node.data)
    for each in folder.rglob("*"):
        os.chown(each, ALICE, ALICE)


def shown(person: Person) -> dict[str, Any]:
    [found] = json.loads(person.millpond("mounts", "--json"))["mounts"]
    assert isinstance(found, dict)
    return found


def hold_up(person: Person, place: Path, holder: int) -> tuple[int, subprocess.Popen[str]]:
    """As filling.hold_up, of a mount that nobody but its user can read."""
    python = for_everyone().python
    awake = [*(f"a/{number:03}" for number in range(14)), "b/000", f"b/{LARGE_FILES - 1:03}"]
    person.run(python, "-c", _READ, str(place), *awake)
    assert not shown(person)["filling_why"]
    first = TINY - 14 + (4 << 20) // filling.LARGE
    until(lambda: shown(person)["filled_files"] >= first)
    [filler] = json.loads(person.run("cat", str(place / ".millpond/stats")))["fillers"]
    stopped(filler)
    try:
        person.run(
            python, "-c", _READ, str(place), *(f"b/{n:03}" for n in range(LARGE_FILES - 140, LARGE_FILES - 2, 9))
        )
        stopped(holder)
        reader = filling.read_apart(place / f"b/{HELD:03}", large(HELD), uid=ALICE, python=python)
        eventually(lambda: state_of(reader.pid) == "D", "a reader waits for its page")
    finally:
        os.kill(filler, signal.SIGCONT)
    eventually(lambda: state_of(filler) == "D", "the filler waits for the page, too")
    return filler, reader
