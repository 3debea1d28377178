"""Several processes on one mount: what they share, when there are how many, and that none of them can be missed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from tests.fusefs.helpers import (
    File,
    Mounted,
    Node,
    answering,
    eventually,
    mixed,
    mount,
    open_store,
    put,
    put_tree,
    share,
)
from tests.fusefs.test_session import BODIES, INODES, OPS
from tests.fusefs.wire import Kernel, read_body, serve
from tests.jobs.helpers import until

from millpond.daemon import memfd
from millpond.daemon.mounts.detach import detach
from millpond.daemon.mounts.place import mounted_at
from millpond.daemon.names import ObjectName
from millpond.daemon.store.folders import Totals
from millpond.daemon.store.reader import StoreReader
from millpond.daemon.store.segments import segment_path
from millpond.daemon.store.trees import TreeEntry, build_tree
from millpond.fusefs.engines import EngineSettings, mounting, protocol
from millpond.fusefs.engines.answers import Answers
from millpond.fusefs.engines.protocol import IN_HEADER, OUT_HEADER, Op
from millpond.fusefs.engines.readahead import ReadAhead
from millpond.fusefs.engines.session import Session
from millpond.fusefs.filesystem import Filesystem
from millpond.fusefs.nodes import ROOT, Nodes
from millpond.fusefs.reader import ChunkCache
from millpond.fusefs.serving import messages
from millpond.fusefs.serving.load import Load, Meter, Sample, cores, most_by_load
from millpond.fusefs.serving.servers import Servers
from millpond.fusefs.serving.shared import Counter, Directories, Slot
from millpond.fusefs.sources import Sources

SMALL = 300
LARGE = {b"large/%d" % number: mixed(3_000_000 + number, number) for number in range(4)}
TREE: dict[bytes, Node] = {
    **{path: File(data) for path, data in LARGE.items()},
    **{b"small/%02d/%03d" % (number % 10, number): File(mixed(number * 37 + 1, number)) for number in range(SMALL)},
}
AWAY = b"content of an object that only the source has"
AWAY_NAME = ObjectName("md5", "5e" * 16)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Totals]:
    path = tmp_path_factory.mktemp("serving") / "store"
    store = open_store(path)
    try:
        totals = put_tree(store, TREE)
    finally:
        store.close()
    return path, totals


@contextlib.contextmanager
def served(stored: tuple[Path, Totals], base: Path, serving: int, **more: Any) -> Iterator[Mounted]:
    """The tree, mounted, once all its servers have answered something."""
    with mount(*stored, base / "m", engine="direct", serving=serving, **more) as mounted:
        eventually(lambda: len(servers(mounted)) == serving - 1, "there are servers")
        share(mounted)
        yield mounted


def servers(mounted: Mounted) -> list[int]:
    found: list[int] = mounted.stats()["servers"]
    return found


def forget_pages(path: Path) -> None:
    """Have the kernel ask for a file's bytes again."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def keep_reading(place: str, seed: int, out: Connection) -> None:
    """A program that reads any files, whole or in part, and compares; it tells how often, or what was wrong."""
    rng = random.Random(seed)
    paths = sorted(TREE)
    done = 0
    try:
        out.send("begun")
        while not out.poll():
            path = rng.choice(paths)
            node = TREE[path]
            assert isinstance(node, File)
            full = Path(os.fsdecode(os.path.join(os.fsencode(place), path)))
            forget_pages(full)
            with open(full, "rb", buffering=0) as file:
                begin = rng.randrange(len(node.data)) if rng.random() < 0.5 else 0
                file.seek(begin)
                found = b"".join(iter(lambda file=file: file.read(200_000), b""))  # type: ignore[misc]
            assert found == node.data[begin:], f"{path!r} from {begin}: wrong bytes"
            done += 1
        out.send(done)
    except BaseException as error:
        out.send(repr(error))


