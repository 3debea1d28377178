"""The earlier run that differs least from what a stage would run with, and in what."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tests.cli.helpers import Home
from tests.pipeline.running import Pipe
from tests.project.verbhelp import Project

from millpond.daemon.pipeline import runcache
from millpond.daemon.pipeline.nearest import differences
from millpond.daemon.pipeline.provenance import folder_of

TRAIN = """
stages:
  train:
    cmd: cat a b params.yaml > model
    deps: [a, b]
    params: [lr, depth, net.size]
    outs: [model]
"""
FILES = {"a": "1\n", "b": "1\n", "params.yaml": "lr: 1\ndepth: 1\nnet: {size: 1}\n", "dvc.yaml": TRAIN}


def values(lr: Any, depth: Any = 1, size: Any = 1) -> str:
    return json.dumps({"lr": lr, "depth": depth, "net": {"size": size}})


@pytest.fixture
def pipe(project: Project) -> Pipe:
    """Three runs, the last with lr 3 and depth 3."""
    made = Pipe(project, FILES)
    for lr, depth in ((1, 1), (2, 2), (3, 3)):
        project.write("params.yaml", values(lr, depth))
        made.repro()
    return made


def near(project: Project) -> Any:
    (row,) = project.run("why", "train")["stages"]
    return row.get("nearest")


def test_it_is_the_one_that_differs_least_and_of_equals_the_newest(pipe: Pipe) -> None:
    project = pipe.project
    assert near(project) is None  # nothing would run
    project.write("params.yaml", values(9, 1))
    told = near(project)
    assert told["source"] == "record" and told["ended"] > 0
    assert told["differences"] == [
        {"kind": "param", "state": "modified", "path": "params.yaml", "key": "lr", "old": 1, "new": 9}
    ]
    assert told["text"].endswith(": params.yaml: lr 1 -> 9")
    project.write("params.yaml", values(9, 9))  # two differences from each
    assert [each["old"] for each in near(project)["differences"]] == [3, 3]
    project.write("params.yaml", values(2, 2))
    project.write("a", "2\n")
    (found,) = near(project)["differences"]
    assert (found["kind"], found["path"], found["old"][:4], found["new"][:4]) == ("dep", "a", "b026", "26ab")
    assert near(project)["text"].endswith(": a b026324c -> 26ab0db9")


@pytest.mark.parametrize("lost", ["records", "run cache"])
def test_either_kind_of_memory_is_enough(pipe: Pipe, lost: str) -> None:
    project = pipe.project
    shutil.rmtree(folder_of(project.open()) if lost == "records" else project.root / ".dvc/cache/runs")
    project.write("params.yaml", values(2, 8))
    told = near(project)
    assert told["source"] == {"records": "run cache", "run cache": "record"}[lost]
    assert told["text"].endswith(": params.yaml: depth 2 -> 8")


def test_a_repro_says_it_when_nothing_is_cached_and_dry_when_asked(pipe: Pipe) -> None:
    project = pipe.project
    project.write("params.yaml", values(1, 7))
    (row,) = pipe.repro(dry=True, explain=True)["stages"]
    assert "depth 1 -> 7" in row["nearest"]["text"] and "nearest" not in pipe.said
    assert "nearest" not in pipe.repro(dry=True)["stages"][0]
    (row,) = pipe.repro()["stages"]
    said = [line for line in pipe.said.splitlines() if "nearest earlier run" in line]
    assert len(said) == 1 and said[0].startswith("Stage 'train': ") and said[0].endswith("params.yaml: depth 1 -> 7")
    assert row["nearest"]["differences"][0]["new"] == 7
    project.write("params.yaml", values(1, 1))
    assert pipe.outcomes() == {"train": "cached"} and "nearest" not in pipe.said
    project.write("params.yaml", values(4, 4))
    pipe.repro(force=True)
    assert "nearest" not in pipe.said  # it was told to


def test_what_was_lost_is_no_difference(pipe: Pipe) -> None:
    project = pipe.project
    project.write("params.yaml", values(1, 1))
    pipe.repro(no_run_cache=True)
    assert "had the same inputs; not all of what it made is at hand" in pipe.said


def test_all_kinds_of_differences_are_told() -> None:
    old = {"cmd": "x", "deps": [{"path": "gone", "hash": "md5", "md5": "0" * 32}], "params": {"p": {"a": 1, "b": None}}}
    new = {
        "cmd": ["y"],
        "deps": [{"path": "s3://b/k", "hash": "md5", "etag": "e", "size": 1}],
        "params": {"p": {"b": 0, "c": [1]}},
    }
    found = {(each.kind, each.state, each.path, each.key) for each in differences(old, new)}
    assert found == {
        ("command", "modified", "", ""), ("dep", "deleted", "gone", ""), ("dep", "new", "s3://b/k", ""),
        ("param", "deleted", "p", "a"), ("param", "modified", "p", "b"), ("param", "new", "p", "c"),
    }  # fmt: skip
    assert differences(old, {**old, "outs": [{"path": "o"}]}) == []


def test_it_reads_no_more_than_so_many_and_passes_over_what_is_no_entry(pipe: Pipe) -> None:
    runs = runcache.RunCache(str(pipe.project.root / ".dvc/cache"))
    kept = [entry["params"]["params.yaml"]["lr"] for _, entry in runs.newest(10)]
    assert sorted(kept) == [1, 2, 3]
    newest = max((pipe.project.root / ".dvc/cache/runs").glob("*/*/*"), key=lambda path: path.stat().st_mtime_ns)
    os.utime(newest, (2**31, 2**31))
    assert len(list(runs.newest(1))) == 1
    newest.write_text("- no entry")
    (newest.parent / "odd").mkdir()
    os.utime(newest, (2**31, 2**31))
    assert list(runs.newest(1)) == [] and len(list(runs.newest(10))) == 2


def test_the_program_tells_it() -> None:
    with tempfile.TemporaryDirectory(prefix="mp-near-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        try:
            home.git("init", "-q")
            home.run("init", "-q")
            for path, text in FILES.items():
                (home.repo / path).write_text(text)
            home.run("repro", "-q")
            (home.repo / "params.yaml").write_text(values(1, 5))
            for words in (("why", "train"), ("repro", "--dry", "--why"), ("repro",)):
                assert "params.yaml: depth 1 -> 5" in home.run(*words).stdout, words
            (home.repo / "params.yaml").write_text(values(1, 6))
            for json_words in (("why", "--json", "train"), ("repro", "--dry", "--why", "--json")):
                (row,) = json.loads(home.run(*json_words).stdout)["stages"]
                assert row["nearest"]["differences"][0]["old"] == 5
        finally:
            home.close()
