"""A filler of an image that waits for a page which a READ has locked that nobody takes, and a mount that is killed while it is made: nobody hangs."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fusefs import filling
from tests.fusefs.filling import FILES, FOLDERS, drop_fusectl, fusectl, gone, of_image, state_of
from tests.fusefs.helpers import File, Mounted, eventually, mount, open_store, put_tree
from tests.fusefs.test_filling_kills import GONE, is_over, told

from millpond.daemon import wirepath
from millpond.daemon.mounts import left
from millpond.daemon.mounts.kernel import why_no_image
from millpond.daemon.mounts.place import mounted_at, source_of

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.parametrize("engine", ["erofs"], indirect=True),
    pytest.mark.skipif(bool(why_no_image()), reason="there is no EROFS of a file here"),
    filling.possible,
]


@pytest.fixture
def record() -> str:
    """The id of a mount's record, by which its processes are found: no other mount here has it."""
    return secrets.token_hex(6)


@pytest.fixture
def mounted(base: Path, record: str) -> Iterator[Mounted]:
    store = open_store(base / "store")
    try:
        totals = put_tree(store, filling.image_tree())
    finally:
        store.close()
    with mount(base / "store", totals, base / "m", fill=1, name=source_of(None, record)) as found:
        try:
            yield found
        finally:
            left.abort(record)  # whatever failed: nothing may be left that waits


def right(mounted: Mounted, folder: int, number: int) -> bool:
    return (mounted.place / f"{folder}/{number:02}").read_bytes() == of_image(folder, number)


def hold_up(mounted: Mounted) -> tuple[int, subprocess.Popen[str]]:
    """The filler, and a reader, as hold_up_image leaves them."""
    (filler,) = mounted.stats()["fillers"]
    reader = filling.hold_up_image(mounted.place, mounted.pid, filler, lambda: mounted.stats()["filled_files"])
    return filler, reader


def test_both_go_on_when_the_holder_does(mounted: Mounted) -> None:
    filler, reader = hold_up(mounted)
    os.kill(mounted.pid, signal.SIGCONT)
    assert told(reader) == "right"
    eventually(lambda: state_of(filler) == "S", "the filler is through")
    found = mounted.stats()
    assert found["fillers"] == [filler] and not found["filling_by_thread"] and not found["filling_why"]
    assert all(right(mounted, folder, number) for folder in range(FOLDERS) for number in range(FILES))
    assert not mounted.umount().returncode and mounted.ended() == 0
    eventually(lambda: gone(filler), "the filler ends with the mount")


def test_the_holder_is_killed(mounted: Mounted) -> None:
    filler, reader = hold_up(mounted)
    began = time.monotonic()
    os.kill(mounted.pid, signal.SIGKILL)
    assert is_over(told(reader))
    eventually(lambda: gone(filler), "the filler ends")
    assert time.monotonic() - began < 5
    with pytest.raises(OSError) as refused:
        (mounted.place / "3/59").read_bytes()
    assert refused.value.errno in GONE
    assert mounted_at(os.fspath(mounted.place)) is not None and not mounted.umount("-z").returncode


def test_the_filler_is_killed(mounted: Mounted) -> None:
    filler, reader = hold_up(mounted)
    os.kill(filler, signal.SIGKILL)
    time.sleep(0.2)
    assert state_of(filler) == "D" and reader.poll() is None
    os.kill(mounted.pid, signal.SIGCONT)
    assert told(reader) == "right"
    eventually(lambda: gone(filler), "the filler ends")
    eventually(lambda: mounted.stats()["fillers_killed"] == 1, "the mount says so")
    eventually(lambda: mounted.stats()["fillers"] not in ([], [filler]), "there is another one")
    before = mounted.stats()["filled_files"]
    assert right(mounted, 2, 3) and right(mounted, 2, 50)
    eventually(lambda: mounted.stats()["filled_files"] >= before + FILES - 2, "it brings files")
    assert all(right(mounted, folder, number) for folder in range(FOLDERS) for number in range(FILES))