@contextlib.contextmanager
def readers(mounted: Mounted, count: int) -> Iterator[list[Any]]:
    """Programs that read all the while; in the end, what each has told is in the list."""
    context = multiprocessing.get_context("spawn")
    told: list[Any] = []
    running = []
    for seed in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=keep_reading, args=(os.fspath(mounted.place), seed, theirs), daemon=True)
        process.start()
        theirs.close()
        running.append((process, ours))
    try:
        for _, pipe in running:
            assert pipe.poll(60) and pipe.recv() == "begun"
        yield told
        for _, pipe in running:
            pipe.send("enough")
        for _, pipe in running:
            assert pipe.poll(30), "a reader hangs"
            told.append(pipe.recv())
    finally:
        for process, pipe in running:
            process.kill()
            process.join(10)
            process.close()
            pipe.close()


# -- killed -----------------------------------------------------------------------------------------------------------


def kill_on(stored: tuple[Path, Totals], base: Path, *, seconds: float, serving: int, at_work: bool) -> None:
    with served(stored, base, serving, life_s=int(seconds) + 100) as mounted:
        rng = random.Random(4)
        killed = 0
        with readers(mounted, 3) as told:
            end = time.monotonic() + seconds
            while time.monotonic() < end or (at_work and not mounted.stats()["servers_left"]):
                assert time.monotonic() < end + 60, "no server was ever at work when it was killed"
                # Younger ones have not begun yet, and too many that end so soon are given up.
                time.sleep(rng.uniform(1.1, 1.5))
                for pid in servers(mounted):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
                eventually(lambda: len(servers(mounted)) == serving - 1, "they are replaced", 30)
        assert all(isinstance(each, int) and each > 0 for each in told), told
        stats = mounted.stats()
        assert not stats["errors"], stats["last_error"]
        eventually(lambda: mounted.stats()["servers_ended"] == killed, "each death is seen")
        eventually(lambda: len(servers(mounted)) == serving - 1, "they are replaced", 30)
        share(mounted)


@pytest.mark.long
def test_servers_killed_again_and_again_lose_nothing(stored: tuple[Path, Totals], base: Path) -> None:
    kill_on(stored, base, seconds=3, serving=3, at_work=False)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_servers_killed_for_minutes_lose_nothing(stored: tuple[Path, Totals], base: Path) -> None:
    kill_on(stored, base, seconds=120, serving=5, at_work=True)


def test_a_killed_holder_takes_its_servers_along(stored: tuple[Path, Totals], base: Path) -> None:
    with served(stored, base, 3) as mounted:
        pids = servers(mounted)
        os.kill(mounted.pid, signal.SIGKILL)
        mounted.ended()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the servers are gone", 5)
        with pytest.raises(OSError) as gone:
            os.listdir(mounted.place)
        assert gone.value.errno == errno.ENOTCONN


def test_the_end_of_the_mount_ends_them(stored: tuple[Path, Totals], base: Path) -> None:
    with served(stored, base, 3) as mounted:
        pids = servers(mounted)
        assert not mounted.umount().returncode
        assert mounted.ended() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert mounted_at(os.fspath(mounted.place)) is None


def within(
    stored: tuple[Path, Totals], place: Path, work: Callable[[Servers], Awaitable[None]], *, fixed: int, most: int
) -> None:
    """Mount and serve in this process, where a test sees the servers' objects; the place is for other programs and threads."""
    place.mkdir()

    async def main() -> None:
        fd = mounting.mount(EngineSettings(os.fspath(place), os.fspath(place), "millpond"))
        os.set_blocking(fd, False)
        reader = StoreReader.open(stored[0])
        try:
            async with trio.open_nursery() as nursery:
                chunks = ChunkCache(reader, nursery)
                filesystem = Filesystem(reader, chunks, None, root=stored[1].root, uid=os.getuid(), totals=(1, 1))
                session = Session(
                    filesystem, fd, nursery, lambda channel, later: Answers(filesystem, channel, later, ReadAhead(0))
                )
                nursery.start_soon(session.run)
                await session.initialised.wait()
                store = os.fspath(stored[0])
                many = Servers(filesystem, session, nursery, device=fd, store=store, fixed=fixed, most=most)
                nursery.start_soon(many.run)
                try:
                    await work(many)
                finally:
                    await trio.to_thread.run_sync(detach, os.fspath(place))
                    nursery.cancel_scope.cancel()
        finally:
            reader.close()
            os.close(fd)

    trio.run(main)


