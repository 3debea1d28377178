"""A filler of an image that waits for a page which a READ has locked that nobody takes, and a mount that is killed while it is made: nobody hangs."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from tests.fusefs import filling
from tests.fusefs.filling import FILES, FOLDERS, drop_fusectl, fusectl, gone, of_image, state_of
from tests.fusefs.helpers import File, Mounted, eventually, mount, open_store, put_tree
from tests.fusefs.test_filling_kills import GONE, is_over, told

from millpond.daemon import wirepath
from millpond.daemon.errors import MountError
from millpond.daemon.mounts import left
from millpond.daemon.mounts.kernel import why_no_image
from millpond.daemon.mounts.place import mounted_at, source_of
from millpond.fusefs.image import mounter
from millpond.fusefs.image.mounter import Wanted

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
    filling.killed_and_replaced(filler, reader, mounted.pid, mounted.stats)
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


def test_processes_may_have_any_name(record: str) -> None:
    named = subprocess.Popen(
        [sys.executable, "-c", r"open('/proc/self/comm', 'wb').write(b'\xff\xfe'); print(flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with named:
        assert named.stdout is not None and named.stdout.readline()
        assert Path(f"/proc/{named.pid}/comm").read_bytes() == b"\xff\xfe\n"
        assert not left.abort(record)
        named.communicate(b"\n")


def test_a_connection_is_ended_only_while_the_process_has_it(mounted: Mounted, record: str) -> None:
    """Between two looks the process may end, and its number and the connection's be given again."""
    assert right(mounted, 0, 3) and right(mounted, 0, 50)
    eventually(lambda: mounted.stats()["filled_files"] > 0, "it is filled")
    (filler,) = mounted.stats()["fillers"]
    memory = f"/memfd:{left.memory_name(record)} (deleted)"
    (number,) = left.connections_of(filler, memory)
    control = left.open_control()
    try:
        assert not left.end(control, number, os.getpid(), memory), "another process has this number now"
        assert not left.end(control, number, filler, memory.replace(record, "0" * 12)), "it is another mount's"
        assert not left.end(control, 1 << 19, filler, memory), "the connection has ended"
        assert right(mounted, 3, 7)
        assert left.end(control, number, filler, memory)
    finally:
        os.close(control)
    with pytest.raises(OSError) as refused:
        (mounted.place / "3/59").read_bytes()
    assert refused.value.errno in GONE
    assert not mounted.umount("-z").returncode


@pytest.mark.parametrize("stopped", [False, True])
def test_who_mounts_is_killed_before_it_takes_what_it_is_told(tmp_path: Path, stopped: bool) -> None:
    waiting = mounter.fork()
    os.kill(waiting.pid, signal.SIGSTOP if stopped else signal.SIGKILL)
    eventually(lambda: state_of(waiting.pid) in ("T", "Z"), "it has heard that")

    async def mount_it() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount_or_not)
            await trio.sleep(0.1)
            if stopped:
                os.kill(waiting.pid, signal.SIGKILL)

    async def mount_or_not() -> None:
        with pytest.raises(MountError, match="the process that mounts was killed"):
            await waiting.mount(Wanted("none", os.fspath(tmp_path), 128, False), nowhere)

    nowhere = os.open(tmp_path, os.O_RDONLY)
    try:
        trio.run(mount_it)
    finally:
        os.close(nowhere)
        waiting.close()
    assert gone(waiting.pid)


@pytest.mark.long
def test_a_holder_without_room_for_a_descriptor_serves_on_and_gives_it_later(mounted: Mounted) -> None:
    assert right(mounted, 0, 3)
    for path in filling.list_all(mounted.place):
        path.stat()
    before = resource.prlimit(mounted.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(mounted.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        assert right(mounted, 0, 50) and right(mounted, 1, 3) and right(mounted, 1, 50)
        text = "another process cannot share the mount: Too many open files"
        eventually(lambda: text in mounted.log.read_text(), "the filler has asked in vain")
        assert all(right(mounted, 2, number) for number in range(FILES))
    finally:
        resource.prlimit(mounted.pid, resource.RLIMIT_NOFILE, before)
    eventually(lambda: mounted.stats()["filled_files"] > 0, "it has asked again")
    found = mounted.stats()
    assert len(found["fillers"]) == 1 and not found["filling_by_thread"] and not found["fillers_killed"]


def test_the_image_is_closed_when_nobody_writes_to_it_any_more(mounted: Mounted) -> None:
    """Closing it for the last time waits in the kernel for who does, and so would keep the holder from answering."""
    assert right(mounted, 0, 3) and right(mounted, 0, 50)
    eventually(lambda: mounted.stats()["filled_files"] > 0, "it is filled")
    (filler,) = mounted.stats()["fillers"]
    filling.stopped(filler)
    try:
        assert not mounted.umount().returncode
        time.sleep(0.3)
        assert mounted.guard.poll() is None and mounted.stats()["image"] == "cached"
    finally:
        os.kill(filler, signal.SIGCONT)
    assert mounted.ended() == 0 and gone(filler)


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
