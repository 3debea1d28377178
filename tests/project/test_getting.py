"""get, get-url, list-url, and the clones of other repositories: real DVC as oracle on the same sources."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from tests.project.elsewhere import Elsewhere, commit, git, git_server, run, write
from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project

from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError, MillpondError, RemoteError, RevisionError, TargetError
from millpond.daemon.project import yamlio
from millpond.daemon.project.importing import clones


def test_get_brings_what_import_would(project: Project, elsewhere: Elsewhere) -> None:
    """Outside of any repository, too; a folder is there as a whole or not at all."""
    outside = project.base / "outside"
    outside.mkdir()
    url = "../elsewhere/dvc"

    def get(path: str, **params: Any) -> dict[str, Any]:
        return run(project, "get", url, path, cwd=outside, **params)

    assert get("data")["files"] == 3 and get("plain")["bytes"] == 3
    assert (outside / "data/one").read_text() == "11\n" and (outside / "plain").read_text() == "p2\n"
    get("data/one", rev="v1", out="deep/er/one")
    assert (outside / "deep/er/one").read_text() == "1\n"
    with pytest.raises(TargetError, match="already exists"):
        get("data")
    write({"data/one": "mine\n", "data/own": "o\n"}, outside)
    get("data", force=True)
    assert (outside / "data/one").read_text() == "11\n" and (outside / "data/own").exists()
    (outside / "y/plain").mkdir(parents=True)
    with pytest.raises(ConflictError, match="is a folder"):
        get("plain", out="y/", force=True)
    with pytest.raises(TargetError, match="DVC file"):
        get("data", out="a.dvc")
    with pytest.raises(TargetError, match="not in"):
        get("nothing")
    cache = real_dvc().ok("get", "--show-url", str(elsewhere.dvc), "data", cwd=outside).strip()
    assert wirepath.decode(get("data", show_url=True)["storage"]) == cache
    five = wirepath.decode(get("inner/deep/five", show_url=True)["storage"])
    assert five.startswith(str(elsewhere.dvc / "inner/.dvc/cache")) and Path(five).read_text() == "5\n"
    with pytest.raises(TargetError, match="no storage"):
        get("plain", show_url=True)
    assert not [path for path in outside.rglob(".millpond*")]
    (told,) = run(project, "get", "../elsewhere/git", ".", cwd=outside, out="whole")["warnings"]
    assert "'folder' is a link to a folder" in told and not os.path.lexists(outside / "whole/folder")
    run(project, "get", "../elsewhere/git", "folder", cwd=outside, out="followed")
    assert (outside / "followed/l").read_text() == "1\n"


def test_get_url_and_list_url(project: Project, elsewhere: Elsewhere) -> None:
    outside = project.base / "outside"
    outside.mkdir()
    git(elsewhere.files, "init", "-q")
    for url in ("../elsewhere/files", elsewhere.files.as_uri()):
        name = f"got-{len(url)}"
        run(project, "get-url", url, out=name, cwd=outside)
        assert (outside / name / ".git/HEAD").exists(), "all of it"
    run(project, "get-url", "../elsewhere/files/f.txt", cwd=outside)
    assert (outside / "f.txt").read_text() == "hello\n"
    shutil.rmtree(elsewhere.files / ".git")

    def listed(**params: Any) -> list[str]:
        rows = run(project, "list-url", str(elsewhere.files), cwd=outside, **params)["rows"]
        return [wirepath.decode(row[0]) for row in rows]

    for params, words in (
        ({}, []),
        ({"recursive": True}, ["-R"]),
        ({"recursive": True, "level": 2}, ["-R", "-L", "2"]),
    ):
        expected = real_dvc().ok("list-url", *words, str(elsewhere.files), cwd=outside).split()
        assert listed(**params) == sorted(expected)
    assert listed(tree=True) == [str(elsewhere.files), "d", "d/a", "d/sub", "d/sub/b", "d/sub/c", "f.txt"]
    with pytest.raises(TargetError, match="there is nothing"):
        run(project, "list-url", "nothing", cwd=outside)


def test_clones_are_kept_fetched_and_bounded(
    project: Project, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A url of a Git server: here over Git's own transport of another program's repository."""
    with git_server(elsewhere.top) as base:
        url = f"{base}/git"
        run(project, "import", url, "a")
        top = project.base / "xdg-cache/millpond-user/clones"
        (clone,) = top.glob("*.git")
        assert stat.S_IMODE(top.stat().st_mode) == 0o700
        write({"a": "later\n"}, elsewhere.git)
        commit(elsewhere.git)
        assert project.status(updates=True) == {"a.dvc": [{"changed deps": {f"a ({url})": "update available"}}]}
        assert project.run("update", "a.dvc")["imports"][0]["changed"] and project.read("a") == "later\n"
        lock = yamlio.load(project.read("a.dvc"), "a.dvc")["deps"][0]["repo"]["rev_lock"]
        assert lock == git(elsewhere.git, "rev-parse", "HEAD")
        monkeypatch.setattr(clones, "MAX_CLONES", 1)
        run(project, "get", f"{base}/dvc", "plain", out="got")
        assert not clone.exists() and len(list(top.glob("*.git"))) == 1
        rows = run(project, "list", f"{base}/dvc", detail=True)["rows"]
        assert "plain" in [wirepath.decode(row[0]) for row in rows]
        with pytest.raises(RevisionError):
            run(project, "get", url, "a", out="x", rev="none")
    with pytest.raises(RemoteError, match="Git cannot get"):
        run(project, "get", url, "a", out="x")
    run(project, "get", url, "a", out="y", rev=lock)  # that commit cannot have moved: nobody is asked


def test_a_repository_s_address_runs_no_command(project: Project, elsewhere: Elsewhere) -> None:
    """Addresses are in files of other people's repositories."""
    mark = project.base / "ran"
    for url in (f"ext::touch {mark}", f"--upload-pack=touch {mark}:x"):
        with pytest.raises(MillpondError):
            run(project, "get", url, "a", out="x")
    assert not mark.exists()
