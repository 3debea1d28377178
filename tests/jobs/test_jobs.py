"""Jobs through a real daemon: what is kept of them, what they outlive, and what becomes of them when something is killed."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.jobs import jobhelp as jobs
from tests.jobs.helpers import Site, children_named, context, gone, kill, running, site, until

from millpond.daemon.errors import CancelledError, DaemonUnavailableError, JobError, UsageError
from millpond.daemon.rpc.client import Client


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One daemon for the tests that do not hurt it."""
    folder = tmp_path_factory.mktemp("jobs")
    with pytest.MonkeyPatch.context() as patch, running(folder) as found:
        patch.setenv("JOBS_HOME", str(folder / "home"))
        yield found


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "JOBS_HOME" not in os.environ:
        monkeypatch.setenv("JOBS_HOME", str(tmp_path / "home"))


@pytest.fixture
def client(place: Site) -> Iterator[Client]:
    with place.start() as found:
        yield found


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


# -- kills ------------------------------------------------------------------------------------------------------------


def test_a_killed_shim_makes_its_job_lost_at_once_and_ends_what_it_ran(client: Client, tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/leader; wait; echo never"
    job = jobs.wait(client, jobs.run(client, "sh", "-c", script), "begun")
    pids = [jobs.pid_in(tmp_path / "child"), jobs.pid_in(tmp_path / "leader")]
    began = time.monotonic()
    os.kill(job["pid"], signal.SIGKILL)
    row = jobs.wait(client, job)
    assert row["state"] == "lost" and "no result" in row["reason"]
    assert jobs.ended(*pids) and time.monotonic() - began < 3
    assert jobs.output(row) == b""


def test_a_job_outlives_its_client_its_daemon_and_its_zygote(tmp_path: Path) -> None:
    place = site(tmp_path)
    with place.start() as client:
        job = jobs.run(
            client, "sh", "-c", f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo on; exit 4", name="x"
        )
        jobs.wait(client, job, "begun")
        [zygote] = children_named("millpond-zygote", int(client.call("daemon.status", {})[0]["pid"]))
        kill(zygote)
    jobs.kill_daemon(place)
    with place.start() as client:
        [row] = jobs.rows(client)
        assert row["state"] == "running" and row["pid"] == jobs.wait(client, job, "begun")["pid"]
        client.call("daemon.stop", {})
        assert client.hung_up(20)
    with place.start() as client:
        (tmp_path / "go").touch()
        row = jobs.wait(client, job)
        assert (row["state"], row["exit_code"], jobs.output(row)) == ("failed", 4, b"on\n")
        [row] = jobs.cancel(client, jobs.run(client, "sleep", "100"))
        assert row["state"] == "cancelled"
    place.end()


def test_a_job_that_ended_or_died_while_no_daemon_ran_is_known_by_the_next(tmp_path: Path) -> None:
    place = site(tmp_path)
    with place.start() as client:
        wait_for_go = f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exit 5"
        over, lost, alive = (jobs.run(client, "sh", "-c", wait_for_go) for _ in range(3))
        lost, alive = (jobs.wait(client, job, "begun") for job in (lost, alive))
        jobs.wait(client, over, "begun")
    jobs.kill_daemon(place)
    kill(lost["pid"])
    os.kill(alive["pid"], signal.SIGSTOP)  # its command goes on, and it hears of the end later
    (tmp_path / "go").touch()
    until((jobs.folder(over) / "result.json").exists)
    with place.start() as client:
        found = {row["number"]: row["state"] for row in jobs.rows(client)}
        assert found == {over["number"]: "failed", lost["number"]: "lost", alive["number"]: "running"}
        os.kill(alive["pid"], signal.SIGCONT)
        assert jobs.wait(client, alive)["exit_code"] == 5
    place.end()


def test_a_daemon_stays_while_jobs_run_and_says_how_many(tmp_path: Path) -> None:
    place = site(tmp_path, MILLPOND_IDLE_EXIT="0.2")
    with place.start() as client:
        pid = int(client.call("daemon.status", {})[0]["pid"])
        job = jobs.run(client, "sh", "-c", f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done")
        jobs.wait(client, job, "begun")
        assert client.call("daemon.status", {})[0]["jobs"] == {"queued": 0, "running": 1}
    time.sleep(1)
    assert not gone(pid)
    (tmp_path / "go").touch()
    until(lambda: gone(pid))


def test_jobs_wait_for_a_place_in_their_order(tmp_path: Path) -> None:
    with running(tmp_path, MILLPOND_JOBS="2") as place, place.start() as client:
        made = [
            jobs.run(
                client, "sh", "-c", f"echo {n} >> {tmp_path}/order; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
            )
            for n in range(5)
        ]
        for job in made[:2]:
            jobs.wait(client, job, "begun")
        assert [row["state"] for row in reversed(jobs.rows(client))] == ["running"] * 2 + ["queued"] * 3
        waiting = client.start("jobs.wait", {"job": made[4]["number"], "until": "begun"})
        [row] = jobs.cancel(client, made[3])
        assert (row["state"], row["pid"]) == ("cancelled", 0)
        until(lambda: not (jobs.folder(made[3]) / "env").exists())
        (tmp_path / "go").touch()
        assert client.wait(waiting)[0]["job"]["state"] in ("running", "succeeded")
        assert {jobs.wait(client, made[n])["state"] for n in (0, 1, 2, 4)} == {"succeeded"}
        assert sorted((tmp_path / "order").read_text().split()) == ["0", "1", "2", "4"]


def test_a_job_that_cannot_begin_fails_with_the_reason(tmp_path: Path) -> None:
    with running(tmp_path, MILLPOND_JOBS="1") as place, place.start() as client:
        first = jobs.run(client, "sh", "-c", f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done")
        jobs.wait(client, first, "begun")
        damaged, gone_, other = (jobs.run(client, "true", "x") for _ in range(3))
        (jobs.folder(damaged) / "job.json").write_text("{")
        shutil.rmtree(jobs.folder(gone_))
        spec = json.loads((jobs.folder(other) / "job.json").read_text())
        (jobs.folder(other) / "job.json").write_text(json.dumps(spec | {"terminal": "x", "cwd": 7}))
        (tmp_path / "go").touch()
        for job, reason in ((damaged, "cannot be read"), (gone_, "cannot be read"), (other, "cannot begin")):
            row = jobs.wait(client, job)
            assert row["state"] == "failed" and reason in row["reason"], row
        for job in (damaged, gone_, other):
            env = jobs.folder(job) / "env"
            until(lambda: not env.exists())  # noqa: B023 - called before the next one
        assert jobs.wait(client, jobs.run(client, "true"))["state"] == "succeeded"


def test_who_waits_for_a_job_holds_up_no_daemon_that_stops(tmp_path: Path) -> None:
    place = site(tmp_path)
    with place.start() as client:
        job = jobs.wait(client, jobs.run(client, "sleep", "1000"), "begun")
        waiting = client.start("jobs.wait", {"job": job["number"], "until": "ended"})
        began = time.monotonic()
        client.call("daemon.stop", {})
        with pytest.raises(DaemonUnavailableError, match="stopping"):
            client.wait(waiting)
        assert client.hung_up(20) and time.monotonic() - began < 8
    with place.start() as client:
        assert jobs.cancel(client, job)[0]["state"] == "cancelled"
    place.end()


def test_a_queued_job_outlives_the_daemon_too(tmp_path: Path) -> None:
    place = site(tmp_path, MILLPOND_JOBS="1")
    with place.start() as client:
        first = jobs.run(client, "sh", "-c", f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done")
        jobs.wait(client, first, "begun")
        second = jobs.run(client, "sh", "-c", "echo $SECRET", env={"SECRET": "kept"})
        env = jobs.folder(second) / "env"
        assert env.stat().st_mode & 0o777 == 0o600
    jobs.kill_daemon(place)
    (tmp_path / "go").touch()
    with place.start() as client:
        assert jobs.wait(client, first)["state"] == "succeeded"
        assert jobs.output(jobs.wait(client, second)) == b"kept\n" and not env.exists()
    place.end()


@pytest.mark.parametrize("count", [12, pytest.param(50, marks=pytest.mark.long)])
def test_many_jobs_at_once(client: Client, count: int) -> None:
    made = [jobs.run(client, "sh", "-c", f"echo {n}; sleep 0.5; exit {n % 3}") for n in range(count)]
    ended = [jobs.wait(client, job) for job in made]
    outcomes = [(row["exit_code"], jobs.output(row)) for row in ended]
    assert outcomes == [(n % 3, f"{n}\n".encode()) for n in range(count)]
    assert len({row["number"] for row in ended}) == count


def test_a_full_disk_costs_output_and_never_the_job(place: Site, client: Client, tmp_path: Path) -> None:
    """RLIMIT_FSIZE of the shim is what a full disk is to its log; its result has room that was taken before."""
    job = jobs.wait(client, jobs.run(
        client, "sh", "-c", f"echo begun; touch {tmp_path}/b; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; "
        "seq 100000; echo end"
    ), "begun")  # fmt: skip
    until((tmp_path / "b").exists)
    time.sleep(0.1)
    soft, hard = resource.prlimit(job["pid"], resource.RLIMIT_FSIZE, (1000, -1))
    (tmp_path / "go").touch()
    row = jobs.wait(client, job)
    assert row["state"] == "succeeded" and row["outcome"]["log"]["lost"] > 500_000
    assert jobs.output(row) == b"begun\n"


def test_a_damaged_table_is_set_aside_and_one_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    place = site(tmp_path)
    with place.start() as client:
        job = jobs.wait(client, jobs.run(client, "true"))
        client.call("daemon.stop", {})
        client.hung_up(20)
    table = place.settings.state / "jobs.db"
    good = table.read_bytes()
    table.write_bytes(b"x" * 10000)
    with place.start() as client:
        assert jobs.rows(client) == []
        assert jobs.wait(client, jobs.run(client, "true"))["state"] == "succeeded"
        client.call("daemon.stop", {})
        client.hung_up(20)
    assert any("damaged" in line["text"] for line in place.log())
    table.write_bytes(good)
    with sqlite3.connect(table) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    before = table.read_bytes()
    with place.start() as client:
        with pytest.raises(Exception, match="format 2"):
            jobs.rows(client)
        with pytest.raises(Exception, match="format 2"):
            jobs.run(client, "true")
        assert client.call("root", {"context": context()})[0] == {}
    place.end()
    assert table.read_bytes() == before and jobs.folder(job).exists()


# -- a verb as a job --------------------------------------------------------------------------------------------------


def test_a_verb_as_a_job_has_the_daemon_and_goes_on_with_the_next(tmp_path: Path) -> None:
    place = site(tmp_path)
    (tmp_path / "file").write_bytes(b"data")
    with place.start() as client:
        params = {"project": "p", "mark": str(tmp_path / "mark"), "until": str(tmp_path / "go")}
        job = jobs.begin(client, verb="add", params=params, env=place.env, title="add p")
        until((tmp_path / "mark").exists)
        row = until(lambda: (found := jobs.rows(client)[0])["progress"] and found)
        assert row["progress"]["phase"] == "holding" and row["kind"] == "verb" and row["title"] == "add p"
        [_, lock] = client.call("daemon.status", {})[0]["locks"]
        assert lock["held_by"][0].startswith(f"job {job['number']} by ")
    jobs.kill_daemon(place)
    threading.Timer(0.5, (tmp_path / "go").touch).start()
    with place.start() as client:  # not before the job has let go of its lock
        row = jobs.wait(client, job)
        assert row["state"] == "succeeded", jobs.records(row)
        store = jobs.begin(client, verb="status", params={"paths": [str(tmp_path / "file")], "lines": 2}, env=place.env)
        row = jobs.wait(client, store)
        assert row["state"] == "succeeded" and jobs.output(row) == b"line 0\nline 1\n"
        assert b"8d777f385d3dfec8815d20f7496026dc" in (jobs.folder(row) / "answer.json").read_bytes()
    place.end()


def test_a_job_that_waits_for_a_lock_says_for_whom(client: Client, tmp_path: Path) -> None:
    made = []
    for n in range(2):
        params = {"project": "w", "mark": str(tmp_path / f"mark{n}"), "until": str(tmp_path / "go")}
        made.append(jobs.begin(client, verb="add", params=params))
        if n == 0:
            until((tmp_path / "mark0").exists)
    until(lambda: f"job {made[0]['number']} by " in str((jobs.rows(client)[0]["progress"] or {}).get("for")))
    until(lambda: jobs.folder(made[1]).joinpath("log").exists())
    (tmp_path / "go").touch()
    assert {jobs.wait(client, row)["state"] for row in made} == {"succeeded"}
    name = f"waiting for job {made[0]['number']} by "
    assert jobs.output(made[1]).decode().startswith(name) and jobs.output(made[1]).count(b"\n") == 1


def test_a_long_verb_loses_nothing_to_daemons_that_die(tmp_path: Path) -> None:
    """One dies between two locked parts, one within: what is done in between is done once, what is within is done again."""
    place = site(tmp_path)
    (tmp_path / "file").write_bytes(b"data")
    names = {name: str(tmp_path / name) for name in ("go", "mark", "in")}
    with place.start() as client:
        params = {"steps": 2, "project": "p", "paths": [str(tmp_path / "file")], **names}
        job = jobs.begin(client, verb="steps", params=params, env=place.env)
        until(lambda: (jobs.folder(job) / "log").exists())
    jobs.kill_daemon(place)
    for path in ("go0", "in0"):
        (tmp_path / path).touch()
    until((tmp_path / "mark0").exists)  # it has started the next daemon
    until(lambda: b"step 1" in jobs.output(job))
    (tmp_path / "go1").touch()
    until((tmp_path / "mark1").exists)
    with Client.connect(place.settings.socket) as client:
        assert client.call("daemon.status", {})[0]["locks"][0]["mode"] == "write"
    jobs.kill_daemon(place)
    threading.Timer(0.3, (tmp_path / "in1").touch).start()
    began = time.monotonic()
    with place.start() as client:  # waits for the part that still thinks it is alone
        assert time.monotonic() - began >= 0.2
        row = jobs.wait(client, job)
        assert row["state"] == "succeeded", jobs.records(row)
        assert jobs.output(row) == b"step 0\nstep 1\n"
        assert jobs.output(row, b"stderr").count(b"going on with the next daemon") == 2
        assert b"8d777f385d3dfec8815d20f7496026dc" in (jobs.folder(row) / "answer.json").read_bytes()
        assert client.call("daemon.status", {})[0]["locks"] == []
    place.end()


@pytest.mark.parametrize(("how", "reason"), [("typed", "cannot read"), ("bug", "a bug"), ("kill", "signal 9")])
def test_a_verb_that_fails_says_why(client: Client, how: str, reason: str) -> None:
    row = jobs.wait(client, jobs.begin(client, verb="checkout", params={"how": how}))
    assert row["state"] == "failed" and reason in row["reason"]


def test_a_verb_as_a_job_is_cancelled_as_a_worker_is(client: Client, tmp_path: Path) -> None:
    params = {"project": "q", "mark": str(tmp_path / "mark"), "until": str(tmp_path / "go"), "cleanup_s": 0.3}
    job = jobs.begin(client, verb="add", params=params)
    until((tmp_path / "mark").exists)
    [row] = jobs.cancel(client, job)
    assert (row["state"], row["exit_code"]) == ("cancelled", CancelledError.exit_code)
    assert not (tmp_path / "mark").exists()
    with pytest.raises(UsageError):
        jobs.begin(client, verb="job.cancel", params={})


# -- at random --------------------------------------------------------------------------------------------------------


def chaos(place: Site, tmp_path: Path, seed: int) -> None:
    """A job whose shim, command, daemon, zygote or client is killed at a random moment: its state is right in the end."""
    chance = random.Random(seed)
    victim = chance.choice(["shim", "command", "daemon", "zygote", "daemon+shim"])
    mark = tmp_path / f"p{seed}"
    script = f"echo $$ > {mark}; sleep {chance.choice([0.01, 0.05, 0.5])}; echo done"
    with place.start() as client:
        job = jobs.run(client, "sh", "-c", script)
        time.sleep(chance.random() * 0.06)
        daemon = int(client.call("daemon.status", {})[0]["pid"])
    with place.start() as client:
        row = client.call("jobs.find", {"job": job["number"]})[0]["job"]
    victims = {
        "shim": [row["pid"]],
        "command": [int(mark.read_text() or 0)] if mark.exists() else [],
        "daemon": [daemon],
        "zygote": children_named("millpond-zygote", daemon),
        "daemon+shim": [daemon, row["pid"]],
    }[victim]
    for pid in victims:
        if pid and not gone(pid):
            os.kill(pid, signal.SIGKILL)
    with place.start() as client:
        row = jobs.wait(client, job)
        said = f"seed {seed}: {victim} killed: {row}"
        if row["state"] == "succeeded":
            assert jobs.output(row) == b"done\n" and jobs.result(row)["exit_code"] == 0, said
        elif row["state"] == "failed":
            assert victim == "command" and row["signal"] == 9, said
        else:
            assert row["state"] == "lost" and "shim" in victim, said
        if mark.exists() and mark.read_text():
            assert gone(int(mark.read_text())), said


def test_kills_at_random_moments(tmp_path: Path) -> None:
    place = site(tmp_path)
    seed = random.randrange(10**6)
    for number in range(seed, seed + 3):
        chaos(place, tmp_path, number)
    place.end()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_many_kills_at_random_moments(tmp_path: Path) -> None:
    place = site(tmp_path)
    for number in range(150):
        chaos(place, tmp_path, number)
    place.end()
