"""A loss of power, for real (tests/store/power.py), behind verbs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.project.realdvc import real_dvc
from tests.remote.shared import Team, data_of
from tests.store.power import Disk

pytestmark = [pytest.mark.long, pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    with contextlib.closing(made):
        yield made


@pytest.fixture
def ann(disk: Disk, tmp_path: Path) -> Iterator[Home]:
    team = Team(tmp_path, str(disk.place / "remote"), None, [])
    yield team.begin()
    for each in team.people:
        each.run("daemon", "stop")


@pytest.mark.parametrize("collector", ["evict", "gc"])
def test_the_copy_here_goes_only_when_that_on_the_remote_is_there_for_good(
    ann: Home, disk: Disk, collector: str
) -> None:
    """DVC pushed it a moment ago, and syncs nothing."""
    expected = data_of(ann)
    ann.run("cache", "export")
    real_dvc().ok("push", cwd=ann.repo)
    shutil.rmtree(ann.repo / ".dvc/cache")
    if collector == "evict":
        gone = json.loads(ann.run("cache", "evict", "--to", "0", "--json").stdout)["evicted"]["objects"]
    else:
        ann.run("gc", "--not-in-remote", "-w", "-f", "--grace", "0")
        gone = len(expected)
    assert gone
    disk.lose_power()
    for path in ("data", "one.csv"):
        target = ann.repo / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    ann.run("pull")
    assert data_of(ann) == expected


@pytest.mark.parametrize("verb", ["push", "add"])
def test_what_is_found_on_the_remote_is_there_for_good_when_a_push_says_so(ann: Home, disk: Disk, verb: str) -> None:
    expected = data_of(ann)
    ann.run("cache", "export")
    real_dvc().ok("push", cwd=ann.repo)
    if verb == "push":
        ann.run("push")
    else:
        shutil.copy(ann.repo / "one.csv", ann.path / "elsewhere")
        ann.run("import-url", "--to-remote", str(ann.path / "elsewhere"), "two.csv")
    disk.lose_power()
    there = {path.read_bytes() for path in (disk.place / "remote").rglob("*") if path.is_file()}
    assert (set(expected.values()) if verb == "push" else {expected["one.csv"]}) <= there
