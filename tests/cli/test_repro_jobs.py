"""repro as a job, by the real program: its client, its terminal and its daemon may go away, and what it says stays the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.helpers import Home, Terminal
from tests.jobs.helpers import gone, until

# The first stage says its pid, then waits until it may go on.
WAITING = "echo first >> ../ran; echo begun; echo $$ > ../pid; while [ ! -e ../go ]; do sleep 0.02; done"
PIPELINE = """
stages:
  first:
    cmd: %s; cp src one
    deps: [src]
    outs: [one]
  second:
    cmd: echo second >> ../ran; cp one two
    deps: [one]
    outs: [two]
"""


@pytest.fixture(scope="module")
def user() -> Iterator[Home]:
    """One user for all of these tests."""
    with tempfile.TemporaryDirectory(prefix="mp-repro-", ignore_cleanup_errors=True) as folder:
        made = Home(Path(folder))
        made.git("init", "-q")
        made.run("init", "-q")
        yield made
        made.close()


@pytest.fixture
def home(user: Home) -> Iterator[Home]:
    """With a pipeline in which nothing has run, and at the end nothing that waits."""
    for name in ("go", "pid", "ran", "repo/dvc.lock", "repo/one", "repo/two", "repo/.gitignore"):
        (user.path / name).unlink(missing_ok=True)
    (user.repo / "src").write_bytes(os.urandom(8))
    (user.repo / "dvc.yaml").write_text(PIPELINE % WAITING)
    yield user
    (user.path / "go").touch()


def started(home: Home, *args: str) -> subprocess.Popen[str]:
    """`millpond repro`, in the midst of its first stage."""
    process = subprocess.Popen(
        home.command("repro", *args), cwd=home.repo, env=home.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    stage_pid(home)
    return process


def stage_pid(home: Home) -> int:
    path = home.path / "pid"
    return int(until(lambda: path.exists() and path.read_text().endswith("\n") and path.read_text()))


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def newest(home: Home) -> dict[str, Any]:
    return dict(json.loads(home.run("jobs", "--json").stdout)[0])


@contextlib.contextmanager
def jobs_of_version(home: Home, number: int) -> Iterator[None]:
    """The table of jobs as a newer daemon left it; no daemon may run at either end."""
    (path,) = (home.path / "state").rglob("jobs.db")
    for wanted in (number, 1):
        with contextlib.closing(sqlite3.connect(path)) as table:
            table.execute(f"PRAGMA user_version = {wanted}")
        if wanted == number:
            yield


def goes_on(home: Home) -> None:
    """Let the first stage end: the job then ends well, having run each command once."""
    (home.path / "go").touch()
    home.run("attach")
    assert newest(home)["state"] == "succeeded"
    assert (home.path / "ran").read_text().split() == ["first", "second"]
    assert home.run("status").stdout == "Data and pipelines are up to date.\n"


def kill_daemon(home: Home) -> None:
    pid = int(json.loads(home.run("daemon", "status", "--json").stdout)["pid"])
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid))


def test_detached_it_is_listed_followed_and_ends_like_any_job(home: Home) -> None:
    said = home.run("repro", "--detach", "second").stdout
    n = newest(home)["number"]
    assert said == f"Job {n} runs: `millpond attach {n}` follows it\n"
    stage_pid(home)
    assert "repro second (stage 1 of 2: first)" in until(lambda: "stage 1" in (t := home.run("jobs").stdout) and t)
    assert "begun" in until(lambda: home.run("logs", str(n)).stdout)
    goes_on(home)
    assert "Running stage 'second':\n" in home.run("attach", str(n)).stdout
    assert json.loads(home.run("repro", "-d", "--json").stdout)["number"] == n + 1
    for other in ("--dry", "--check", "-i"):
        assert "--detach and --" in home.run("repro", "-d", other, code=254).stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_client_and_a_daemon_that_are_killed_are_not_missed(home: Home, number: signal.Signals) -> None:
    client = started(home)
    client.send_signal(number)
    client.communicate(timeout=20)
    kill_daemon(home)
    goes_on(home)


def test_whoever_follows_it_outlives_the_daemon_as_well(home: Home) -> None:
    client = started(home, "--json")
    kill_daemon(home)
    (home.path / "go").touch()
    out, err = client.communicate(timeout=30)
    assert client.returncode == 0, err
    rows = json.loads(out)["stages"]
    assert [(row["name"], row["outcome"]) for row in rows] == [("first", "ran"), ("second", "ran")]
    assert "begun\n" in err
    goes_on(home)


@pytest.mark.parametrize("delay", ["0", "0.03", pytest.param("0.08", marks=pytest.mark.long)])
def test_a_daemon_that_dies_while_a_stage_is_recorded(home: Home, delay: str) -> None:
    pid = json.loads(home.run("daemon", "status", "--json").stdout)["pid"]
    kill = f"(setsid sh -c 'sleep {delay}; kill -9 {pid}' >/dev/null 2>&1 &)"
    command = f"echo first >> ../ran; head -c 30000000 /dev/urandom > src2; {kill}"
    (home.repo / "dvc.yaml").write_text((PIPELINE % command).replace("cp src one", "mv src2 one"))
    home.run("repro")
    goes_on(home)
    assert home.run("fsck").returncode == 0


@pytest.mark.parametrize("how", ["cancel", "SIGTERM", "Ctrl-C"])
def test_cancelled_it_ends_all_that_it_started(home: Home, how: str, terminal: Callable[..., Terminal]) -> None:
    if how == "Ctrl-C":
        shown = terminal(home, "repro")
        shown.read_until("begun")
        shown.press_interrupt()
        assert shown.finish() == 130
        said = shown.seen
    else:
        client = started(home)
        if how == "cancel":
            home.run("cancel", str(newest(home)["number"]))
        else:
            client.terminate()
        said = client.communicate(timeout=20)[1]
        assert client.returncode == 130
    row = newest(home)
    assert row["state"] == "cancelled"
    assert f"job {row['number']} was cancelled" in said and "Traceback" not in said
    assert gone(stage_pid(home))
    assert not (home.repo / "dvc.lock").exists()


@pytest.mark.long
def test_a_stage_that_is_cancelled_may_finish_what_it_writes(home: Home) -> None:
    (home.repo / "dvc.yaml").write_text(PIPELINE % f"trap 'sleep 2.5; touch ../go; exit 1' TERM; {WAITING}")
    client = started(home)
    client.terminate()
    client.communicate(timeout=20)
    assert client.returncode == 130 and (home.path / "go").exists()


@pytest.mark.parametrize("who", ["verb", "shim"])
def test_a_job_that_is_killed_leaves_nothing_running_and_nothing_half_done(home: Home, who: str) -> None:
    client = started(home)
    pid = stage_pid(home)
    victim = parent(pid) if who == "verb" else parent(parent(pid))
    os.kill(victim, signal.SIGKILL)
    said = client.communicate(timeout=20)[1]
    assert client.returncode == 11 and "Traceback" not in said
    assert "left no result: ended by signal 9" in said if who == "verb" else "is lost" in said
    until(lambda: gone(pid))
    (home.path / "go").touch()
    home.run("repro")
    assert (home.path / "ran").read_text().split() == ["first", "first", "second"]
    assert home.run("status").stdout == "Data and pipelines are up to date.\n"


def test_a_repro_in_a_job_is_cancelled_with_it(home: Home) -> None:
    home.run("job", "run", "-d", "--", *map(os.fsdecode, home.command("repro")))
    pid = stage_pid(home)
    inner = newest(home)
    assert inner["title"] == "repro"
    home.run("cancel", str(inner["number"] - 1))
    assert until(lambda: gone(pid))
    assert until(lambda: newest(home)["state"] == "cancelled")


def test_a_failure_says_what_to_read_and_how_to_go_on(home: Home) -> None:
    (home.repo / "dvc.yaml").write_text(PIPELINE % "echo why >&2; exit 3")
    failed = home.run("repro", code=255)
    n = newest(home)["number"]
    assert failed.stderr.startswith("why\nERROR: failed to reproduce 'first': failed to run: echo why")
    assert f"exited with 3; see `millpond logs {n}`; its output is in .dvc/tmp/millpond/logs/first-" in failed.stderr
    assert failed.stderr.endswith("when it is mended, `millpond repro` goes on from there\n")
    again = home.run("attach", str(n), code=255)
    assert "why\n" in again.stderr and "failed to reproduce 'first'" in again.stderr
    (home.repo / "dvc.yaml").write_text(json.dumps({"stages": {name: {"cmd": "exit 3"} for name in ("a", "b")}}))
    failed = home.run("repro", "-k", code=255)
    assert failed.stderr.splitlines()[-1] == (
        f"ERROR: failed to reproduce stages: 'a', 'b'; see `millpond logs {n + 1}`; "
        "when they are mended, `millpond repro` goes on from there"
    )


def test_nothing_to_run_is_no_job(home: Home) -> None:
    (home.path / "go").touch()
    home.run("repro")
    before = newest(home)["number"]
    assert home.run("repro").stdout.splitlines() == [
        "Stage 'first' didn't change, skipping",
        "Stage 'second' didn't change, skipping",
        "Data and pipelines are up to date.",
    ]
    (home.repo / "dvc.yaml").write_text(
        (home.repo / "dvc.yaml").read_text() + "  last:\n    cmd: echo x\n    deps: ['s3://b/k']\n"
    )
    failed = home.run("repro", code=255)
    assert failed.stdout.count("Stage 'first' didn't change, skipping") == 1
    assert newest(home)["number"] == before
    # A stage that is up to date is said to be once, by the job.
    (home.repo / "dvc.yaml").write_text((PIPELINE % WAITING).replace("cp one two", "cat one > two"))
    skipped, nearest, running = home.run("repro").stdout.splitlines()[:3]
    assert (skipped, running) == ("Stage 'first' didn't change, skipping", "Running stage 'second':")
    assert nearest.startswith("Stage 'second': nearest earlier run, ") and "cp one two" in nearest
    assert newest(home)["number"] == before + 1


def test_where_no_jobs_are_to_be_had_it_runs_all_the_same(home: Home) -> None:
    (home.path / "go").touch()
    home.run("daemon", "stop")
    with jobs_of_version(home, 99):
        done = home.run("repro")
        assert "has jobs of format 99" in done.stderr and "so this is no job, and ends with this command" in done.stderr
        assert "Running stage 'second':\n" in done.stdout
        assert "has jobs of format 99" in home.run("repro", "--detach", code=None).stderr
        home.run("daemon", "stop")
    assert (home.path / "ran").read_text().split() == ["first", "second"]


def test_on_a_terminal_it_has_colours_and_keeps_the_order(home: Home, terminal: Callable[..., Terminal]) -> None:
    text = r"test -t 1 && test -t 2 && for i in 1 2 3; do printf '\033[32mout%s\033[0m\n' $i; echo err$i >&2; done"
    (home.repo / "dvc.yaml").write_text(json.dumps({"stages": {"first": {"cmd": text}}}))
    shown = terminal(home, "repro")
    assert shown.finish() == 0
    lines = shown.seen.split("\r\n")
    at = lines.index("\x1b[32mout1\x1b[0m")
    assert lines[at : at + 6] == [line for n in (1, 2, 3) for line in (f"\x1b[32mout{n}\x1b[0m", f"err{n}")]
    assert lines[at - 2 : at] == ["Running stage 'first':", f"> {text}".replace("\033", "\\033")]
