"""What the kernel makes of an image that is made as it is read: damage, readers who are killed, a holder that is, and who may enter."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.fusefs.filling import drop_fusectl, fusectl, gone, read_apart, state_of
from tests.fusefs.helpers import (
    TIMEOUT_S,
    Answer,
    File,
    Link,
    Mounted,
    Node,
    answering,
    eventually,
    mount,
    open_store,
    put,
    put_tree,
    waiting_reader,
)
from tests.fusefs.test_damage import flip
from tests.fusefs.test_life import GONE

from millpond.daemon import memfd
from millpond.daemon.mounts.kernel import why_no_image
from millpond.daemon.mounts.place import mounted_at
from millpond.daemon.names import ObjectName
from millpond.daemon.store.folders import Totals
from millpond.daemon.store.trees import TreeEntry, build_tree
from millpond.fusefs.engines.readahead import one_at_a_time

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.parametrize("engine", ["erofs"], indirect=True),
    pytest.mark.skipif(bool(why_no_image()), reason="there is no EROFS of a file here"),
]

SOME_USER = 65534
# A read-ahead, and the four behind it, that no mount of others has.
OWN_KB = 400 + 20 * (os.getpid() % 97)


def random_files(count: int, size: int, seed: int = 1) -> dict[bytes, Node]:
    """Files of `size` bytes that nothing compresses."""
    rng = random.Random(seed)
    return {b"%04d" % number: File(rng.randbytes(size)) for number in range(count)}


def data_of(tree: Mapping[bytes, Node], name: bytes) -> bytes:
    node = tree[name]
    assert isinstance(node, File)
    return node.data


def stored(base: Path, tree: Mapping[bytes, Node]) -> tuple[Path, Totals]:
    store = open_store(base / "store")
    totals = put_tree(store, tree)
    store.close()
    return base / "store", totals


def drop_caches() -> None:
    """As root may: all that is in memory and also elsewhere is forgotten."""
    Path("/proc/sys/vm/drop_caches").write_text("3")


def read_all(place: Path, tree: Mapping[bytes, Node], order: random.Random) -> dict[bytes, int]:
    """Every file is what it should be, or an error, told by name."""
    failed = {}
    for name in order.sample(sorted(tree), len(tree)):
        try:
            found = (place / os.fsdecode(name)).read_bytes()
        except OSError as error:
            failed[name] = error.errno or 0
        else:
            assert found == data_of(tree, name), f"{name!r} is wrong"
    return failed


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fill", "serving"), [(1, 1), *(pytest.param(*each, marks=pytest.mark.long) for each in ((0, 1), (1, 3)))]
)
def test_damage_hurts_its_file_alone_whatever_was_read_with_it(base: Path, fill: int, serving: int) -> None:
    """Small files are read by windows of the page cache: one that cannot be read takes none of its neighbours with it, before nor after."""
    tree = random_files(400, 6000)
    path, totals = stored(base, tree)
    hurt = [b"0003", b"0200", b"0399"]
    for name in hurt:
        flip(path, data_of(tree, name)[3000:3100])
    with mount(path, totals, base / "m", fill=fill, serving=serving) as mounted:
        eventually(lambda: len(mounted.stats()["servers"]) == serving - 1, "servers are there")
        for name in (b"0002", b"0003", b"0004", b"0003"):  # side by side, in either order
            failed = read_all(mounted.place, {name: tree[name]}, random.Random(1))
            assert failed == ({name: errno.EIO} if name in hurt else {})
        for seed in range(3):
            assert read_all(mounted.place, tree, random.Random(seed)) == dict.fromkeys(hurt, errno.EIO)
            drop_caches()
        assert mounted.stats()["image"] == "cached" and mounted.stats()["errors"] >= 3
        with open(mounted.place / "0200", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area:
            done = subprocess.run(
                [sys.executable, "-c", _TOUCH, mounted.place / "0200"], capture_output=True, timeout=60, check=False
            )
            assert done.returncode == -signal.SIGBUS and len(area) == 6000


_TOUCH = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area:
    print(area[:])
"""


