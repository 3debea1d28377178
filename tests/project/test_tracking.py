"""`commit` and `remove`: as real DVC leaves a project, and whole whatever fails in the middle."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project

from millpond.daemon.errors import ConflictError, InvalidFileError, MillpondError, TargetError, UsageError
from millpond.daemon.project import yamlio
from millpond.daemon.project.stagefile import without_stage


def tracked(project: Project) -> None:
    for name in ("d/a", "d/sub/b", "f", "sub dir/g"):
        project.write(name, f"first {name}")
    project.add("d", "f", "sub dir/g")
    project.commit()


def twin(project: Project) -> Path:
    """A copy of the project for DVC, with all objects in its cache."""
    project.export()
    path = project.base / "theirs"
    shutil.copytree(project.root, path, symlinks=True)
    return path


def visible(root: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_file() and relative.parts[0] not in (".git", ".dvc"):
            found[str(relative)] = path.read_bytes()
    return found


def test_changed_data_is_recorded_as_dvc_records_it(project: Project) -> None:
    tracked(project)
    theirs = twin(project)
    for root in (project.root, theirs):
        (root / "d/a").write_text("second")
        (root / "d/new").write_text("new")
        (root / "f").write_text("second f")
    asked = project.run("commit")["unconfirmed"]
    assert asked == [{"pointer": "d.dvc", "outs": ["d"]}, {"pointer": "f.dvc", "outs": ["f"]}]
    assert project.status() != {}, "nothing was done"
    project.run("commit", "d.dvc", force=True)
    assert set(project.status()) == {"f.dvc"}
    project.run("commit", force=True)
    project.dvc("commit", "-q", "-f", cwd=theirs)
    assert visible(project.root) == visible(theirs)
    assert project.status() == {}
    project.export()
    assert "up to date" in project.dvc("status")


def test_what_was_added_without_being_stored_is_stored_without_a_question(project: Project) -> None:
    project.write("f", "later")
    project.add("f", no_commit=True)
    assert project.status()["f.dvc"] == [{"changed outs": {"f": "not in cache"}}]
    assert "unconfirmed" not in project.run("commit", "f")
    assert project.status() == {}


def test_a_part_of_a_folder_is_committed(project: Project) -> None:
    tracked(project)
    project.write("d/a", "second")
    project.write("d/sub/b", "second too")
    project.run("commit", "d/a", force=True)
    project.write("d/sub/b", "first d/sub/b")
    assert project.status() == {}


@pytest.mark.parametrize("targets", [["d.dvc"], ["f.dvc", "sub dir/g.dvc"], ["d.dvc", "f.dvc", "sub dir/g.dvc"]])
@pytest.mark.parametrize("outs", [False, True])
def test_what_is_removed_is_gone_as_in_dvc(project: Project, targets: list[str], outs: bool) -> None:
    tracked(project)
    theirs = twin(project)
    result = project.run("remove", *targets, outs=outs)
    assert len(result["removed"]) == len(targets)
    project.dvc("remove", *targets, *(["--outs"] if outs else []), cwd=theirs)
    assert visible(project.root) == visible(theirs)
    project.dvc("status")


def test_data_that_is_stored_nowhere_is_kept(project: Project) -> None:
    tracked(project)
    project.write("f", "only here")
    before = project.snapshot()
    with pytest.raises(ConflictError, match="'f' would be lost"):
        project.run("remove", "d.dvc", "f.dvc", outs=True)
    assert project.snapshot() == before
    project.run("remove", "f.dvc", outs=True, force=True)
    assert not (project.root / "f").exists()


def test_what_cannot_be_removed_is_said(project: Project) -> None:
    tracked(project)
    project.write("dvc.yaml", "stages:\n  s:\n    cmd: echo 1 > out\n    outs:\n    - out\n")
    project.dvc("repro", "-q")
    project.write(
        "dvc.yaml",
        project.read("dvc.yaml")
        + "  t:\n    foreach: [a]\n    do:\n      cmd: echo ${item}\n  v:\n    cmd: x\n    outs:\n    - ${x}\n",
    )
    for target, error, needle in (
        ("f", TargetError, "did you mean 'f.dvc'"),
        ("none.dvc", TargetError, "does not exist"),
        ("none", TargetError, "is not in 'dvc.yaml'"),
        ("out", TargetError, "made by stage 's'"),
        ("t", UsageError, "makes many stages"),
        ("t@a", UsageError, "one of many"),
        ("v", UsageError, "made by a template"),
    ):
        before = project.snapshot()
        with pytest.raises(error, match=needle):
            project.run("remove", target)
        assert project.snapshot() == before


@pytest.mark.parametrize("name", ["unlink", "rename", "fsync", "open"])
def test_whatever_fails_a_removal_can_be_undone_or_repeated(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The n-th call fails, for every n: data that is gone comes back by `checkout`, or the second attempt ends the first."""
    tracked(project)
    data = visible(project.root)
    real: Callable[..., Any] = getattr(os, name)
    for nth in range(100):
        calls = 0

        def fails(*args: Any, nth: int = nth, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth + 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(args[0]))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fails)
            try:
                project.run("remove", "d.dvc", "f.dvc", "sub dir/g.dvc", outs=True)
                failed = False
            except (MillpondError, OSError):
                failed = True
        left = [pointer for pointer in ("d.dvc", "f.dvc", "sub dir/g.dvc") if (project.root / pointer).exists()]
        assert failed or not left
        if left:
            project.run("remove", *left, outs=True)
        assert [path for path in visible(project.root) if path not in (".dvcignore", ".gitignore")] == []
        project.git("checkout", "-q", "--", ".")
        project.checkout(force=True)
        assert visible(project.root) == data
        if calls <= nth:
            return
    raise AssertionError("it never ran to its end")


