"""A clock that jumps, a day or a year either way, while the daemon runs and between two runs: what changed is seen, what is young
stays, and nothing hangs.

A library loaded before libc (made here, by the compiler that millpond's dependencies need anyway) adds to the time that the
programs are told what a file says. Times of files are the kernel's, and do not jump with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import begin
from tests.mounts.conftest import contents, expected, fill
from tests.project.verbhelp import opened

DAY_S = 86_400
JUMPS = (400 * DAY_S, -400 * DAY_S)
SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const long *seconds;

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("JUMP_FILE");
  int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  void *found = fd < 0 ? MAP_FAILED : mmap(0, sizeof *seconds, PROT_READ, MAP_SHARED, fd, 0);
  if (fd >= 0) close(fd);
  if (found != MAP_FAILED) seconds = found;
}

static long jump(void) { return seconds ? *seconds : 0; }

int clock_gettime(clockid_t id, struct timespec *at) {
  int failed = (int)syscall(SYS_clock_gettime, id, at);
  if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += jump();
  return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  int failed = (int)syscall(SYS_gettimeofday, at, zone);
  if (!failed) at->tv_sec += jump();
  return failed;
}

time_t time(time_t *into) {
  struct timespec at;
  clock_gettime(CLOCK_REALTIME, &at);
  if (into) *into = at.tv_sec;
  return at.tv_sec;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clock")
    (folder / "jump.c").write_text(SOURCE)
    made = folder / "jump.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(made), str(folder / "jump.c")], check=True)
    return made


@pytest.fixture
def jump(home: Home, library: Path) -> Iterator[Callable[[int], None]]:
    """Sets by how many seconds the clock of the user's programs is off, those that run included."""
    file = home.path / "jump"
    file.write_bytes(bytes(8))
    home.extra |= {"LD_PRELOAD": str(library), "JUMP_FILE": str(file)}

    def by(seconds: int) -> None:
        with open(file, "r+b") as opened:
            opened.write(seconds.to_bytes(8, "little", signed=True))

    yield by


@pytest.fixture
def start(home: Home) -> Iterator[Callable[[], None]]:
    """Starts the daemon, or another one in its place, with the library: a command would not hand LD_PRELOAD on to it."""
    started: list[subprocess.Popen[bytes]] = []

    def end() -> None:
        home.run("daemon", "stop", "-q", code=None)
        while started:
            started.pop().wait(30)

    def begin_anew() -> None:
        end()
        ours, theirs = os.pipe()
        command = [sys.executable, "-P", "-m", "millpond.daemon.main", "--ready-fd", str(theirs)]
        started.append(subprocess.Popen(command, env=home.env, pass_fds=[theirs], cwd="/", start_new_session=True))
        os.close(theirs)
        with os.fdopen(ours, "rb") as ready:
            assert ready.readline() == b"\n"
        assert "jump.so" in Path(f"/proc/{started[0].pid}/maps").read_text()

    yield begin_anew
    end()


def year(home: Home) -> int:
    """What the programs take for the year."""
    command = ["python3", "-c", "import time; print(time.gmtime().tm_year)"]
    return int(subprocess.run(command, env=home.env, capture_output=True, check=True, text=True).stdout)


@pytest.mark.parametrize(
    "seconds, restart",
    [
        pytest.param(JUMPS[0], False, marks=pytest.mark.long),
        (JUMPS[1], False),
        (JUMPS[0], True),
        pytest.param(JUMPS[1], True, marks=pytest.mark.long),
    ],
    ids=["ahead", "back", "ahead, restarted", "back, restarted"],
)
def test_the_clock_jumps(
    home: Home, jump: Callable[[int], None], start: Callable[[], None], seconds: int, restart: bool
) -> None:
    began = year(home)
    start()
    begin(home)
    _waste(home, "before")
    jump(seconds)
    assert year(home) != began, "the clock does jump"
    if restart:
        start()
    # A change of equal size, made at once: seen although the clock went back.
    whole = expected(1)
    (home.repo / "data/sub/one.bin").write_bytes(bytes(len(whole["sub/one.bin"])))
    assert json.loads(home.run("status", "--json").stdout)
    home.run("checkout", "-q", "-f")
    assert contents(home.repo / "data") == whole and json.loads(home.run("status", "--json").stdout) == {}
    _waste(home, "after")
    jump(0)
    if restart:
        start()
    report = json.loads(home.run("gc", "-w", "-f", "--json").stdout)
    # While it runs, time is monotonic for the daemon; after a restart only what was stored "a year ago" has gone.
    removed = report["removed"]["objects"]
    assert removed in ((0, 1) if restart else (0,)), report
    assert json.loads(home.run("gc", "-w", "-f", "--grace", "0", "--json").stdout)["removed"]["objects"] <= 2
    assert "clean" in home.run("fsck", "--deep").stdout
    (home.repo / "data/a.txt").unlink()
    home.run("checkout", "-q")
    assert contents(home.repo / "data") == whole


def _waste(home: Home, name: str) -> None:
    """Store something that nothing names: only the grace period keeps it."""
    (home.repo / "waste").write_text(name)
    home.run("add", "-q", "waste")
    (home.repo / "waste.dvc").unlink()


def test_the_workers_clock_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs run while time goes forward and back: files written keep being known, edits of equal size keep being seen."""
    real, real_ns = time.time, time.time_ns
    with opened(tmp_path) as project:
        fill(project.root / "data", 1)
        project.add("data")
        for seconds in (*JUMPS, 0, -3, 3):
            monkeypatch.setattr(time, "time", lambda seconds=seconds: real() + seconds)
            monkeypatch.setattr(time, "time_ns", lambda seconds=seconds: real_ns() + seconds * 10**9)
            project.write("data/sub/one.bin", bytes(70_000))
            assert project.status() != {}
            project.checkout(force=True)
            assert contents(project.root / "data") == expected(1) and project.status() == {}
            project.write("data/a.txt", f"{seconds:+10d}"[:10])
            project.add("data")
            project.write("data/a.txt", expected(1)["a.txt"])
            assert project.status() != {}
            project.add("data")


def test_files_from_the_future_and_the_past(home: Home) -> None:
    """Times of files that somebody set: a change is seen by ctime, whatever mtime says."""
    begin(home)
    path = home.repo / "data/sub/one.bin"
    for when in (0, 2**31, 4 * 10**9):
        data = path.read_bytes()
        os.utime(path, (when, when))
        home.run("status", "-q", code=None)
        path.write_bytes(bytes(reversed(data)))
        os.utime(path, (when, when))
        assert json.loads(home.run("status", "--json").stdout), f"edited at {when}, its time put back"
        home.run("checkout", "-q", "-f")
        assert path.read_bytes() == expected(1)["sub/one.bin"]
