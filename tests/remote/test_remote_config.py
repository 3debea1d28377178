"""`remote ...` beside real DVC: the same commands in two repositories leave the same files, and answer alike."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from tests.cli.conftest import home as home
from tests.cli.helpers import Home

SEQUENCES = {
    "add": [
        *("list", "default", "add foo /tmp/x", "add foo /tmp/y", "add -f foo ../y", "add -d Bar s3://b/p", "list"),
        *("default", "add --local loc rel/dir", "list --local", "add x remote://bar/sub", "add home ~/data"),
        *("add 'odd name' 'a b,c'", "add --global glo s3://x", "add --system sys sub", "list", "default glo", "list --global"),
    ],
    "modify": [
        *("add -d foo s3://a/b", "modify foo jobs 4", "modify nope jobs 4", "modify foo nonsense 4"),
        *("modify foo jobs many", "modify -u foo jobs", "modify -u foo jobs", "modify --local foo secret_access_key s,e#c"),
        *("modify --local foo credentialpath cred/file", "modify foo url s3://c", "list"),
        *("modify -u --local foo credentialpath", "modify -u --local foo secret_access_key", "modify foo verify maybe"),
    ],
    "rename": [
        *("add -d foo /tmp/x", "add bar s3://b", "rename foo baz", "default", "rename nope x", "rename baz bar", "list"),
        *("default --local baz", "rename baz last", "default", "rename last last2", "list"),
    ],
    "remove": [
        *("add -d foo /tmp/x", "add bar s3://b", "remove nope", "default --local foo", "remove foo", "default", "list"),
        *("default -u", "default nope", "default bar", "default -u", "default", "remove bar"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name in ("add", "modify", "rename") else ()) for name in SEQUENCES],
)
def test_as_dvc(home: Home, name: str) -> None:
    home.git("init", "-q")
    home.run("init", "-q")
    ours, theirs = home.repo, home.path / "theirs"
    shutil.copytree(ours, theirs)
    for line in SEQUENCES[name]:
        words = ["remote", *shlex.split(line)]
        home.extra = levels(home, "theirs")
        expected = home.dvc(*words, cwd=theirs, code=None)
        home.extra = levels(home, "ours")
        found = home.run(*words, cwd=ours, code=None)
        assert (found.returncode == 0) == (expected.returncode == 0), f"{line}: {expected.stderr}{found.stderr}"
        if expected.returncode in (1, 251):
            assert found.returncode in (expected.returncode, 255), line
        assert found.stdout.split() == expected.stdout.replace("theirs", "repo").split(), line
        assert files(home, ours, "ours") == files(home, theirs, "theirs"), line


def levels(home: Home, whose: str) -> dict[str, str]:
    return {
        "DVC_GLOBAL_CONFIG_DIR": str(home.path / whose / "global")
        if whose == "ours"
        else str(home.path / "their-global"),
        "DVC_SYSTEM_CONFIG_DIR": str(home.path / whose / "system")
        if whose == "ours"
        else str(home.path / "their-system"),
    }


def files(home: Home, repo: Path, whose: str) -> dict[str, str]:
    """The text of each level's file that is there; folders of different depths lead to the same place."""
    places = {"project": repo / ".dvc/config", "local": repo / ".dvc/config.local"}
    return {level: path.read_text() for level, path in places.items() if path.exists() and path.read_text().strip()}


def test_what_a_stronger_level_says_of_a_remote_is_not_left_without_its_url(home: Home) -> None:
    home.git("init", "-q")
    home.run("init", "-q")
    home.run("remote", "add", "bar", "s3://b")
    home.run("remote", "modify", "--local", "bar", "profile", "me")
    done = home.run("remote", "remove", "bar", code=251)
    assert "remote remove --local bar" in done.stderr
    home.run("remote", "remove", "--local", "bar")
    home.run("remote", "remove", "bar")
    assert home.dvc("remote", "list").stdout == ""
