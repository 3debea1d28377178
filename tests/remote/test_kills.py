"""kill -9 of whoever takes part in lazy reads, and of one of two who push to one remote: what comes next is whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.fusefs.helpers import eventually
from tests.mounts.conftest import contents
from tests.mounts.test_kills import processes
from tests.remote.shared import Team, data_of, s3_if_long
from tests.remote.test_lazy import begin, mount, stats
from tests.remote.test_revival import shown, source_of
from tests.store.helpers import sample

IS_LONG = os.environ.get("MILLPOND_TESTS") == "long"


def victims(home: Home, kind: str, reader: subprocess.Popen[bytes]) -> list[int]:
    """Pids to be killed."""
    if kind == "reader":
        return [reader.pid]
    if kind == "holder":
        return [shown(home)["pid"]]
    sources = [source_of(home)] if "source" in kind else []
    return sources + (processes(home, "daemon") if "daemon" in kind else [])


@pytest.mark.long
@pytest.mark.fuse
@pytest.mark.parametrize(
    "kind",
    [
        "daemon and source",
        *(pytest.param(kind, marks=pytest.mark.long) for kind in ("daemon", "source", "reader", "holder")),
    ],
)
@s3_if_long
def test_readers_of_a_mount_get_what_is_right_whoever_is_killed(team: Team, kind: str) -> None:
    bob, expected = begin(team)
    place = mount(bob)
    rng = random.Random(kind)
    for _ in range(3 if IS_LONG else 1):  # a holder that dies more often in ten minutes is left alone
        bob.run("daemon", "start", code=None)
        reader = subprocess.Popen(["cat", *map(str, sorted(place.rglob("*.bin")))], stdout=subprocess.DEVNULL)
        with reader:
            pids = victims(bob, kind, reader)
            time.sleep(rng.uniform(0.0, 0.3))
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            bob.run("status", "-q", code=None)  # starts another daemon, if it was that
            reader.wait(60)
        assert reader.returncode == 0 or kind in ("reader", "holder")
        eventually(lambda: shown(bob)["state"] == "mounted", "it is there, or again")
        eventually(lambda: all_is_right(place, expected), "all of it is right", 40.0)
    assert kind == "holder" or stats(place)["errors"] == 0
    bob.run("umount", str(place))
    bob.run("pull", "-q")
    assert contents(bob.repo / "data") == expected and "is clean" in bob.run("fsck", "--deep").stdout
    if IS_LONG:
        cat = team.person("cat", bob)
        cat.dvc("pull")
        assert contents(cat.repo / "data") == expected and "in sync" in cat.dvc("status", "-c").stdout


def all_is_right(place: Path, expected: dict[str, bytes]) -> bool:
    """Whether all can be read; what is read is right."""
    try:
        found = contents(place)
    except OSError:
        return False
    assert all(expected[name] == data for name, data in found.items())
    return found.keys() == expected.keys()


@pytest.mark.long
@pytest.mark.parametrize("victim", ["client", "worker"])
def test_two_stores_push_to_one_remote_and_one_is_killed(team: Team, victim: str) -> None:
    ann = team.begin()
    for number in range(30):
        (ann.repo / "data" / f"n{number}").write_bytes(sample(100 + number, 100_000))
    (ann.repo / "data/large").write_bytes(sample(99, 18_000_000))
    ann.run("add", "-q", "data")
    ann.git("commit", "-qam", "third")
    bob = team.person("bob", ann)
    for name, data in data_of(ann).items():
        path = bob.repo / ("one.csv" if name == "one.csv" else f"data/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    bob.run("commit", "-q", "-f")
    rng = random.Random(victim)
    for _ in range(3 if IS_LONG else 1):
        push = subprocess.Popen(ann.command("push"), cwd=ann.repo, env=ann.env, stderr=subprocess.DEVNULL)
        with push, ThreadPoolExecutor(1) as pool:
            other = pool.submit(bob.run, "push")
            time.sleep(rng.uniform(0.1, 0.6))
            for pid in [push.pid] if victim == "client" else processes(ann, "worker"):
                os.kill(pid, signal.SIGKILL)
            other.result()
    ann.run("push")
    cat = team.person("cat", ann)
    cat.dvc("pull")
    assert data_of(cat) == data_of(ann)


@pytest.mark.parametrize("team", ["local"], indirect=True)
@pytest.mark.parametrize("after_s", [0.05, *(pytest.param(each / 20, marks=pytest.mark.long) for each in range(2, 16))])
def test_a_killed_pull_leaves_all_of_a_new_folder_or_none(team: Team, after_s: float) -> None:
    ann = team.begin()
    for number in range(400):
        (ann.repo / "data" / f"n{number}").write_bytes(sample(1000 + number, 30_000))
    ann.run("add", "-q", "data")
    ann.git("commit", "-qam", "many")
    ann.run("push", "-q")
    expected = contents(ann.repo / "data")
    bob = team.person("bob", ann)
    bob.run("daemon", "start", "-q")
    with subprocess.Popen(bob.command("pull"), cwd=bob.repo, env=bob.env, stderr=subprocess.DEVNULL) as pull:
        time.sleep(after_s)
        for pid in processes(bob, "worker"):
            os.kill(pid, signal.SIGKILL)
        pull.wait(60)
    # What came in several pieces is brought behind the rename that gives the others their place.
    most = {path: data for path, data in expected.items() if len(data) < 2 << 20}
    found = contents(bob.repo / "data") if (bob.repo / "data").exists() else {}
    assert not found or found in (expected, most)
    assert bob.git("status", "--porcelain") == ""
    bob.run("pull", "-q")
    assert contents(bob.repo / "data") == expected and "up to date" in bob.run("status").stdout
    assert "is clean" in bob.run("fsck", "--deep").stdout
