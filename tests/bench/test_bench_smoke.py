"""The whole bench on very small data: every section runs with the peers that are here, and proves what it read.

Figures of such a run mean nothing, so only their being there is looked at.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.s3 import missing

ROOT = Path(__file__).resolve().parents[2]
PEERS = {"squashfuse": "squashfuse", "borg": "borg", "restic": "restic"}
# Section -> the data sets that are enough to go through all its code, and the title of its table.
SECTIONS = {
    "startup": ("small", "start-up"),
    "add": ("small", "add, status, checkout"),
    "versions": ("csv", "versions"),
    "share": ("small", "push, pull"),
    "mount": ("small", "mount"),
    "reads": ("small,shard,shards,csv", "reads"),
    "access": ("small,shard", "access"),
    "serving": ("small", "serving"),
    "disk": ("csv", "disk"),
    "pipelines": ("csv", "pipelines"),
    "million": ("small", "a million files"),
    "lazy": ("small,shard", "lazy reads from S3"),
}
# Those that take long even so: they wait for a service that is far away.
LONG = {"access", "add", "disk", "lazy", "million", "reads", "pipelines", "serving", "share", "startup", "versions"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the bench works; a short path, since daemons' sockets lie below it."""
    path = Path(tempfile.mkdtemp(prefix="mpb-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.fuse
@pytest.mark.parametrize(
    "section", [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in SECTIONS]
)
def test_a_section_has_figures_and_checked_bytes(folder: Path, section: str) -> None:
    sets, title = SECTIONS[section]
    if section == "lazy" and (lacks := missing()) is not None:
        pytest.skip(lacks)
    work, out = folder / "work", folder / "out"
    work.mkdir()
    options = ["--only", section, "--sets", sets, "--scale", "0.001", "--runs", "1", "--keep-page-cache"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.run", *options, "--dir", str(work), "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*.json")
    assert found.with_suffix(".md").read_text().strip() == done.stdout.strip()
    result = json.loads(found.read_text())
    assert {row["section"] for row in result["rows"]} == {title}
    for row in result["rows"]:
        _whole(row)
    _who(section, {row["tool"] for row in result["rows"]})
    if section in ("reads", "serving"):
        _all_bytes(result)
    else:
        assert result["targets"] and all(isinstance(verdict["met"], bool) for verdict in result["targets"])
    _nothing_left(work)


def _whole(row: dict[str, Any]) -> None:
    assert row["checked"] > 0, row
    assert row["values"], row
    assert all(math.isfinite(value) for value in row["values"]), row
    assert row["median"] >= 0, row


def _who(section: str, tools: set[str]) -> None:
    """Every peer that is installed was measured."""
    if section == "add":
        assert tools == {"millpond", "millpond, no fsync", "dvc"}
    elif section in ("versions", "share", "pipelines"):
        assert tools == {"millpond", "dvc"}
    elif section == "startup":
        assert tools == {"millpond", "python", "dvc"}
    else:
        assert "millpond" in tools
    if section == "lazy":
        assert {"millpond", "dvc", "dvc pull", *filter(shutil.which, ("rclone", "s3fs"))} <= tools
    if section in ("mount", "reads", "access", "disk"):
        assert {tool for tool, program in PEERS.items() if shutil.which(program)} <= tools


def _all_bytes(result: dict[str, Any]) -> None:
    """Every row that tells a rate compared all the bytes that it was for."""
    rated = [row for row in result["rows"] if row["volume"]]
    assert {row["volume"] for row in rated} == {made["bytes"] for made in result["about"]["data"].values()}
    assert all(row["checked"] == row["volume"] for row in rated)


def _nothing_left(work: Path) -> None:
    """No file, mount or process."""
    assert list(work.iterdir()) == []
    assert str(work) not in Path("/proc/self/mountinfo").read_text()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        assert str(work).encode() not in told, process
