"""The erofs engine under what a machine may do to it: no memory, caches dropped, many readers, and a store that is swept, full or damaged below it.
Bytes are right or an error, and an error is not kept."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.fusefs.helpers import File, Node, mount, open_store, put, put_tree
from tests.fusefs.test_damage import flip
from tests.fusefs.test_erofs import data_of, drop_caches, random_files, read_all, stored

from millpond.daemon.mounts.kernel import why_no_image
from millpond.daemon.store.compact import Compaction
from millpond.daemon.store.gc import Sweep
from millpond.daemon.store.ledger import root_of
from millpond.daemon.store.trees import TreeEntry, build_tree

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.parametrize("engine", ["erofs"], indirect=True),
    pytest.mark.skipif(bool(why_no_image()), reason="there is no EROFS of a file here"),
]

LONG = os.environ.get("MILLPOND_TESTS") == "long"
_CGROUPS = Path("/sys/fs/cgroup/memory")

# Reads all files of a folder in an order of its own, `times` over, one way or the other; prints the names of those that are wrong.
_READER = """
import hashlib, json, mmap, os, random, sys
place, seed, times, way = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
expected = json.load(sys.stdin)
rng = random.Random(seed)
wrong = []
for _ in range(times):
    held = []
    for name in rng.sample(sorted(expected), len(expected)):
        with open(os.path.join(place, name), "rb") as file:
            if way == "read":
                data = file.read()
            elif way == "mapped":
                area = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                held.append(area)
                data = area[:]
            else:
                data = b"".join(os.pread(file.fileno(), 4096, at) for at in range(0, os.fstat(file.fileno()).st_size, 4096))
        if hashlib.sha256(data).hexdigest() != expected[name]:
            wrong.append(name)
    for each, area in enumerate(held):  # all at once are mapped, and seen again
        area[each % len(area)]
print(wrong)
"""


def readers(
    place: Path, tree: Mapping[bytes, Node], count: int, times: int, *, below: Path | None = None
) -> list[subprocess.Popen[str]]:
    """Start programs that read everything, by reads, by pages, and by mappings; with `below` in that group of processes."""
    digests = {os.fsdecode(name): hashlib.sha256(data_of(tree, name)).hexdigest() for name in tree}
    started = []
    for number in range(count):
        way = ("read", "mapped", "pages")[number % 3]
        command = [sys.executable, "-S", "-E", "-c", _READER, str(place), str(number), str(times), way]
        if below is not None:
            command = ["sh", "-c", f'echo $$ > {below}/cgroup.procs && exec "$@"', "sh", *command]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(digests))
        process.stdin.close()
        process.stdin = None
        started.append(process)
    return started


def all_right(started: list[subprocess.Popen[str]]) -> None:
    for process in started:
        output, errors = process.communicate(timeout=100)
        assert (process.returncode, output) == (0, "[]\n"), errors[-2000:]


class Repeated:
    """Something done over and over in a thread, as long as the block runs."""

    def __init__(self, work: Callable[[], object], pause_s: float) -> None:
        self._work, self._pause_s = work, pause_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.times = 0

    def _run(self) -> None:
        while not self._end.wait(self._pause_s):
            self._work()
            self.times += 1

    def __enter__(self) -> Repeated:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


@pytest.mark.parametrize("size", [9000, pytest.param(700_000, marks=pytest.mark.long)])
def test_caches_that_are_dropped_while_many_read(base: Path, size: int) -> None:
    tree = random_files(300 if size < 100_000 else 8, size)
    path, totals = stored(base, tree)
    with mount(path, totals, base / "m", fill=1) as mounted, Repeated(drop_caches, 0.02) as dropped:
        all_right(readers(mounted.place, tree, 12 if LONG else 3, 20 if LONG else 1))
        assert read_all(mounted.place, tree, random.Random(1)) == {}
    assert dropped.times


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A group of processes that may have 24 MiB together, what they read into the page cache counted."""
    if not (_CGROUPS / "memory.limit_in_bytes").exists() or not os.access(_CGROUPS, os.W_OK):
        pytest.skip("no memory controller (version 1) here")
    place = _CGROUPS / f"millpond-test-{os.getpid()}"
    place.mkdir()
    (place / "memory.limit_in_bytes").write_text(str(24 << 20))
    try:
        yield place
    finally:
        (place / "memory.force_empty").write_text("0")
        place.rmdir()


