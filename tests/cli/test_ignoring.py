"""`check-ignore` beside real DVC."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home

FILES = {
    ".dvcignore": "*.log\n!keep.log\nsub/\n/build\n!/q/*.log\n",
    "q/.dvcignore": "*.tmp\nb.log\nx/\n",
    **dict.fromkeys(("sub/in/deep", "build/z", "a.log", "keep.log", "q/t.tmp", "q/c.log", ".hg/z", "data/plain"), ""),
}
TARGETS = [
    "a.log",
    "b.log",
    "keep.log",
    "sub",
    "sub/in",
    "sub/in/deep",
    "build",
    "build/z",
    "root.txt",
    "q/t.tmp",
    "q/b.log",
    "q/c.log",
    "q/x",
    ".git",
    ".git/config",
    ".dvc",
    ".dvc/config",
    "nowhere",
    ".hg",
    ".hg/z",
    "data",
    "data/plain",
    "/etc/passwd",
    ".",
]


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="mp-ign-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        home.git("init", "-q", "-b", "main")
        home.dvc("init", "-q")
        for name, text in FILES.items():
            path = home.repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        try:
            yield home
        finally:
            home.close()


@pytest.mark.parametrize("words", [[], ["-d"], ["-d", "-n"], ["-q"]], ids=" ".join)
@pytest.mark.parametrize("targets", [TARGETS, ["root.txt"], ["keep.log"]], ids=["all", "none", "not any more"])
def test_the_same_is_said_with_the_same_exit_code(home: Home, words: list[str], targets: list[str]) -> None:
    ours, theirs = (run("check-ignore", *words, *targets, code=None) for run in (home.run, home.dvc))
    assert (ours.stdout, ours.returncode) == (theirs.stdout, theirs.returncode)


def test_rules_are_named_from_the_root_and_targets_as_given(home: Home) -> None:
    ours, theirs = (run("check-ignore", "-d", "t.tmp", "../a.log", cwd=home.repo / "q") for run in (home.run, home.dvc))
    assert ours.stdout == theirs.stdout == "q/.dvcignore:1:*.tmp\tt.tmp\n.dvcignore:1:*.log\t../a.log\n"


def test_all_rules_that_match_are_shown_in_their_order(home: Home) -> None:
    assert home.run("check-ignore", "-d", "-a", "q/c.log").stdout == (
        ".dvcignore:1:*.log\tq/c.log\n.dvcignore:5:!/q/*.log\tq/c.log\n"
    )
    found = json.loads(home.run("check-ignore", "--json", "keep.log", code=1).stdout)
    assert found == [{"path": "keep.log", "ignored": False, "rules": [".dvcignore:1:*.log", ".dvcignore:2:!keep.log"]}]


def test_targets_come_from_stdin_up_to_an_empty_line(home: Home) -> None:
    ran = subprocess.run(
        home.command("check-ignore", "--stdin", "-d", "-n"),
        cwd=home.repo, env=home.env, input="a.log\nroot.txt\n\nb.log\n", text=True, capture_output=True,
    )  # fmt: skip
    assert ran.stdout == ".dvcignore:1:*.log\ta.log\n::\troot.txt\n"


def test_options_that_do_not_go_together_are_refused(home: Home) -> None:
    for words in ((), ("--stdin", "a"), ("-n", "a"), ("-a", "a")):
        ours, theirs = (run("check-ignore", *words, code=None) for run in (home.run, home.dvc))
        assert ours.returncode != 0 and theirs.returncode != 0
        assert ours.stderr.splitlines()[-1] == theirs.stderr.splitlines()[0]
