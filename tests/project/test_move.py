"""`move`: as real DVC leaves a project, nothing overwritten, and whole whatever fails in the middle."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from tests.project.test_tracking import tracked, twin, visible
from tests.project.verbhelp import Project

from millpond.daemon import wirepath
from millpond.daemon.errors import (
    ConflictError,
    MillpondError,
    OverlapError,
    TargetError,
    TrackedByGitError,
    UsageError,
)


def move(project: Project, source: str, target: str, **more: Any) -> dict[str, Any]:
    return project.run("move", source=wirepath.encode(source), target=wirepath.encode(target), **more)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("f", "h"),
        ("f", "F"),
        ("f", "e"),
        ("f", "e/"),
        ("d", "e/dd"),
        ("d", "other name"),
        ("sub dir/g", "g"),
        ("sub dir/g", "e"),
    ],
)
def test_files_are_left_as_dvc_leaves_them(project: Project, source: str, target: str) -> None:
    tracked(project)
    (project.root / "e").mkdir()
    theirs = twin(project)
    found = move(project, source, target)
    project.dvc("move", source, target.rstrip("/"), cwd=theirs)
    assert visible(project.root) == visible(theirs)
    assert project.status() == {} and not found["missing"]
    project.export()
    assert "up to date" in project.dvc("status")
    project.git(
        "add",
        "--",
        *(wirepath.decode(file) for file in found["git_add"] if (project.root / wirepath.decode(file)).exists()),
    )
    assert "No changes" not in project.dvc("data", "status"), "it was not committed yet"


def test_a_pointer_of_another_name_stays_and_names_the_new_place(project: Project) -> None:
    project.write("f", "first f")
    project.add("f")
    text = "# why\n" + project.read("f.dvc").replace("path: f", "path: f # name\n  desc: d\nmeta: {a: 1}")
    (project.root / "f.dvc").unlink()
    project.write("other.dvc", text)
    (project.root / "e").mkdir()
    move(project, "f", "e/g")
    assert project.read("other.dvc") == text.replace("path: f #", "path: e/g #")
    assert project.read("e/g") == "first f" and project.status() == {}


def test_from_a_folder_inside(project: Project) -> None:
    tracked(project)
    found = move(project, "g", "../top", cwd=project.root / "sub dir")
    assert (found["path"], found["pointer"]) == ("../top", "../top.dvc")
    assert project.read("top") == "first sub dir/g" and not (project.root / "sub dir/.gitignore").exists()


def test_changed_data_stays_changed_and_missing_data_missing(project: Project) -> None:
    tracked(project)
    project.write("f", "changed")
    move(project, "f", "h")
    assert project.read("h") == "changed" and project.status() == {"h.dvc": [{"changed outs": {"h": "modified"}}]}
    (project.root / "h").unlink()
    assert move(project, "h", "i")["missing"]
    assert project.status() == {"i.dvc": [{"changed outs": {"i": "deleted"}}]}
    project.checkout("i")
    assert project.read("i") == "first f"


def test_what_cannot_be_moved_is_refused_and_nothing_changes(project: Project) -> None:
    tracked(project)
    project.write("there", "precious")
    project.write("x.dvc", "precious")
    project.write("bygit", "")
    project.git("add", "bygit")
    project.write(".dvcignore", "no/\n")
    (project.root / "no").mkdir()
    (project.root / "link").symlink_to("sub dir")
    (project.root / "x.dvc").rename(project.root / "x.dvc.kept")
    before = project.snapshot()
    for source, target, error in (
        ("f", "there", TargetError),
        ("f", "f", TargetError),
        ("f", "d/in", OverlapError),
        ("f", "d", OverlapError),
        ("f", "sub dir/g", OverlapError),
        ("f", "no/f", TargetError),
        ("f", "link/f", TargetError),
        ("f", "nowhere/f", TargetError),
        ("f", "../f", TargetError),
        ("f", "a.dvc", TargetError),
        ("f", "bygit", TrackedByGitError),
        ("f.dvc", "h", TargetError),
        ("nope", "h", TargetError),
        ("d/a", "h", TargetError),
        ("d", "d/sub/e", MillpondError),
    ):
        with pytest.raises(error):
            move(project, source, target)
        assert project.snapshot() == before, (source, target)


def test_a_stages_output_and_a_second_pointer_are_refused(project: Project) -> None:
    tracked(project)
    project.write("dvc.yaml", "stages:\n  s:\n    cmd: touch o\n    outs: [o]\n")
    project.write(
        "dvc.lock",
        "schema: '2.0'\nstages:\n  s:\n    cmd: touch o\n    outs:\n    - path: o\n      md5: d41d8cd98f00b204e9800998ecf8427e\n      size: 0\n      hash: md5\n",
    )
    project.write("h.dvc", project.read("f.dvc").replace("path: f", "path: x"))
    with pytest.raises(UsageError, match="stage 's'"):
        move(project, "o", "p")
    with pytest.raises((TargetError, ConflictError), match="h.dvc' exists"):
        move(project, "f", "h")


@pytest.mark.parametrize("name", ["rename", "fsync", "unlink", "open"])
@pytest.mark.parametrize("source", ["f", "d"])
def test_whatever_fails_the_same_move_again_ends_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str, source: str
) -> None:
    """The n-th call fails, for every n: the data is whole at one of the two places, and nothing is lost."""
    tracked(project)
    data = {path: text for path, text in visible(project.root).items() if not path.endswith((".dvc", "ignore"))}
    moved = {path.replace(source, "e/new", 1) if path.startswith(source) else path: text for path, text in data.items()}
    (project.root / "e").mkdir()
    real: Callable[..., Any] = getattr(os, name)
    for nth in range(200):
        calls = 0

        def fails(*args: Any, nth: int = nth, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth + 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fails)
            try:
                move(project, source, "e/new")
                done = True
            except (MillpondError, OSError):
                done = False
        there = {path: text for path, text in visible(project.root).items() if not path.endswith((".dvc", "ignore"))}
        assert there in (data, moved) and (not done or there == moved)
        if (project.root / f"{source}.dvc").exists():
            move(project, source, "e/new")
        found = visible(project.root)
        assert {path: text for path, text in found.items() if not path.endswith((".dvc", "ignore"))} == moved
        assert sorted(path for path in found if path.endswith(".dvc")) == sorted(
            {"d.dvc", "f.dvc", "sub dir/g.dvc", "e/new.dvc"} - {f"{source}.dvc"}
        )
        assert project.status() == {}
        move(project, "e/new", source)
        if calls <= nth:
            return
    raise AssertionError("it never ran to its end")
