"""lineage and runs by the real program: tree, Markdown, JSON, JSON lines."""

from __future__ import annotations

import json

from tests.cli.helpers import Home
from tests.cli.test_pipelines import begin

TREE = [
    "    > test -t 1 && echo is a terminal; cp one two",
    "    two  c4ca4238a0b923820dcc509a6f75849b  1 B",
    "    └── first",
    "        > echo out; echo err >&2; cat src > one",
    "        params.yaml: p = 1",
    "        one  c4ca4238a0b923820dcc509a6f75849b  1 B",
    "        └── src.dvc",
    "            src  c4ca4238a0b923820dcc509a6f75849b  1 B",
]


def commit(home: Home) -> str:
    home.git("add", "-A")
    home.git("-c", "user.name=t", "-c", "user.email=t@example.invalid", "commit", "-q", "-m", "1")
    return str(home.git("rev-parse", "--short=7", "HEAD")).strip()


def test_lineage_and_runs_as_they_are_printed(home: Home) -> None:
    begin(home)
    home.run("add", "-q", "src")
    home.run("repro", "-q")
    head = commit(home)
    lines = home.run("lineage", "two").stdout.splitlines()
    assert lines[0] == "two at workspace" and lines[1].startswith("└── second  recorded here: 20")
    assert lines[1].split(", ")[1] == f"committed with {head}", "there was no commit when it ran"
    assert [line.partition("  recorded")[0] for line in lines[2:]] == TREE
    down = home.run("lineage", "--down", "src").stdout.splitlines()
    assert [line.split()[1] for line in down if "──" in line] == ["first", "second"]
    table = home.run("runs").stdout.splitlines()
    assert table[0].split() == ["began", "stage", "outcome", "seconds", "user", "host", "code"] and len(table) == 3
    last = json.loads(home.run("why", "--last", "--json", "first").stdout)["stages"][0]
    assert last["run"]["reasons"] == last["reasons"] and last["run"]["outcome"] == "ran"
    (line,) = home.run("runs", "--jsonl", "first").stdout.splitlines()
    assert json.loads(line)["stage"] == "first"
    assert json.loads(home.run("runs", "--json", "first").stdout) == {"runs": [json.loads(line)]}
    assert len(home.run("runs", "-n", "1", "--jsonl").stdout.splitlines()) == 2
    # In a clone there are no records: dvc.lock and Git tell what there is to tell.
    (home.repo / ".dvc/tmp/millpond/runs").rename(home.repo / ".dvc/tmp/millpond/runs-away")
    (home.repo / "src").write_text("2")
    home.run("add", "-q", "src")
    shown = home.run("lineage", "two").stdout.splitlines()
    assert shown[1] == f"└── second  from dvc.lock, which came with commit {head}"
    assert shown[-1].startswith("! first: it was made from another 'src' than 'src.dvc' has made: ")
    assert "        └── src.dvc  ! stale: src" in shown
    report = home.run("lineage", "--md", "two").stdout
    assert report.startswith("# Lineage of `two` at `workspace`\n") and "## The chain is broken" in report
    assert "| dep | src    | c4ca4238a0b923820dcc509a6f75849b | 1 B    | src.dvc (stale) |" in report
    found = json.loads(home.run("lineage", "--json", "two@HEAD").stdout)
    assert found["problems"] == [] and [step["id"] for step in found["steps"]] == ["second", "first", "src.dvc"]
    assert "is no output, source or stage" in home.run("lineage", "nothing", code=255).stderr
