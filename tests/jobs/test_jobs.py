"""Jobs through a real daemon: what they are given, what is kept of them, how they are ended."""

from __future__ import annotations

import os
import signal
import termios
import time
from pathlib import Path

import pytest
from tests.jobs import jobhelp as jobs
from tests.jobs.helpers import context, gone, until

from millpond.daemon.errors import JobError, UsageError
from millpond.daemon.rpc.client import Client


def test_a_job_has_its_output_its_exit_code_and_what_it_used(client: Client, tmp_path: Path) -> None:
    begun = time.time()
    script = "echo out; echo err >&2; head -c 30000000 /dev/zero | tail -c 1 | wc -c; exit 7"
    row = jobs.wait(client, jobs.run(client, "sh", "-c", script, cwd=tmp_path, name="one"))
    assert (row["state"], row["exit_code"], row["signal"], row["reason"]) == ("failed", 7, None, "exit code 7")
    assert jobs.output(row) == b"out\n1\n" and jobs.output(row, b"stderr") == b"err\n"
    assert begun <= row["started"] <= row["ended"] <= time.time()
    usage = row["outcome"]["rusage"]
    assert usage["max_rss_bytes"] > 100_000 and usage["user_s"] + usage["system_s"] > 0
    assert row["outcome"]["mounts"] == [] and row["outcome"]["log"]["bytes"] == 10
    assert jobs.result(row)["exit_code"] == 7
    # Nothing of the environment, which may have credentials, is left on the disk.
    assert {path.name for path in jobs.folder(row).iterdir()} == {"job.json", "begun.json", "log", "result.json"}
    assert jobs.folder(row).stat().st_mode & 0o777 == 0o700


def test_it_has_the_clients_environment_folder_umask_and_limits_and_nothing_of_the_daemons(
    client: Client, tmp_path: Path
) -> None:
    script = "env; pwd; umask; ulimit -n; ulimit -c; nice; readlink /proc/self/fd/0; ls /proc/self/fd | wc -l"
    row = jobs.run(
        client, "sh", "-c", script, cwd=tmp_path, env={"A": "x\ny", "SECRET": "s"},
        limits={"RLIMIT_NOFILE": [100, 200], "RLIMIT_CORE": [0, 0]}, nice=5,
    )  # fmt: skip
    row = jobs.wait(client, row)
    text = jobs.output(row).decode()
    *env, cwd, umask, files, core, nice, stdin, fds = text.splitlines()
    assert (cwd, umask, files, core, nice, stdin) == (str(tmp_path), "0027", "100", "0", "5", "/dev/null")
    assert int(fds) == 4  # its three, and the one that reads the folder
    names = {line.partition("=")[0] for line in env if "=" in line}
    assert names - {"_", "OLDPWD", "SHLVL"} == {"A", "SECRET", "PATH", "HOME", "PWD", "MILLPOND_JOB", "MILLPOND_JOB_ID"}
    assert f"MILLPOND_JOB={row['number']}" in env


def test_signals_are_as_a_shell_leaves_them(client: Client) -> None:
    row = jobs.wait(client, jobs.run(client, "cat", "/proc/self/status"))
    ignored = {
        # The C library keeps two signals, 32 and 33, to itself.
        line.split()[0]: int(line.split()[1], 16) & ~(3 << 31)
        for line in jobs.output(row).decode().splitlines()
        if line.startswith(("SigBlk", "SigIgn", "SigCgt"))
    }
    assert ignored == {"SigBlk:": 0, "SigIgn:": 0, "SigCgt:": 0}


@pytest.mark.parametrize(
    ("argv", "code", "reason"),
    [
        (["no-such-program-x", "a"], 127, "cannot run 'no-such-program-x': No such file or directory"),
        (["/etc/passwd", "a"], 126, "cannot run '/etc/passwd': Permission denied"),
        (["sh", "-c", "kill -9 $$"], None, "ended by signal 9, killed"),
    ],
)
def test_what_cannot_run_fails_as_in_a_shell(client: Client, argv: list[str], code: int | None, reason: str) -> None:
    row = jobs.wait(client, jobs.run(client, *argv))
    assert (row["state"], row["exit_code"], row["reason"]) == ("failed", code, reason)
    if code is not None:
        assert jobs.notes(row) == [reason]


def test_one_word_is_a_line_for_the_clients_shell(client: Client, tmp_path: Path) -> None:
    fake = tmp_path / "zsh"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    row = jobs.wait(client, jobs.run(client, "echo a | tr a b", env={"SHELL": str(fake)}))
    assert jobs.output(row) == b"--no-rcs -c echo a | tr a b\n"
    row = jobs.wait(client, jobs.run(client, "echo a | tr a b"))
    assert jobs.output(row) == b"b\n" and row["title"] == "echo a | tr a b"


def test_a_job_is_meant_by_its_number_its_name_or_the_beginning_of_that(client: Client) -> None:
    def found(word: str | None) -> int:
        return int(client.call("jobs.find", {"job": word})[0]["job"]["number"])

    first, again, other = (jobs.run(client, "true", name=name)["number"] for name in ("pretty", "pretty", "predict"))
    assert found(str(first)) == first and found("pretty") == again and found("pret") == again
    assert found("pred") == other and found(None) == other
    with pytest.raises(JobError, match="predict, pretty"):
        found("pre")
    with pytest.raises(JobError, match="no job 'x' of yours"):
        found("x")
    for wrong in ("7", "a b", "", "-x", "x" * 65):
        with pytest.raises(UsageError):
            jobs.run(client, "true", name=wrong)
    with pytest.raises(UsageError):
        jobs.run(client)


