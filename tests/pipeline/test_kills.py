"""Whatever fails in a repro, and at whichever of its operations it is killed: a second one comes to the same end."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from tests.faults.cases import Tree, opened, tree
from tests.faults.injection import KILL, CountedFiles, Injector, in_child
from tests.pipeline.running import PIPELINE
from tests.project.verbhelp import Project

from millpond.daemon.pipeline.lock import Lock, locked

LONG = os.environ.get("MILLPOND_TESTS") == "long"
# Operations that are tried in the quick run, for each kind of failure.
SAMPLE = 2
KINDS = {"killed": KILL, "EIO": errno.EIO, "ENOSPC": errno.ENOSPC}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose pipeline has not run yet."""
    base = tmp_path_factory.mktemp("made") / "base"
    base.mkdir()
    with opened(base) as project:
        project.root.mkdir()
        project.git("init", "-q", "--template=")
        project.run("init")
        for path, text in PIPELINE.items():
            project.write(path, text)
        project.commit("first")
    return base


def _repro(base: Path, injector: Injector) -> None:
    with opened(base, CountedFiles(injector)) as project:
        injector.install()
        project.run("repro")


def _sound(project: Project, now: Tree) -> None:
    """All that dvc.lock names is stored, as it is named."""
    assert project.store._store.fsck(deep=True).damaged == []
    raw = now.get("dvc.lock")
    lock = Lock.parse("" if raw is None else raw[1].decode(), "dvc.lock")
    for entry in lock.entries.values():
        for path, out in locked(entry, "outs").items():
            assert out.name is not None
            if path != "score.json":
                assert project.store.complete(out.name) if out.name.is_dir else project.store.read(out.name) is not None
            if not out.name.is_dir and path in now:
                assert hashlib.md5(now[path][1]).hexdigest() == out.name.value


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_repro_is_right(made: Path, tmp_path: Path, kind: str) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(made, whole, symlinks=True)
    told = in_child(lambda injector: _repro(whole, injector), 0, KILL)
    assert told["error"] is None
    wanted = tree(whole / "repo")
    numbers = list(range(1, told["count"] + 1))
    if not LONG:
        numbers = sorted(random.Random(kind).sample(numbers, SAMPLE))
    for number in numbers:
        place = tmp_path / str(number)
        shutil.copytree(made, place, symlinks=True)
        told = in_child(lambda injector, base=place: _repro(base, injector), number, KINDS[kind])  # type: ignore[misc]
        what = f"operation {number}, {told['failed']}: {told['error']}"
        assert not told["odd"], what
        with opened(place) as project:
            _sound(project, tree(place / "repo"))
        again = in_child(lambda injector, base=place: _repro(base, injector), 0, KILL)  # type: ignore[misc]
        if again["error"] and "is being run already" in again["error"]:
            time.sleep(0.5)  # the command of the killed one
            again = in_child(lambda injector, base=place: _repro(base, injector), 0, KILL)  # type: ignore[misc]
        assert again["error"] is None, f"{what}, then: {again['error']}"
        now = tree(place / "repo")
        assert {path: now.get(path) for path in wanted | now} == {path: wanted.get(path) for path in wanted | now}, what
        shutil.rmtree(place)