def test_of_a_large_file_what_is_not_damaged_is_read(base: Path) -> None:
    data = random.Random(4).randbytes(8_000_000)
    path, totals = stored(base, {b"large": File(data), b"other": File(data[::-1])})
    flip(path, data[3_000_000:3_000_100])
    with mount(path, totals, base / "m") as mounted, open(mounted.place / "large", "rb", buffering=0) as file:
        assert mounted.stats()["image"] == "direct"
        assert os.pread(file.fileno(), 1_000_000, 1_000_000) == data[1_000_000:2_000_000]
        with pytest.raises(OSError) as refused:
            os.pread(file.fileno(), 4096, 3_000_000)
        assert refused.value.errno == errno.EIO
        read = b""
        with pytest.raises(OSError):
            while part := file.read(1 << 20):  # never past the damage, and never anything else before it
                read += part
        assert read == data[: len(read)] and 1_000_000 < len(read) <= 3_000_050
        assert os.pread(file.fileno(), 1_000_000, 4_500_000) == data[4_500_000:5_500_000]
        assert (mounted.place / "other").read_bytes() == data[::-1]


def test_a_folder_that_is_lost_takes_no_sibling_with_it(base: Path) -> None:
    store = open_store(base / "store")
    name = put(store, [b"fine"])[0]
    entries = [TreeEntry(b"%03d" % number, 4, name=name) for number in range(100)]
    entries[50] = TreeEntry(b"050", folder=bytes(range(32)))
    totals = build_tree(store, entries)
    store.close()
    with mount(base / "store", totals, base / "m") as mounted:
        assert len(os.listdir(mounted.place)) == 100
        for number in (0, 49, 51, 63, 99):
            assert (mounted.place / f"{number:03}").read_bytes() == b"fine"
        for touch in (lambda: os.listdir(mounted.place / "050"), lambda: os.stat(mounted.place / "050/x")):
            with pytest.raises(OSError) as refused:
                touch()
            assert refused.value.errno == errno.EIO
        assert "not in the index" in mounted.stats()["last_error"]


# -- readers that end -------------------------------------------------------------------------------------------------


class Slow:
    """A source that gives every object, some time after it was asked."""

    def __init__(self, contents: Mapping[ObjectName, bytes], pause_s: float) -> None:
        self._contents = contents
        self._pause_s = pause_s

    def __call__(self, ask: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        time.sleep(self._pause_s)
        data = self._contents[ObjectName(*ask["name"])]
        return {"size": len(data)}, [memfd.from_bytes(data)]


@contextlib.contextmanager
def slow_mount(base: Path, contents: list[bytes], pause_s: float, **settings: Any) -> Iterator[Mounted]:
    """`0`, `1`, ... of contents that are nowhere but at a slow source."""
    named = {ObjectName("md5", hashlib.md5(data).hexdigest()): data for data in contents}
    store = open_store(base / "store")
    entries = [TreeEntry(b"%04d" % at, len(data), name=name) for at, (name, data) in enumerate(named.items())]
    totals = build_tree(store, entries)
    store.close()
    answer: Answer = Slow(named, pause_s)
    with mount(base / "store", totals, base / "m", source=answering(answer), **settings) as mounted:
        yield mounted


@pytest.mark.parametrize("far", [pytest.param(True, marks=pytest.mark.long), False])
@pytest.mark.parametrize("rounds", [6, pytest.param(60, marks=pytest.mark.long)])
def test_a_reader_that_is_killed_leaves_no_zeros_to_the_others(base: Path, rounds: int, far: bool) -> None:
    """Two read one cold file; one of them is killed at any moment. (Kernels that took for zeros what was not read are not trusted.)"""
    rng = random.Random(rounds)
    contents = [rng.randbytes(rng.choice((5000, 70_000, 400_000))) for _ in range(rounds)]
    with slow_mount(base, contents, 0.02, far=far) as mounted:
        for number, content in enumerate(contents):
            path = mounted.place / f"{number:04}"
            with open(path, "rb", buffering=0) as file:
                killed = subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL)
                time.sleep(rng.uniform(0.0, 0.03))
                other = read_apart(path, content)
                time.sleep(rng.uniform(0.0, 0.02))
                killed.kill()
                assert killed.wait(TIMEOUT_S) in (-signal.SIGKILL, 0)
                assert other.communicate(timeout=TIMEOUT_S)[0] == "right\n"
                assert file.read() == content
        assert mounted.stats()["errors"] == 0


_CHURN = """
import os, random, sys
place, seed = sys.argv[1], int(sys.argv[2])
names = sorted(os.listdir(place))
rng = random.Random(seed)
while True:
    with open(os.path.join(place, rng.choice(names)), "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 20):
            pass
"""