@pytest.mark.parametrize("mounted_fusectl", [False, pytest.param(True, marks=pytest.mark.long)])
def test_both_are_killed_and_the_connection_is_aborted(
    mounted: Mounted, record: str, mounted_fusectl: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    filler, reader = hold_up(mounted)
    os.kill(filler, signal.SIGKILL)
    os.kill(mounted.pid, signal.SIGKILL)
    mounted.ended()
    time.sleep(0.3)
    # Nobody else can end it: this is why there is no filler where nobody may.
    assert state_of(filler) == "D" and reader.poll() is None
    assert not left.abort("0" * 12), "another mount's processes are none of this one's"
    assert state_of(filler) == "D"
    if mounted_fusectl:
        monkeypatch.setattr(left, "CONTROL", fusectl(tmp_path))
    try:
        assert left.abort(record) == 1
        assert is_over(told(reader))
        eventually(lambda: gone(filler), "the filler ends")
        assert not left.abort(record)
    finally:
        if mounted_fusectl:
            drop_fusectl(tmp_path)
    assert not mounted.umount("-z").returncode


def test_a_detached_image_loses_its_filler_and_is_read_to_the_end(mounted: Mounted) -> None:
    assert right(mounted, 0, 3) and right(mounted, 0, 50)
    eventually(lambda: mounted.stats()["filled_files"] > 0, "it is filled")
    (filler,) = mounted.stats()["fillers"]
    with open(mounted.place / "3/10", "rb") as file:
        assert not mounted.umount("-z").returncode
        eventually(lambda: gone(filler), "the filler ends")
        assert file.read() == of_image(3, 10)
    assert mounted.ended() == 0


def processes(place: Path) -> dict[int, str]:
    """Those of the mount on `place`, with their names: their command lines tell its control socket, also of what the holder has forked."""
    found = {}
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if os.fsencode(f"{wirepath.encode(os.fspath(place))}.sock") in Path(f"/proc/{name}/cmdline").read_bytes():
                found[int(name)] = Path(f"/proc/{name}/comm").read_text().strip()
    return found


def kill_soon(place: Path, after_s: float, spared: tuple[str, ...]) -> None:
    time.sleep(after_s)
    for pid, name in processes(place).items():
        if name not in ("timeout", *spared):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def answer_of(path: Path) -> object:
    try:
        return "right" if path.read_bytes() == of_image(0, int(path.name)) else "wrong"
    except OSError as error:
        return error.errno


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("spared", [(), ("millpond-mount", "millpond-filler"), ("millpond-filler",)])
def test_killed_at_any_moment_while_it_is_mounted(base: Path, spared: tuple[str, ...]) -> None:
    """The holder, perhaps with what it has forked: nothing stays that cannot end, and what is there is right or an error."""
    store = open_store(base / "store")
    try:
        totals = put_tree(store, {b"%02d" % number: File(of_image(0, number)) for number in range(FILES)})
    finally:
        store.close()
    rng = random.Random(len(spared))
    unmade = 0
    for number in range(40):
        place = base / f"m{number}"
        killer = threading.Thread(target=kill_soon, args=(place, 0.1 + rng.random() * 0.4, spared))
        killer.start()
        answers: set[object] = set()
        try:
            with mount(base / "store", totals, place, fill=1, name=source_of(None, secrets.token_hex(6))) as mounted:
                killer.join()
                answers = {answer_of(mounted.place / f"{each:02}") for each in range(FILES)}
        except (AssertionError, OSError, ValueError):  # the holder said nothing
            killer.join()
            unmade += 1
        assert answers <= {"right", *GONE, errno.ENOENT}
        eventually(lambda place=place: not processes(place), "all its processes end")  # type: ignore[misc]
        assert mounted_at(os.fspath(place)) is None
    assert unmade