@pytest.mark.root
def test_one_that_is_told_to_end_ends_between_two_requests_and_its_place_is_used_again(
    stored: tuple[Path, Totals], base: Path
) -> None:
    async def work(many: Servers) -> None:
        for _ in range(3):
            await trio.to_thread.run_sync(eventually, lambda: bool(many._running), "a server is there")
            server = many._running[0]
            server.hang_up()
            assert await trio.to_thread.run_sync(grep_all, base / "m") == len(TREE)
            await trio.to_thread.run_sync(eventually, partial(gone, many, server.process.pid), "it has ended")
            assert server.process.returncode == 0
        told = many.statistics()
        assert told["servers_ended"] == told["servers_left"] == 0 and not told["serving_why"]
        assert len(many._places) <= 2, "a place is used again"

    within(stored, base / "m", work, fixed=2, most=0)


@pytest.mark.root
@pytest.mark.long
def test_those_that_nobody_needs_are_told_to_end(stored: tuple[Path, Totals], base: Path) -> None:
    async def work(many: Servers) -> None:
        many._wanted = 3  # as after much work
        await trio.to_thread.run_sync(eventually, lambda: len(many._running) == 2, "two were started")
        killed = many._running[0].process
        await trio.sleep(2)
        killed.kill()
        await trio.to_thread.run_sync(eventually, partial(gone, many, killed.pid), "its end is seen")
        await trio.to_thread.run_sync(eventually, lambda: len(many._running) == 2, "it is replaced")
        last = [server.process for server in many._running]
        await trio.to_thread.run_sync(partial(eventually, lambda: not many._running, "all ended", 60))
        assert many._wanted == 1 and [each.returncode for each in last] == [0, 0]
        assert many.statistics()["servers_ended"] == 1
        assert await trio.to_thread.run_sync(grep_all, base / "m") == len(TREE)

    within(stored, base / "m", work, fixed=0, most=3)


def gone(many: Servers, pid: int) -> bool:
    return all(server.process.pid != pid for server in many._running)


def grep_all(place: Path) -> int:
    """How many files another program finds there, reading all of each."""
    done = subprocess.run(["grep", "-rlZ", "", place], capture_output=True, check=True, timeout=60)
    return done.stdout.count(b"\0")


# -- who answers what -------------------------------------------------------------------------------------------------


