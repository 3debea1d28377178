"""`install` and the merge driver: what is written where, beside DVC's; three versions made one, with libgit2 as oracle."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pygit2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project

from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError, InvalidFileError, MillpondError, ObjectMissingError, UsageError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import dvcfile, manifest
from millpond.daemon.project.hooks import HOOKS
from millpond.daemon.project.merge import merged_tree


def hooks_of(project: Project) -> dict[str, str]:
    folder = project.root / ".git/hooks"
    return {path.name: path.read_text() for path in folder.iterdir() if not path.name.endswith(".sample")}


def test_hooks_and_driver_are_installed_over_dvc_s_own(project: Project) -> None:
    fresh = project.run("install")
    assert fresh == {"hooks": [f".git/hooks/{name}" for name in HOOKS], "replaced": [], "attributes": False}
    ours = hooks_of(project)
    assert ours == {name: f'#!/bin/sh\nexec millpond git-hook {name} "$@"\n' for name in HOOKS}
    for name in HOOKS:
        (project.root / ".git/hooks" / name).unlink()
    project.dvc("install")
    assert "dvc git-hook merge-driver" in project.git("config", "merge.dvc.driver")
    found = project.run("install")
    assert found["replaced"] == found["hooks"]
    assert hooks_of(project) == ours
    for name in HOOKS:
        assert stat.S_IMODE((project.root / ".git/hooks" / name).stat().st_mode) & 0o111 == 0o111
    assert project.git("config", "merge.dvc.driver").startswith("millpond git-hook merge-driver --ancestor %O --our %A")
    project.write(".gitattributes", "# why\n*.csv text\n*.dvc text merge=dvc\n")
    assert project.run("install") == found | {"replaced": [], "attributes": True}


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("#!/bin/sh\necho mine\n", "there is a pre-push hook already, '.git/hooks/pre-push'"),
        ("#!/bin/sh\n# like millpond git-hook pre-push\n", "add the line `millpond git-hook pre-push"),
        ("#!/bin/sh\necho mine\nexec dvc git-hook pre-push $@\n", "runs DVC's hook and more"),
    ],
)
def test_another_tool_s_hook_is_kept_and_nothing_installed(project: Project, text: str, needle: str) -> None:
    hook = project.write(".git/hooks/pre-push", text)
    with pytest.raises(ConflictError, match="pre-push") as caught:
        project.run("install")
    assert needle in str(caught.value) and "\n" not in str(caught.value)
    assert hooks_of(project) == {"pre-push": text}
    assert "merge.dvc" not in project.git("config", "--list")
    # As the hint says.
    hook.write_text(text.replace("exec dvc git-hook pre-push $@\n", "") + 'millpond git-hook pre-push "$@"\n')
    before = hook.read_text()
    project.run("install")
    assert hook.read_text() == before and len(hooks_of(project)) == 3


def test_a_linked_hook_is_another_tool_s(project: Project) -> None:
    (project.root / ".git/hooks").mkdir(exist_ok=True)
    (project.root / ".git/hooks/pre-commit").symlink_to("gone")
    with pytest.raises(ConflictError, match="pre-commit hook already"):
        project.run("install")


def test_hooks_go_where_git_looks_for_them(project: Project) -> None:
    project.write("f", "1")
    project.commit()
    project.git("worktree", "add", "-q", "../other")
    other = project.base / "other"
    assert project.run("install", cwd=other)["hooks"][0] == "../repo/.git/hooks/post-checkout"
    assert set(hooks_of(project)) == set(HOOKS)
    project.git("config", "core.hooksPath", "tools/hooks")
    assert project.run("install")["hooks"] == [f"tools/hooks/{name}" for name in HOOKS]
    assert os.access(project.root / "tools/hooks/pre-push", os.X_OK)


def test_without_git_there_is_nothing_to_install(project: Project) -> None:
    project.run("config", name="core.no_scm", value="true")
    with pytest.raises(UsageError, match="not in a Git repository"):
        project.run("install")


def test_the_pre_commit_tool_s_file_keeps_what_it_has(project: Project) -> None:
    # As the tool documents its file, and with DVC's entry in it.
    project.write(".pre-commit-config.yaml", "# ours\nrepos:\n- repo: meta\n  hooks:\n  - id: identity # first\n")
    project.dvc("install", "--use-pre-commit-tool")
    assert project.run("install", pre_commit=True)["hooks"] == [".pre-commit-config.yaml"]
    text = project.read(".pre-commit-config.yaml")
    assert text.startswith("# ours\nrepos:\n- repo: meta\n  hooks:\n  - id: identity # first\n- repo: local\n")
    assert "treeverse" not in text
    assert text.count("entry: millpond git-hook post-checkout\n") == 1
    project.run("install", pre_commit=True)
    assert project.read(".pre-commit-config.yaml") == text
    assert hooks_of(project) == {}
    for bad in ("[1]\n", "repos: 3\n", "repos: [3]\n", "repos: [\n"):
        project.write(".pre-commit-config.yaml", bad)
        with pytest.raises(InvalidFileError):
            project.run("install", pre_commit=True)
        assert project.read(".pre-commit-config.yaml") == bad


def merge(project: Project, ancestor: str, our: str, their: str, where: str = "d.dvc") -> str:
    """The driver's outcome, in a file as Git makes it."""
    for side, text in (("O", ancestor), ("A", our), ("B", their)):
        project.write(f".merge_file_{side}", text)
    ancestor, our, their = (wirepath.encode(f".merge_file_{side}") for side in "OAB")
    try:
        project.run("merge-driver", ancestor=ancestor, our=our, their=their, path=wirepath.encode(where))
        return project.read(".merge_file_A")
    finally:
        for side in "OAB":
            (project.root / f".merge_file_{side}").unlink()


