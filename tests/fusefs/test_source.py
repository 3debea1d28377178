"""What a mount shows and the store has not: given by a source, which is slow, gone, wrong or hostile in turn."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.fusefs.helpers import TIMEOUT_S, Answer, Mounted, answer_all, answering, mixed, mount, open_store

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import ObjectMissingError, StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.store.trees import TreeEntry, build_tree
from millpond.fusefs.asking import SourceClient
from millpond.fusefs.source import SourceServer


def name_of(data: bytes) -> ObjectName:
    return ObjectName("md5", hashlib.md5(data).hexdigest())


@dataclass(slots=True)
class Cache:
    """A DVC cache folder with objects in it."""

    folder: Path
    objects: dict[ObjectName, bytes] = field(default_factory=dict)

    def path(self, name: ObjectName) -> Path:
        return self.folder / "files/md5" / name.value[:2] / name.value[2:]

    def add(self, data: bytes) -> ObjectName:
        name = name_of(data)
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_bytes(data)
        self.objects[name] = data
        return name


@pytest.fixture
def cache(base: Path) -> Cache:
    return Cache(base / "cache")


def settings(cache: Cache) -> dict[str, Any]:
    return {
        "repo": wirepath.encode(os.fspath(cache.folder)),
        "socket": "/nowhere",
        "context": {},
        "caches": [wirepath.encode(os.fspath(cache.folder))],
    }


def serving(cache: Cache) -> Callable[[socket.socket], None]:
    """Runs the real server of `cache` in a thread on the socket it is given."""

    def start(sock: socket.socket) -> None:
        def work() -> None:
            with contextlib.suppress(OSError):
                SourceServer(sock, settings(cache)).serve()

        threading.Thread(target=work, daemon=True).start()

    return start


@contextlib.contextmanager
def mounted_cache(
    base: Path,
    cache: Cache,
    source: Callable[[socket.socket], None] | None = None,
    sizes: dict[ObjectName, int] | None = None,
) -> Iterator[Mounted]:
    """A mount that shows the cache's objects, `0`, `1`, ... in the order they were added."""
    store = open_store(base / "store")
    entries = []
    for number, (name, data) in enumerate(cache.objects.items()):
        size = (sizes or {}).get(name, len(data))
        entries.append(TreeEntry(b"%03d" % number, size, name=name))
    totals = build_tree(store, entries)
    store.close()
    with mount(base / "store", totals, base / "m", source=source or serving(cache)) as mounted:
        yield mounted


def errno_of(path: Path) -> str:
    with pytest.raises(OSError) as refused:
        path.read_bytes()
    return errno.errorcode[refused.value.errno or 0]


@pytest.mark.fuse
def test_objects_of_the_cache_are_read_in_place(base: Path, cache: Cache) -> None:
    for size in (0, 1, 4096, 4097, 200_000, 5_000_000):
        cache.add(mixed(size, size))
    with mounted_cache(base, cache) as mounted:
        for number, data in enumerate(cache.objects.values()):
            assert (mounted.place / f"{number:03d}").read_bytes() == data
        assert mounted.stats()["errors"] == 0


@pytest.mark.fuse
def test_many_ask_the_source_at_once_and_each_gets_his_own(base: Path, cache: Cache) -> None:
    for number in range(60):
        cache.add(mixed(30_000 + number, number))
    contents = list(cache.objects.values())
    with mounted_cache(base, cache) as mounted, ThreadPoolExecutor(16) as pool:
        read = [pool.submit((mounted.place / f"{number:03d}").read_bytes) for number in range(60)]
        assert [each.result(TIMEOUT_S) for each in read] == contents


@pytest.mark.fuse
def test_an_object_that_is_gone_or_another_is_an_error(base: Path, cache: Cache) -> None:
    gone, other, fine = (cache.add(mixed(10_000, seed)) for seed in range(3))
    cache.path(gone).unlink()
    cache.path(other).write_bytes(mixed(10_000, 99))
    with mounted_cache(base, cache) as mounted:
        assert errno_of(mounted.place / "000") == "EIO"
        assert gone.value in mounted.stats()["last_error"]
        assert errno_of(mounted.place / "001") == "EIO"
        assert "hashes to" in mounted.stats()["last_error"]
        assert (mounted.place / "002").read_bytes() == cache.objects[fine]


@pytest.mark.fuse
def test_an_object_that_is_cut_while_it_is_open_is_an_error_and_not_zeros(base: Path, cache: Cache) -> None:
    name = cache.add(mixed(3_000_000, 1))
    with mounted_cache(base, cache) as mounted:
        fd = os.open(mounted.place / "000", os.O_RDONLY)
        try:
            assert os.pread(fd, 1000, 0) == cache.objects[name][:1000]
            os.truncate(cache.path(name), 1_000_000)
            with pytest.raises(OSError) as refused:
                os.pread(fd, 4096, 2_500_000)
            assert refused.value.errno == errno.EIO
        finally:
            os.close(fd)


@pytest.mark.fuse
def test_a_size_that_was_only_claimed_is_checked(base: Path, cache: Cache) -> None:
    one, two, three = (cache.add(mixed(50_000, seed)) for seed in range(3))
    with mounted_cache(base, cache, sizes={one: 60_000, two: 4_000}) as mounted:
        assert errno_of(mounted.place / "000") == "EIO"
        assert errno_of(mounted.place / "001") == "EIO"
        assert (mounted.place / "002").read_bytes() == cache.objects[three]


