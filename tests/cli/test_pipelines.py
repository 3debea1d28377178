"""repro, status, dag, why by the real program: what is printed, where, exit codes, terminals, Ctrl-C."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from tests.cli.helpers import Home, Terminal

PIPELINE = """
stages:
  first:
    cmd: echo out; echo err >&2; cat src > one
    deps: [src]
    params: [p]
    outs: [one]
  second:
    cmd: test -t 1 && echo is a terminal; cp one two
    deps: [one]
    outs: [two]
"""


def begin(home: Home, text: str = PIPELINE) -> None:
    home.git("init", "-q")
    home.run("init", "-q")
    (home.repo / "dvc.yaml").write_text(text)
    (home.repo / "src").write_text("1")
    (home.repo / "params.yaml").write_text("p: 1\n")


def test_a_pipeline_from_the_first_run_to_a_check(home: Home, terminal: Callable[..., Terminal]) -> None:
    begin(home)
    assert home.run("stage", "list", "--name-only").stdout == home.dvc("stage", "list", "--name-only").stdout
    assert home.run("dag", "--mermaid").stdout == home.dvc("dag", "--mermaid").stdout
    assert "| first |" in home.run("dag").stdout
    done = home.run("repro")
    assert done.stderr == "err\n"
    lines = done.stdout.splitlines()
    assert lines[:5] == [
        "Running stage 'first':",
        "> echo out; echo err >&2; cat src > one",
        "out",
        "Generating lock file 'dvc.lock'",
        "Updating lock file 'dvc.lock'",
    ]
    assert lines[-1] == "Use `millpond push` to send your updates to remote storage."
    assert "\tgit add .gitignore dvc.lock" in lines or "\tgit add dvc.lock .gitignore" in lines
    home.run("cache", "export")
    assert home.dvc("status").stdout == home.run("status").stdout == "Data and pipelines are up to date.\n"
    assert home.run("repro").stdout == home.dvc("repro").stdout
    assert home.run("repro", "--check").stdout == "Data and pipelines are up to date.\n"
    (home.repo / "params.yaml").write_text("p: 2\n")
    assert home.run("status").stdout == home.dvc("status").stdout
    assert json.loads(home.run("status", "--json").stdout) == json.loads(home.dvc("status", "--json").stdout)
    checked = home.run("repro", "--check", code=1)
    assert checked.stdout == "first  would run  params.yaml: p changed from 1 to 2\n"
    first, nearest = home.run("why", "first").stdout.splitlines()
    assert f"{first}\n" == checked.stdout and nearest.endswith(": params.yaml: p 1 -> 2")
    found = json.loads(home.run("repro", "--dry", "--json", "first").stdout)
    assert found["stages"][0]["reasons"][0]["key"] == "p"
    (home.repo / "src").write_text("2")
    shown = terminal(home, "repro", "-i")
    shown.read_until("Going to reproduce stage 'first'")
    shown.type("y")
    shown.read_until("Going to reproduce stage 'second'")
    shown.type("y")
    assert shown.finish() == 0
    assert "is a terminal" in shown.seen
    assert home.run("repro", "-q").stdout == ""
    assert home.run("why", "--last", "first").stdout.startswith("first  ran  dependency src is modified")


def test_a_command_that_fails_and_one_that_is_interrupted(home: Home, terminal: Callable[..., Terminal]) -> None:
    begin(home, PIPELINE.replace("cp one two", "exit 4"))
    failed = home.run("repro", code=255)
    number = json.loads(home.run("jobs", "--json").stdout)[0]["number"]
    assert failed.stderr.splitlines()[-1].startswith(
        "ERROR: failed to reproduce 'second': failed to run: test -t 1 && echo is a terminal; exit 4, exited with 4; "
        f"see `millpond logs {number}`; its output is in .dvc/tmp/millpond/logs/second-"
    )
    (home.repo / "dvc.yaml").write_text(PIPELINE.replace("cp one two", "sleep 60 & echo $! > ../pid; wait"))
    shown = terminal(home, "repro")
    shown.read_until("> test -t 1")
    deadline = time.monotonic() + 20
    while not (home.path / "pid").exists() and time.monotonic() < deadline:
        # The project is not locked while a command runs.
        assert "second" in home.run("status").stdout
    shown.press_interrupt()
    assert shown.finish() == 130
    pid = int((home.path / "pid").read_text())
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def test_stage_add_and_run(home: Home) -> None:
    begin(home)
    done = home.run(
        "stage", "add", "-n", "third", "-d", "two", "-o", "three", "--run", "cp", "-f", "two", "three", code=255
    )
    assert done.stdout.startswith("Added stage 'third' in 'dvc.yaml'\n")
    assert "dependency 'two' does not exist" in done.stderr
    (home.repo / "two").write_text("2")
    shown = home.run(
        "stage", "add", "-f", "--run", "-n", "third", "-d", "src", "-o", "three", "cp", "-f", "a b", "three", code=255
    )
    assert '> cp -f "a b" three\n' in shown.stdout
    home.run("stage", "add", "-q", "-f", "--run", "-n", "third", "-d", "src", "-o", "three", "cp", "-f", "src", "three")
    assert (home.repo / "three").read_text() == "1"
    assert "third:" in (home.repo / "dvc.lock").read_text()


def test_run_is_the_old_name_of_stage_add(home: Home) -> None:
    begin(home)
    done = home.run("run", "-n", "third", "-d", "src", "-o", "three", "cp", "-f", "src", "three")
    assert "this is `millpond stage add --run -n third -d src -o three cp -f src three`" in done.stderr
    assert (home.repo / "three").read_text() == "1"
    assert "third:" in (home.repo / "dvc.lock").read_text()
    done = home.run("run", "--no-exec", "-n", "fourth", "-d", "three", "-o", "four", "cp three four --no-exec")
    assert "this is `millpond stage add -n fourth -d three -o four 'cp three four --no-exec'`" in done.stderr
    assert not (home.repo / "four").exists()
    assert "cmd: cp three four --no-exec" in (home.repo / "dvc.yaml").read_text()
    before = (home.repo / "dvc.yaml").read_bytes()
    assert "-n NAME" in home.run("run", "cp", "src", "five", code=254).stderr
    assert "checkpoints" in home.run("run", "-n", "six", "-c", "x", "true", code=254).stderr
    assert (home.repo / "dvc.yaml").read_bytes() == before


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
