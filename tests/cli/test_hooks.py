"""`install` in real Git: hooks that Git runs, the driver that Git asks, in work trees and sub-projects too."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.cli.helpers import TIMEOUT_S, Home

from millpond.cli import exits


@pytest.fixture
def user(home: Home, tmp_path: Path) -> Home:
    """A user with a repository of two versions of a directory, on branches one and two; `millpond` is in PATH."""
    home.extra["PATH"] = f"{tools(tmp_path)}:{os.environ['PATH']}"
    home.git("init", "-q", "-b", "main")
    home.run("init", "-q")
    save(home, "main", {"data/a": "1"})
    for branch, name in (("one", "data/b"), ("two", "data/c")):
        home.git("checkout", "-q", "-b", branch, "main")
        home.run("checkout", "-q")
        save(home, branch, {name: branch})
    return home


def tools(folder: Path) -> Path:
    """A folder with `millpond` for PATH: the program of the tests' own environment."""
    home = Home(folder / "x")
    script = folder / "millpond"
    words = " ".join(f"'{word!s}'" for word in home.command())
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{home.env["PYTHONPATH"]}" exec {words} "$@"\n')
    script.chmod(0o755)
    return folder


def save(home: Home, message: str, files: dict[str, str], name: str = "data") -> None:
    for path, data in files.items():
        (home.repo / path).parent.mkdir(exist_ok=True)
        (home.repo / path).write_text(data)
    home.run("add", "-q", name)
    home.git("add", "-A")
    home.git("commit", "-q", "-m", message)


