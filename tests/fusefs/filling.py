"""Helpers for mounts whose page cache is filled ahead, and for the one moment that matters: a filler that waits for a page of a READ that nobody takes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fusefs.helpers import File, Node, eventually

from millpond.daemon.jobs.process import stat_fields
from millpond.daemon.mounts import connections
from millpond.daemon.mounts.kernel import is_machines, is_privileged

# Of the tree below: files of a few bytes, and files of LARGE bytes of which the first budget is for less than half.
TINY, LARGE_FILES, LARGE = 64, 240, 100_000
# Which large file is read while it is to be brought: one of those that the second budget is for.
HELD = 80
# A large file that neither budget is for.
NEVER = LARGE_FILES - 2

possible = pytest.mark.skipif(
    not is_machines("pid") or not (os.path.ismount(connections.CONTROL) or (is_privileged() and is_machines("user"))),
    reason="there is no filler here",
)


def large(number: int) -> bytes:
    return random.Random(number).randbytes(LARGE)


def tree() -> dict[bytes, Node]:
    """Two folders: `a` of tiny files, `b` of two tiny ones and large ones behind."""
    found: dict[bytes, Node] = {b"a/%03d" % number: File(b"tiny %d" % number) for number in range(TINY)}
    found |= {b"b/%03d" % number: File(b"small %d" % number) for number in range(2)}
    return found | {b"b/%03d" % number: File(large(number)) for number in range(2, LARGE_FILES)}


def list_all(place: Path) -> list[Path]:
    """As a training loader does: all files, none of which is looked at."""
    return [Path(top) / name for top, _, names in os.walk(place) for name in sorted(names)]


def state_of(pid: int) -> str:
    """R, S, D, T, Z ...; "" when it is gone."""
    fields = stat_fields(pid)
    return "" if fields is None else fields[0].decode()


def gone(pid: int) -> bool:
    return state_of(pid) in ("", "Z", "X")


def killed_and_replaced(
    filler: int, reader: subprocess.Popen[str], holder: int, stats: Callable[[], dict[str, Any]]
) -> None:
    """A filler that waits for the reader's page, the holder being stopped, is killed: it ends when the holder goes on, and there is another one."""
    os.kill(filler, signal.SIGKILL)
    time.sleep(0.2)
    assert state_of(filler) == "D" and reader.poll() is None
    os.kill(holder, signal.SIGCONT)
    assert reader.communicate(timeout=20)[0].strip() == "right"
    eventually(lambda: gone(filler), "the filler ends")
    eventually(lambda: stats()["fillers_killed"] == 1, "the mount says so")
    eventually(lambda: stats()["fillers"] not in ([], [filler]), "there is another one")


def stopped(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: state_of(pid) == "T", f"{pid} is stopped")


# Reads a file; says "right" when it has the SHA-256 that is told, "wrong", or the error's number.
_READER = """
import hashlib, sys
try:
    data = open(sys.argv[1], "rb", buffering=0).read()
except OSError as error:
    print("errno", error.errno)
else:
    print("right" if hashlib.sha256(data).hexdigest() == sys.argv[2] else "wrong")
"""


def read_apart(
    path: Path, content: bytes, *, uid: int | None = None, python: str = sys.executable
) -> subprocess.Popen[str]:
    """A program, perhaps another user's, that reads a file and tells how that went."""
    expected = hashlib.sha256(content).hexdigest()
    rights: dict[str, Any] = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
    return subprocess.Popen(
        [python, "-c", _READER, os.fspath(path), expected], stdout=subprocess.PIPE, text=True, cwd="/", **rights
    )


def _waits_for(pid: int, path: Path) -> bool:
    """Whether a process sleeps that has this file open: before that it may sleep until the disk has brought the program."""
    with contextlib.suppress(OSError):
        folder = f"/proc/{pid}/fd"
        links = [os.readlink(f"{folder}/{number}") for number in os.listdir(folder)]
        return os.fspath(path) in links and state_of(pid) == "D"
    return False


def wake(place: Path) -> None:
    """List the tree, and read so much of it that others are brought."""
    list_all(place)
    for number in range(14):
        (place / f"a/{number:03}").read_bytes()
    for number in (0, LARGE_FILES - 1):
        (place / f"b/{number:03}").read_bytes()


def hold_up(place: Path, holder: int, stats: Callable[[], dict[str, Any]]) -> tuple[int, subprocess.Popen[str]]:
    """Of a mount of `tree`: a reader's READ waits, as the holder is stopped, and the filler waits for its page, in a sleep that no signal
    ends. The filler's pid, and the reader."""
    wake(place)
    first = TINY - 14 + (4 << 20) // LARGE
    eventually(lambda: int(stats()["filled_files"]) >= first, "the first budget is used up")
    (filler,) = stats()["fillers"]
    stopped(filler)
    try:
        for number in range(LARGE_FILES - 140, LARGE_FILES - 2, 9):
            assert (place / f"b/{number:03}").read_bytes() == large(number)
        assert int(stats()["filled_files"]) < first + 20
        stopped(holder)
        held = place / f"b/{HELD:03}"
        reader = read_apart(held, large(HELD))
        eventually(lambda: _waits_for(reader.pid, held), "a reader waits for its page")
    finally:
        os.kill(filler, signal.SIGCONT)
    eventually(lambda: state_of(filler) == "D", "the filler waits for the page, too")
    return filler, reader


# Of the tree below: folders, files of each, and bytes of a file.
FOLDERS, FILES, SIZE = 4, 60, 30_000


def of_image(folder: int, number: int) -> bytes:
    return random.Random(folder * 1000 + number).randbytes(SIZE)


def image_tree() -> dict[bytes, Node]:
    """Folders of files that a filler of an image brings."""
    return {b"%d/%02d" % (n, m): File(of_image(n, m)) for n in range(FOLDERS) for m in range(FILES)}


def hold_up_image(place: Path, holder: int, filler: int, filled: Callable[[], int]) -> subprocess.Popen[str]:
    """Of an image of `image_tree`: a reader's READ waits, as the holder is stopped, and the filler waits for its page, in a sleep that no signal
    ends. The reader. `filled` asks the holder how many files were brought."""
    for path in list_all(place):
        path.stat()  # so that nothing but their content is asked for afterwards
    for number in (3, 50):
        assert (place / f"0/{number:02}").read_bytes() == of_image(0, number)
    eventually(lambda: filled() >= FILES - 2, "the rest of the folder is brought")
    stopped(filler)
    try:
        for number in (3, 50):
            assert (place / f"1/{number:02}").read_bytes() == of_image(1, number)
        assert filled() <= FILES, "the other folder is to be brought, which the holder has said by now; but not yet"
        stopped(holder)
        held = place / "1/20"
        reader = read_apart(held, of_image(1, 20))
        eventually(lambda: _waits_for(reader.pid, held), "a reader waits for its page")
    finally:
        os.kill(filler, signal.SIGCONT)
    eventually(lambda: state_of(filler) == "D", "the filler waits for the page, too")
    return reader


def fusectl(folder: Path) -> Path:
    """The kernel's control files, mounted where nobody else looks for them."""
    place = folder / "connections"
    place.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "none", place], check=True)
    return place


def drop_fusectl(folder: Path) -> None:
    subprocess.run(["umount", folder / "connections"], check=True)