def test_directories_are_counted_right_whoever_is_told_and_forgets(stored: tuple[Path, Totals], base: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may have the kernel forget")
    with served(stored, base, 4) as mounted:
        for _ in range(3):
            for top, _, names in os.walk(mounted.place):
                for name in names:
                    os.stat(os.path.join(top, name))
            assert mounted.stats()["known_directories"] >= 12
            for pid in servers(mounted)[:1]:
                os.kill(pid, signal.SIGKILL)

            def all_forgotten() -> bool:
                Path("/proc/sys/vm/drop_caches").write_text("2")
                # The folder with the statistics is not looked at here, nor is any other held.
                return bool(mounted.stats()["known_directories"] == 1)

            eventually(all_forgotten, "the kernel's forgets are counted, by whomever they are taken", 30)
        assert (mounted.place / "small" / "03" / "003").read_bytes() == mixed(3 * 37 + 1, 3)
        assert not mounted.stats()["errors"]


def test_what_only_the_source_has_is_waited_for_by_the_holder(base: Path) -> None:
    store = open_store(base / "store")
    here = put(store, [b"here"])[0]
    entries = [TreeEntry(b"away/%d" % number, len(AWAY), name=AWAY_NAME) for number in range(1)]
    totals = build_tree(store, [*entries, TreeEntry(b"here", 4, name=here)])
    store.close()
    give = answering(lambda request: ({"size": len(AWAY)}, [memfd.from_bytes(AWAY)]))
    with served((base / "store", totals), base, 3, source=give) as mounted:
        for _ in range(20):
            assert (mounted.place / "away/0").read_bytes() == AWAY
            assert (mounted.place / "here").read_bytes() == b"here"
            forget_pages(mounted.place / "away/0")
            forget_pages(mounted.place / "here")
        stats = mounted.stats()
        assert stats["handed_over"] > 0 and not stats["errors"]


def test_what_all_of_them_did_is_counted_once(stored: tuple[Path, Totals], base: Path) -> None:
    with served(stored, base, 3) as mounted:
        before = mounted.stats()
        for path, data in LARGE.items():
            full = mounted.place / os.fsdecode(path)
            forget_pages(full)
            assert full.read_bytes() == data
        wanted = before["read_bytes"] + sum(map(len, LARGE.values()))
        # A server counts when it has answered.
        after = until(lambda: (now := mounted.stats())["read_bytes"] >= wanted and now)
        assert after["read_bytes"] == wanted
        assert after["serving"] == after["serving_most"] == 3 and not after["serving_why"]
        assert mounted.ask("used")["segments"]


def test_a_read_of_damaged_bytes_is_an_error_of_that_read_alone(base: Path) -> None:
    """Told once, with the object and the chunk, by the holder, whoever met it."""
    store = open_store(base / "store")
    totals = put_tree(store, TREE)
    store.close()
    hurt = b"small/00/290"
    node = TREE[hurt]
    assert isinstance(node, File)
    location = None
    reader = StoreReader.open(base / "store")
    try:
        name = ObjectName("md5", hashlib.md5(node.data, usedforsecurity=False).hexdigest())
        (content,) = reader.resolve([name], os.getuid())
        assert content is not None
        location = reader.locate(content.id)
    finally:
        reader.close()
    assert location is not None
    with open(segment_path(base / "store/segments", location.segment), "r+b") as file:
        file.seek(location.offset + location.stored // 2 + 40)
        file.write(b"damaged damaged")
    with served((base / "store", totals), base, 3) as mounted:
        for _ in range(30):
            with pytest.raises(OSError) as refused:
                (mounted.place / os.fsdecode(hurt)).read_bytes()
            assert refused.value.errno == errno.EIO
            other = "small/01/291"
            assert (mounted.place / other).read_bytes() == mixed(291 * 37 + 1, 291)
            forget_pages(mounted.place / other)
        told = [line for line in mounted.log.read_text().splitlines() if "damaged" in line]
        assert len(told) == mounted.stats()["errors"] >= 30  # the kernel may ask twice
        assert all(str(name) in line and f"chunk {content.id.hex()[:16]} is damaged" in line for line in told)


def test_the_other_engine_is_one_process_and_says_so(stored: tuple[Path, Totals], base: Path) -> None:
    with (
        pytest.raises(AssertionError, match="serves a mount by one process"),
        mount(*stored, base / "m", engine="pyfuse3", serving=2),
    ):
        pass


@pytest.mark.long
def test_a_server_that_cannot_begin_is_given_up(stored: tuple[Path, Totals], base: Path) -> None:
    """The mount goes on by itself, and says why there is no other process."""
    with served(stored, base, 2) as mounted:
        deadline = time.monotonic() + 60
        while not (why := mounted.stats()["serving_why"]):
            assert time.monotonic() < deadline
            for pid in servers(mounted):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        assert "as soon as they had begun" in why
        eventually(lambda: not servers(mounted), "there is none left")
        assert (mounted.place / "small/00/000").read_bytes() == mixed(1, 0)


# -- requests from another descriptor ---------------------------------------------------------------------------------


def test_a_request_is_answered_where_it_came_from(stored: tuple[Path, Totals]) -> None:
    async def work(kernel: Kernel) -> None:
        await kernel.begin()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            theirs.setblocking(False)
            for inode, body, expected in ((ROOT, b"small\0", 0), (ROOT, b"none\0", 0), (4444, b"x\0", errno.ESTALE)):
                request = IN_HEADER.pack(IN_HEADER.size + len(body), Op.LOOKUP, 1 << 20, inode, 0, 0, 0, 0, 0) + body
                kernel.session.take_over(request, theirs.fileno())
                answer = await trio.to_thread.run_sync(ours.recv, 4096)
                assert OUT_HEADER.unpack_from(answer)[1:] == (-expected, 1 << 20)
        assert await kernel.lookup(ROOT, b"large"), "others are answered as before"

    serve(*stored, work)


@given(requests=st.lists(st.tuples(OPS, INODES, BODIES, st.booleans()), max_size=30))
def test_any_request_is_answered_where_it_came_from_and_ends_nothing(
    stored: tuple[Path, Totals], requests: list[tuple[int, int, bytes, bool]]
) -> None:
    async def work(kernel: Kernel) -> None:
        await kernel.begin()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        with theirs, trio.socket.from_stdlib_socket(ours) as asking:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            other = Kernel(asking, kernel.filesystem, kernel.session)
            here: list[int] = []
            there: list[int] = []
            for op, inode, body, elsewhere in requests:
                kernel.unique += 2
                request = IN_HEADER.pack(IN_HEADER.size + len(body), op, kernel.unique, inode, 0, 0, 0, 0, 0) + body
                if elsewhere:
                    kernel.session.take_over(request, theirs.fileno())
                else:
                    await kernel.sock.send(request)
                if op not in protocol.SILENT:
                    (there if elsewhere else here).append(kernel.unique)
            for unique in here:
                await kernel.answer(unique)
            for unique in there:
                await other.answer(unique)
            assert set(other.answers) == set(there) and not set(kernel.answers) & set(there)
            large = await kernel.lookup(await kernel.lookup(ROOT, b"large"), b"0")
            assert await kernel.read(large, 0, 1 << 20) == (0, LARGE[b"large/0"][: 1 << 20])

    serve(*stored, work)


def test_an_answer_that_is_not_taken_is_followed_by_an_error_in_the_same_place(stored: tuple[Path, Totals]) -> None:
    async def work(kernel: Kernel) -> None:
        await kernel.begin()
        large = await kernel.lookup(await kernel.lookup(ROOT, b"large"), b"0")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # a message of 1 MiB is too long
            theirs.setblocking(False)
            body = read_body(0, 1 << 20)
            request = IN_HEADER.pack(IN_HEADER.size + len(body), Op.READ, 1 << 20, large, 0, 0, 0, 0, 0) + body
            kernel.session.take_over(request, theirs.fileno())
            ours.settimeout(20)
            answer = await trio.to_thread.run_sync(ours.recv, 4096)
            assert OUT_HEADER.unpack_from(answer)[1:] == (-errno.EIO, 1 << 20)
        assert await kernel.read(large, 0, 4096) == (0, LARGE[b"large/0"][:4096])

    serve(*stored, work)


def test_an_interruption_that_overtakes_its_request_is_remembered(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    totals = build_tree(store, [TreeEntry(b"away", len(AWAY), name=AWAY_NAME)])
    store.close()
    ours, theirs = socket.socketpair()

    async def work(kernel: Kernel) -> None:
        await kernel.begin()
        kernel.session.shared = True
        inode = await kernel.lookup(ROOT, b"away")
        await kernel.interrupt(kernel.unique + 6)
        await kernel.ask(Op.STATFS, ROOT)
        unique = await kernel.send(Op.READ, inode, read_body(0, 4096))  # by pid 0, which nobody knows: it is to end
        assert await kernel.answer(unique) == (errno.EINTR, b"")

    with ours:
        serve(tmp_path / "store", totals, work, source=Sources(theirs))


# -- what they share --------------------------------------------------------------------------------------------------


def table() -> Directories:
    fd = Directories.create()
    try:
        return Directories(fd)
    finally:
        os.close(fd)


def test_the_table_has_the_folders_of_what_the_kernel_knows() -> None:
    nodes, shared = Nodes(b"r" * 32), table()
    before = nodes.remember(ROOT, b"before", b"b" * 32)
    nodes.share(shared)
    after = nodes.remember(before.inode, b"after", b"a" * 32)
    link = nodes.remember(ROOT, b"link", None, target=b"after")
    assert [shared.folder(each) for each in (ROOT, before.inode, after.inode, link.inode)] == [
        *(b"r" * 32, b"b" * 32, b"a" * 32),
        None,
    ]
    nodes.remember(ROOT, b"link", b"l" * 32)  # it became a folder
    assert shared.folder(link.inode) == b"l" * 32
    nodes.forget(after.inode, 1)
    assert shared.folder(after.inode) is None and shared.folder(after.inode + (1 << 17)) is None


def test_a_place_that_is_taken_is_nobody_elses() -> None:
    shared = table()
    shared.tell(20, b"x" * 32)
    shared.tell(20 + (1 << 17), b"y" * 32)
    assert shared.folder(20) == b"x" * 32 and shared.folder(20 + (1 << 17)) is None
    shared.drop(20 + (1 << 17))
    assert shared.folder(20) == b"x" * 32
    shared.drop(20)
    shared.tell(20 + (1 << 17), b"y" * 32)
    assert shared.folder(20 + (1 << 17)) == b"y" * 32 and shared.folder(20) is None


def test_a_slot_keeps_the_request_and_the_counts() -> None:
    fd = Slot.create()
    writer, reader = Slot(fd), Slot(fd)
    os.close(fd)
    writer.lock()
    assert reader.request() == b""
    writer.room[:8] = b"\x08\0\0\0text"
    assert reader.request() == b"\x08\0\0\0text"
    writer.room[:4] = b"\xff\xff\xff\xff"
    assert len(reader.request()) == len(writer.room)
    writer.clear()
    assert reader.request() == b""
    for number in (3, 4):
        writer.count(Counter.READS, number)
    assert reader.counted(Counter.READS) == 7 and reader.counted(Counter.READ_BYTES) == 0


def test_segments_are_told_in_as_many_messages_as_it_takes() -> None:
    assert messages.used(()) == []
    told = messages.used(range(10_000))
    assert len(told) == 3 and all(len(each) < messages.MAX_BYTES for each in told)
    assert [number for each in told for number in messages.segments_of(each[1:])] == list(range(10_000))


# -- how many ---------------------------------------------------------------------------------------------------------

FULL = Sample(1.0, busy=0.97, behind=0.9, used=1.0, free=2.0)
IDLE = Sample(1.0, busy=0.01, behind=None, used=0.02, free=3.9)


def counts(load: Load, samples: list[Sample]) -> list[int]:
    processes, found = 1, []
    for sample in samples:
        processes = load.wanted(processes, sample)
        found.append(processes)
    return found


def test_one_more_when_there_is_no_pause_and_a_core_is_free() -> None:
    assert counts(Load(3), [FULL] * 6) == [1, 2, 2, 3, 3, 3]
    assert counts(Load(1), [FULL] * 6) == [1] * 6
    for lacking in (
        Sample(1.0, busy=0.97, behind=0.9, used=1.0, free=0.3),
        Sample(1.0, busy=0.5, behind=0.9, used=1.0, free=2.0),
        # One reader who comes back at once is not served sooner by two.
        Sample(1.0, busy=0.97, behind=0.1, used=1.0, free=2.0),
    ):
        assert counts(Load(3), [lacking] * 6) == [1] * 6
        assert counts(Load(3), [FULL, lacking] * 6) == [1] * 12, "twice in a row"


def test_one_fewer_when_they_had_little_to_do_for_long() -> None:
    found = counts(Load(3), [FULL] * 4 + [IDLE] * 25)
    assert found[3] == 3 and found[12:14] == [3, 2] and found[23:] == [1] * 6
    busy = Sample(1.0, busy=0.97, behind=0.9, used=2.5, free=0.5)
    assert counts(Load(3), [FULL] * 4 + ([IDLE] * 9 + [busy]) * 3)[-1] == 3, "not for long enough"


def test_what_is_measured_is_plausible() -> None:
    began, meter = (time.monotonic(), time.thread_time()), Meter()
    while time.thread_time() - began[1] < 0.2:
        pass
    sample = meter.sample(100, 50, 0.0)
    took, worked = time.monotonic() - began[0], time.thread_time() - began[1]
    assert sample.behind == 0.5 and 0 < sample.seconds <= took
    assert 0.19 < sample.busy * sample.seconds <= worked
    assert sample.busy <= sample.used + 0.01
    assert -0.5 <= sample.free <= len(os.sched_getaffinity(0)) + 0.5  # told in ticks
    assert meter.sample(3, 3, 0.0).behind is None
    assert 0 < cores() <= len(os.sched_getaffinity(0)) and 1 <= most_by_load() <= 8


@pytest.mark.parametrize("most", [0, 2])
def test_a_holder_that_nobody_keeps_busy_starts_none(stored: tuple[Path, Totals], base: Path, most: int) -> None:
    with mount(*stored, base / "m", engine="direct", serving_most=most) as mounted:
        stats = mounted.stats()
        assert stats["serving"] == 1 and stats["serving_most"] == (most or most_by_load())
