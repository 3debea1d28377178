"""No descriptors left, a full disk, a disk that became read-only, fifty clients: each command ends with one sentence, and all is
as before when there is room again."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.fusefs.helpers import eventually
from tests.mounts.conftest import contents, expected, fill
from tests.mounts.test_kills import processes
from tests.store.helpers import sample

LONG = os.environ.get("MILLPOND_TESTS") == "long"
# Descriptors that are left to a process.
SPARE = range(14) if LONG else (0, 3)
# What the sentence of a command that failed may not say.
_ODD = re.compile(r"Traceback|internal error|Errno|Error\(")


def begin(home: Home) -> None:
    """A project with `expected(1)` stored as `data`."""
    home.git("init", "-q")
    home.run("init", "-q")
    fill(home.repo / "data", 1)
    home.run("add", "-q", "data")
    home.git("add", "-A")
    home.git("commit", "-qm", "first")


def sentence(done: subprocess.CompletedProcess[str]) -> None:
    """A command that failed said one thing, and it was no accident."""
    assert not _ODD.search(done.stderr), done.stderr
    assert done.returncode in (0, 1) or len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.returncode != 70, done.stderr


def is_whole(home: Home, wanted: dict[str, bytes]) -> None:
    """The store is clean and gives back what was stored."""
    assert "clean" in home.run("fsck", "--deep").stdout
    home.run("checkout", "-q", "-f")
    assert contents(home.repo / "data") == wanted


@contextmanager
def few_files(pid: int, spare: int) -> Iterator[None]:
    """A process has `spare` descriptors beyond the highest one in use."""
    used = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(used + spare, before[0]), before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.fuse
@pytest.mark.parametrize("victim", ["daemon", "zygote"])
def test_no_descriptors_left(home: Home, victim: str) -> None:
    """The zygote's limit is that of the workers, sources and holders that it forks."""
    begin(home)
    place = home.path / "m"
    place.mkdir()
    for spare in SPARE:
        (pid,) = processes(home, victim)
        for command in (["add", "data"], ["status"], ["checkout", "-f"], ["mount", "data", str(place)]):
            (home.repo / "data/a.txt").write_bytes(sample(spare, 50_000))
            with few_files(pid, spare):
                sentence(home.run(*command, code=None))
        home.run("umount", "-q", "--all", code=None)
        assert processes(home, victim) == [pid], "it lives"
        home.run("add", "-q", "data")
        is_whole(home, expected(1) | {"a.txt": sample(spare, 50_000)})


@pytest.mark.fuse
def test_a_holder_without_descriptors_serves_again_when_it_has_some(home: Home) -> None:
    begin(home)
    place = home.path / "m"
    place.mkdir()
    home.run("mount", "-q", "data", str(place))
    (mount,) = json.loads(home.run("mounts", "--json").stdout)["mounts"]
    for spare in SPARE:
        with few_files(int(mount["pid"]), spare):
            for path, data in expected(1).items():
                try:
                    assert (place / path).read_bytes() == data
                except OSError as error:
                    assert error.strerror in ("Input/output error", "Too many open files")
        assert contents(place) == expected(1), "nothing that failed for want of descriptors is remembered as damaged"
    assert "clean" in home.run("fsck", "--deep").stdout


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def _on_small_disk(home: Home) -> None:
    home.extra["MILLPOND_STORE"] = str(home.path / "small" / "store")
    begin(home)


@pytest.mark.root
def test_a_full_disk_under_the_store(home: Home) -> None:
    # What is live, 1.5 MB, is copied into three quarters of the reserve of a twentieth.
    with small_disk(home.path / "small", "64m"):
        _on_small_disk(home)
        place = home.path / "m"
        place.mkdir()
        home.run("mount", "-q", "data", str(place))
        assert contents(place) == expected(1), "the holder has the segment open, and must not keep its room"
        (home.repo / "big").write_bytes(os.urandom(80_000_000))
        done = home.run("add", "big", code=7)
        sentence(done)
        assert "no room" in done.stderr and not (home.repo / "big.dvc").exists()
        assert _free(home) < 8 << 20
        home.run("gc", "-w", "-f", "--grace", "0")
        eventually(lambda: _free(home) > 48 << 20, "gc gives room back on a disk that is full to the reserve")
        _ballast(home)
        for command in (
            ["add", "big"],
            ["gc", "-w", "-f", "--grace", "0"],
            ["status"],
            ["fsck"],
        ):
            sentence(home.run(*command, code=None))
        (home.repo / "data/a.txt").unlink()
        home.run("checkout", "-q")
        assert contents(home.repo / "data") == contents(place) == expected(1), "reading needs no room"
        (home.path / "small/ballast").unlink()
        home.run("daemon", "restart", "-q")
        (home.repo / "data/a.txt").write_bytes(sample(3, 50_000))
        home.run("add", "-q", "data")
        is_whole(home, expected(1) | {"a.txt": sample(3, 50_000)})
        home.run("umount", "-q", str(place))
        home.run("daemon", "stop", "-q")


def _free(home: Home) -> int:
    found = os.statvfs(home.path / "small")
    return found.f_bavail * found.f_frsize


def _ballast(home: Home) -> None:
    """Leave no block free."""
    with open(home.path / "small" / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError:
            pass


@pytest.mark.long
@pytest.mark.root
def test_a_disk_that_becomes_read_only_under_the_store(home: Home) -> None:
    with small_disk(home.path / "small", "64m"):
        _on_small_disk(home)
        place = str(home.path / "small")
        # A file that is open for writing forbids it to be remounted; an error of the disk would not ask.
        home.run("daemon", "stop", "-q")
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        (home.repo / "data/a.txt").write_bytes(b"edited")
        for command in (["add", "data"], ["checkout", "-f"], ["gc", "-w", "-f"], ["status"], ["fsck"]):
            done = home.run(*command, code=None)
            assert done.returncode not in (0, 70) and "Read-only" in done.stderr, (command, done)
            assert "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        is_whole(home, expected(1))
        home.run("daemon", "stop", "-q")


def test_fifty_clients(home: Home) -> None:
    """Adds in one project and looks at it, all started at once: each gets its turn, none is lost."""
    begin(home)
    names = [f"file-{number}" for number in range(25)]
    for number, name in enumerate(names):
        (home.repo / name).write_bytes(sample(number, 100_000))
    commands = [["--wait-for-lock", "add", "-q", name] for name in names]
    commands += [["--wait-for-lock", "status", "-q"]] * 15 + [["cache", "info"], ["mounts"]] * 5
    running = [
        subprocess.Popen(
            home.command(*command), cwd=home.repo, env=home.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for command in commands
    ]
    said = [process.communicate(timeout=60)[1].decode() for process in running]
    codes = [process.returncode for process in running]
    assert codes[: len(names)] == [0] * len(names), said
    assert set(codes) <= {0, 1}, list(zip(commands, said, strict=True))
    for name in names:
        (home.repo / name).unlink()
        assert (home.repo / f"{name}.dvc").exists()
    home.run("checkout", "-q")
    assert all((home.repo / name).read_bytes() == sample(number, 100_000) for number, name in enumerate(names))
    lines = set((home.repo / ".gitignore").read_text().split())
    assert lines == {"/data", *(f"/{name}" for name in names)}, "no line was lost"
    assert "clean" in home.run("fsck", "--deep").stdout