@pytest.mark.parametrize(
    ("size", "seconds"),
    [(3_000_000, 1.0), *(pytest.param(each, 30.0, marks=pytest.mark.long) for each in (3_000_000, 9000))],
)
def test_bytes_are_right_while_readers_are_killed_in_a_loop(base: Path, size: int, seconds: float) -> None:
    tree = random_files(12 if size > 100_000 else 600, size)
    path, totals = stored(base, tree)
    with mount(path, totals, base / "m", fill=1) as mounted:
        deadline = time.monotonic() + seconds
        killed = 0
        with ThreadPoolExecutor(2) as pool:
            while time.monotonic() < deadline:
                readers = [
                    subprocess.Popen([sys.executable, "-S", "-E", "-c", _CHURN, mounted.place, str(killed + each)])
                    for each in range(3)
                ]
                if size < 100_000:
                    drop_caches()
                reads = [pool.submit(read_all, mounted.place, tree, random.Random(killed + each)) for each in range(2)]
                time.sleep(random.Random(killed).uniform(0.05, 0.2))
                for reader in readers:
                    reader.kill()
                    reader.wait(TIMEOUT_S)
                killed += len(readers)
                assert [each.result(TIMEOUT_S) for each in reads] == [{}, {}]
        assert killed >= 3 and mounted.stats()["errors"] == 0
        assert read_all(mounted.place, tree, random.Random(0)) == {}


_READS = """
import os, signal, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
signal.signal(signal.SIGINT, signal.SIG_DFL)
for number in map(int, sys.argv[2:]):
    signal.signal(number, lambda number, _: print("rang", number, flush=True))
print("open", flush=True)
found = os.pread(fd, 1 << 20, 0)
print(len(found), found[:40], flush=True)
"""