@pytest.mark.fuse
def test_a_source_that_is_gone_takes_nothing_else_with_it(base: Path, cache: Cache) -> None:
    kept, other = cache.add(mixed(100_000, 1)), cache.add(mixed(100_000, 2))
    with mounted_cache(base, cache) as mounted:
        assert (mounted.place / "000").read_bytes() == cache.objects[kept]
        fd = os.open(mounted.place / "000", os.O_RDONLY)
        mounted.source.shutdown(socket.SHUT_RDWR)
        assert errno_of(mounted.place / "001") == "EIO"
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 100_000, 0) == cache.objects[kept]
        os.close(fd)
        assert other.value in mounted.stats()["last_error"]
        assert sorted(os.listdir(mounted.place)) == ["000", "001"]


def _fifo() -> int:
    out, into = os.pipe()
    os.close(into)
    return out


NONSENSE: dict[str, Answer] = {
    "no descriptor": lambda ask: ({"size": 5}, []),
    "two descriptors": lambda ask: ({"size": 5}, [memfd.from_bytes(b"12345"), memfd.from_bytes(b"12345")]),
    "no size": lambda ask: ({}, [memfd.from_bytes(b"12345")]),
    "a size that is no number": lambda ask: ({"size": []}, [memfd.from_bytes(b"12345")]),
    "a pipe": lambda ask: ({"size": 5}, [_fifo()]),
    "a directory": lambda ask: ({"size": 5}, [os.open("/", os.O_RDONLY)]),
    "less than it says": lambda ask: ({"size": 5}, [memfd.from_bytes(b"123")]),
    "a descriptor for writing": lambda ask: ({"size": 5}, [os.open("/dev/null", os.O_WRONLY)]),
    "an odd error": lambda ask: ({"error": 5}, []),
    "no JSON": lambda ask: b"hello\n",
    "no object": lambda ask: b"[1]\n",
}


@pytest.mark.fuse
@pytest.mark.parametrize("what", NONSENSE)
def test_a_source_that_talks_nonsense_gives_errors_and_the_mount_lives(base: Path, cache: Cache, what: str) -> None:
    cache.add(b"12345")
    with mounted_cache(base, cache, source=answering(NONSENSE[what])) as mounted:
        for _ in range(2):
            assert errno_of(mounted.place / "000") == "EIO"
        assert os.listdir(mounted.place) == ["000"]
        assert mounted.ask()["stats"]["errors"] >= 2
        held = len(os.listdir(f"/proc/{mounted.pid}/fd"))
        for _ in range(5):
            assert errno_of(mounted.place / "000") == "EIO"
        assert len(os.listdir(f"/proc/{mounted.pid}/fd")) <= held, "descriptors are left open"


# -- the two sides, without a mount -----------------------------------------------------------------------------------


@contextlib.contextmanager
def client_of(serve: Callable[[socket.socket], None], deadline_s: float = TIMEOUT_S) -> Iterator[SourceClient]:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(theirs,), daemon=True)
    thread.start()
    client = SourceClient(ours, deadline_s=deadline_s)
    try:
        yield client
    finally:
        client.close()
        thread.join(TIMEOUT_S)
        theirs.close()
        assert not thread.is_alive()


def read_all(fd: int) -> bytes:
    try:
        return os.pread(fd, 1 << 20, 0)
    finally:
        os.close(fd)


def test_a_late_answer_is_never_taken_for_another(cache: Cache) -> None:
    """The first answer comes after its deadline, when another object was asked for."""
    first, second = cache.add(b"the first object"), cache.add(b"the second one")
    let_go = threading.Event()

    def make(ask: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        name = ObjectName(*ask["name"])
        if name == first:
            assert let_go.wait(TIMEOUT_S)
        data = cache.objects[name]
        return {"size": len(data)}, [memfd.from_bytes(data)]

    with client_of(lambda sock: answer_all(sock, make), deadline_s=0.2) as client:
        with pytest.raises((OSError, ObjectMissingError)):
            client.open(first)
        threading.Timer(0.05, let_go.set).start()
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                fd, size, _ = client.open(second)
                break
            except (OSError, ObjectMissingError):
                assert time.monotonic() < deadline
        assert (read_all(fd), size) == (b"the second one", 14)


def test_errors_keep_their_class_over_the_socket(cache: Cache) -> None:
    missing = name_of(b"nobody has this")
    broken = cache.add(b"broken")
    cache.path(broken).write_bytes(b"brokeN")
    with client_of(lambda sock: SourceServer(sock, settings(cache)).serve()) as client:
        with pytest.raises(ObjectMissingError, match=missing.value):
            client.open(missing)
        with pytest.raises(StoreDamagedError, match="not what its name says"):
            client.open(broken)
        with pytest.raises(ObjectMissingError):
            client.open(ObjectName("git-sha1", "ab" * 20))
        fine = cache.add(b"fine")
        fd, size, _ = client.open(fine)
        assert (read_all(fd), size) == (b"fine", 4)


def test_the_server_answers_what_it_does_not_know_and_goes_on(cache: Cache) -> None:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=SourceServer(theirs, settings(cache)).serve, daemon=True)
    thread.start()
    with ours, theirs:
        ours.settimeout(TIMEOUT_S)
        reader = ours.makefile("rb")
        for line in (
            b'{"op": "nothing"}\n',
            b"{}\n",
            b'{"op": "open", "name": 5}\n',
            b'{"op": "open", "name": ["no", "x"]}\n',
        ):
            ours.sendall(line)
            assert "error" in json.loads(reader.readline())
        reader.close()
        ours.shutdown(socket.SHUT_RDWR)
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def test_an_object_that_is_no_regular_file_is_missing(cache: Cache) -> None:
    name = name_of(b"as a pipe")
    cache.path(name).parent.mkdir(parents=True)
    os.mkfifo(cache.path(name))
    with client_of(lambda sock: SourceServer(sock, settings(cache)).serve()) as client:
        started = time.monotonic()
        with pytest.raises(ObjectMissingError):
            client.open(name)
        assert time.monotonic() - started < 5
