"""`--with-deps` of what moves data: the outputs of all that the targets are made of, beside real DVC."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.project.realdvc import real_dvc

STAGES = """stages:
  prep:
    cmd: tr a-z A-Z < data > prep.txt
    deps: [data]
    outs: [prep.txt]
  train:
    cmd: mkdir -p model && wc prep.txt > model/w
    deps: [prep.txt]
    outs: [model]
  other:
    cmd: echo other > other.txt
    outs: [other.txt]
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Home]:
    """A project whose data is on a remote alone."""
    with tempfile.TemporaryDirectory(prefix="mp-up-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        home.git("init", "-q", "-b", "main")
        home.dvc("init", "-q")
        (home.repo / "data").write_text("data\n")
        home.dvc("add", "-q", "data")
        (home.repo / "dvc.yaml").write_text(STAGES)
        home.dvc("repro", "-q")
        home.dvc("remote", "add", "-q", "-d", "r", str(home.path / "remote"))
        home.dvc("push", "-q")
        home.git("add", "-A")
        home.git("commit", "-qm", "first")
        try:
            yield home
        finally:
            home.close()


def clone(home: Home, name: str) -> Path:
    place = home.path / name
    home.git("clone", "-q", str(home.repo), str(place))
    return place


def there(root: Path) -> set[str]:
    return {name for name in ("data", "prep.txt", "model/w", "other.txt") if (root / name).exists()}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("train", {"data", "prep.txt", "model/w"}),
        ("prep", {"data", "prep.txt"}),
        ("other", {"other.txt"}),
    ],
)
def test_pull_brings_what_it_is_made_of(made: Home, target: str, expected: set[str]) -> None:
    ours, theirs = clone(made, f"ours-{target}"), clone(made, f"theirs-{target}")
    made.run("pull", "-d", target, cwd=ours)
    real_dvc().ok("pull", "-d", target, cwd=theirs)
    assert there(ours) == there(theirs) == expected


def test_an_output_by_its_path_too(made: Home) -> None:
    """Where DVC passes over the option without a word."""
    place = clone(made, "by-path")
    made.run("pull", "-d", "model", cwd=place)
    assert there(place) == {"data", "prep.txt", "model/w"}


def test_the_others(made: Home) -> None:
    place = clone(made, "others")
    told = json.loads(made.run("fetch", "-d", "prep", "--json", cwd=place).stdout)
    assert not told["missing"] and not told["damaged"]
    assert made.run("checkout", "-d", "prep", cwd=place).stdout.splitlines() == ["A       data", "A       prep.txt"]
    assert there(place) == {"data", "prep.txt"}
    made.run("remote", "add", "-d", "-f", "r", str(made.path / "second"), cwd=place)
    shown = made.run("status", "-c", "-d", "prep", "--json", cwd=place).stdout
    assert json.loads(shown) == {"data": "new", "prep.txt": "new"}
    assert made.run("push", "-d", "prep", cwd=place).stdout.startswith("2 files pushed")
    alone = made.run("push", "-d", "-T", "prep", cwd=place, code=None)
    assert alone.returncode == 0
