"""kill -9 of daemon and worker at any moment of an `add`, two clients at once: nothing acknowledged is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.fusefs.filling import gone
from tests.fusefs.helpers import eventually

ROUNDS = 12 if os.environ.get("MILLPOND_TESTS") == "long" else 3


def new_files(folder: Path, round_: int, count: int = 300) -> dict[str, bytes]:
    rng = random.Random(round_)
    made = {}
    for number in range(count):
        path = folder / f"{number % 7}" / f"{round_}-{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        made[str(path.relative_to(folder))] = data = rng.randbytes(rng.randrange(60_000))
        path.write_bytes(data)
    return made


def processes(home: Home, what: str) -> list[int]:
    """Pids of this home's daemon or workers, by their command lines and parents."""
    status = home.run("daemon", "status", "--json", code=None)
    if status.returncode:
        return []
    daemon = int(json.loads(status.stdout)["pid"])
    if what == "daemon":
        return [daemon]
    zygotes = children(daemon)
    return [child for zygote in zygotes for child in children(zygote)] if what == "worker" else zygotes


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.mark.parametrize(
    "victim", ["daemon", *(pytest.param(name, marks=pytest.mark.long) for name in ("worker", "zygote"))]
)
def test_an_add_killed_at_any_moment_leaves_a_clean_store_and_one_of_two_pointers(home: Home, victim: str) -> None:
    home.git("init", "-q")
    home.run("init", "-q")
    data = home.repo / "data"
    pointer = home.repo / "data.dvc"
    everything: dict[str, bytes] = {}
    rng = random.Random(victim)
    for round_ in range(ROUNDS):
        before = pointer.read_text() if round_ else None
        everything |= new_files(data, round_)
        if round_ % 4 == 3:  # a helper process that dies five times in a minute is not started again
            home.run("daemon", "restart")
        home.run("daemon", "start")
        add = subprocess.Popen(home.command("add", "data"), cwd=home.repo, env=home.env, stderr=subprocess.PIPE)
        with add:
            time.sleep(rng.uniform(0.0, 0.6))
            for pid in processes(home, victim):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            assert add.stderr is not None
            error = add.stderr.read().decode()
        assert "Traceback" not in error
        now = pointer.read_text() if pointer.exists() else None
        assert "clean" in home.run("fsck", "--deep").stdout
        home.run("add", "-q", "data")
        assert now in (before, pointer.read_text()), "the pointer is the old one, or the new one whole"
        if not add.returncode:
            assert now == pointer.read_text(), "an add that said it was done was done"
    place = home.path / "m"
    place.mkdir()
    home.run("mount", "data", str(place))
    assert {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*.bin")} == everything


def test_two_clients_at_once_in_one_project_and_in_two(home: Home) -> None:
    other = home.path / "other"
    other.mkdir()
    adds = []
    for repo in (home.repo, other):
        home.git("init", "-q", cwd=repo)
        home.run("init", "-q", cwd=repo)
        for name in ("one", "two"):
            new_files(repo / name, 5 if name == "one" else 6)
            adds.append((repo, name))
    running = [
        subprocess.Popen(home.command("--wait-for-lock", "add", "-q", name), cwd=repo, env=home.env)
        for repo, name in adds
    ]
    assert [process.wait(60) for process in running] == [0, 0, 0, 0]
    pointers = {
        name: {(repo / f"{name}.dvc").read_text() for repo, other_name in adds if other_name == name}
        for _, name in adds
    }
    assert all(len(texts) == 1 for texts in pointers.values())
    for repo in (home.repo, other):
        assert json.loads(home.run("status", "--json", cwd=repo).stdout) == {}
    assert "clean" in home.run("fsck", "--deep").stdout


def test_a_cache_that_config_puts_elsewhere_is_used_in_place(home: Home) -> None:
    home.git("init", "-q")
    home.dvc("init", "-q")
    home.dvc("cache", "dir", "../elsewhere")
    wanted = new_files(home.repo / "data", 1, 20)
    home.dvc("add", "-q", "data")
    assert (home.path / "elsewhere" / "files" / "md5").is_dir()
    subprocess.run(["rm", "-r", str(home.repo / "data")], check=True)
    place = home.path / "m"
    place.mkdir()
    home.run("mount", "data", str(place))
    assert {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*.bin")} == wanted


@pytest.mark.fuse
@pytest.mark.root
def test_a_mount_of_another_store_in_the_place_of_one_that_died_is_left_alone(home: Home) -> None:
    """A reboot leaves record and empty place of one; somebody mounts something else there, and reads it when the first daemon starts."""
    place = home.path / "m"
    place.mkdir()
    with tempfile.TemporaryDirectory(prefix="mp-oth-", ignore_cleanup_errors=True) as folder:
        other = Home(Path(folder))
        for each, content in ((home, b"first"), (other, b"second")):
            (each.repo / "data").mkdir()
            (each.repo / "data/file").write_bytes(content * 100_000)
            each.run("init", "-q", "--no-scm")
            each.run("add", "-q", "data")
        home.run("mount", "-q", "data", str(place))
        [daemon] = processes(home, "daemon")
        holder = int(json.loads(home.run("mounts", "--json").stdout)["mounts"][0]["pid"])
        os.kill(daemon, signal.SIGKILL)
        os.kill(holder, signal.SIGKILL)
        eventually(lambda: gone(daemon) and gone(holder), "all of it is gone")
        subprocess.run(["umount", "-l", place], check=True)
        try:
            other.run("mount", "-q", "data", str(place))
            with open(place / "file", "rb", buffering=0) as file:
                assert file.read(10) == b"secondseco"
                shown = json.loads(home.run("mounts", "--json").stdout)["mounts"]
                failed = home.run("mounts", "--restore", code=None)
                assert failed.returncode and "something else" in failed.stderr + failed.stdout
                assert shown[0]["state"] != "mounted"
                assert (place / "file").read_bytes() == b"second" * 100_000
                file.seek(300_000)
                assert file.read(12) == b"secondsecond"
            # Giving the first one up touches nothing of the other.
            home.run("umount", str(place))
            assert not json.loads(home.run("mounts", "--json").stdout)["mounts"]
            assert (place / "file").read_bytes() == b"second" * 100_000
            assert json.loads(other.run("mounts", "--json").stdout)["mounts"][0]["state"] == "mounted"
            other.run("umount", str(place))
        finally:
            other.close()
    assert list(place.iterdir()) == []


@pytest.mark.long
@pytest.mark.fuse
def test_mounts_that_died_are_made_again_once_though_a_request_asks_for_it_too(home: Home) -> None:
    """Made again twice, one would be detached under who reads it already."""
    home.run("init", "-q", "--no-scm")
    new_files(home.repo / "data", 1, 20)
    home.run("add", "-q", "data")
    places = [home.path / f"m{number}" for number in range(6)]
    for place in places:
        place.mkdir()
        home.run("mount", "-q", "data", str(place))
    for _ in range(3):
        holders = [int(each["pid"]) for each in json.loads(home.run("mounts", "--json").stdout)["mounts"]]
        home.run("daemon", "stop")
        for pid in holders:
            os.kill(pid, signal.SIGKILL)
        for pid in holders:
            eventually(partial(gone, pid), "its process is gone")
        home.run("mounts", "--restore")
        devices = [os.stat(place).st_dev for place in places]
        pids = sorted(int(each["pid"]) for each in json.loads(home.run("mounts", "--json").stdout)["mounts"])
        time.sleep(2.0)
        assert [os.stat(place).st_dev for place in places] == devices
        assert sorted(int(each["pid"]) for each in json.loads(home.run("mounts", "--json").stdout)["mounts"]) == pids
