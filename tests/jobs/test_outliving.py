"""What jobs outlive, and what becomes of them when something is killed, stops, or fails."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from tests.jobs import jobhelp as jobs
from tests.jobs.helpers import Site, children_named, context, gone, kill, running, site, until

from millpond.daemon.errors import DaemonUnavailableError
from millpond.daemon.rpc.client import Client


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
