"""Completion: what the program answers to a shell, and a real bash that asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cli.helpers import Home

from millpond.cli.complete import SHELLS, complete, script, typed_words
from millpond.cli.group import ENTRIES
from millpond.cli.program import cli


def answers(*words: str) -> list[tuple[str, str]]:
    """(type, value) of what may follow."""
    lines = complete(cli, {"_MILLPOND_WORDS": "\n".join([*words, "."])})
    return [(line.split("\t")[0], line.split("\t")[1]) for line in lines]


def test_commands() -> None:
    assert {value for _, value in answers("")} == set(ENTRIES)
    assert answers("mou") == [("plain", "mount"), ("plain", "mounts")]
    assert {value for _, value in answers("daemon", "")} == {"start", "stop", "restart", "status", "logs"}
    assert answers("--cd", "/tmp", "roo") == [("plain", "root")]


def test_options() -> None:
    assert ("plain", "--no-commit") in answers("add", "--no")
    assert ("plain", "--restore") in answers("mounts", "-")


def test_arguments() -> None:
    assert answers("add", "da") == [("file", "da")]
    assert answers("init", "d") == [("dir", "d")]
    assert answers("completion", "") == [("plain", shell) for shell in SHELLS]
    assert answers("umount", "/nowhere/") == [("dir", "/nowhere/")]


def test_a_target_s_revisions(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.git("init", "-q", "-b", "main")
    home.git("commit", "-q", "--allow-empty", "-m", "x")
    home.git("tag", "v1")
    home.git("branch", "feature/a")
    monkeypatch.chdir(home.repo)
    assert answers("mount", "data@") == [("plain", f"data@{name}") for name in ("feature/a", "main", "v1")]
    assert answers("mount", "data@v") == [("plain", "data@v1")]
    assert answers("mount", "da") == [("file", "da")]
    monkeypatch.chdir("/")
    assert answers("mount", "data@") == [], "no repository, nothing to say"


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\0")), min_size=1))
def test_words_travel_whole(words: list[str]) -> None:
    assert typed_words({"_MILLPOND_WORDS": "\n".join([*words, "."])}) == words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("millpond ", [""]),
        ("millpond mo", ["mo"]),
        ("millpond mount data@v1 ", ["mount", "data@v1", ""]),
        ("millpond add 'two words' x\\ ", ["add", "two words", "x "]),
        ("millpond add 'open", ["add", "open"]),
        ("millpond", [""]),
    ],
)
def test_bash_s_line(line: str, words: list[str]) -> None:
    found = typed_words({"_MILLPOND_LINE": line})
    assert found == words or (line.endswith("\\ ") and found == [*words[:-1], "x ", ""])


def test_scripts_are_printed_both_ways(home: Home) -> None:
    for shell in SHELLS:
        assert home.run("completion", shell).stdout == script(shell) + "\n"
    assert home.run("completion", "-s", "zsh").stdout == script("zsh") + "\n"


def bash(home: Home, line: str) -> list[str]:
    """What a real bash would offer for `line`, with the program as it is behind the name."""
    folder = home.path / "bin"
    if not folder.exists():
        folder.mkdir()
        program = folder / "millpond"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m millpond.cli "$@"\n')
        program.chmod(0o755)
    # What readline does: part the line at COMP_WORDBREAKS, find the current word, call the function.
    ask = r"""
        eval "$(millpond completion bash)"
        COMP_LINE=$1 COMP_POINT=${#1}
        mapfile -t COMP_WORDS < <(grep -oE '[@:=]|[^@:= ]+' <<< "$1")
        [[ "$1" == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
        _millpond_completion
        (( ${#COMPREPLY[@]} == 0 )) || printf '%s\n' "${COMPREPLY[@]}"
    """
    env = home.env | {"PATH": f"{folder}:{home.env['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", ask, "bash", line], cwd=home.repo, env=env, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_bash_asks_the_program(home: Home) -> None:
    home.git("init", "-q", "-b", "main")
    home.git("commit", "-q", "--allow-empty", "-m", "x")
    home.git("tag", "v1")
    assert bash(home, "millpond mou") == ["mount", "mounts"]
    assert bash(home, "millpond daemon st") == ["start", "status", "stop"]
    assert bash(home, "millpond mount data@") == ["main", "v1"], "bash replaces what follows the @ only"
    assert bash(home, "millpond mount data@v") == ["v1"]
    assert bash(home, "millpond mount data@v1 --al") == ["--allow-other"]
    assert bash(home, "millpond add da") == [], "names of files are bash's own affair"


def test_completion_never_starts_the_daemon(home: Home) -> None:
    env = home.env | {"_MILLPOND_COMPLETE": "bash", "_MILLPOND_LINE": "millpond umount "}
    done = subprocess.run(home.command(), env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert os.listdir(home.path / "run") == []
    assert not Path(home.env["XDG_CACHE_HOME"]).exists()
