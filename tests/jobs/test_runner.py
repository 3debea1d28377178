"""The runner of a verb's commands: side by side, told apart, logged, and never two of one at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.jobs import jobhelp as jobs
from tests.jobs.helpers import gone, running, until

from millpond.daemon.errors import BusyError, TargetError
from millpond.daemon.jobs.runner import CommandRunner, Sink, Task
from millpond.daemon.jobs.terminals import open_terminal

ENV = {"PATH": os.environ["PATH"], "SHELL": "/bin/sh"}


@pytest.fixture
def pipes() -> Iterator[tuple[Sink, list[int]]]:
    out, err = os.pipe(), os.pipe()
    yield Sink(out[1], err[1]), [out[0], err[0]]
    for fd in (*out, *err):
        os.close(fd)


def task(folder: Path, command: str, key: str = "one", **values: object) -> Task:
    return Task(key, command, str(folder), ENV, str(folder / f"logs/{key}"), **values)  # type: ignore[arg-type]


def test_commands_with_labels_are_told_apart_line_by_line(tmp_path: Path, pipes: tuple[Sink, list[int]]) -> None:
    sink, read = pipes
    runner = CommandRunner(sink)
    for key in ("a", "b"):
        runner.start(
            task(tmp_path, f"printf 1{key}; sleep 0.2; printf '2\\n3'; echo x >&2; exit 3", key, label=f"{key}: ")
        )
    ended = [runner.wait(), runner.wait()]
    runner.stop()
    assert {(each.key, each.code) for each in ended} == {("a", 3), ("b", 3)} and ended[0].seconds >= 0.19
    assert sorted(os.read(read[0], 1000).splitlines()) == [b"a: 1a2", b"a: 3", b"b: 1b2", b"b: 3"]
    assert sorted(os.read(read[1], 1000).splitlines()) == [b"a: x", b"b: x"]
    assert (tmp_path / "logs/a").read_bytes() in (b"1a2\n3x\n", b"1ax\n2\n3", b"1a2\nx\n3")


def test_a_log_is_begun_anew_or_goes_on(tmp_path: Path) -> None:
    runner = CommandRunner(Sink())
    for command, append in (("echo 1", False), ("echo 2", True), ("echo 3", False), ("echo 4; kill -9 $$", True)):
        runner.start(task(tmp_path, command, append=append))
        ended = runner.wait()
    assert (tmp_path / "logs/one").read_text() == "3\n4\n" and ended.code == -signal.SIGKILL
    runner.stop()


def test_one_is_never_run_twice_at_once(tmp_path: Path) -> None:
    """Nor while something that it started, and a killed runner left, still runs."""
    runner = CommandRunner(Sink())
    runner.start(task(tmp_path, f"setsid sh -c 'echo $$ > {tmp_path}/p; exec sleep 100' & sleep 0.3"))
    with pytest.raises(BusyError, match="fuser"):
        runner.start(task(tmp_path, "true"))
    assert runner.wait().code == 0
    left = jobs.pid_in(tmp_path / "p")
    other = CommandRunner(Sink())
    other.start(task(tmp_path, "true"))  # the command itself has ended: that is known
    assert other.wait().code == 0
    os.kill(left, signal.SIGKILL)
    with pytest.raises(TargetError, match="cannot run a command of 'one'"):
        other.start(Task("one", "true", "/no/such", ENV, str(tmp_path / "logs/one")))
    other.start(task(tmp_path, "true"))
    other.stop()
    runner.stop()


def test_stopping_ends_all_that_run(tmp_path: Path) -> None:
    runner = CommandRunner(Sink(), grace_s=0.2)
    for key in ("a", "b"):
        runner.start(task(tmp_path, f"trap '' TERM; echo $$ > {tmp_path}/{key}; while :; do sleep 0.05; done", key))
    pids = [jobs.pid_in(tmp_path / key) for key in ("a", "b")]
    began = time.monotonic()
    runner.stop()
    assert jobs.ended(*pids) and 0.2 <= time.monotonic() - began < 5
    runner.stop()


def test_one_without_a_label_has_a_terminal_where_the_sink_is_one(tmp_path: Path) -> None:
    ours, theirs = open_terminal((40, 100))
    runner = CommandRunner(Sink(theirs, theirs))
    runner.start(task(tmp_path, "[ -t 1 ] && [ -t 2 ] && stty size <&1"))
    assert runner.wait().code == 0
    runner.stop()
    assert os.read(ours, 100) == b"40 100\n"
    for fd in (ours, theirs):
        os.close(fd)


@pytest.mark.parametrize("victim", ["shim", "verb"])
def test_a_killed_verb_or_shim_leaves_none_of_its_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    monkeypatch.setenv("JOBS_HOME", str(tmp_path / "home"))
    with running(tmp_path) as place, place.start() as client:
        params = {"mark": str(tmp_path / "p"), "folder": str(tmp_path)}
        job = jobs.wait(client, jobs.begin(client, verb="stages", params=params, env=place.env), "begun")
        pids = [jobs.pid_in(tmp_path / f"p{n}") for n in range(2)]
        verb = jobs.pid_in(tmp_path / "p")
        os.kill(job["pid"] if victim == "shim" else verb, signal.SIGKILL)
        row = jobs.wait(client, job)
        assert row["state"] == ("lost" if victim == "shim" else "failed")
        until(lambda: all(map(gone, [verb, *pids])))