STAGES = """# top
stages:
  one: # the first
    cmd: echo 1
    outs:
    - o1 # keep
  two:
    cmd: echo 2
    frozen: false
  many:
    foreach: [a, b]
    do:
      cmd: echo ${item}
"""


def test_freezing_leaves_the_files_that_dvc_leaves(project: Project) -> None:
    tracked(project)
    project.write("dvc.yaml", STAGES)
    project.write("odd.dvc", "# why\n" + project.read("f.dvc").replace("path: f", "path: odd # name\nmeta: {a: 1}"))
    project.write("odd", "first f")
    theirs = twin(project)
    for frozen, word in ((True, "freeze"), (False, "unfreeze")):
        targets = ("f.dvc", "odd.dvc", "one", "dvc.yaml:two")
        assert set(project.run("freeze", *targets, frozen=frozen)["changed"]) == {"f.dvc", "odd.dvc", "dvc.yaml"}
        project.dvc(word, *targets, cwd=theirs)
        assert visible(project.root) == visible(theirs)
        assert project.run("freeze", *targets, frozen=frozen)["changed"] == []
    assert not {"f.dvc", "odd.dvc"} & set(project.status())


@pytest.mark.parametrize("target", ["f", "many", "many@a", "nope", "dvc.yaml", "nope.dvc", "sub dir/dvc.yaml:one"])
def test_what_cannot_be_frozen_is_refused_and_nothing_is(project: Project, target: str) -> None:
    tracked(project)
    project.write("dvc.yaml", STAGES)
    before = project.snapshot()
    with pytest.raises((TargetError, UsageError)):
        project.run("freeze", "f.dvc", target, frozen=True)
    assert project.snapshot() == before
    assert "ERROR" in real_dvc().run("freeze", target, cwd=project.root).err


PIPELINE = """\
# All of it
vars:
- x: 1
stages:
  # first of all
  one:
    cmd: mkdir -p w && echo 1 > w/a && echo 2 > w/m
    wdir: .
    outs:
    - w/a:
        persist: true
    metrics:
    - w/m:
        cache: false
  # what two is for
  two:
    cmd: |
      cp a b
      # not a comment
    wdir: w
    deps: [a]
    outs: [b]

  # what three is for
  three:  # it is last
    cmd: cp w/b c
    deps:
    - w/b
    outs:
    - c
    # of three
# about plots
plots:
- w/m
"""


def plain(text: str) -> str:
    """YAML without its comments, as DVC leaves it."""
    return yamlio.dump(yamlio.load(text, "dvc.yaml"))


