"""stage add: the files that DVC leaves, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project

from millpond.daemon.errors import MillpondError

# DVC's options, and ours.
ADDED: list[tuple[list[str], dict[str, Any]]] = [
    (["-n", "one", "-d", "src", "-o", "out", "cp src out"], {"name": "one", "deps": ["src"], "outs": ["out"], "cmd": "cp src out"}),
    (
        ["-n", "two", "-d", "z", "-d", "a", "-p", "b,a", "-p", "p.json:x", "-p", "q.yaml:", "-o", "o2", "-O", "o1", "--outs-persist", "o3",
         "--outs-persist-no-cache", "o4", "-m", "m", "-M", "m2", "--plots", "p", "--plots-no-cache", "p2", "--always-changed",
         "--desc", "what it: does", "python x.py"],
        {"name": "two", "deps": ["z", "a"], "params": ["b,a", "p.json:x", "q.yaml:"], "outs": ["o2"], "outs_no_cache": ["o1"],
         "outs_persist": ["o3"], "outs_persist_no_cache": ["o4"], "metrics": ["m"], "metrics_no_cache": ["m2"], "plots": ["p"],
         "plots_no_cache": ["p2"], "always_changed": True, "desc": "what it: does", "cmd": "python x.py"},
    ),
    (["-n", "three", "-w", "sub", "-d", "f", "-o", "g", "-p", "a", "cp f g"], {"name": "three", "wdir": "sub", "deps": ["f"], "outs": ["g"], "params": ["a"], "cmd": "cp f g"}),
    (["-f", "-n", "one", "-d", "src", "-o", "out", "cat src > out"], {"name": "one", "force": True, "deps": ["src"], "outs": ["out"], "cmd": "cat src > out"}),
]  # fmt: skip


def test_added_stages_are_as_dvc_writes_them(project: Project) -> None:
    project.write("src", "1")
    project.write("sub/f", "1")
    project.write("dvc.yaml", "# ours\nstages:\n  # the zeroth\n  zero:\n    cmd: echo # why\n")
    theirs = project.base / "theirs"
    shutil.copytree(project.root, theirs, symlinks=True)
    for argv, params in ADDED:
        project.run("stage.add", **params)
        real_dvc().ok("stage", "add", "-q", *argv, cwd=theirs)
        for name in ("dvc.yaml", ".gitignore", "sub/.gitignore"):
            ours, wanted = project.root / name, theirs / name
            assert ours.exists() == wanted.exists()
            if ours.exists():
                assert _lines(ours, name) == _lines(wanted, name), name


def _lines(path: Path, name: str) -> Any:
    """DVC adds lines of one command to `.gitignore` in the order of its options."""
    text = path.read_text()
    return text if name == "dvc.yaml" else sorted(text.splitlines())


@pytest.mark.parametrize(
    ("argv", "params", "words"),
    [
        (["-n", "a.b", "x"], {"name": "a.b", "cmd": "x"}, "punctuation"),
        (["-n", "zero", "x"], {"name": "zero", "cmd": "x"}, "already exists"),
        (["-n", "s", "-d", "f", "-o", "f", "x"], {"name": "s", "deps": ["f"], "outs": ["f"], "cmd": "x"}, "twice"),
        (["-n", "s", "-o", "taken", "x"], {"name": "s", "outs": ["taken"], "cmd": "x"}, "'taken' is an output of"),
        (["-n", "s", "-o", "taken/in", "x"], {"name": "s", "outs": ["taken/in"], "cmd": "x"}, "lies in output"),
        (["-n", "s", "-o", "../out", "x"], {"name": "s", "outs": ["../out"], "cmd": "x"}, "outside of the project"),
        (["-n", "s", "-w", "nowhere", "x"], {"name": "s", "wdir": "nowhere", "cmd": "x"}, "does not exist"),
        (["-n", "s", "-w", "..", "x"], {"name": "s", "wdir": "..", "cmd": "x"}, "outside of the project"),
        (["-n", "s", "-d", "taken", "-o", "loop", "x"], {"name": "s", "deps": ["taken"], "outs": ["loop"], "cmd": "x"}, "circle"),
    ],
)  # fmt: skip
def test_what_cannot_be_added_is_refused(project: Project, argv: list[str], params: dict[str, Any], words: str) -> None:
    project.write("dvc.yaml", "stages:\n  zero:\n    cmd: echo\n    deps: [loop]\n    outs: [taken]\n")
    before = project.snapshot()
    with pytest.raises(MillpondError, match=words):
        project.run("stage.add", **params)
    assert project.snapshot() == before
    assert real_dvc().run("stage", "add", *argv, cwd=project.root).code == 255
