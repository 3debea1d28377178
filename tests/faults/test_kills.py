"""kill -9 of the daemon, the worker, the zygote or the client at any moment of any verb that writes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from tests.cli.helpers import Home
from tests.faults.cases import Tree, is_one_of_two, tree
from tests.mounts.test_kills import processes
from tests.store.helpers import sample

ROUNDS = 4 if os.environ.get("MILLPOND_TESTS") == "long" else 1
VICTIMS = ("daemon", "worker", "zygote", "client")
# The moment of the kill, seconds after the verb's start.
LATEST_S = 0.4
FIRST = {"data/a": sample(1, 30_000), "data/sub/b": sample(2, 200_000), "data/sub/c": b"", "one.csv": b"one\n"}


@dataclass(frozen=True, slots=True)
class Killed:
    """A command, and what is to be done before it so that it has something to do. `codes`: exit codes of a command that is
    run again after it was done."""

    command: tuple[str, ...]
    prepare: Callable[[Home, int], None] = lambda home, number: None
    codes: tuple[int, ...] = (0,)


def _edit(home: Home, number: int) -> None:
    for name in range(30):
        (home.repo / "data" / f"new-{name}").write_bytes(sample(1000 * number + name, 60_000))
    (home.repo / "data/a").unlink()
    (home.repo / "one.csv").write_text(f"one, edited {number}\n")


def _back(home: Home, number: int) -> None:
    """The workspace has a later version than the pointers."""
    _edit(home, number)
    home.run("add", "-q", "data", "one.csv")
    home.git("checkout", "-q", "--", ".")


def _garbage(home: Home, number: int) -> None:
    (home.repo / "waste").mkdir()
    for name in range(30):
        (home.repo / "waste" / f"{name}").write_bytes(sample(7_000_000 + 1000 * number + name, 90_000))
    home.run("add", "-q", "waste")
    (home.repo / "waste.dvc").unlink()
    shutil.rmtree(home.repo / "waste")
    home.git("checkout", "-q", "--", ".")


def _waste(home: Home, number: int) -> None:
    """Another folder, stored and tracked."""
    (home.repo / "waste").mkdir()
    for name in range(30):
        (home.repo / "waste" / f"{name}").write_bytes(sample(8_000_000 + 1000 * number + name, 90_000))
    home.run("add", "-q", "waste")


def _unexported(home: Home, number: int) -> None:
    shutil.rmtree(home.repo / ".dvc/cache", ignore_errors=True)


def _by_dvc(home: Home, number: int) -> None:
    """Objects that only DVC's cache has."""
    _edit(home, number)
    home.dvc("add", "-q", "data", "one.csv")


COMMANDS = {
    "add": Killed(("add", "-q", "data", "one.csv"), _edit),
    "commit": Killed(("commit", "-q", "-f"), _edit),
    "checkout": Killed(("checkout", "-q", "-f"), _back),
    "remove": Killed(("remove", "-q", "data.dvc", "one.csv.dvc", "--outs"), codes=(0, 255)),
    "move": Killed(("move", "-q", "data", "moved"), codes=(0, 255)),
    "gc": Killed(("gc", "-q", "-w", "-f", "--grace", "0"), _garbage),
    "purge": Killed(("purge", "-q", "-y", "-f", "waste"), _waste),
    "cache export": Killed(("cache", "export", "-q"), _unexported),
    "cache import": Killed(("cache", "import", "-q"), _by_dvc),
    "config": Killed(("config", "-q", "core.autostage", "true")),
}
# Those of the quick run.
QUICK = ("commit", "checkout", "move", "gc", "purge")


def _sampled(name: str) -> Any:
    return pytest.param(name, marks=() if name in QUICK else pytest.mark.long)


@pytest.mark.parametrize("name", [_sampled(name) for name in COMMANDS])
def test_a_kill_at_any_moment(home: Home, name: str) -> None:
    _begin(home)
    rng = random.Random(name)
    for number in range(ROUNDS * (len(VICTIMS) if ROUNDS > 1 else 1)):
        victim = VICTIMS[number % len(VICTIMS)] if ROUNDS > 1 else rng.choice(VICTIMS)
        _round(home, COMMANDS[name], number, victim, rng.uniform(0, LATEST_S))


def _begin(home: Home) -> None:
    """A committed first version, in the store and in DVC's cache, and a copy of the repository to come back to."""
    home.git("init", "-q")
    home.run("init", "-q")
    for path, data in FIRST.items():
        (home.repo / path).parent.mkdir(parents=True, exist_ok=True)
        (home.repo / path).write_bytes(data)
    home.run("add", "-q", "data", "one.csv")
    home.git("add", "-A")
    home.git("commit", "-qm", "first")
    shutil.copytree(home.repo, home.path / "first", symlinks=True)


def _round(home: Home, case: Killed, number: int, victim: str, after_s: float) -> None:
    shutil.rmtree(home.repo)
    shutil.copytree(home.path / "first", home.repo, symlinks=True)
    home.run("daemon", "start", "-q")
    case.prepare(home, number)
    before = tree(home.repo)
    what = f"{case.command}, {victim} killed after {after_s:.3f} s"
    done = _kill(home, case, victim, after_s)
    now = tree(home.repo)
    assert "clean" in home.run("fsck", "--deep").stdout, what
    again = home.run(*case.command, code=None)
    assert again.returncode in case.codes, f"{what}: {again.stderr}"
    after = tree(home.repo)
    is_one_of_two(now, before, after, what)
    if done == 0:
        assert now == after, f"{what}: it said that it was done"
    _first_is_there(home, what)


def _kill(home: Home, case: Killed, victim: str, after_s: float) -> int:
    """Run the command and kill; its exit code."""
    with subprocess.Popen(home.command(*case.command), cwd=home.repo, env=home.env, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        pids = processes(home, victim) if victim in ("daemon", "zygote") else []
        time.sleep(after_s)
        if victim == "client":
            pids = [process.pid]
        elif victim == "worker":
            pids = processes(home, victim)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        said = process.stderr.read().decode()
        assert "Traceback" not in said and "internal error" not in said, said
    return process.returncode


def _first_is_there(home: Home, what: str) -> None:
    """What was acknowledged first comes back, byte for byte, from the store alone."""
    shutil.rmtree(home.repo / ".dvc/cache", ignore_errors=True)
    for path in ("data", "moved"):
        shutil.rmtree(home.repo / path, ignore_errors=True)
    home.git("checkout", "-q", "-f", "HEAD", "--", ".")
    home.run("checkout", "-q", "-f", "data.dvc", "one.csv.dvc")
    lying: Tree = tree(home.repo)
    assert {path: lying[path][1] for path in FIRST} == FIRST, what
