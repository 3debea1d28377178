"""Verbs as jobs: they have the daemon, and go on with the next one."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from tests.jobs import jobhelp as jobs
from tests.jobs.helpers import site, until

from millpond.daemon.errors import CancelledError, UsageError
from millpond.daemon.rpc.client import Client


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
