"""Where the store and the daemon's own files are: what the environment says is what is used, or the difference is told."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cli.helpers import Home
from tests.faults.test_limits import sentence


def test_a_relative_store_is_where_the_command_runs(home: Home) -> None:
    home.run("init", "-q", "--no-scm")
    (home.repo / "sub").mkdir()
    env = {"MILLPOND_STORE": "../there"}
    try:
        said = home.run("cache", "info", env=env).stdout
        assert said.splitlines()[0].split() == ["Store:", str(home.path / "there")]
        assert (home.path / "there/format.json").exists() and not Path("/there").exists()
    finally:
        home.run("daemon", "stop", "-q", env=env, code=None)


def test_a_daemon_with_another_store_is_told(home: Home) -> None:
    home.run("init", "-q", "--no-scm")
    assert home.run("status").stderr == ""
    said = home.run("status", env={"XDG_CACHE_HOME": str(home.path / "other")}).stderr
    assert said.count("\n") == 1 and said.startswith("WARNING: the daemon that runs has its store in ")
    assert str(home.path / "cache/millpond") in said and str(home.path / "other/millpond") in said
    assert "millpond daemon restart" in said
    assert (
        home.run(
            "status",
            env={"XDG_CACHE_HOME": str(home.path / "other")}
            | {"MILLPOND_SOCKET": str(home.path / "run/millpond/millpond.sock")},
        ).stderr
        == ""
    )


def test_folders_that_cannot_be_used_are_named_with_what_to_do(home: Home) -> None:
    home.run("daemon", "stop", "-q", code=None)
    (home.path / "file").touch()
    for env in ({"XDG_STATE_HOME": str(home.path / "file")}, {"MILLPOND_STATE": str(home.path / "state2")}):
        (home.path / "state2/log/daemon.err").mkdir(parents=True, exist_ok=True)
        done = home.run("status", env=env, code=10)
        sentence(done)
        assert "XDG_STATE_HOME" in done.stderr and str(next(iter(env.values()))) in done.stderr


def test_a_store_that_is_a_file_is_refused(home: Home) -> None:
    (home.path / "file").write_text("mine")
    done = home.run("status", env={"MILLPOND_STORE": str(home.path / "file")}, code=6)
    sentence(done)
    assert "is no directory" in done.stderr and "MILLPOND_STORE" in done.stderr and "disk" not in done.stderr
    assert (home.path / "file").read_text() == "mine"


def test_a_repository_that_git_refuses_is_a_fault_that_can_be_cured(home: Home) -> None:
    home.git("init", "-q")
    home.run("init", "-q")
    for path in (home.repo, home.repo / ".git"):
        os.chown(path, 12345, 12345)
    said = home.run("doctor", code=1).stdout
    [hint] = [line.strip() for line in said.splitlines() if "safe.directory" in line]
    assert "ok    repository" not in said and "not owned by current user" in said
    home.git(*hint.partition("git ")[2].split(), cwd=home.path)
    assert f"repository    {home.repo}" in home.run("doctor", code=None).stdout.replace("  ", " " * 2)
