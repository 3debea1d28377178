"""lineage, runs: what made what, and the records of runs."""

from __future__ import annotations

import json
from typing import Any

import click

from millpond.cli import history, render
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Verb, json_option
from millpond.daemon import wirepath
from millpond.daemon.errors import UsageError

_PATHS = frozenset(["id", "name", "file", "path", "step", "text", "roots", "used_by", "metrics"])


@click.command(
    cls=Verb,
    example="""
$ millpond lineage model.pkl@v1
model.pkl at v1
└── train  from dvc.lock, which came with commit 4f5aeb8
    > python train.py
    params.yaml: lr = 0.1
    model.pkl  1b2c3d4e5f60718293a4b5c6d7e8f901  12 kB
    ├── train.py  in Git
    └── data.csv.dvc
        data.csv  0a1b2c3d4e5f60718293a4b5c6d7e8f9  3 MB
""",
)
@click.argument("target", metavar="PATH[@REV]", type=click.Path())
@click.option("--rev", metavar="REV", help="At this Git revision, as PATH@REV; the workspace by default.")
@click.option("--down", is_flag=True, help="The other way: what was made from it.")
@click.option("--md", is_flag=True, help="Print Markdown, for a report.")
@json_option
@click.pass_obj
def lineage(console: Console, target: str, rev: str | None, down: bool, md: bool, as_json: bool) -> None:
    """Show which data, code, parameters and commands a file was made from, back to its sources.

    PATH is an output, a file in a tracked folder, a .dvc file, a stage, or a source. Hashes are those of dvc.lock at that revision; who ran
    it, where and with which code is told where the run was recorded. Where hashes do not fit it says so, with a `!`.
    """
    if md and as_json:
        raise UsageError("--json cannot be used with --md")
    result = verb(console, "lineage", {"target": wirepath.encode(target), "rev": rev, "down": down})
    found = _decoded(result)
    if as_json:
        console.write(json.dumps(found))
        return
    for line in history.markdown_lines(found) if md else history.tree_lines(found):
        console.say(line)


@click.command(
    cls=Verb,
    example="""
$ millpond runs train
began             stage  outcome  seconds  user  host  code
2026-11-28 05:40  train  ran      12.3     ann   box   4f5aeb8
""",
)
@click.argument("targets", nargs=-1, type=click.Path())
@click.option("-n", "most", type=click.IntRange(1), metavar="NUMBER", help="At most so many of each stage.")
@click.option("--jsonl", is_flag=True, help="Print the records, one JSON object a line.")
@json_option
@click.pass_obj
def runs(console: Console, targets: tuple[str, ...], most: int | None, jsonl: bool, as_json: bool) -> None:
    """List the recorded runs of stages, of all without TARGETS, the newest first; failed ones, too."""
    if jsonl and as_json:
        raise UsageError("--json cannot be used with --jsonl")
    result = verb(console, "runs", {"targets": [wirepath.encode(target) for target in targets], "most": most})
    found = [history.record(each) for each in result["runs"]]
    if as_json:
        console.write(json.dumps({"runs": found}))
        return
    for line in (json.dumps(each) for each in found) if jsonl else history.run_lines(found):
        console.write(line) if jsonl else console.say(line)


def _decoded(result: dict[str, Any]) -> dict[str, Any]:
    """Paths as they are. What a pointer or a record holds came as it is."""
    found: dict[str, Any] = render.decoded(result, _PATHS)
    for step, row in zip(found["steps"], result["steps"], strict=True):
        step["source"] = row["source"]
        step["params"] = row["params"]
        step["record"] = None if row["record"] is None else history.record(row["record"])
    return found
