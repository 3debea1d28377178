"""`init` and `root` against real DVC."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project, opened

from millpond.daemon.errors import ConflictError, MillpondError, TargetError
from millpond.daemon.store.store import Store, StoreSettings


def files(root: Path) -> dict[str, str]:
    """The repository's files but for DVC's scratch folder."""
    return {
        str(path.relative_to(root)): path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] != ".git" and ".dvc/tmp" not in str(path)
    }


@pytest.mark.parametrize("options", [{}, {"no_scm": True}])
def test_same_files_as_dvc(tmp_path: Path, options: dict[str, bool]) -> None:
    other = tmp_path / "dvc"
    other.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=other, check=True)
    real_dvc().ok("init", "-q", *(["--no-scm"] if options else []), cwd=other)
    with opened(tmp_path, git=not options) as project:
        assert files(project.root) == files(other)
        if not options:
            assert (
                project.git("status", "--short")
                == subprocess.run(
                    ["git", "status", "--short"], cwd=other, check=True, text=True, stdout=subprocess.PIPE
                ).stdout
            )
        assert project.dvc("status", "--json").strip() == "{}"


def test_subdir(project: Project) -> None:
    sub = project.root / "sub"
    sub.mkdir()
    with pytest.raises(TargetError, match="--subdir"):
        project.run("init", cwd=sub)
    assert list(sub.iterdir()) == []
    result = project.run("init", cwd=sub, subdir=True)
    assert result == {"root": str(sub), "files": [".dvc/.gitignore", ".dvc/config", ".dvcignore"]}
    assert "A  sub/.dvc/config" in project.git("status", "--short")
    assert project.run("root", cwd=sub) == {"root": str(sub), "relative": "."}
    real_dvc().ok("status", cwd=sub)


def test_again_needs_force_and_keeps_the_cache(project: Project) -> None:
    before = project.snapshot()
    with pytest.raises(ConflictError, match="'.dvc' exists"):
        project.run("init")
    assert project.snapshot() == before
    project.write(".dvc/cache/files/md5/aa/bb", "data")
    project.write(".dvc/config", "[core]\n    autostage = true\n")
    project.write(".dvcignore", "*.tmp\n")
    project.run("init", force=True)
    assert project.read(".dvc/config") == ""
    assert project.read(".dvcignore") == "*.tmp\n"
    assert project.read(".dvc/cache/files/md5/aa/bb") == "data"


def test_where_git_ignores_dvc(tmp_path: Path) -> None:
    store = Store.open(StoreSettings(path=tmp_path / "store", fsync=False, reserve_bytes=0))
    project = Project(tmp_path, store)
    project.root.mkdir()
    try:
        with pytest.raises(TargetError, match="not the root of a Git repository"):
            project.run("init")
        project.git("init", "-q")
        project.write(".gitignore", ".dvc\n")
        with pytest.raises(MillpondError, match="'.dvc' is ignored by Git"):
            project.run("init")
        assert sorted(path.name for path in project.root.iterdir()) == [".git", ".gitignore"]
    finally:
        store.close()


def test_root_from_below_and_through_a_link(project: Project) -> None:
    below = project.root / "a" / "b"
    below.mkdir(parents=True)
    (project.base / "alias").symlink_to(below)
    assert project.run("root", cwd=below) == {"root": str(project.root), "relative": "../.."}
    assert project.run("root", cwd=project.base / "alias")["root"] == os.path.realpath(project.root)


def test_users_own_git_rules_hold(project: Project) -> None:
    """The caller's environment decides, not that of the process which loaded libgit2."""
    home = project.base / "home"
    (home / ".config" / "git").mkdir(parents=True)
    (home / ".config" / "git" / "ignore").write_text("*.big\n")
    project.write("x.big", "x")
    project.environ |= {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")}
    assert project.add("x.big")["git_add"] == ["x.big.dvc"]
    assert not (project.root / ".gitignore").exists()
    project.environ["XDG_CONFIG_HOME"] = str(project.base / "xdg-config")
    assert project.add("x.big")["git_add"] == ["x.big.dvc", ".gitignore"]