def version(project: Project, files: dict[str, str], name: str = "d") -> str:
    """The pointer of a directory with these files, which `add` has stored."""
    if (project.root / name).exists():
        shutil.rmtree(project.root / name)
    for path, data in files.items():
        project.write(f"{name}/{path}", data)
    project.add(name)
    return project.read(f"{name}.dvc")


BASE = {"a": "1", "s/b": "2", "c": "3"}


@pytest.mark.parametrize(
    ("base", "our", "their", "merged"),
    [
        (BASE, BASE | {"n": "4"}, BASE | {"s/m": "5"}, BASE | {"n": "4", "s/m": "5"}),
        (BASE, BASE | {"a": "9"}, {"a": "1", "c": "3"}, {"a": "9", "c": "3"}),
        (BASE, BASE | {"n": "4"}, BASE | {"n": "4", "c": "8"}, BASE | {"n": "4", "c": "8"}),
        (None, {"a": "1"}, {"b": "2"}, {"a": "1", "b": "2"}),
    ],
)
def test_two_versions_are_merged_as_dvc_merges_them(
    project: Project, base: dict[str, str] | None, our: dict[str, str], their: dict[str, str], merged: dict[str, str]
) -> None:
    texts = ["" if files is None else version(project, files) for files in (base, our, their)]
    expected = version(project, merged)
    (project.root / "d.dvc").write_text(texts[1])
    text = merge(project, *texts)
    assert text == expected
    # What DVC makes of the same: its objects are all in its cache.
    for each in (*texts, expected):
        if each:
            project.write("d.dvc", each)
            project.export()
    for side, each in zip("OAB", texts, strict=True):
        project.write(side, each)
    project.dvc("git-hook", "merge-driver", "--ancestor", "O", "--our", "A", "--their", "B")
    assert project.read("A") == text


def test_comments_and_annotations_of_ours_stay(project: Project) -> None:
    texts = [version(project, files) for files in (BASE, BASE | {"n": "4"}, BASE | {"m": "5"})]
    texts = [f"# why\n{text.replace('  path: d', '  path: d # here')}desc: mine\n" for text in texts]
    merged = merge(project, *texts)
    assert merged.startswith("# why\n") and "path: d # here\ndesc: mine\n" in merged
    assert dvcfile.parse(merged, "d.dvc").outs[0].nfiles == 5


def test_the_merged_manifest_is_in_dvc_s_cache_where_that_is_used(project: Project) -> None:
    texts = [version(project, files) for files in (BASE, BASE | {"n": "4"}, BASE | {"m": "5"})]
    project.export()
    name = dvcfile.parse(merge(project, *texts), "d.dvc").outs[0].name
    path = project.open().cache.path_of(name) if name is not None else None
    assert path is not None and name == manifest.manifest_name(Path(path).read_bytes())


@pytest.mark.parametrize(
    ("our", "their", "needle"),
    [
        (BASE | {"a": "8"}, BASE | {"a": "9"}, "'a' was changed by both"),
        (BASE | {"n": "8"}, BASE | {"n": "9"}, "'n' was added by both"),
        ({"a": "1", "s/b": "2"}, BASE | {"c": "9"}, "'c' was deleted here and changed there"),
        (BASE | {"c": "9"}, {"a": "1", "s/b": "2"}, "'c' was changed here and deleted there"),
        (BASE | {"x": "9"}, BASE | {"x/y": "9"}, "'x' is a file in one version and a folder in the other"),
    ],
)
def test_what_both_changed_is_named(project: Project, our: dict[str, str], their: dict[str, str], needle: str) -> None:
    texts = [version(project, files) for files in (BASE, our, their)]
    before = project.snapshot()
    with pytest.raises(ConflictError) as caught:
        merge(project, *texts)
    assert needle in str(caught.value) and "'d.dvc' cannot be merged" in str(caught.value)
    assert project.snapshot() == before


