"""The fixtures of the verbs' tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.project.elsewhere import Elsewhere, Pair, commit, git, write
from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project, opened


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with opened(tmp_path) as found:
        yield found


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("elsewhere")
    here = Elsewhere(top)
    dvc = real_dvc()
    for folder in (here.dvc, here.git):
        folder.mkdir()
        git(folder, "init", "-q", "-b", "main")
    write({"a": "1\n", "d/b": "2\n"}, here.git)
    (here.git / "a").chmod(0o755)
    os.symlink("../a", here.git / "d/l")
    os.symlink("d", here.git / "folder")
    commit(here.git)
    write({"f.txt": "hello\n", "d/a": "a\n", "d/sub/b": "b\n", "d/sub/c": ""}, here.files)
    (here.files / "f.txt").chmod(0o755)
    dvc.ok("init", "-q", cwd=here.dvc)
    write({"data/one": "1\n", "data/sub/two": "2\n", "mix/tracked": "t\n", "mix/git": "g\n", "plain": "p\n"}, here.dvc)
    write({"ruled/out": "x\n", "ruled/in": "y\n", ".dvcignore": "out\n"}, here.dvc)
    dvc.ok("add", "-q", "data", "mix/tracked", cwd=here.dvc)
    (here.dvc / "inner").mkdir()
    dvc.ok("init", "-q", "--subdir", cwd=here.dvc / "inner")
    write({"deep/five": "5\n"}, here.dvc / "inner")
    dvc.ok("add", "-q", "deep", cwd=here.dvc / "inner")
    commit(here.dvc, "v1")
    write({"data/one": "11\n", "data/three": "3\n", "plain": "p2\n"}, here.dvc)
    dvc.ok("add", "-q", "data", cwd=here.dvc)
    commit(here.dvc, "v2")
    return top


@pytest.fixture
def elsewhere(built: Path, tmp_path: Path) -> Elsewhere:
    """A copy: tests change it."""
    shutil.copytree(built, tmp_path / "elsewhere", symlinks=True)
    return Elsewhere(tmp_path / "elsewhere")


@pytest.fixture
def pair(project: Project) -> Iterator[Pair]:
    theirs = project.base / "them"
    theirs.mkdir()
    git(theirs, "init", "-q")
    real_dvc().ok("init", "-q", cwd=theirs)
    yield Pair(project, theirs)
