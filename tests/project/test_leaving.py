"""`unprotect` and `destroy`: as real DVC leaves a project, and nothing of the workspace lost whatever fails in the middle."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from tests.project.verbhelp import Project

from millpond.daemon.errors import InvalidFileError, MillpondError, NotARepoError, TargetError

DATA = ("d/a", "d/sub/b", "f", "sub dir/g")
STAGES = "stages:\n  s:\n    cmd: cp f out\n    deps:\n    - f\n    outs:\n    - out\n"
LOCK = """schema: '2.0'
stages:
  s:
    cmd: cp f out
    deps:
    - path: f
      hash: md5
      md5: {md5}
      size: 7
    outs:
    - path: out
      hash: md5
      md5: {md5}
      size: 7
"""


def linked(project: Project, kind: str) -> None:
    """Tracked data, an output of a stage among it, that lies in the workspace as links into DVC's cache."""
    for name in DATA:
        project.write(name, f"first {name}")
    project.add("d", "f", "sub dir/g")
    project.write("dvc.yaml", STAGES)
    project.write("dvc.lock", LOCK.format(md5=md5(b"first f").hexdigest()))
    project.write("out", "first f")
    project.write(".gitignore", project.read(".gitignore") + "/out\n")
    project.export()
    project.git("config", "-f", ".dvc/config", "cache.type", kind)
    project.commit()
    link(project.root, Path(project.open().cache.folder), kind)


def link(root: Path, cache: Path, kind: str) -> None:
    """Have the workspace's files be links as DVC makes them."""
    for name in (*DATA, "out"):
        file = root / name
        value = md5(file.read_bytes()).hexdigest()
        stored = cache / "files/md5" / value[:2] / value[2:]
        stored.chmod(0o444)
        file.unlink()
        if kind == "symlink":
            file.symlink_to(stored)
        else:
            file.hardlink_to(stored)


def twin(project: Project, kind: str) -> Path:
    """Another project in the same state, for DVC: the links of a copy would lead into the first one's cache."""
    path = project.base / "theirs"
    shutil.copytree(project.root, path)
    link(path, path / ".dvc/cache", kind)
    return path


def files(root: Path) -> dict[str, tuple[bytes, bool, int]]:
    """What is in a workspace: bytes, whether it is a link, and the mode."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.relative_to(root).parts[0] != ".git":
            found[str(path.relative_to(root))] = path.read_bytes(), path.is_symlink(), path.stat().st_mode
    return found


def data(root: Path) -> dict[str, tuple[bytes, bool, int]]:
    return {name: each for name, each in files(root).items() if not name.startswith(".dvc/")}


@pytest.mark.parametrize(("kind", "targets"), [("symlink", ["d"]), ("hardlink", ["f", "d/sub"])])
def test_links_become_files_as_in_dvc(project: Project, kind: str, targets: list[str]) -> None:
    linked(project, kind)
    theirs = twin(project, kind)
    project.run("unprotect", *targets)
    for target in targets:
        project.dvc("unprotect", target, cwd=theirs)
    assert data(project.root) == data(theirs)
    assert project.status() == {}
    assert "up to date" in project.dvc("status")


def test_what_is_not_dvc_s_keeps_its_mode(project: Project) -> None:
    project.write("mine", "x").chmod(0o600)
    project.write("run.sh", "x").chmod(0o555)
    before = os.stat(project.root / "mine")
    assert project.run("unprotect", "mine", "run.sh")["files"] == 1
    assert os.stat(project.root / "mine") == before
    assert os.stat(project.root / "run.sh").st_mode & 0o777 == 0o755


def test_what_cannot_be_unprotected_is_said_first(project: Project) -> None:
    linked(project, "symlink")
    (project.root / "folder").symlink_to("sub dir")
    for target, needle in (("none", "does not exist"), ("folder", "link to a folder"), (".dvc/cache", "DVC's own")):
        with pytest.raises(TargetError, match=needle):
            project.run("unprotect", "f", target)
        assert (project.root / "f").is_symlink()


@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_a_destroyed_project_is_as_dvc_leaves_it(project: Project, kind: str) -> None:
    linked(project, kind)
    project.write("sub dir/dvc.yaml", "plots:\n- a.csv\n")
    project.write("inner/.dvcignore", "x\n")
    theirs = twin(project, kind)
    told = project.run("destroy", dry=True)
    assert set(told["files"]) == {"d.dvc", "f.dvc", "sub dir/g.dvc", "dvc.yaml", "dvc.lock", ".dvcignore"}
    assert (
        told["cache"]["objects"] == 5 and told["cache"]["unstored"] == 0
    )  # f and out are one, d is two and a manifest
    assert data(project.root) == data(theirs), "nothing was done"
    project.run("destroy")
    project.dvc("destroy", "-f", cwd=theirs)
    assert files(project.root) == files(theirs)
    assert not (project.root / ".dvc").exists()
    assert not any(link for _, link, _ in files(project.root).values())
    with pytest.raises(NotARepoError):
        project.run("destroy")


def test_what_the_store_has_stays(project: Project) -> None:
    project.write("d/a", "first")
    project.add("d")
    project.commit()
    project.run("destroy")
    shutil.rmtree(project.root / "d")
    project.git("checkout", "-q", "--", ".")
    project.checkout()
    assert project.read("d/a") == "first"


def test_a_cache_elsewhere_stays(project: Project) -> None:
    project.dvc("cache", "dir", "../shared")
    linked(project, "symlink")
    objects = files(project.base / "shared")
    assert objects
    assert project.run("destroy")["cache"]["objects"] == 0
    assert files(project.base / "shared") == objects
    assert project.read("f") == "first f" and not (project.root / "f").is_symlink()


def test_nothing_is_destroyed_when_something_cannot_be_read(project: Project) -> None:
    linked(project, "symlink")
    project.write("f.dvc", "<<<<<<< HEAD\nouts: []\n=======\nouts: []\n>>>>>>> other\n")
    before = files(project.root)
    with pytest.raises(InvalidFileError, match="conflict markers"):
        project.run("destroy")
    assert files(project.root) == before


@pytest.mark.parametrize("name", ["unlink", "rename", "rmdir", "open", "stat", "lstat"])
def test_whatever_fails_a_destruction_loses_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The n-th call fails, for every n: all data can be read, and a second attempt ends it."""
    linked(project, "symlink")
    saved = project.base / "saved"
    shutil.copytree(project.root, saved, symlinks=True)
    wanted = {path: (project.root / path).read_bytes() for path in (*DATA, "out")}
    real: Callable[..., Any] = getattr(os, name)
    for nth in range(200):
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
                project.run("destroy")
                failed = False
            except (MillpondError, OSError):
                failed = True
        assert {path: (project.root / path).read_bytes() for path in wanted} == wanted
        if (project.root / ".dvc").is_dir():
            assert failed
            project.run("destroy")
        assert sorted(path for path in files(project.root) if not path.endswith(".gitignore")) == sorted(wanted)
        if calls <= nth:
            return
        shutil.rmtree(project.root)
        shutil.copytree(saved, project.root, symlinks=True)
    raise AssertionError("it never ran to its end")