def test_what_is_no_plain_directory_is_not_merged(project: Project) -> None:
    base, our, their = (version(project, files) for files in (BASE, BASE | {"n": "4"}, BASE | {"m": "5"}))
    project.write("f", "1")
    project.add("f")
    file = project.read("f.dvc")
    imported = f"{our}deps:\n- path: elsewhere\n"
    legacy = [text.replace("  hash: md5\n", "") for text in (base, our, their)]
    cases: list[tuple[list[str], str]] = [
        ([file, file.replace("md5: ", "md5: 0"[:5]), file], "only directories"),
        ([base, our.replace("path: d", "path: d\n  desc: x"), their], "more than data"),
        ([base, imported, their], "was not made by `add`"),
        (legacy, "only directories of DVC 3"),
        ([base, our, f"{their}- path: g\n"], "was not made by `add`"),
    ]
    for texts, needle in cases:
        with pytest.raises(ConflictError, match=needle):
            merge(project, *texts)
    with pytest.raises(InvalidFileError, match="'d.dvc' line"):
        merge(project, base, "outs: [\n", their)
    gone = their.replace(their[13:20], "0123456")
    with pytest.raises(ObjectMissingError, match="not stored here"):
        merge(project, base, our, gone)
    # DVC refuses the same.
    project.write("O", base)
    project.write("A", our.replace("path: d", "path: d\n  desc: x"))
    project.write("B", their)
    ran = real_dvc().run("git-hook", "merge-driver", "--ancestor", "O", "--our", "A", "--their", "B", cwd=project.root)
    assert ran.code and "different options" in ran.err


def test_a_side_that_removed_its_outs_leaves_the_other(project: Project) -> None:
    base, our = version(project, BASE), version(project, BASE | {"n": "4"})
    assert merge(project, base, our, "outs: []\n") == our
    assert merge(project, base, "outs: []\n", our) == our


@pytest.mark.parametrize("name", ["rename", "fsync", "open"])
def test_a_merge_that_fails_changes_nothing(project: Project, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The n-th call fails, for every n until it works."""
    texts = [version(project, files) for files in (BASE, BASE | {"n": "4"}, BASE | {"m": "5"})]
    real: Callable[..., Any] = getattr(os, name)
    for nth in range(30):
        calls = 0

        def fails(*args: Any, nth: int = nth, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth + 1 and str(args[0]).startswith(str(project.root)):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(args[0]))
            return real(*args, **kwargs)

        before = project.snapshot()
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fails)
            try:
                merged = merge(project, *texts)
                done = calls <= nth
            except MillpondError:
                assert project.snapshot() == before
                continue
        assert dvcfile.parse(merged, "d.dvc").outs[0].nfiles == 5
        if done:
            return
    raise AssertionError("it never ran to its end")


TREES = st.dictionaries(st.sampled_from(["a", "b", "c", "s/a", "s/b", "s"]), st.integers(0, 2), max_size=5).filter(
    lambda tree: not ("s" in tree and any(path.startswith("s/") for path in tree))
)


@given(TREES, TREES, TREES)
@example({"a": 0, "s/a": 0}, {"s/b": 0}, {"s": 0})
def test_merging_is_git_s_merging(
    tmp_path_factory: pytest.TempPathFactory, base: dict[str, int], our: dict[str, int], their: dict[str, int]
) -> None:
    repo = _repository(tmp_path_factory)
    sides = [{path: ObjectName("md5", f"{value:032x}") for path, value in side.items()} for side in (base, our, their)]
    index = repo.merge_trees(*(_git_tree(repo, side) for side in (base, our, their)), flags=pygit2.enums.MergeFlag(0))
    # Where one side has a file and the other a folder libgit2 may say nothing, and have both: no tree can.
    paths = {entry.path for entry in index}
    is_conflict = index.conflicts is not None or any(os.path.dirname(path) in paths for path in paths)
    try:
        found = merged_tree("d.dvc", *sides)
    except ConflictError as error:
        assert is_conflict, error
        return
    assert not is_conflict
    assert {path: int(name.value, 16) for path, name in found.items()} == {
        entry.path: int(repo[entry.id].data) for entry in index
    }


def _repository(factory: pytest.TempPathFactory) -> Any:
    folder = factory.getbasetemp() / "merging.git"
    return pygit2.Repository(str(folder)) if folder.exists() else pygit2.init_repository(str(folder), bare=True)


def _git_tree(repo: Any, files: dict[str, int]) -> Any:
    index = pygit2.Index()
    for path, value in files.items():
        index.add(pygit2.IndexEntry(path, repo.create_blob(str(value)), pygit2.enums.FileMode.BLOB))
    return repo[index.write_tree(repo)]
