"""The page cache filled ahead: which files are brought and which are not, and that what is brought is what was stored."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fusefs import filling
from tests.fusefs.filling import list_all
from tests.fusefs.helpers import PYTHONPATH, File, Mounted, Node, eventually, mount, open_store, put_tree, share
from tests.fusefs.test_damage import flip

from millpond.daemon.mounts import connections
from millpond.daemon.mounts.filling import OFF
from millpond.daemon.mounts.place import mounted_at
from millpond.daemon.rpc import framing
from millpond.daemon.store.folders import FolderReader
from millpond.fusefs.engines import mounting
from millpond.fusefs.filling import feed as feed_module
from millpond.fusefs.filling import filler, messages, plan
from millpond.fusefs.filling.feed import MANY, MAX_BYTES, TOGETHER, Feed
from millpond.fusefs.filling.keeper import why_not
from millpond.fusefs.filling.plan import FIRST_BYTES, PAUSE_S, QUIET_S, TIMES, Plan
from millpond.fusefs.filling.tally import Tally, available_bytes

# Around pages, and around what is too large to be brought.
SIZES = (0, 1, 4095, 4096, 4097, 20_000, 65_536, 65_537, MAX_BYTES - 1, MAX_BYTES, MAX_BYTES + 1)


def content(size: int, number: int) -> bytes:
    """Half of it compresses; different for each number, where there is room for that."""
    noise = random.Random(f"{size} {number}").randbytes((size + 1) // 2)
    return (noise + b"\x07" * size)[:size]


def many(folders: int, files: int) -> dict[bytes, Node]:
    """Files of all SIZES in each folder, and small ones."""
    tree: dict[bytes, Node] = {}
    for folder in range(folders):
        for number in range(files):
            size = SIZES[number] if number < len(SIZES) else 500 + 37 * number
            tree[b"%02d/%04d" % (folder, number)] = File(content(size, folder * 10_000 + number))
    return tree


@contextlib.contextmanager
def filled(base: Path, tree: Mapping[bytes, Node], **more: Any) -> Iterator[Mounted]:
    """The tree, mounted; nothing of it has been looked at."""
    store = open_store(base / "store")
    try:
        totals = put_tree(store, tree)
    finally:
        store.close()
    with mount(base / "store", totals, base / "m", fill=more.pop("fill", 2), **more) as mounted:
        yield mounted


def epoch(place: Path, tree: Mapping[bytes, Node], readers: int, seed: int = 1) -> list[bytes]:
    """Read everything in an order without locality; the files that did not hold what they should, or could not be read."""
    paths = [os.fsencode(path.relative_to(place)) for path in list_all(place)]
    random.Random(seed).shuffle(paths)

    def read(part: list[bytes]) -> list[bytes]:
        wrong = []
        for path in part:
            node = tree[path]
            assert isinstance(node, File)
            try:
                data = (place / os.fsdecode(path)).read_bytes()
            except OSError as error:
                data = b"errno %d" % (error.errno or 0)
            wrong += [path] if data != node.data else []
        return wrong

    with ThreadPoolExecutor(readers) as pool:
        return [path for part in pool.map(read, [paths[n::readers] for n in range(readers)]) for path in part]


# -- what is decided -----------------------------------------------------------------------------------------------


def listing(files: Mapping[bytes, Mapping[int, int]], room: int = 1 << 40, share: tuple[int, int] = (0, 1)) -> Plan:
    """A plan over folders of inode -> bytes."""

    def files_of(folder: bytes, largest: int, most: int) -> tuple[array[int], array[int]]:
        rows = [(inode, size) for inode, size in files[folder].items() if 0 < size <= largest][:most]
        return array("Q", [inode for inode, _ in rows]), array("I", [size for _, size in rows])

    return Plan(files_of, lambda: room, share)


ONE = {b"f" * 32: {inode: 1000 for inode in range(400)}}
# Files of it that are read, in an order of their own.
SOME = [(inode * 20, 1000) for inode in range(TOGETHER)]


def rest(*read: int) -> list[int]:
    """The files of ONE that are not read."""
    return [inode for inode in range(400) if inode not in {*read, *(inode for inode, _ in SOME)}]


def test_a_listing_alone_and_a_few_reads_bring_nothing() -> None:
    made = listing(ONE)
    made.listed(ONE)
    assert not made.take(1000, 1.0)
    made.read(SOME[:-1], 1.0)
    assert not made.take(1000, 1.0)
    made.read(SOME[-1:], 1.5)
    assert made.take(1000, 1.5) == rest()
    assert not made.take(1000, 1.5)


def test_what_was_not_listed_or_is_read_slowly_brings_nothing() -> None:
    made = listing(ONE)
    made.read(SOME, 1.0)
    assert not made.take(1000, 1.0)
    made.listed(ONE)
    for second, file in enumerate(SOME):
        made.read([file], 2.0 + second)
        assert not made.take(1000, 2.0 + second)


def test_who_reads_in_order_is_left_to_read() -> None:
    made = listing(ONE)
    made.listed(ONE)
    for begin in range(0, 320, 32):  # by several programs, even
        made.read([(begin + step * 2 % 32 + (step > 15), 1000) for step in range(32)], 1.0)
        assert not made.take(1000, 1.0)
    made.read([(320, 1000), (399, 1000), (350, 1000), *((inode, 1000) for inode in range(321, 334))], 1.0)
    assert not made.take(1000, 1.0)


def test_folders_of_which_one_file_was_read_are_left_alone() -> None:
    folders = {b"%032d" % folder: {folder * 100 + n: 10 for n in range(10)} for folder in range(40)}
    made = listing(folders)
    made.listed(folders)
    made.read([(folder * 100, 10) for folder in range(40)], 1.0)
    assert not made.take(1000, 1.0)
    made.read([(301, 10)], 1.0)
    assert made.take(1000, 1.0) == list(range(302, 310))


def test_it_pauses_when_nobody_reads_and_begins_anew_after_a_while() -> None:
    made = listing(ONE)
    made.listed(ONE)
    made.read(SOME, 1.0)
    assert made.take(30, 1.0) == rest()[:30]
    assert not made.take(30, 1.1 + PAUSE_S)
    made.read([(inode + 1, size) for inode, size in SOME], 3.0)
    assert made.was_read(1) and not made.was_read(399)
    assert made.take(1000, 3.0) == [inode for inode in rest()[30:] if inode % 20 != 1 or inode >= 320]
    assert not made.was_read(1)
    # The pages have gone meanwhile, as READs tell; all of it is brought again.
    late = 3.1 + QUIET_S
    made.read(SOME, late)
    assert made.take(1000, late) == rest()
    # And when it is listed again, at once.
    made.listed(ONE)
    made.read(SOME, late)
    assert made.take(1000, late) == rest()
    made.give_up()
    made.read(SOME, late)
    assert not made.take(1000, late)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_it_never_brings_more_than_its_budget_nor_anything_twice_nor_what_was_read(data: st.DataObject) -> None:
    sizes = st.integers(1, MAX_BYTES)
    folders = {
        b"%032d" % number: {number * 1000 + n: data.draw(sizes) for n in range(data.draw(st.integers(1, 60)))}
        for number in range(data.draw(st.integers(1, 8)))
    }
    room = data.draw(st.sampled_from([1 << 40, 1 << 20]))
    made = listing(folders, room)
    made.listed(folders)
    all_sizes = {inode: size for files in folders.values() for inode, size in files.items()}
    read: set[int] = set()
    brought: set[int] = set()
    for _ in range(data.draw(st.integers(1, 20))):
        now = data.draw(st.lists(st.sampled_from(sorted(all_sizes)), min_size=1, max_size=16, unique=True))
        made.read([(inode, all_sizes[inode]) for inode in now], 1.0)
        read |= set(now)
        found = made.take(data.draw(st.integers(1, 600)), 1.0)
        assert not set(found) & (read | brought) and len(set(found)) == len(found)
        brought |= set(found)
        assert sum(all_sizes[inode] for inode in brought) <= min(
            room, FIRST_BYTES + TIMES * sum(all_sizes[inode] for inode in read)
        )


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_several_fillers_bring_all_between_them_and_nothing_twice(data: st.DataObject) -> None:
    folders = {
        b"%032d" % number: {number * 1000 + n: 10 for n in range(data.draw(st.integers(2, 300)))}
        for number in range(data.draw(st.integers(1, 8)))
    }
    count = data.draw(st.integers(1, 4))
    plans = [listing(folders, share=(number, count)) for number in range(count)]
    for made in plans:
        made.listed(folders)
    everything = sorted(inode for files in folders.values() for inode in files)
    # What may be looked up ahead is each one's own, too.
    ahead = [inode for made in plans for inode in iter_ahead(made, data.draw(st.integers(1, 100)))]
    assert sorted(ahead) == everything
    read = sorted(
        {*data.draw(st.lists(st.sampled_from(everything), max_size=200)), *(f * 1000 for f in range(8))} & {*everything}
    )
    read += [inode + 1 for inode in read if inode % 1000 == 0]
    brought: list[int] = []
    for made in plans:
        made.read([(inode, 10) for inode in read], 1.0)
        while found := made.take(data.draw(st.integers(1, 600)), 1.0):
            brought += found
    assert len(set(brought)) == len(brought) and not set(brought) & set(read)
    if plans[0].is_going(1.0):
        assert sorted([*brought, *set(read)]) == everything


def iter_ahead(made: Plan, most: int) -> Iterator[int]:
    while found := made.ahead(most):
        yield from found


def test_what_was_looked_into_ahead_is_brought_and_forgotten_when_nobody_reads() -> None:
    made = listing(ONE)
    made.listed(ONE)
    assert made.ahead(1000) == list(range(400)) and not made.ahead(1000)
    made.read(SOME, 1.0)
    assert made.take(1000, 1.0) == rest()
    before = made.generation
    made.read(SOME, 2.0 + QUIET_S)
    assert made.generation > before and made.take(1000, 2.0 + QUIET_S) == rest()


def test_what_is_known_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST_FILES", 250)
    monkeypatch.setattr(plan, "MOST_FOLDERS", 10)
    monkeypatch.setattr(plan, "NEAR_FILES", 50)
    folders = {b"%032d" % folder: {folder * 1000 + n: 10 for n in range(100)} for folder in range(12)}
    made = listing(folders)
    made.listed(folders)
    brought: list[int] = []
    for _ in range(12):
        made.read([(folder * 1000 + n, 10) for folder in range(12) for n in range(8)], 1.0)
        brought += made.take(10_000, 1.0)
    # Two folders at a time; the ten that were listed last.
    assert len(brought) == 10 * 92 and {inode // 1000 for inode in brought} == set(range(2, 12))


def test_the_feed_never_waits_and_tells_quick_readers_alone() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        feed = Feed([ours])
        feed.listed(b"a" * 32, 10)
        feed.listed(b"b" * 32, 10)
        for inode in range(TOGETHER - 1):
            feed.read(inode, 5)
        feed.read(77, MAX_BYTES + 1)
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(100)
        feed.read(99, 6)
        kind, body = (got := theirs.recv(messages.MAX_BYTES))[:1], got[1:]
        assert kind == messages.LISTED and messages.folders_of(body) == [b"a" * 32, b"b" * 32]
        kind, body = (got := theirs.recv(messages.MAX_BYTES))[:1], got[1:]
        assert kind == messages.READ
        assert messages.files_of(body) == [*((inode, 5) for inode in range(TOGETHER - 1)), (99, 6)]
        began = time.monotonic()
        for inode in range(200_000):  # nobody takes them
            feed.read(inode, 5)
        assert time.monotonic() - began < 20
    feed.listed(b"c" * 32, 10)
    for inode in range(TOGETHER):  # nobody is there
        feed.read(inode, 5)


def test_the_memory_that_is_available_is_told() -> None:
    with open("/proc/meminfo") as file:
        total = int(next(line.split()[1] for line in file if line.startswith("MemTotal:"))) << 10
    assert 0 < available_bytes() <= total


@pytest.mark.root
@pytest.mark.parametrize(
    ("root", "name"),
    [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")],
)
def test_a_limit_of_a_cgroup_above_is_heeded(root: str, name: str) -> None:
    if not os.path.exists(f"{root}/cgroup.procs"):
        pytest.skip("there are no cgroups of this kind here")
    program = "import sys; from millpond.fusefs.filling.tally import available_bytes; sys.stdin.read(); print(available_bytes())"
    above = Path(root) / f"millpond-test-{os.getpid()}"
    below = above / "below"
    try:
        below.mkdir(parents=True)
        try:
            (above / name).write_text(str(64 << 20))
        except OSError as error:
            pytest.skip(f"no limits of memory can be set here: {error.strerror}")
        asked = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": PYTHONPATH},
        )
        (below / "cgroup.procs").write_text(str(asked.pid))
        assert int(asked.communicate(timeout=30)[0]) == 64 << 20
    finally:
        for each in (below, above):
            if each.exists():
                each.rmdir()


# -- mounts --------------------------------------------------------------------------------------------------------


@pytest.mark.fuse
@filling.possible
@pytest.mark.parametrize("serving", [1, pytest.param(3, marks=pytest.mark.long)])
def test_what_is_brought_is_what_was_stored(base: Path, serving: int) -> None:
    tree = many(8, 60)
    with filled(base, tree, serving=serving) as mounted:
        if serving > 1:
            eventually(lambda: len(mounted.stats()["servers"]) == serving - 1, "there are servers")
            share(mounted)
        assert epoch(mounted.place, tree, 4) == []
        stats = mounted.stats()
        assert stats["filled_files"] > 0 and not stats["filling_why"] and not stats["errors"]
        assert stats["reads"] + stats["filled_files"] >= len(tree) - 8  # empty ones are not asked for
        # All of it is in the page cache now, from wherever: nobody is asked for anything.
        reads = stats["reads"]
        assert epoch(mounted.place, tree, 4, seed=2) == []
        assert mounted.stats()["reads"] == reads
        # What was brought was used, as eviction sees it.
        eventually(lambda: bool(mounted.ask("used")["segments"]), "segments are told")


@pytest.mark.fuse
@filling.possible
def test_pages_that_go_while_they_are_brought_come_again(base: Path) -> None:
    tree = many(6, 60)
    done = threading.Event()

    def forget(place: Path) -> None:
        rng = random.Random(5)
        paths = [place / os.fsdecode(path) for path in tree]
        while not done.is_set():
            fd = os.open(rng.choice(paths), os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    with filled(base, tree) as mounted:
        list_all(mounted.place)
        with ThreadPoolExecutor(2) as pool:
            for _ in range(2):
                pool.submit(forget, mounted.place)
            try:
                for seed in range(3):
                    assert epoch(mounted.place, tree, 2, seed) == []
            finally:
                done.set()
        assert mounted.stats()["filled_files"] > 0 and not mounted.stats()["errors"]


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.long
@filling.possible
def test_all_caches_dropped_while_it_brings(base: Path) -> None:
    tree = many(20, 100)
    with filled(base, tree) as mounted:
        for seed in range(6):
            dropping = subprocess.Popen(["sh", "-c", "for n in 1 2 3 4; do echo 3 > /proc/sys/vm/drop_caches; done"])
            assert epoch(mounted.place, tree, 4, seed) == []
            assert dropping.wait(60) == 0
        stats = mounted.stats()
        assert stats["filled_files"] > 0 and not stats["errors"] and not stats["filling_why"]


@pytest.mark.fuse
@filling.possible
def test_what_is_damaged_is_left_to_read_which_says_so(base: Path) -> None:
    tree = many(4, 100)
    hurt = (b"00/0050", b"01/0005", b"01/0099")
    store = open_store(base / "store")
    try:
        totals = put_tree(store, tree)
    finally:
        store.close()
    for path in hurt:
        node = tree[path]
        assert isinstance(node, File)
        flip(base / "store", node.data[: len(node.data) // 3])
    with mount(base / "store", totals, base / "m", fill=2) as mounted:
        paths = sorted(tree)
        list_all(mounted.place)
        random.Random(3).shuffle(paths)
        # The damaged ones are brought, if ever, before they are read.
        for number, path in enumerate(path for path in paths if path not in hurt):
            node = tree[path]
            assert isinstance(node, File)
            assert (mounted.place / os.fsdecode(path)).read_bytes() == node.data
            if number == 100:
                eventually(lambda: mounted.stats()["filled_files"] > 100, "most of it is brought")
        time.sleep(0.2)
        for path in hurt:
            with pytest.raises(OSError) as failed:
                (mounted.place / os.fsdecode(path)).read_bytes()
            assert failed.value.errno == errno.EIO
        assert mounted.stats()["errors"] >= len(hurt) and not mounted.stats()["filling_why"]


@pytest.mark.fuse
@filling.possible
def test_a_long_listing_wakes_the_filler_so_that_it_is_ready(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        feed = Feed([ours])
        for number in range(10):
            feed.listed(b"%032d" % number, MANY // 4)
        theirs.setblocking(False)
        for begin in (0, 4):  # while it is listed, that is, in the first seconds
            got = theirs.recv(messages.MAX_BYTES)
            assert got[:1] == messages.LISTED
            assert messages.folders_of(got[1:]) == [b"%032d" % number for number in range(begin, begin + 4)]
        monkeypatch.setattr(feed_module, "_WHILE_S", 0.0)
        feed.listed(b"%032d" % 10, 10 * MANY)
        with pytest.raises(BlockingIOError):  # no file was read
            theirs.recv(messages.MAX_BYTES)
        # Another one in its place is told all.
        feed.again(ours)
        monkeypatch.setattr(feed_module, "_WHILE_S", 5.0)
        feed.listed(b"%032d" % 11, MANY)
        got = theirs.recv(messages.MAX_BYTES)
        assert messages.folders_of(got[1:]) == [b"%032d" % number for number in range(12)]
    tree = many(3, 100)
    with filled(base, tree) as mounted:
        pids = mounted.stats()["fillers"]
        assert len(pids) == 2 and len(list_all(mounted.place)) == len(tree)
        for pid in pids:
            eventually(lambda pid=pid: any(name.endswith("/dev/fuse") for name in opened(pid)), "it has its descriptor")  # type: ignore[misc]
        time.sleep(0.2)
        assert not mounted.stats()["filled_files"] and not mounted.stats()["reads"]


@pytest.mark.fuse
@filling.possible
def test_who_lists_and_reads_little_or_large_files_wakes_nobody(base: Path) -> None:
    tree: dict[bytes, Node] = {**many(2, 40), **{b"large/%d" % n: File(content(300_000, n)) for n in range(30)}}
    with filled(base, tree) as mounted:
        list_all(mounted.place)
        for number in range(TOGETHER - 2):
            (mounted.place / f"00/{20 + number:04}").read_bytes()
        for number in range(30):
            assert (mounted.place / f"large/{number}").read_bytes() == content(300_000, number)
        time.sleep(0.3)
        stats = mounted.stats()
        assert stats["fillers"] and not stats["filled_files"] and not stats["filling_why"]
        # They have nothing open but what leads to the holder.
        for pid in stats["fillers"]:
            assert not [name for name in opened(pid) if name.endswith((".seg", ".mdb", "/dev/fuse"))]


@pytest.mark.fuse
def test_where_there_is_none_the_mount_says_why(base: Path) -> None:
    tree = many(2, 40)
    with filled(base, tree, engine="pyfuse3") as mounted:
        assert epoch(mounted.place, tree, 2) == []
        assert not mounted.stats().get("filled_files")
    with filled(base, tree) as mounted:
        place, entry = os.fspath(mounted.place), mounted_at(os.fspath(mounted.place))
        assert entry is not None
        assert "recorded" in why_not(place, recorded=True)
        assert "not in the kernel's table" in why_not(os.fspath(base), recorded=False)
    store = open_store(base / "store")
    totals = put_tree(store, tree)
    store.close()
    with mount(base / "store", totals, base / "m", fill=0) as mounted:
        assert epoch(mounted.place, tree, 2) == []
        assert mounted.stats()["filling_why"] == OFF and mounted.stats()["fillers"] == []


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.parametrize("namespace", ["user", "pid"])
def test_there_is_none_in_a_container(base: Path, namespace: str) -> None:
    with filled(base, many(1, 20)) as mounted:
        program = (
            "import sys\nfrom millpond.fusefs.filling.keeper import why_not\n"
            "print(why_not(sys.argv[1], recorded=False))"
        )
        options = {"user": ["--user", "--map-root-user"], "pid": ["--pid", "--fork", "--mount-proc"]}[namespace]
        done = subprocess.run(
            ["unshare", *options, sys.executable, "-c", program, mounted.place],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": PYTHONPATH},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        if namespace == "pid":
            assert "not in a container" in done.stdout
        elif not connections.CONTROL.glob("*"):
            assert (
                f"only root could end the mount if its processes were killed, as {connections.CONTROL}" in done.stdout
            )


def clone_of(pid: int) -> int:
    """A clone of the descriptor that a holder has of its mount, got from outside."""
    pidfd = os.pidfd_open(pid)
    links = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    number = next(int(fd) for fd, name in links.items() if name == mounting.DEVICE)
    syscall_pidfd_getfd = 438
    device = ctypes.CDLL(None, use_errno=True).syscall(syscall_pidfd_getfd, pidfd, number, 0)
    assert device >= 0, os.strerror(ctypes.get_errno())
    try:
        return mounting.clone(device)
    finally:
        os.close(device)
        os.close(pidfd)


@pytest.mark.fuse
@pytest.mark.root
@filling.possible
def test_it_closes_everything_when_nobody_reads_and_wakes_again(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than this test takes to answer, however busy the machine is: what comes to one that sleeps is dropped.
    monkeypatch.setattr(filler, "_SLEEP_S", 1.0)
    monkeypatch.setattr(filler, "_TELL_S", 0.1)
    tree = many(1, 400)
    store = open_store(base / "store")
    try:
        totals = put_tree(store, tree)
        folders = FolderReader(store.reader.index)
        listed = folders.walk_path(totals.root, b"00")
        assert listed is not None and listed.child is not None
        inodes, sizes = folders.small_files(listed.child, MAX_BYTES, 1000)
    finally:
        store.close()
    files = list(zip(inodes, sizes, strict=True))
    with mount(base / "store", totals, base / "m") as mounted:
        list_all(mounted.place)
        entry = mounted_at(os.fspath(mounted.place))
        assert entry is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        tally, holder = Tally(), os.pidfd_open(mounted.pid)
        settings_ = filler.FillerSettings(os.fspath(base / "store"), os.getuid(), os.fspath(mounted.place), os.devnull)
        why: list[str] = []
        thread = threading.Thread(target=lambda: why.append(filler.Filler(settings_, theirs, holder, tally).run()))
        thread.start()
        with ours, theirs:
            ours.settimeout(20)
            ours.send(messages.listed([listed.child]))
            for round_ in range(1, 4):
                ours.send(messages.read(files[20 * n] for n in range(TOGETHER)))
                while ours.recv(messages.MAX_BYTES) != messages.WANTED:
                    pass
                clone = clone_of(mounted.pid)
                ours.sendmsg([messages.DEVICE + entry.device.encode()], framing.ancillary([clone]))
                os.close(clone)
                expected = round_ * (len(files) - TOGETHER)
                eventually(lambda expected=expected: tally.counts()[0] == expected, "it brings all")  # type: ignore[misc]
                device = f"{base}/store/index/data.mdb"
                eventually(lambda device=device: device not in opened(os.getpid()), "it closes everything")  # type: ignore[misc]
            ours.shutdown(socket.SHUT_WR)
            thread.join(20)
            assert why == [""] and not mounted.stats()["errors"]
        os.close(holder)
        assert epoch(mounted.place, tree, 2) == []


def opened(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found