@pytest.mark.parametrize("far", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_reader_that_waits_can_be_ended_and_one_that_lives_on_gets_all_its_bytes(base: Path, far: bool) -> None:
    store = open_store(base / "store")
    data = b"what the source has" * 1000
    entries = [TreeEntry(b"%d" % n, len(data), name=ObjectName("md5", f"{n:032x}")) for n in range(3)]
    totals = build_tree(store, entries)
    store.close()
    with mount(base / "store", totals, base / "m", source=lambda sock: None, far=far) as mounted:
        asked: dict[str, int] = {}

        def wanted(number: int) -> None:
            """Wait for the request for an object. Those for its neighbours are of the same request of the kernel."""
            while f"{number:032x}" not in asked:
                for line in mounted.source.recv(65536).splitlines():
                    told = json.loads(line)
                    asked[told["name"][1]] = told["id"]

        for name, number in (("0", signal.SIGKILL), ("1", signal.SIGINT)):
            with waiting_reader(_READS, mounted, name) as reader:
                wanted(int(name))
                reader.send_signal(number)
                assert reader.wait(TIMEOUT_S) == -number
        lived = (signal.SIGALRM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        with waiting_reader(_READS, mounted, "2", *lived) as reader:
            wanted(2)
            for number in lived:
                reader.send_signal(number)
            time.sleep(0.5)
            assert reader.poll() is None
            for told in list(asked.values()):
                give(mounted.source, told, data)
            asked.clear()
            threading.Thread(target=give_all, args=(mounted.source, data), daemon=True).start()
            output, _ = reader.communicate(timeout=TIMEOUT_S)
            assert reader.returncode == 0 and all(b"rang %d\n" % number in output for number in lived)
            assert f"{len(data)} {data[:40]!r}".encode() in output
        assert (mounted.place / "0").read_bytes() == data


def test_one_object_that_does_not_come_holds_up_its_readers_alone(base: Path) -> None:
    """Also where the kernel asks for it with its neighbours: who wants these has them, and is not told what became of it."""
    store = open_store(base / "store")
    contents = {number: random.Random(number).randbytes(9000) for number in range(30)}
    entries = [
        TreeEntry(b"%02d" % number, 9000, name=name) for number, name in enumerate(put(store, list(contents.values())))
    ]
    entries[15] = TreeEntry(b"15", 9000, name=ObjectName("md5", "ab" * 16))
    totals = build_tree(store, entries)
    store.close()
    with mount(base / "store", totals, base / "m", source=lambda sock: None, fill=1) as mounted:
        began = time.monotonic()
        for number in (0, 29, 14, 16, 13):
            reader = read_apart(mounted.place / f"{number:02}", contents[number])
            assert reader.communicate(timeout=TIMEOUT_S)[0] == "right\n"
        assert time.monotonic() - began < 5
        waiting = read_apart(mounted.place / "15", b"")
        for number in set(contents) - {15}:
            assert (mounted.place / f"{number:02}").read_bytes() == contents[number]
        time.sleep(0.5)
        assert waiting.poll() is None, "who wants it waits for it"
        waiting.kill()
        waiting.communicate(timeout=TIMEOUT_S)
        assert waiting.returncode == -signal.SIGKILL


@pytest.mark.long
@pytest.mark.parametrize("far", [True, False])
def test_many_objects_that_do_not_come_hold_up_nobody_else(base: Path, far: bool) -> None:
    """More than the kernel has requests under way ahead of readers."""
    store = open_store(base / "store")
    contents = [random.Random(number).randbytes(9000) for number in range(100)]
    entries = [TreeEntry(b"here/%02d" % number, 9000, name=name) for number, name in enumerate(put(store, contents))]
    entries += [TreeEntry(b"slow/%03d" % each, 300_000, name=ObjectName("md5", f"{each:032x}")) for each in range(80)]
    totals = build_tree(store, entries)
    store.close()
    with mount(base / "store", totals, base / "m", source=lambda sock: None, fill=1, far=far) as mounted:
        paths = [mounted.place / f"slow/{each:03}" for each in range(80)]
        waiting = [subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL) for path in paths]
        time.sleep(1.0 if far else 2.5)
        readers = [read_apart(mounted.place / f"here/{number:02}", contents[number]) for number in range(0, 100, 9)]
        assert [each.communicate(timeout=TIMEOUT_S)[0] for each in readers] == ["right\n"] * len(readers)
        assert [each.poll() for each in waiting] == [None] * len(waiting)
        for each in waiting:
            each.kill()
        assert [each.wait(TIMEOUT_S) for each in waiting] == [-signal.SIGKILL] * len(waiting)


def test_a_holder_that_is_killed_while_what_it_brings_does_not_come_ends(base: Path) -> None:
    """Its own thread must not wait in the kernel for an answer that only its own process could give."""
    store = open_store(base / "store")
    names = put(store, [random.Random(number).randbytes(9000) for number in range(300)])
    entries = [TreeEntry(b"%03d" % number, 9000, name=name) for number, name in enumerate(names)]
    for number in range(50, 300):
        entries[number] = TreeEntry(b"%03d" % number, 9000, name=ObjectName("md5", f"{number:032x}"))
    totals = build_tree(store, entries)
    store.close()
    with mount(base / "store", totals, base / "m", source=lambda sock: None, fill=1) as mounted:
        connections = fusectl(base)
        eventually(lambda: bool(connection_of(mounted.pid)), "it has the image open")
        connection = connections / connection_of(mounted.pid)
        for number in range(0, 50, 7):
            assert len((mounted.place / f"{number:03}").read_bytes()) == 9000
        time.sleep(1.2)
        os.kill(mounted.pid, signal.SIGKILL)
        try:
            eventually(lambda: not Path(f"/proc/{mounted.pid}").exists(), "it has ended", 5)
        finally:
            with contextlib.suppress(OSError):
                (connection / "abort").write_text("1")
            drop_fusectl(base)


def give(sock: socket.socket, told: int, data: bytes) -> None:
    from millpond.daemon.rpc import framing

    fd = memfd.from_bytes(data)
    framing.send(sock, framing.encode({"id": told, "size": len(data)}, [fd]), [fd])
    os.close(fd)


def give_all(sock: socket.socket, data: bytes) -> None:
    """Answer all that is asked from now on."""
    with contextlib.suppress(OSError, ValueError):
        while got := sock.recv(65536):
            for line in got.splitlines():
                give(sock, int(json.loads(line)["id"]), data)


# -- the holder -------------------------------------------------------------------------------------------------------


def are_gone(pids: list[int]) -> bool:
    return all(map(gone, pids))


def holders_processes(mounted: Mounted) -> list[int]:
    """The holder and its servers."""
    return [mounted.pid, *mounted.stats()["servers"]]


@pytest.mark.parametrize("serving", [1, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.long)])
def test_a_holder_killed_while_it_brings_what_lies_around_leaves_nothing_that_hangs(
    base: Path, serving: int, rounds: int
) -> None:
    count = 1200 * rounds
    # What nobody looked into before the end cannot be in the page cache, however fast the others are brought.
    tree = {**random_files(count, 9000), b"later/one": File(b"one")}
    path, totals = stored(base, tree)
    for round_ in range(rounds):
        with mount(path, totals, base / "m", fill=1, serving=serving) as mounted:
            if serving > 1:
                eventually(lambda: len(mounted.stats()["servers"]) == serving - 1, "servers are there")
            pids = holders_processes(mounted)
            drop_caches()
            for number in random.Random(round_).sample(range(count // 2), 30 + 10 * round_):
                assert (mounted.place / f"{number:04}").read_bytes() == data_of(tree, b"%04d" % number)
            assert mounted.stats()["filled_bytes"] or round_ == 0
            readers = [read_apart(mounted.place / f"{number:04}", b"") for number in range(count - 4, count)]
            time.sleep(random.Random(round_).uniform(0, 0.1))
            os.kill(mounted.pid, signal.SIGKILL)
            mounted.ended()
            for reader in readers:
                assert reader.communicate(timeout=TIMEOUT_S)[0] in (*(f"errno {each}\n" for each in GONE), "wrong\n")
            eventually(partial(are_gone, pids), "all its processes are gone")
            failed = read_all(mounted.place, tree, random.Random(round_))  # all are right, or errors
            assert set(failed.values()) <= GONE
            assert mounted.umount("-z").returncode == 0
            assert mounted_at(os.fspath(mounted.place)) is None
        with mount(path, totals, base / "m", fill=1) as again:
            assert read_all(again.place, dict(list(tree.items())[:100]), random.Random(1)) == {}


@pytest.mark.long
def test_servers_that_are_killed_are_replaced_and_nobody_sees_it(base: Path) -> None:
    tree = random_files(2000, 9000)
    path, totals = stored(base, tree)
    with mount(path, totals, base / "m", fill=1, serving=3) as mounted, ThreadPoolExecutor(4) as pool:
        for round_ in range(10):
            eventually(lambda: len(mounted.stats()["servers"]) == 2, "servers are there")
            time.sleep(1.1)  # one that ends sooner than that is not replaced at once
            drop_caches()
            reads = [pool.submit(read_all, mounted.place, tree, random.Random(round_ + each)) for each in range(4)]
            time.sleep(random.Random(round_).uniform(0, 0.2))
            for pid in mounted.stats()["servers"]:
                os.kill(pid, signal.SIGKILL)
            assert [each.result(60) for each in reads] == [{}] * 4
        assert mounted.stats()["errors"] == 0 and mounted.stats()["servers_ended"] >= 10


def test_a_holder_that_is_stopped_holds_its_readers_up_and_no_longer(base: Path) -> None:
    tree = random_files(200, 9000)
    path, totals = stored(base, tree)
    with mount(path, totals, base / "m", fill=1) as mounted:
        os.kill(mounted.pid, signal.SIGSTOP)
        try:
            waiting = [read_apart(mounted.place / name, data_of(tree, os.fsencode(name))) for name in ("0000", "0190")]
            time.sleep(0.5)
            for reader in waiting:
                assert reader.poll() is None and state_of(reader.pid) in ("S", "D"), "he waits"
        finally:
            os.kill(mounted.pid, signal.SIGCONT)
        for reader in waiting:
            assert reader.communicate(timeout=TIMEOUT_S)[0] == "right\n"
        assert read_all(mounted.place, tree, random.Random(1)) == {}


# -- mounts that come and go ------------------------------------------------------------------------------------------


def open_memory(pid: int) -> int:
    """Memory files that are open in a process."""
    links = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.exists() or each.is_symlink()]
    return sum("memfd:millpond-image" in link for link in links)


def connection_of(pid: int) -> str:
    """What the kernel calls the FUSE connection of the image that a holder has open."""
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(each) == "/millpond":
                return str(os.minor(os.stat(each).st_dev))
    return ""


def with_read_ahead(kb: int) -> int:
    """File systems of images that have this read-ahead."""
    count = 0
    for name in os.listdir("/sys/class/bdi"):
        with contextlib.suppress(OSError):
            if name.startswith("erofs-"):
                count += int(Path(f"/sys/class/bdi/{name}/read_ahead_kb").read_text()) == kb
    return count


def is_left_nothing(connection: Path, kb: int) -> bool:
    return not connection.exists() and not with_read_ahead(kb)


@pytest.mark.parametrize("rounds", [1, pytest.param(50, marks=pytest.mark.long)])
def test_nothing_is_left_of_mounts_that_are_gone(base: Path, rounds: int) -> None:
    """No process, connection or file system, whether the holder was bringing what lies around, and however it was unmounted."""
    tree = random_files(300, 9000)
    path, totals = stored(base, tree)
    connections = fusectl(base)
    kb = OWN_KB
    try:
        for round_ in range(rounds):
            with mount(path, totals, base / "m", fill=1, read_ahead_kb=kb) as mounted:
                assert read_all(mounted.place, tree, random.Random(round_)) == {}
                eventually(lambda: bool(connection_of(mounted.pid)), "it has the image open")
                connection = connections / connection_of(mounted.pid)
                assert connection.is_dir() and with_read_ahead(kb) == 1
                assert 1 <= open_memory(mounted.pid) <= 2  # the mapping's own, too
                if round_ % 3 == 2:
                    with open(mounted.place / "0007", "rb") as file:
                        assert mounted.umount("-z").returncode == 0
                        assert file.read() == data_of(tree, b"0007") and connection.is_dir()
                else:
                    assert mounted.umount().returncode == 0
                assert mounted.ended() == 0
            eventually(partial(is_left_nothing, connection, kb), "neither connection nor file system is left")
    finally:
        drop_fusectl(base)


@pytest.mark.long
def test_mounts_made_at_once_have_each_their_own_read_ahead(base: Path) -> None:
    path, totals = stored(base, random_files(10, 9000))
    wanted = [OWN_KB + 4 * each for each in range(1, 5)]
    making = [mount(path, totals, base / f"m{kb}", read_ahead_kb=kb, engine="erofs") for kb in wanted]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        made = list(pool.map(stack.enter_context, making))
        assert [each.stats()["read_ahead_kb"] for each in made] == wanted
        assert [with_read_ahead(kb) for kb in wanted] == [1] * 4


@pytest.mark.long
def test_who_mounts_waits_for_another_who_does_but_not_for_ever() -> None:
    """Else each would take the other's file system for his own, or neither know his."""
    first, second = threading.Event(), threading.Event()

    def mounting() -> None:
        with one_at_a_time():
            first.set()
            time.sleep(0.3)
            second.set()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(mounting)
        assert first.wait(TIMEOUT_S)
        with one_at_a_time():
            assert second.is_set(), "he was done"
        other.result(TIMEOUT_S)
    began = time.monotonic()
    with one_at_a_time(), one_at_a_time():
        assert 0.9 < time.monotonic() - began < TIMEOUT_S


def as_some_user(command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command.split(), user=SOME_USER, group=SOME_USER, extra_groups=[], capture_output=True, check=False
    )


@pytest.mark.parametrize("allow_other", [False, pytest.param(True, marks=pytest.mark.long)])
def test_who_may_enter(base: Path, allow_other: bool) -> None:
    data = b"secret" * 100
    path, totals = stored(base, {b"folder/file": File(data), b"link": Link(b"folder/file")})
    os.chmod(base, 0o755)
    with mount(path, totals, base / "m", allow_other=allow_other) as mounted:
        for name in ("folder/file", "link"):
            reader = read_apart(mounted.place / name, data, uid=SOME_USER, python="/usr/bin/python3")
            said = reader.communicate(timeout=TIMEOUT_S)[0]
            assert said == ("right\n" if allow_other else f"errno {errno.EACCES}\n")
            assert (mounted.place / name).read_bytes() == data
        for command in ("ls {}", "touch {}/new", "rm -rf {}/folder"):
            done = as_some_user(command.format(mounted.place))
            assert bool(done.returncode) == (not command.startswith("ls") or not allow_other)
        assert (mounted.place / "folder/file").read_bytes() == data
    with mount(path, totals, base / "own", uid=SOME_USER, allow_other=False) as mounted:
        names = as_some_user(f"ls {mounted.place}")
        assert names.stdout == b"folder\nlink\n", "the owner enters"