def git(home: Home, *args: str, code: int = 0, cwd: Path | None = None) -> str:
    """Git with hooks: what it and they said."""
    done = subprocess.run(
        ["git", *args],
        cwd=cwd or home.repo,
        env=home.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_data_follows_a_checkout_and_a_commit_shows_its_status(user: Home) -> None:
    assert "Installed .git/hooks/post-checkout" in user.run("install").stdout
    git(user, "checkout", "-q", "one")
    assert names(user.repo / "data") == ["a", "b"]
    assert "A       data/" not in git(user, "checkout", "one", "--", "data.dvc"), "not for files"
    (user.repo / "data/new").write_text("x")
    assert "modified:           data" in git(user, "commit", "--allow-empty", "-m", "c")
    said = git(user, "checkout", "-q", "two", code=1)
    assert "would be lost" in said or "--force" in said, said
    assert names(user.repo / "data") == ["a", "b", "new"]
    user.run("checkout", "-q", "--force")
    git(user, "worktree", "add", "-q", str(user.path / "tree"), "main")
    assert names(user.path / "tree/data") == ["a"]
    git(user, "commit", "-q", "--allow-empty", "-m", "there", cwd=user.path / "tree")


def test_a_rebase_is_not_disturbed(user: Home) -> None:
    user.run("install", "-q")
    (user.repo / "data/c").write_text("changed")
    git(user, "rebase", "-q", "main", "two")
    git(user, "rebase", "-q", "--onto", "one", "main", "two", code=1)  # both changed data.dvc
    assert (user.repo / "data/c").read_text() == "changed"
    assert "<<<<<<<" in (user.repo / "data.dvc").read_text()
    git(user, "rebase", "--abort")


def test_git_merges_directories_by_the_driver(user: Home) -> None:
    said = user.run("install").stdout
    line = next(line for line in said.splitlines() if "merge=dvc" in line)
    subprocess.run(["sh", "-c", line.strip()], cwd=user.repo, check=True)
    git(user, "merge", "-q", "-m", "both", "one")
    user.run("checkout", "-q")
    assert names(user.repo / "data") == ["a", "b", "c"]
    assert user.run("status", "--json").stdout == "{}\n"
    # What both changed: named, and Git's markers in the file, as without a driver.
    git(user, "checkout", "-q", "one")
    save(user, "other c", {"data/c": "one's"})
    said = git(user, "merge", "two", code=1)
    assert "'data.dvc' cannot be merged: 'c' was added by both" in said and "CONFLICT" in said
    assert "<<<<<<< ours" in (user.repo / "data.dvc").read_text()
    assert "conflict markers" in user.run("status", code=255).stderr
    git(user, "checkout", "--theirs", "data.dvc")
    user.run("checkout", "-q", "--force")
    assert names(user.repo / "data") == ["a", "b", "c"]


def test_projects_below_git_s_root_are_served_and_nothing_else(user: Home) -> None:
    git(user, "checkout", "-q", "--orphan", "new")
    git(user, "rm", "-rqf", ".")
    for path in (".dvc", "data"):
        subprocess.run(["rm", "-rf", path], cwd=user.repo, check=True)
    for name in ("p", "q"):
        (user.repo / name).mkdir()
        user.run("init", "-q", "--subdir", cwd=user.repo / name)
        (user.repo / name / "f").write_text(name)
        user.run("add", "-q", "f", cwd=user.repo / name)
    user.run("install", "-q", cwd=user.repo / "p")
    git(user, "add", "-A")
    git(user, "commit", "-q", "-m", "sub-projects")
    for name in ("p", "q"):
        (user.repo / name / "f").unlink()
    # One that fails does not keep the other from its data.
    (user.repo / "p/f.dvc").write_text("outs: [\n")
    git(user, "checkout", "-q", "-b", "again", code=1)
    assert not (user.repo / "p/f").exists() and (user.repo / "q/f").read_text() == "q"
    plain = user.path / "plain"
    git(user, "init", "-q", str(plain))
    for hook in ("pre-commit", "pre-push", "post-checkout"):
        assert user.run("git-hook", hook, "x", "y", "1", cwd=plain).stdout == ""


def test_a_directory_of_a_sub_project_is_merged_in_its_own_project(user: Home) -> None:
    """Its name must reach the driver whole, and its data is not the root's."""
    sub, pointer = user.repo / "q", "q/it's my data.dvc"
    sub.mkdir()
    user.run("init", "-q", "--subdir", cwd=sub)
    user.run("install", "-q", cwd=sub)
    (user.repo / ".gitattributes").write_text("*.dvc merge=dvc\n")
    base = ""
    for branch, name in (("base", "a"), ("left", "b"), ("right", "c")):
        git(user, "checkout", "-q", "-b", branch, *([base] if base else []))
        base = "base"
        (sub / "it's my data").mkdir(exist_ok=True)
        (sub / "it's my data" / name).write_text(branch)
        user.run("add", "-q", "it's my data", cwd=sub)
        git(user, "add", "-A")
        git(user, "commit", "-q", "-m", branch)
    git(user, "merge", "-q", "-m", "both", "left")
    assert "nfiles: 3" in (user.repo / pointer).read_text()
    user.run("checkout", "-q", cwd=sub)
    assert names(sub / "it's my data") == ["a", "b", "c"]


def test_a_push_takes_the_data_to_the_default_remote(user: Home, tmp_path: Path) -> None:
    user.run("install", "-q")
    git(user, "init", "-q", "--bare", str(user.path / "origin"))
    git(user, "push", "-q", str(user.path / "origin"), "main")
    user.run("config", "remote.r.url", str(user.path / "remote"))
    user.run("config", "core.remote", "r")
    git(user, "push", "-q", str(user.path / "origin"), "one")
    stored = [path for path in (user.path / "remote").rglob("*") if path.is_file()]
    assert len(stored) == 3, "the manifest and two files of the branch that is checked out"
    user.run("config", "remote.r.url", "gs://away/team")
    said = git(user, "push", "-q", str(user.path / "origin"), "main:again", code=1)
    assert "'gs' is a kind of remote that DVC has" in said, "and DVC is not in this user's PATH"
    (tmp_path / "dvc").symlink_to(Path(user.command()[0]).parent / "dvc")  # type: ignore[arg-type]
    said = git(user, "push", "-q", str(user.path / "origin"), "main:again", code=1)
    assert "gs is supported" in said and (user.repo / ".dvc/cache/files/md5").exists(), "DVC itself was asked"


def test_install_says_what_it_did_as_json(user: Home) -> None:
    found = json.loads(user.run("install", "--use-pre-commit-tool", "--json").stdout)
    assert found == {"hooks": [".pre-commit-config.yaml"], "replaced": [], "attributes": False}
    assert "pre-commit install -t pre-commit" in user.run("install", "--use-pre-commit-tool").stdout
    env = {"PRE_COMMIT_CHECKOUT_TYPE": "1"}
    (user.repo / "data/a").unlink()
    user.run("git-hook", "post-checkout", "x", "y", "0", env={"PRE_COMMIT_CHECKOUT_TYPE": "0"})
    assert not (user.repo / "data/a").exists()
    user.run("git-hook", "post-checkout", env=env)
    assert (user.repo / "data/a").exists()
    assert user.run("git-hook", "nonsense", code=exits.USAGE).stdout == ""
