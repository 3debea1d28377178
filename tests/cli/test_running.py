"""What a running stage reads and writes is left alone by every other command, real DVC's included, until it is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import BIN, Home
from tests.jobs.helpers import gone, until

# `made` is written in two halves, and the command waits between them.
PIPELINE = """
stages:
  make:
    cmd: echo one > made; echo $$ > ../pid; while [ ! -e ../go ]; do sleep 0.02; done; cat data/file >> made
    deps: [data]
    params: [p]
    outs: [made]
  use:
    cmd: cp made used
    deps: [made]
    outs: [used]
  apart:
    cmd: cp other apart
    deps: [other]
    outs: [apart]
"""
WORDS = "is being made by stage 'make' (job "


@pytest.fixture(scope="module")
def user() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="mp-running-", ignore_cleanup_errors=True) as folder:
        made = Home(Path(folder))
        made.git("init", "-q")
        made.run("init", "-q")
        (made.repo / "data").mkdir()
        (made.repo / "data/file").write_text("two\n")
        (made.repo / "other").write_text("x")
        (made.repo / "dvc.yaml").write_text(PIPELINE)
        (made.repo / "params.yaml").write_text("p: 1\n")
        made.run("add", "-q", "data")
        (made.path / "go").touch()
        made.run("repro", "-q")
        made.run("cache", "export", "-q")
        yield made
        made.close()


@pytest.fixture
def home(user: Home) -> Iterator[Home]:
    """`make` runs, as a job, and has written its first half; everything was made before with another parameter."""
    for name in ("go", "pid"):
        (user.path / name).unlink(missing_ok=True)
    value = int((user.repo / "params.yaml").read_text().split()[1])
    (user.repo / "params.yaml").write_text(f"p: {value + 1}\n")
    user.run("repro", "--detach", "make")
    pid(user)
    yield user
    (user.path / "go").touch()
    user.run("attach", code=None)
    user.run("repro", "-q")


def pid(home: Home) -> int:
    path = home.path / "pid"
    return int(until(lambda: path.exists() and path.read_text().endswith("\n") and path.read_text()))


def ends_well(home: Home) -> None:
    """The job goes on untouched, and its output is what it wrote."""
    (home.path / "go").touch()
    home.run("attach")
    assert (home.repo / "made").read_text() == "one\ntwo\n"
    assert json.loads(home.run("jobs", "--json").stdout)[0]["state"] == "succeeded"
    assert not list((home.repo / ".dvc/tmp/millpond/running").iterdir())
    assert json.loads((home.repo / ".dvc/tmp/rwlock").read_text()) == {}
    assert home.run("repro", "--check", "make").returncode == 0


@pytest.mark.parametrize("flags", [(), ("-f",)])
def test_a_second_repro_leaves_alone_what_is_being_made(home: Home, flags: tuple[str, ...]) -> None:
    said = home.run("repro", *flags, "make", code=5).stderr
    assert WORDS in said or "'make' is being run already" in said
    assert "millpond attach " in said and "millpond cancel " in said
    assert "stage 'make'" in home.run("repro", "-s", "-f", "use", code=5).stderr
    home.run("repro", "-q", "-f", "apart")
    ends_well(home)


def test_nor_does_one_that_would_bring_back_an_earlier_result(home: Home) -> None:
    now = (home.repo / "params.yaml").read_text()
    (home.repo / "params.yaml").write_text(f"p: {int(now.split()[1]) - 1}\n")
    home.run("repro", "make", code=5)
    (home.repo / "params.yaml").write_text(now)
    ends_well(home)


def test_other_verbs_leave_alone_what_is_being_made_or_read(home: Home) -> None:
    (home.repo / "data/file").write_text("three\n")
    for line in ("checkout -f", "checkout -f made", "commit -f make", "commit -f use", "unprotect made", "destroy -f"):
        said = home.run(*line.split(), code=5).stderr
        assert "stage 'make' (job " in said, line
    for line in ("checkout -f data", "move data elsewhere", "remove --outs -f data.dvc", "purge -f -y data"):
        said = home.run(*line.split(), code=5).stderr
        assert "'data' is being read by stage 'make' (job " in said, line
    (home.repo / "data/file").write_text("two\n")
    assert "up to date" in home.run("status", "data.dvc").stdout
    home.run("checkout", "data")
    ends_well(home)


def test_real_dvc_leaves_it_alone_and_is_left_alone(home: Home) -> None:
    for line in ("commit -f make", "repro -f -s make", "add data"):  # its checkout takes no such lock
        said = home.dvc(*line.split(), code=None)
        assert said.returncode != 0 and "is busy" in said.stderr and "millpond repro make" in said.stderr, line
    ends_well(home)
    (home.path / "go").unlink()
    (home.path / "pid").unlink()
    theirs = subprocess.Popen(
        [str(BIN / "dvc"), "repro", "-f", "-s", "make"], cwd=home.repo, env=home.env,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        pid(home)
        assert f"is being made by process {theirs.pid}" in home.run("checkout", "-f", "made", code=5).stderr
        assert f"process {theirs.pid}" in home.run("repro", "-f", "-s", "make", code=5).stderr
    finally:
        (home.path / "go").touch()
        theirs.wait(30)


def test_a_killed_repro_keeps_its_claim_until_its_command_has_ended(home: Home) -> None:
    command = pid(home)
    verb = int(Path(f"/proc/{command}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(command, signal.SIGSTOP)  # so that nobody can end it before we have looked
    os.kill(verb, signal.SIGKILL)
    (home.path / "go").touch()
    said = home.run("repro", "make", code=None)
    if said.returncode:  # it was not ended before we asked
        assert said.returncode == 5 and "its commands still run" in said.stderr
    until(lambda: gone(command))
    home.run("repro", "-q", "make")
    assert (home.repo / "made").read_text() == "one\ntwo\n"


def test_a_stage_may_use_millpond_on_its_own_data(user: Home) -> None:
    (user.repo / "own.yaml").unlink(missing_ok=True)
    folder = user.repo / "sub"
    folder.mkdir()
    command = " ".join(map(os.fsdecode, user.command("checkout", "-f", "../data")))
    (folder / "dvc.yaml").write_text(
        f"stages:\n  own:\n    cmd: {command} && cp ../data/file out\n    deps: [../data]\n    outs: [out]\n"
    )
    user.run("repro", "sub/dvc.yaml")
    assert (folder / "out").read_text() == "two\n"


def test_what_is_edited_while_a_stage_runs(home: Home) -> None:
    began = (home.repo / "params.yaml").read_text().split()[1]
    (home.repo / "params.yaml").write_text(f"p: {int(began) + 50}\n")
    (home.repo / "data/file").write_text("edited\n")
    (home.path / "go").touch()
    said = home.run("attach", str(json.loads(home.run("jobs", "--json").stdout)[0]["number"]))
    assert "parameters of stage 'make' were changed while it ran" in said.stdout + said.stderr
    assert "'data' changed while stage 'make' ran" in said.stdout + said.stderr
    lock = (home.repo / "dvc.lock").read_text()
    assert f"p: {began}\n" in lock and f"p: {int(began) + 50}" not in lock
    assert "p changed" in home.run("why", "make").stdout
    assert "! make: 'data' changed while it ran" in home.run("lineage", "made").stdout
    (home.repo / "data/file").write_text("two\n")
    home.run("repro", "-q", "make")
    assert (home.repo / "made").read_text() == "one\ntwo\n"
    assert "changed while" not in home.run("lineage", "made").stdout


def test_a_mount_that_a_stage_reads_is_not_taken_away_for_another_version(user: Home) -> None:
    pointer = user.repo / "data.dvc"
    old = pointer.read_text()
    (user.repo / "data/file").write_text("three\n")
    user.run("add", "-q", "data")
    new = pointer.read_text()
    pointer.write_text(old)
    user.run("checkout", "-q", "-f", "--mount", "data")
    for name in ("go", "pid"):
        (user.path / name).unlink(missing_ok=True)
    try:
        user.run("repro", "--detach", "-f", "-s", "make")
        pid(user)
        pointer.write_text(new)
        for line in ("checkout --mount data", "checkout -f data", "umount data", "umount --all"):
            assert "'data' is being read by stage 'make' (job " in user.run(*line.split(), code=5).stderr, line
        assert (user.repo / "data/file").read_text() == "two\n"
    finally:
        pointer.write_text(old)
        (user.path / "go").touch()
    user.run("attach")
    assert (user.repo / "made").read_text() == "one\ntwo\n"
    user.run("umount", "data")
    user.run("checkout", "-q", "-f", "data")