@pytest.mark.parametrize(
    ("targets", "outs"),
    [
        pytest.param(["one"], False, marks=pytest.mark.long),
        pytest.param(["two"], True, marks=pytest.mark.long),
        (["w/dvc.yaml:y", "dvc.yaml:three"], True),
        (["w/dvc.yaml", "two"], False),
    ],
)
def test_removed_stages_are_gone_as_in_dvc(project: Project, targets: list[str], outs: bool) -> None:
    project.write("dvc.yaml", PIPELINE)
    project.write("w/dvc.yaml", "stages:\n  y:\n    cmd: echo y > y\n    outs:\n    - y\n")
    project.dvc("repro", "-q", "-P")
    project.commit()
    theirs = project.base / "theirs"
    shutil.copytree(project.root, theirs, symlinks=True)
    found = project.run("remove", *targets, outs=outs, force=outs)
    project.dvc("remove", *targets, *(["--outs"] if outs else []), cwd=theirs)
    ours, wanted = visible(project.root), visible(theirs)
    comments = [line for line in project.read("dvc.yaml").splitlines() if "#" in line]
    assert plain(ours.pop("dvc.yaml").decode()) == plain(wanted.pop("dvc.yaml").decode())
    assert ours == wanted
    own = {"one": [], "two": ["  # what two is for", "      # not a comment"]}
    own["three"] = ["  # what three is for", "  three:  # it is last", "    # of three"]
    gone = {line for name in found["removed"] for line in own.get(name, [])}
    assert comments == [line for line in PIPELINE.splitlines() if "#" in line and line not in gone]
    assert project.dvc("status") == project.dvc("status", cwd=theirs)


def test_the_last_stage_takes_the_file_along_unless_it_says_more(project: Project) -> None:
    project.write("dvc.yaml", "stages:\n  s:\n    cmd: echo 1 > out\n    outs:\n    - out\n")
    project.dvc("repro", "-q")
    project.run("remove", "s")
    assert sorted(visible(project.root)) == [".dvcignore", "out"]
    project.write("dvc.yaml", "stages:\n  s:\n    cmd: echo 1 > out\n\n# mine\nplots:\n- out\n")
    project.run("remove", "dvc.yaml")
    assert project.read("dvc.yaml") == "# mine\nplots:\n- out\n"


def test_what_another_pointer_has_too_stays(project: Project) -> None:
    tracked(project)
    project.write("other.dvc", project.read("f.dvc"))
    ignored = project.read(".gitignore")
    project.run("remove", "f.dvc", outs=True)
    assert project.read("f") == "first f" and project.read(".gitignore") == ignored
    project.run("remove", "other.dvc", outs=True)
    assert not (project.root / "f").exists() and "/f\n" not in project.read(".gitignore")


def test_a_broken_neighbour_does_not_keep_a_pointer(project: Project) -> None:
    tracked(project)
    project.write("f.dvc", "<<<<<<< a\n=======\n>>>>>>> b\n")
    project.run("remove", "d.dvc")
    with pytest.raises(InvalidFileError, match=r"f\.dvc' line 1.*conflict markers"):
        project.run("remove", "f.dvc")


NAMES = st.text("ab-#:é \"'", min_size=1, max_size=4)
SCALARS = st.one_of(NAMES, st.integers(0, 3), st.just("a\nb # c\n\n"), st.just(""))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))


@given(stages=st.dictionaries(NAMES, VALUES, min_size=2, max_size=4), flow=st.booleans(), data=st.data())
def test_a_stage_cut_out_leaves_all_others(stages: dict[str, Any], flow: bool, data: st.DataObject) -> None:
    text = yamlio.dump({"stages": stages, "plots": ["x"]}) if not flow else json.dumps({"stages": stages}) + "\n"
    noted = data.draw(st.booleans()) and not flow
    if noted:
        text = "# top\n\n" + text.replace("plots:", "# of plots\nplots:")
    name = data.draw(st.sampled_from(sorted(stages)))
    left = without_stage(text, "dvc.yaml", name)
    assert yamlio.load(left, "x")["stages"] == {
        key: value for key, value in yamlio.load(text, "x")["stages"].items() if key != name
    }
    assert not noted or (left.startswith("# top\n\n") and "# of plots\nplots:" in left)


@pytest.mark.parametrize("name", ["unlink", "rename", "fsync"])
def test_a_broken_off_removal_of_stages_is_ended_by_the_same_command(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The n-th call fails, for every n: whole files at any time, and the second attempt leaves what one without faults does."""
    project.write("dvc.yaml", PIPELINE)
    project.dvc("repro", "-q")
    before = visible(project.root)
    project.run("remove", "one", "three")
    wanted = visible(project.root)
    real: Callable[..., Any] = getattr(os, name)
    for nth in range(30):
        for path, content in before.items():
            (project.root / path).write_bytes(content)
        calls = 0

        def fails(*args: Any, nth: int = nth, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth + 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(args[0]))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fails)
            with contextlib.suppress(MillpondError):
                project.run("remove", "one", "three")
        left = visible(project.root)
        assert all(left.get(path) in (before[path], wanted.get(path)) for path in before)
        if left != wanted:
            project.run("remove", "one", "three")
        assert visible(project.root) == wanted
        if calls <= nth:
            return
    raise AssertionError("it never ran to its end")
