"""Jobs from the command line: followed, left alone, cancelled, and what a closed terminal or a killed client changes: nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.helpers import Home, Terminal
from tests.jobs.helpers import context, gone, until

from millpond.daemon.errors import DaemonUnavailableError
from millpond.daemon.rpc.client import Client


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """One user for all of these tests."""
    with tempfile.TemporaryDirectory(prefix="mp-cli-", ignore_cleanup_errors=True) as folder:
        made = Home(Path(folder))
        yield made
        made.close()


@pytest.fixture(autouse=True)
def _alone(home: Home) -> Iterator[None]:
    """What one test leaves running is not there for the next."""
    yield
    with (
        contextlib.suppress(DaemonUnavailableError),
        Client.connect(home.path / "run/millpond/millpond.sock") as client,
    ):
        left = [str(row["number"]) for row in client.call("jobs", {"limit": 0})[0]["jobs"]]
        client.call("job.cancel", {"jobs": left, "now": True, "context": context()})


def number(home: Home) -> int:
    """Of the newest job."""
    return int(shown(home)[0]["number"])


def shown(home: Home) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(home.run("jobs", "--all", "--json").stdout)
    return found


def ended(home: Home) -> dict[str, Any]:
    """The newest job, when it has ended."""
    found: dict[str, Any] = until(lambda: (row := shown(home)[0])["ended"] and row)
    return found


def test_what_ends_a_job_takes_its_whole_name(home: Home) -> None:
    home.run("job", "run", "-q", "--detach", "--name", "train2", "--", "sleep", "100")
    for words in (("cancel", "train"), ("job", "remove", "train")):
        assert "did you mean 'train2'?" in home.run(*words, code=255).stderr
    assert shown(home)[0]["ended"] is None
    home.run("cancel", "--now", "train2")
    assert home.run("logs", "train").returncode == 0, "what only looks takes the beginning"


def test_jobs_say_where_they_run_when_that_is_elsewhere(home: Home) -> None:
    (home.repo / "sub").mkdir(exist_ok=True)
    home.run("job", "run", "-q", "--", "true", cwd=home.repo / "sub")
    header, first, *_ = home.run("jobs").stdout.splitlines()
    assert header.split()[-2:] == ["FOLDER", "COMMAND"] and f"{home.repo.name}/sub" in first


def test_a_command_as_a_job_gives_its_output_and_its_exit_code(home: Home) -> None:
    done = home.run("job", "run", "--", "sh", "-c", "echo out; echo err >&2; exit 3", code=3)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert home.run("job", "run", "echo $0 | tr -d /; kill -9 $$", code=137).stdout.endswith("sh\n")
    home.run("job", "run", "--name", "fine", "--", "printf", "%s|", "a b", "--json", "-x")
    done = home.run("attach", "fi")
    assert done.stdout == "a b|--json|-x|"
    lines = home.run("jobs").stdout.splitlines()
    assert lines[0].split() == ["JOB", "NAME", "STATE", "SINCE", "EXIT", "FOLDER", "COMMAND"]
    n = number(home)
    assert re.fullmatch(rf"{n} +fine +succeeded +[\d.]+ s ago +0 +\S+ +printf '%s\|' 'a b' --json -x", lines[1]), lines
    assert "signal 9" in lines[2] and lines[3].split()[1] == "failed"
    [newest, *_] = shown(home)
    assert newest["cwd"] == str(home.repo) and newest["folder"].startswith(str(home.path / "state"))
    assert home.run("job", "run", "--", "no-such-x", "y", code=127).stderr == (
        "[millpond] cannot run 'no-such-x': No such file or directory\n"
    )
    assert home.run("job", "remove", str(n)).stdout == f"Removed 1 job: {n}\n"
    assert f", {n - 1}\n" in home.run("job", "prune", "--keep", "1").stdout
    assert f"no job '{n}'" in home.run("logs", str(n), code=255).stderr
    assert "no name for a job" in home.run("job", "run", "-n", "7", "--", "true", code=254).stderr
    home.run("job", "run", code=254)


def test_the_log_of_a_job_by_lines_by_time_and_followed(home: Home) -> None:
    go = home.path / "talk"
    script = f"echo 1; echo 2 >&2; printf 3; while [ ! -e {go} ]; do sleep 0.02; done; echo; echo 4"
    said = home.run("job", "run", "-d", "-n", "talk", script).stdout
    assert said == "Job {0} runs: `millpond attach {0}` follows it\n".format(number(home))
    until(lambda: home.run("logs", "talk").stdout == "1\n3")  # a line that is not ended yet, too
    done = home.run("logs", "-n", "1", "talk")  # the last line that has ended, and what comes after it
    assert done.stdout + done.stderr in ("32\n", "1\n3")  # of two streams nobody knows which line was first
    follower = subprocess.Popen(
        home.command("logs", "-f", "-t", "talk"),
        env=home.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert follower.stdout is not None
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"
    assert re.fullmatch(f"{stamp} 1\n", follower.stdout.readline())
    go.touch()
    assert re.fullmatch(f"{stamp} 3\n{stamp} 4\n", follower.stdout.read())
    assert follower.wait(20) == 0
    follower.stdout.close()


def test_control_c_cancels_what_is_run_and_leaves_alone_what_is_attached(
    home: Home, terminal: Callable[..., Terminal]
) -> None:
    script = "trap 'echo ended; exit 1' TERM; printf 'running\\n'; while :; do sleep 0.05; done"
    one = terminal(home, "job", "run", "-n", "one", script)
    one.read_until("running")
    two = terminal(home, "attach", "one")
    two.read_until("running")
    two.press_interrupt()
    assert two.finish() == 130 and f"Job {number(home)} goes on" in two.seen
    assert shown(home)[0]["state"] == "running"
    one.press_interrupt()
    assert one.finish() == 130
    assert f"Cancelling job {number(home)}" in one.seen and "ended" in one.seen and "Traceback" not in one.seen
    row = shown(home)[0]
    assert (row["state"], row["exit_code"]) == ("cancelled", 1)


def test_control_c_while_it_waits_for_a_place(
    home: Home, terminal: Callable[..., Terminal], request: pytest.FixtureRequest
) -> None:
    home.run("daemon", "stop")
    request.addfinalizer(lambda: home.run("daemon", "stop"))
    home.run("daemon", "start", env={"MILLPOND_JOBS": "1"})
    home.run("job", "run", "-d", "-n", "first", "sleep 100")
    assert "waits for a place" in home.run("job", "run", "-d", "-n", "second", "echo never").stdout
    home.run("cancel", "second")
    one = terminal(home, "job", "run", "echo never")
    one.read_until("waiting for a place")
    one.press_interrupt()
    assert one.finish() == 130
    assert [row["state"] for row in shown(home)[:3]] == ["cancelled", "cancelled", "running"]
    home.run("cancel", "first")


def test_a_second_control_c_does_not_wait(home: Home, terminal: Callable[..., Terminal]) -> None:
    home.run(
        "job", "run", "-d", "-n", "deaf", "--grace", "60", "trap '' TERM; echo running; while :; do sleep 0.05; done"
    )
    one = terminal(home, "attach", "--cancel-on-interrupt", "deaf")
    n = number(home)
    one.read_until("running")
    one.press_interrupt()
    one.read_until(f"Cancelling job {n}")
    one.read_until("[millpond] cancelled")
    one.press_interrupt()
    assert one.finish() == 130
    assert shown(home)[0]["state"] == "running"
    assert home.run("cancel", "--now", "deaf").stdout == f"Job {n} was cancelled.\n"
    assert "cancelled already" in home.run("cancel", str(n), code=255).stderr


def test_a_closed_terminal_leaves_a_job_with_its_colours_running(home: Home, terminal: Callable[..., Terminal]) -> None:
    go = home.path / "closed"
    script = (
        f"[ -t 1 ] && printf '\\033[32mgreen\\033[0m\\n'; stty size <&1; "
        f"while [ ! -e {go} ]; do sleep 0.02; done; stty size <&1; exit 6"
    )
    one = terminal(home, "job", "run", script)
    one.read_until("\x1b[32mgreen\x1b[0m")
    one.read_until("24 80")  # of a terminal that does not say how large it is
    os.close(one.master)  # the kernel hangs up: SIGHUP to the client
    assert one.process.wait(20) == -signal.SIGHUP
    assert shown(home)[0]["state"] == "running"
    one.master = os.open(os.devnull, os.O_RDONLY)  # for the fixture to close
    two = terminal(home, "attach")
    fcntl.ioctl(two.master, termios.TIOCSWINSZ, struct.pack("4H", 33, 77, 0, 0))
    os.kill(two.process.pid, signal.SIGWINCH)
    two.read_until("\x1b[32mgreen\x1b[0m")  # all of it again, from the beginning
    time.sleep(0.3)
    go.touch()
    assert two.finish() == 6 and "33 77" in two.seen


def test_killed_clients_and_daemons_change_nothing_for_who_follows(home: Home) -> None:
    go = home.path / "killed"
    client = subprocess.Popen(
        home.command("job", "run", f"echo first; while [ ! -e {go} ]; do sleep 0.02; done; echo last; exit 9"),
        env=home.env, cwd=home.repo, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert client.stdout is not None and client.stdout.readline() == b"first\n"
    follower = subprocess.Popen(home.command("attach"), env=home.env, stdout=subprocess.PIPE)
    assert follower.stdout is not None and follower.stdout.readline() == b"first\n"
    client.kill()
    client.wait()
    client.stdout.close()
    pid = json.loads(home.run("daemon", "status", "--json").stdout)["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid))
    go.touch()
    assert follower.stdout.read() == b"last\n" and follower.wait(30) == 9
    follower.stdout.close()
    assert shown(home)[0]["exit_code"] == 9


def test_a_lost_job_says_so(home: Home) -> None:
    home.run("job", "run", "-d", "sleep 100")
    follower = subprocess.Popen(home.command("attach"), env=home.env, stderr=subprocess.PIPE, text=True)
    row = until(lambda: (found := shown(home)[0])["pid"] and found)
    os.kill(row["pid"], signal.SIGKILL)
    n = row["number"]
    assert follower.wait(20) == 11
    assert follower.stderr is not None
    said = follower.stderr.read()
    assert f"job {n} is lost: its process is gone, and has left no result; see `millpond logs {n}`" in said
    follower.stderr.close()
    assert shown(home)[0]["state"] == "lost"


def test_the_daemon_says_that_jobs_go_on_without_it(home: Home) -> None:
    home.run("job", "run", "-d", "sleep 100")
    assert "Jobs:     1 running, 0 waiting" in home.run("daemon", "status").stdout
    assert "1 job goes on without it" in home.run("daemon", "stop").stdout
    assert shown(home)[0]["state"] == "running"
    home.run("cancel", str(number(home)))


def test_output_of_any_bytes_and_a_reader_that_goes_away(home: Home) -> None:
    done = subprocess.run(
        home.command("job", "run", "--", "printf", "\\303\\050\\200\\r\\n\\000end"),
        env=home.env,
        cwd=home.repo,
        capture_output=True,
    )
    assert done.stdout == b"\xc3\x28\x80\r\n\x00end"
    reader = subprocess.Popen(
        home.command("job", "run", "seq 400000"), env=home.env, cwd=home.repo, stdout=subprocess.PIPE
    )
    assert reader.stdout is not None and reader.stdout.readline() == b"1\n"
    reader.stdout.close()
    assert reader.wait(20) == 141
    assert ended(home)["state"] == "succeeded"
    assert Path(shown(home)[0]["folder"]).is_dir()


AS_JOB = """
import sys
from millpond.cli.console import open_console
from millpond.cli.jobs import as_job
from millpond.daemon.errors import MillpondError
try:
    print(as_job(open_console({}), "add", {"targets": sys.argv[2:]}, detach=sys.argv[1] == "-d", title="add"))
except MillpondError as error:
    print(error.kind, error)
"""


def test_a_verb_as_a_job_gives_its_result_or_its_error(home: Home) -> None:
    home.git("init", "-q")
    home.run("init", "-q")
    (home.repo / "f").write_text("1")

    def add(*args: str) -> str:
        command = [sys.executable, "-c", AS_JOB, *args]
        done = subprocess.run(command, cwd=home.repo, env=home.env, capture_output=True, text=True, check=True)
        assert "ERROR" not in done.stderr  # it is said once, by whom it is raised to
        return done.stdout

    assert "'pointer': 'f.dvc'" in add("-f", "f")
    assert add("-f", "none").startswith("target 'none' does not exist")
    n = number(home)
    assert home.run("logs").stderr == "[millpond] ERROR: 'none' does not exist\n"
    assert add("-d", "f").splitlines()[0].startswith(f"Job {n + 1}")
    assert [row["state"] for row in (ended(home), *shown(home)[1:3])] == ["succeeded", "failed", "succeeded"]
