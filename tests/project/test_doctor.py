"""`doctor` finds what was broken, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from tests.project.verbhelp import Project, opened


def troubles(project: Project, cwd: Path | None = None) -> dict[str, str]:
    """Failed checks but for FUSE, which is the machine's matter: name to detail."""
    checks = project.run("doctor", cwd=cwd)["checks"]
    assert all(check["hint"] for check in checks if not check["ok"]), "every trouble comes with advice"
    return {
        check["name"]: check["detail"]
        for check in checks
        if not check["ok"] and check["name"] not in ("fuse", "fusermount3")
    }


def test_healthy(project: Project) -> None:
    assert troubles(project) == {}
    names = [check["name"] for check in project.run("doctor")["checks"]]
    assert len(names) == len(set(names)) and {"store", "git", "pointers", "stat cache", "beside dvc"} <= set(names)


def test_outside_of_a_repository(project: Project) -> None:
    assert troubles(project, cwd=Path("/")) == {}


def test_broken_things_are_found(project: Project) -> None:
    project.write("bad.dvc", "outs: [\n")
    project.write(".dvcignore", "!\n")
    found = troubles(project)
    assert set(found) == {"pointers", "ignore rules"}
    (project.root / ".dvcignore").unlink()
    assert "line 2" in troubles(project)["pointers"]
    project.write(".dvc/config", "nonsense\n")
    assert set(troubles(project)) == {"repository"}


def test_git_that_is_gone(project: Project) -> None:
    (project.root / ".git").rename(project.base / "git")
    assert set(troubles(project)) == {"git"}


def test_no_scm(tmp_path: Path) -> None:
    with opened(tmp_path, git=False) as project:
        assert troubles(project) == {}


def test_dvc_beside_us_is_told(project: Project) -> None:
    def told() -> str:
        (check,) = [check for check in project.run("doctor")["checks"] if check["name"] == "beside dvc"]
        assert check["ok"]
        return str(check["detail"])

    assert told() == "DVC itself was not used here"
    project.write("f", "f")
    project.dvc("add", "f")
    assert "its cache holds objects" in told()
    project.dvc("install")
    assert "pre-push hook" in told()


def test_nothing_is_written(project: Project) -> None:
    before = project.snapshot(), sorted(os.listdir(project.root / ".dvc"))
    project.run("doctor")
    assert (project.snapshot(), sorted(os.listdir(project.root / ".dvc"))) == before
