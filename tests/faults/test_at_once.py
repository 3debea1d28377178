"""Collections in one project against adds, checkouts and mounts in it and in another one that shares its data, all at once."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.mounts.conftest import contents
from tests.store.helpers import sample

ROUNDS = 12 if os.environ.get("MILLPOND_TESTS") == "long" else 2
FILES = 25


@pytest.mark.fuse
def test_collections_beside_everything(home: Home) -> None:
    other, place = home.path / "other", home.path / "m"
    other.mkdir()
    place.mkdir()
    for repo in (home.repo, other):
        home.git("init", "-q", cwd=repo)
        home.run("init", "-q", cwd=repo)
    kept = _write(home.repo / "kept", 1)
    home.run("add", "-q", "kept")
    home.git("add", "-A")
    home.git("commit", "-qm", "kept")
    rng = random.Random(3)
    for number in range(2, 2 + ROUNDS):
        # Garbage of the first project that the second one adds at this moment, and that a mount shows.
        shared = _write(home.repo / "shared", number)
        home.run("add", "-q", "shared")
        (home.repo / "shared.dvc").rename(home.path / "shared.dvc")
        shutil.rmtree(home.repo / "shared")
        _write(other / "shared", number)
        shutil.rmtree(home.repo / "kept")
        fresh = _write(home.repo / "fresh", 1000 + number)
        commands = [
            (home.repo, ["gc", "-q", "-w", "-f", "--grace", "0"]),
            (home.repo, ["gc", "-q", "-w", "-f", "--grace", "0"]),
            (other, ["add", "-q", "shared"]),
            (home.repo, ["add", "-q", "fresh"]),
            (home.repo, ["checkout", "-q", "kept"]),
            (home.repo, ["mount", "-q", "kept@HEAD", str(place)]),
        ]
        rng.shuffle(commands)
        _together(home, commands)
        assert contents(place) == kept == contents(home.repo / "kept")
        _collect(home)
        assert contents(place) == kept, "a mount reads on after its data was moved"
        for repo, name, data in ((other, "shared", shared), (home.repo, "fresh", fresh)):
            shutil.rmtree(repo / name)
            home.run("checkout", "-q", name, cwd=repo)
            assert contents(repo / name) == data
        home.run("umount", "-q", str(place))
        assert "clean" in home.run("fsck", "--deep").stdout


def _write(folder: Path, seed: int) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    made = {f"{number}": sample(seed * 100 + number, 40_000) for number in range(FILES)}
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return made


def _together(home: Home, commands: list[tuple[Path, list[str]]]) -> None:
    running = [
        subprocess.Popen(home.command("--wait-for-lock", *words), cwd=repo, env=home.env, stderr=subprocess.PIPE)
        for repo, words in commands
    ]
    said = [process.communicate(timeout=60)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0] * len(running), said


def _collect(home: Home) -> None:
    """Once more, with nothing beside it, so that segments are rewritten."""
    home.run("gc", "-q", "-w", "-f", "--grace", "0")
