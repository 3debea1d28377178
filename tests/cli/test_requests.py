"""Requests through the real program and the real daemon: progress, waiting, Ctrl-C, names of any bytes, the daemon's life."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.helpers import Home, Terminal

from millpond.cli import exits
from millpond.cli.connection import LOCK_WAIT_S
from millpond.daemon import wirepath
from millpond.daemon.errors import TargetError
from millpond.daemon.rpc.surroundings import surroundings

# Sparse: nothing on disk, but many seconds of hashing, all of which are cut short.
HUGE = 64 << 30


@pytest.fixture
def repo(home: Home) -> Home:
    """A user with an empty repository."""
    home.git("init", "-q", "-b", "main")
    home.run("init", "-q")
    return home


def make_huge(home: Home) -> None:
    (home.repo / "huge").touch()
    os.truncate(home.repo / "huge", HUGE)


def test_progress_and_interrupt_on_a_terminal(repo: Home, terminal: Callable[..., Terminal]) -> None:
    make_huge(repo)
    adding = terminal(repo, "add", "huge")
    adding.read_until(" of 68.7 GB, ")
    adding.read_until("/s, ")
    adding.press_interrupt()
    assert adding.finish() == exits.INTERRUPTED
    assert "ERROR\x1b[0m: interrupted" in adding.seen
    assert "Traceback" not in adding.seen
    assert not (repo.repo / "huge.dvc").exists()
    assert not (repo.repo / ".gitignore").exists()
    assert json.loads(repo.run("daemon", "status", "--json").stdout)["workers"] == 0
    assert json.loads(repo.run("fsck", "--json").stdout)["ok"]


def test_who_waits_is_told_for_whom(repo: Home, terminal: Callable[..., Terminal]) -> None:
    make_huge(repo)
    (repo.repo / "small").write_text("s")
    adding = terminal(repo, "add", "huge")
    adding.read_until(" of 68.7 GB")
    waiting = subprocess.Popen(
        repo.command("--wait-for-lock", "add", "small"),
        cwd=repo.repo,
        env=repo.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.stderr is not None
    told = waiting.stderr.readline()
    assert told.startswith("waiting for add by ") and f"(pid {adding.process.pid})" in told
    shown = terminal(repo, "--wait-for-lock", "add", "small")
    shown.read_until("waiting for add by ")
    shown.press_interrupt()
    assert shown.finish() == exits.INTERRUPTED
    adding.press_interrupt()
    assert adding.finish() == exits.INTERRUPTED
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, err) == (0, "")
    assert "git add" in out


def test_hanging_up_cancels(repo: Home, terminal: Callable[..., Terminal]) -> None:
    make_huge(repo)
    adding = terminal(repo, "add", "huge")
    adding.read_until(" of 68.7 GB")
    adding.process.send_signal(signal.SIGKILL)
    assert adding.finish() == -signal.SIGKILL
    (repo.repo / "small").write_text("s")
    assert "git add" in repo.run("--wait-for-lock", "add", "small").stdout, "the lock is free again"
    assert not (repo.repo / "huge.dvc").exists()


def test_quiet_is_quiet_on_a_terminal(repo: Home, terminal: Callable[..., Terminal]) -> None:
    (repo.repo / "f").write_text("f")
    adding = terminal(repo, "add", "-q", "f")
    assert (adding.finish(), adding.seen) == (0, "")


def test_names_that_terminals_and_shells_would_misread(repo: Home) -> None:
    name = "a\tb \x1b[31m %41 'é'"
    (repo.repo / name).write_text("x")
    done = repo.run("add", name)
    assert "\x1b" not in done.stdout
    (command,) = [line for line in done.stdout.splitlines() if line.startswith("\tgit add")]
    subprocess.run(["bash", "-c", command], cwd=repo.repo, env=repo.env, check=True)
    assert repo.git("ls-files", "-z", "--", "*.dvc").split("\0")[0] == name + ".dvc"
    (repo.repo / name).write_text("changed")
    status = json.loads(repo.run("status", "--json").stdout)
    assert status == {name + ".dvc": [{"changed outs": {name: "modified"}}]}
    assert len(repo.run("status").stdout.splitlines()) == 3
    added = json.loads(repo.run("add", "--json", name).stdout)
    assert added["added"][0]["path"] == name


def test_bytes_that_are_no_text_come_back_in_errors(repo: Home) -> None:
    name = b"\xff\x1b"
    done = repo.run("add", name, code=255)
    assert done.stderr.count("\n") == 1
    assert "\\xff" in done.stderr and "\x1b" not in done.stderr


def test_verbose_tells_more(repo: Home) -> None:
    (repo.repo / "f").write_text("four")
    assert "f: stored, 4 B, md5 " in repo.run("add", "-v", "f").stdout
    assert "DEBUG: error kind target" in repo.run("-v", "add", "nope", code=255).stderr


def test_errors_are_one_line_and_change_nothing(repo: Home) -> None:
    before = sorted(os.listdir(repo.repo))
    for words, code in ((["add", "nope"], 255), (["add", "/etc/passwd"], 255), (["mount", "x@nope", "m"], None)):
        done = repo.run(*words, code=code)
        assert done.returncode not in (0, exits.INTERRUPTED, 70)
        assert done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("ERROR: ")
    assert sorted(os.listdir(repo.repo)) == before


def test_reports(repo: Home) -> None:
    (repo.repo / "f").write_text("f")
    repo.run("add", "-q", "f")
    assert repo.run("fsck").stdout.endswith("The store is clean.\n")
    assert "with every object's digest" in repo.run("fsck", "--deep").stdout
    assert json.loads(repo.run("fsck", "--json").stdout)["objects"] == 1
    assert "Objects:      1, 1 B" in repo.run("cache", "info").stdout
    assert json.loads(repo.run("cache", "info", "--json").stdout)["logical"] == 1
    assert repo.run("mounts").stdout == "Nothing is mounted.\n"
    assert json.loads(repo.run("mounts", "--json").stdout) == {"mounts": []}
    assert repo.run("mounts", "--restore").stdout == "Nothing to restore.\n"
    assert repo.run("umount", "--all").stdout == "Nothing is mounted.\n"
    assert json.loads(repo.run("root", "--json").stdout) == {"root": str(repo.repo), "relative": "."}
    checks = json.loads(repo.run("doctor", "--json", code=None).stdout)["checks"]
    assert checks[0]["name"] == "daemon" and checks[0]["ok"]
    assert repo.run("doctor", code=None).stdout.count("\n") >= len(checks)


def test_a_damaged_store_is_told_with_its_files(repo: Home) -> None:
    (repo.repo / "d").mkdir()
    (repo.repo / "d/hurt").write_bytes(os.urandom(50_000))
    repo.run("add", "-q", "d")
    repo.run("daemon", "stop")
    (segment,) = (repo.path / "cache/millpond/segments").iterdir()
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    done = repo.run("fsck", code=exits.DAMAGED)
    assert "hurts hurt in " in done.stdout
    assert "Run `millpond fsck --repair`." in done.stdout
    assert not json.loads(repo.run("fsck", "--json", code=exits.DAMAGED).stdout)["ok"]


def test_the_daemon_s_life(repo: Home) -> None:
    pid = json.loads(repo.run("daemon", "status", "--json").stdout)["pid"]
    assert repo.run("daemon", "start").stdout == f"The daemon runs already: pid {pid}\n"
    assert repo.run("daemon", "status").stdout.startswith(f"The daemon runs: pid {pid}, since ")
    assert "Daemon:   not running" not in repo.run("version").stdout
    again = repo.run("daemon", "restart").stdout
    assert again.startswith("The daemon runs: pid ") and str(pid) not in again
    assert not alive(pid)
    second = int(again.split()[-1])
    assert repo.run("daemon", "stop").stdout == f"The daemon has stopped: pid {second}\n"
    assert not alive(second)
    assert repo.run("root").stdout == ".\n", "a command starts it"


def test_a_killed_daemon_is_started_again(repo: Home) -> None:
    for _ in range(3):
        pid = json.loads(repo.run("daemon", "status", "--json").stdout)["pid"]
        os.kill(pid, signal.SIGKILL)
        assert repo.run("root").stdout == ".\n"


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_logs(repo: Home, terminal: Callable[..., Terminal]) -> None:
    repo.run("status")
    lines = repo.run("daemon", "logs", "-n", "1000").stdout.splitlines()
    assert any(" status " in line and "outcome=ok" in line for line in lines)
    raw = repo.run("daemon", "logs", "--json", "-n", "2").stdout.splitlines()
    assert len(raw) == 2 and all(json.loads(line)["time"] for line in raw)
    following = terminal(repo, "daemon", "logs", "-f", "-n", "1")
    following.read_until("\n")
    seen = following.seen
    repo.run("root")
    assert " root " in following.read_until(" root ")[len(seen) :]
    following.press_interrupt()
    assert following.finish() == exits.INTERRUPTED
    assert "Traceback" not in following.seen


def test_a_store_in_use_elsewhere_is_an_error(repo: Home) -> None:
    """Another socket, the same store: the second daemon refuses and its reason is shown."""
    other = {"MILLPOND_SOCKET": str(repo.path / "other.sock"), "XDG_STATE_HOME": str(repo.path / "state2")}
    done = repo.run("root", code=5, env=other)
    assert done.stderr.startswith("ERROR: ") and done.stderr.count("\n") == 1
    pid = json.loads(repo.run("daemon", "status", "--json").stdout)["pid"]
    assert str(pid) in done.stderr


def test_the_context_is_the_shell_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    monkeypatch.chdir(os.fsdecode(folder))
    umask = os.umask(0o027)
    try:
        found = surroundings({"A": "%\udcff", "B": ""}, LOCK_WAIT_S)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(umask)
    assert os.fsencode(wirepath.decode(found["cwd"])) == folder
    assert {key: wirepath.decode(value) for key, value in found["env"].items()} == {"A": "%\udcff", "B": ""}
    assert (found["umask"], found["wait_s"]) == (0o027, LOCK_WAIT_S)
    os.rmdir(folder)
    with pytest.raises(TargetError, match="not there any more"):
        surroundings({}, None)