@pytest.mark.long
@pytest.mark.parametrize("size", [9000, 3_000_000])
def test_readers_without_memory(base: Path, little_memory: Path, size: int) -> None:
    tree = random_files(90_000_000 // size // (3 if size < 100_000 else 1), size)
    path, totals = stored(base, tree)
    with mount(path, totals, base / "m", fill=1) as mounted:
        drop_caches()
        all_right(readers(mounted.place, tree, 2, 2, below=little_memory))
        assert int((little_memory / "memory.failcnt").read_text()) > 0, "there was too little"


@pytest.mark.long
@pytest.mark.parametrize("serving", [1, 3])
def test_sixty_four_readers(base: Path, serving: int) -> None:
    tree = random_files(2000, 9000) | {
        b"large%d" % each: File(random.Random(each).randbytes(2_000_000)) for each in range(4)
    }
    path, totals = stored(base, tree)
    with mount(path, totals, base / "m", fill=1, serving=serving) as mounted, ThreadPoolExecutor(64) as pool:
        for round_ in range(2):
            drop_caches()
            reads = [
                pool.submit(read_all, mounted.place, tree, random.Random(64 * round_ + each)) for each in range(64)
            ]
            listing = subprocess.run(["find", mounted.place, "-type", "f"], capture_output=True, check=True, timeout=60)
            assert listing.stdout.count(b"\n") == len(tree)
            assert [each.result(100) for each in reads] == [{}] * 64
        assert mounted.stats()["errors"] == 0


def test_a_store_that_is_swept_and_rewritten_below_readers(base: Path) -> None:
    """What nothing keeps lies between what is mounted: segments go, records move, and no reader sees it."""
    store = open_store(base / "store")
    rng = random.Random(8)
    kept: dict[bytes, Node] = {}
    entries = []
    rounds, count = (6, 400) if LONG else (2, 150)

    def junk() -> bytes:
        return rng.randbytes(15_000)

    for number in range(count):
        data = rng.randbytes(rng.choice((500, 9000, 40_000)))
        kept[b"%04d" % number] = File(data)
        name, _ = put(store, [data, junk()])
        entries.append(TreeEntry(b"%04d" % number, len(data), name=name))
    totals = build_tree(store, entries)
    roots = [root_of(entry.name) for entry in entries if entry.name is not None]
    freed = 0
    with mount(base / "store", totals, base / "m", fill=1) as mounted, ThreadPoolExecutor(2) as pool:
        for round_ in range(rounds):
            reads = [pool.submit(read_all, mounted.place, kept, random.Random(2 * round_ + each)) for each in range(2)]
            put(store, [junk() for _ in range(count)])
            Sweep(store, os.getuid(), roots, grace_s=-1.0).run(dry=False)
            store.seal()
            before = store.stats().stored
            Compaction(store).run()
            freed += before - store.stats().stored
            assert [each.result(100) for each in reads] == [{}, {}]
            drop_caches()
        assert read_all(mounted.place, kept, random.Random(99)) == {}
        assert mounted.stats()["errors"] == 0
    store.close()
    assert freed > 0, "something was rewritten"


def test_an_error_is_not_kept(base: Path) -> None:
    """Damaged and mended again, cut off and whole again: then its bytes are right at once, for small files and large ones."""
    tree = random_files(100, 6000) | {b"large": File(random.Random(2).randbytes(3_000_000))}
    path, totals = stored(base, tree)
    needle = data_of(tree, b"0050")[2000:2100]
    with mount(path, totals, base / "m", fill=1) as mounted:
        flip(path, needle)
        assert read_all(mounted.place, tree, random.Random(1)) == {b"0050": errno.EIO}
        flip(path, needle[:50] + bytes([needle[50] ^ 0x10]) + needle[51:])
        assert read_all(mounted.place, {b"0050": tree[b"0050"]}, random.Random(1)) == {}
        drop_caches()
        segment = max((path / "segments").iterdir(), key=lambda each: each.stat().st_size)
        whole = segment.read_bytes()
        os.truncate(segment, len(whole) // 2)
        failed = read_all(mounted.place, tree, random.Random(2))
        assert failed and set(failed.values()) == {errno.EIO} and len(failed) < len(tree)
        with open(segment, "r+b") as file:
            file.seek(len(whole) // 2)
            file.write(whole[len(whole) // 2 :])
        assert read_all(mounted.place, tree, random.Random(3)) == {}


@pytest.mark.long
def test_a_store_on_a_disk_that_is_full(base: Path) -> None:
    """Reading needs no room."""
    (base / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", base / "disk"], check=True)
    try:
        tree = random_files(500, 9000)
        store = open_store(base / "disk/store")
        totals = put_tree(store, tree)
        store.close()
        with open(base / "disk/rest", "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        with mount(base / "disk/store", totals, base / "m", fill=1) as mounted:
            assert read_all(mounted.place, tree, random.Random(1)) == {}
            assert mounted.umount().returncode == 0 and mounted.ended() == 0
    finally:
        subprocess.run(["umount", "-l", base / "disk"], check=True)


@pytest.mark.long
def test_what_root_tries_against_it_changes_nothing(base: Path) -> None:
    tree: dict[bytes, Node] = {b"a/b/%03d" % each: File(b"%d" % each * 100) for each in range(200)}
    path, totals = stored(base, tree)
    with mount(path, totals, base / "m") as mounted:
        for command in (
            "rm -rf {}/a",
            "find {} -delete",
            "mv {}/a {}/c",
            "chmod -R 777 {}",
            "truncate -s 0 {}/a/b/001",
        ):
            done = subprocess.run(
                command.format(mounted.place, mounted.place).split(), capture_output=True, check=False
            )
            assert done.returncode and b"Read-only file system" in done.stderr
        done = subprocess.run(["mount", "-o", "remount,rw", mounted.place], capture_output=True, check=False)
        with pytest.raises(OSError) as refused:
            (mounted.place / "a/b/new").write_bytes(b"x")
        assert refused.value.errno == errno.EROFS
        assert read_all(mounted.place, tree, random.Random(1)) == {}