def test_cancelling_ends_the_whole_group_and_kills_what_is_deaf(client: Client, tmp_path: Path) -> None:
    gentle = jobs.run(client, "sh", "-c", f"trap 'echo bye; exit 0' TERM; echo $$ > {tmp_path}/g; sleep 100 & wait")
    jobs.pid_in(tmp_path / "g")
    [row] = jobs.cancel(client, gentle)
    assert (row["state"], row["exit_code"]) == ("cancelled", 0)
    assert jobs.output(row) == b"bye\n" and jobs.notes(row)[0] == "cancelled"

    deaf = (
        "import os, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen(['sleep', '100'], start_new_session=True); "
        f"open('{tmp_path}/d', 'w').write(f'{{child.pid}}\\n'); time.sleep(100)"
    )
    job = jobs.run(client, "python3", "-c", deaf, grace_s=0.2)
    child = jobs.pid_in(tmp_path / "d")
    [row] = jobs.cancel(client, job)
    assert (row["state"], row["signal"]) == ("cancelled", signal.SIGKILL)
    assert gone(child)  # though in a session of its own: its parent lived

    job = jobs.run(client, "sh", "-c", f"echo $$ > {tmp_path}/n; trap '' TERM; while :; do sleep 1; done", grace_s=100)
    jobs.pid_in(tmp_path / "n")
    [row] = jobs.cancel(client, job, now=True)
    assert row["state"] == "cancelled"
    with pytest.raises(JobError, match="been cancelled already"):
        jobs.cancel(client, job)


def test_a_stopped_command_can_be_cancelled(client: Client, tmp_path: Path) -> None:
    job = jobs.run(client, "sh", "-c", f"echo $$ > {tmp_path}/p; sleep 100")
    pid = jobs.pid_in(tmp_path / "p")
    os.killpg(pid, signal.SIGSTOP)
    [row] = jobs.cancel(client, job)
    assert (row["state"], row["signal"]) == ("cancelled", signal.SIGTERM)


def test_what_a_command_leaves_behind_is_ended_but_a_daemon_is_not(client: Client, tmp_path: Path) -> None:
    script = (
        f"sleep 100 & echo $! > {tmp_path}/left; setsid sh -c 'echo $$ > {tmp_path}/daemon; exec sleep 100' & sleep 0.3"
    )
    row = jobs.wait(client, jobs.run(client, "sh", "-c", script))
    left, daemon = jobs.pid_in(tmp_path / "left"), jobs.pid_in(tmp_path / "daemon")
    try:
        assert row["state"] == "succeeded" and gone(left) and not gone(daemon)
        assert row["outcome"]["ended_with_it"] == [f"sleep (pid {left})"]
        assert f"sleep (pid {left})" in jobs.notes(row)[0]
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_output_that_is_still_open_elsewhere_does_not_hold_the_job(client: Client, tmp_path: Path) -> None:
    """A daemon keeps the pipes open, and writes for ever."""
    script = f"echo first; setsid sh -c 'echo $$ > {tmp_path}/d; while echo more; do :; done' & sleep 0.3"
    row = jobs.wait(client, jobs.run(client, "sh", "-c", script))
    assert row["state"] == "succeeded" and b"first\n" in jobs.output(row)
    until(lambda: gone(jobs.pid_in(tmp_path / "d")))  # nobody reads any more


def test_a_terminal_is_had_when_the_client_has_one(client: Client, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, time; print(sys.stdout.isatty(), sys.stderr.isatty(), os.get_terminal_size());"
        f"signal.signal(signal.SIGWINCH, lambda *_: (print(os.get_terminal_size()), os._exit(0)));"
        f"print(os.ttyname(1)); open('/dev/tty').close(); print('\\x1b[1mbold'); sys.stdout.flush();"
        f"open('{tmp_path}/r', 'w').write('1\\n'); time.sleep(20)"
    )
    job = jobs.run(client, "python3", "-c", script, terminal=[30, 90])
    jobs.pid_in(tmp_path / "r")
    tty = (jobs.folder(job) / "begun.json").read_text().split('"tty": "')[1].split('"')[0]
    with open(tty, "wb", buffering=0) as file:
        termios.tcsetwinsize(file, (11, 22))
    row = jobs.wait(client, job)
    assert row["state"] == "succeeded", jobs.output(row)
    lines = jobs.output(row).decode().splitlines()
    assert lines[0] == "True True os.terminal_size(columns=90, lines=30)"
    assert lines[1:] == [tty, "\x1b[1mbold", "os.terminal_size(columns=22, lines=11)"]


def test_ended_jobs_are_removed_with_their_files(client: Client) -> None:
    running_job = jobs.run(client, "sleep", "100")
    one, two = (jobs.wait(client, jobs.run(client, "true")) for _ in range(2))
    params = {"keep": None, "context": context()}
    with pytest.raises(JobError, match="has not ended"):
        client.call("job.remove", {"jobs": [str(running_job["number"])], **params})
    assert client.call("job.remove", {"jobs": [str(one["number"])], **params})[0] == {"removed": [one["number"]]}
    assert not jobs.folder(one).exists() and jobs.folder(two).exists()
    with pytest.raises(JobError):
        client.call("jobs.find", {"job": one["number"]})
    jobs.cancel(client, running_job)
    removed = client.call("job.remove", {"jobs": [], "keep": 1, "context": context()})[0]["removed"]
    assert running_job["number"] in removed and [row["number"] for row in jobs.rows(client)] == [two["number"]]
