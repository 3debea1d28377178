"""Garbage: what nothing keeps goes, all else stays, whatever fails and whenever."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.store.helpers import UID, FaultyFiles, damage, get, lose_index, put, sample, settings

from millpond.daemon.errors import DiskFullError, MillpondError, StoreDamagedError
from millpond.daemon.store import ledger
from millpond.daemon.store.compact import Compaction, CompactReport
from millpond.daemon.store.gc import Sweep, SweepReport
from millpond.daemon.store.ledger import Pin, root_of
from millpond.daemon.store.reader import StoreReader
from millpond.daemon.store.segments import segment_numbers
from millpond.daemon.store.session import Stored
from millpond.daemon.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(settings(tmp_path / "s"))
    yield opened
    opened.close()


def manifest_of(items: list[Stored]) -> bytes:
    return json.dumps([{"md5": item.name.value, "relpath": f"{n:05}"} for n, item in enumerate(items)]).encode()


def sweep(store: Store, keep: list[Stored], uid: int = UID, **changes: Any) -> SweepReport:
    values = {"grace_s": -1.0, "dry": False} | changes
    dry = values.pop("dry")
    return Sweep(store, uid, [root_of(item.name) for item in keep], **values).run(dry=dry)


def compact(store: Store) -> CompactReport:
    store.seal()
    return Compaction(store).run()


def test_what_no_root_keeps_goes_with_its_room(store: Store) -> None:
    contents = [sample(seed, 300_000) for seed in range(12)]
    items = put(store, contents)
    before = store.stats().stored
    dry = sweep(store, items[:2], dry=True)
    assert (dry.removed.objects, dry.kept.objects) == (10, 2)
    assert [get(store, item) for item in items] == contents, "a dry run removes nothing"
    done = sweep(store, items[:2])
    assert (done.removed, done.freed) == (dry.removed, dry.freed)
    assert [get(store, item) for item in items] == [*contents[:2], *[None] * 10]
    assert compact(store).segments >= 2
    assert store.stats().stored < before / 2
    assert [get(store, item) for item in items[:2]] == contents[:2]
    assert store.fsck(deep=True).damaged == []


def test_a_manifest_keeps_its_files_and_a_young_one_too(store: Store) -> None:
    items = put(store, [sample(seed, 5000) for seed in range(4)])
    kept = put(store, [manifest_of(items[:2])], is_dir=True)
    put(store, [manifest_of(items[2:3])], is_dir=True)
    report = sweep(store, kept)
    assert (report.kept.objects, report.removed.objects) == (3, 3)
    assert [get(store, item) is not None for item in items] == [True, True, False, False]
    again = put(store, [manifest_of(items[:1])], is_dir=True)
    report = sweep(store, [], grace_s=3600.0)
    assert report.removed.objects == 0 and get(store, again[0]) is not None


def test_a_limited_sweep_takes_nothing_else_however_young(store: Store) -> None:
    items = put(store, [sample(seed, 5000) for seed in range(5)])
    [top] = put(store, [manifest_of(items[:2])], is_dir=True)
    [other] = put(store, [manifest_of(items[1:3])], is_dir=True)
    only = {root_of(item.name) for item in (top, *items[:2])}
    for keep, dry, removed in (([other, top], True, 0), ([other], True, 2), ([other], False, 2), ([other], False, 0)):
        assert sweep(store, keep, only=only, grace_s=3600.0, dry=dry).removed.objects == removed
    assert [get(store, item) is not None for item in (top, other, *items)] == [False, True, False, *[True] * 4]
    assert store.fsck(deep=True).damaged == []


def test_data_that_another_user_was_granted_stays_his(store: Store) -> None:
    [item] = put(store, [sample(1, 200_000)], 1)
    put(store, [sample(1, 200_000)], 2)
    report = sweep(store, [], 1)
    assert (report.removed.objects, report.granted, report.records) == (1, 1, 0)
    assert get(store, item, 1) is None and get(store, item, 2) == sample(1, 200_000)
    assert sweep(store, [], 2).freed > 100_000
    assert get(store, item, 2) is None


def test_a_chunk_that_a_kept_content_shares_stays(store: Store) -> None:
    first = random.Random(1).randbytes(2_000_000)
    second = first[:1_500_000] + b"another end"
    a, b = put(store, [first, second])
    sweep(store, [b])
    assert get(store, a) is None and get(store, b) == second
    assert store.fsck(deep=True).damaged == []


def test_a_manifest_that_cannot_be_read_stops_it_all(store: Store, tmp_path: Path) -> None:
    items = put(store, [sample(seed, 5000) for seed in range(3)])
    [top] = put(store, [manifest_of(items)], is_dir=True)
    at = store.reader.locate(top.content.id)
    assert at is not None
    damage(tmp_path / "s", at)
    with pytest.raises(StoreDamagedError, match="nothing is removed"):
        sweep(store, [top])
    assert all(get(store, item) is not None for item in items)


def test_projects_and_pins_survive_the_index_and_their_segment(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = Store.open(settings(path))
    roots = {bytes([0]) + random.Random(n).randbytes(16) for n in range(30)}
    assert store.ledger.seen(UID, "/home/a", "/home/a/.git", sorted(roots)[:10])
    assert not store.ledger.seen(UID, "/home/a", "/home/a/.git", sorted(roots)[:5])
    store.ledger.replace(UID, "/home/a", "/home/a/.git", roots)
    store.ledger.seen(UID, "/gone", None, [])
    store.ledger.forget(UID, "/gone")
    pin = Pin("p1", "/home/a", "data", "c0ffee", 1.0, ["00" * 17])
    store.ledger.pin(UID, pin)
    items = put(store, [sample(seed, 400_000) for seed in range(8)])
    sweep(store, items[-1:])
    assert compact(store).segments
    assert 1 not in segment_numbers(path / "segments")
    store.close()
    store = lose_index(path)
    assert [project.path for project in store.ledger.projects(UID)] == ["/home/a"]
    assert store.ledger.roots(UID, "/home/a") == roots
    assert store.ledger.pins(UID) == [pin]
    assert store.ledger.rebuilt() > 0
    assert get(store, items[-1]) == sample(7, 400_000)
    assert store.fsck(deep=True).ok
    store.close()


def scenario(path: Path, files: FaultyFiles) -> tuple[list[tuple[Stored, bytes]], bool]:
    """Add, sweep, rewrite; what must be there whatever failed, and whether it came to the end."""
    kept: list[tuple[Stored, bytes]] = []
    try:
        store = Store.open(settings(path), files)
        try:
            store.ledger.seen(UID, "/p", None, [bytes(17)])
            contents = [sample(seed, 350_000) for seed in range(9)]
            items = put(store, contents)
            kept = [(items[n], contents[n]) for n in (0, 4, 8)]
            sweep(store, [item for item, _ in kept])
            compact(store)
            return kept, True
        finally:
            store.close()
    except (MillpondError, OSError):
        assert files.failed, "nothing was made to fail"
    return kept, False


def operations(folder: Path) -> int:
    files = FaultyFiles(0)
    assert scenario(folder, files)[1]
    return files.count


@pytest.mark.parametrize("for_good", [True, False], ids=["crash", "once"])
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.long)])
def test_the_nth_operation_of_a_collection_fails(tmp_path: Path, step: int, for_good: bool) -> None:
    total = operations(tmp_path / "count")
    assert total > 20
    for fail_at in range(1, total + 1, step):
        path = tmp_path / f"s{fail_at}"
        kept, _ = scenario(path, FaultyFiles(fail_at, number=errno.EIO, for_good=for_good))
        for lost in (False, True):
            store = lose_index(path) if lost else Store.open(settings(path))
            assert [get(store, item) for item, _ in kept] == [data for _, data in kept], f"operation {fail_at}"
            assert store.fsck(deep=True).ok, f"operation {fail_at}"
            if kept:
                assert [project.path for project in store.ledger.projects(UID)] == ["/p"]
                sweep(store, [item for item, _ in kept])
                compact(store)
                assert [get(store, item) for item, _ in kept] == [data for _, data in kept]
            store.close()


COLLECTOR = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).resolve().parents[2])!r}, {str(Path(__file__).resolve().parents[2] / ".src")!r}]
from tests.store.helpers import put, sample, settings
from tests.store.test_gc import compact, sweep
from millpond.daemon.store.store import Store
store = Store.open(settings(Path(sys.argv[1]), fsync=True))
kept = put(store, [sample(1, 500_000), sample(2, 30_000)])
print("kept", flush=True)
for seed in range(100, 10_000, 10):
    put(store, [sample(seed + n, 150_000) for n in range(10)])
    sweep(store, kept)
    compact(store)
    print(seed, flush=True)
"""


@pytest.mark.parametrize("rounds", [4, pytest.param(40, marks=pytest.mark.long)])
def test_a_collection_killed_at_any_instant_keeps_what_it_should(tmp_path: Path, rounds: int) -> None:
    rng = random.Random(11)
    for _ in range(rounds):
        command = [sys.executable, "-c", COLLECTOR, str(tmp_path / "s")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(rng.randint(2, 6)):
                process.stdout.readline()
            threading.Event().wait(rng.random() * 0.05)
            os.kill(process.pid, signal.SIGKILL)
        store = Store.open(settings(tmp_path / "s"))
        assert store.fsck(deep=True).damaged == []
        for item in put(store, [sample(1, 500_000), sample(2, 30_000)]):
            assert item.new_bytes == 0, "it was acknowledged and kept, so it is there"
        store.close()


def test_a_reader_goes_on_while_segments_are_rewritten(store: Store, tmp_path: Path) -> None:
    items = put(store, [sample(seed, 300_000) for seed in range(12)])
    reader = StoreReader(store.reader.index, tmp_path / "s" / "segments", store.reader.key)
    content = reader.resolve([items[5].name], UID)[0]
    assert content is not None
    pieces = reader.pieces(content)
    first = next(pieces)
    sweep(store, [items[5]])
    assert compact(store).segments
    assert first + b"".join(pieces) == sample(5, 300_000)


def test_adding_beside_a_sweep_is_told_to_come_again(store: Store) -> None:
    data = sample(3, 200_000)
    put(store, [data])
    session = store.session(UID)
    [item] = session.feed(memoryview(data), [(len(data), True, False)])
    assert item.new_bytes == 0
    sweep(store, [])
    assert session.commit() == [item.name], "its chunks are gone: nothing is named that is not whole"
    assert get(store, put(store, [data])[0]) == data


class HeldFiles(FaultyFiles):
    """The third transaction from now on waits until it is let go."""

    def __init__(self) -> None:
        super().__init__(0)
        self.reached, self.go = threading.Event(), threading.Event()
        self.is_counting = False
        self._commits = 0

    def commit(self, txn: Any) -> None:
        self._commits += self.is_counting
        if self._commits == 3:
            self.reached.set()
            assert self.go.wait(30)
        super().commit(txn)


@pytest.mark.parametrize("uid", [UID, UID + 1], ids=["the same user", "another"])
def test_a_sweep_amid_the_transactions_of_a_commit_takes_nothing_of_it(tmp_path: Path, uid: int) -> None:
    """What it sees of a commit of many names must not look like something that nobody may read."""
    files = HeldFiles()
    store = Store.open(settings(tmp_path / "s", map_bytes=1 << 24, segment_bytes=1 << 24), files)
    items = put(store, [b"%06d" % number for number in range(3000)])
    (kept,) = put(store, [manifest_of(items[:1])], uid, is_dir=True)
    named: list[Stored] = []
    adding = threading.Thread(target=lambda: named.extend(put(store, [b"more %06d" % n for n in range(150)])))

    def progress(what: str, done: int) -> None:
        if what == "reading manifests" and not files.is_counting:
            files.is_counting = True
            adding.start()
            assert files.reached.wait(30)
        if what == "following":
            files.go.set()

    sweep(store, [kept], uid, grace_s=3600.0, progress=progress)
    adding.join()
    assert files.go.is_set() and len(named) == 150
    assert [get(store, item) for item in named] == [b"more %06d" % number for number in range(150)]
    assert store.fsck(deep=True).ok
    store.close()


def test_the_limit_refuses_what_is_new_and_gc_makes_room(store: Store) -> None:
    items = put(store, [sample(seed, 300_000) for seed in range(6)])
    store.set_limit(store.stats().stored + 100_000)
    with pytest.raises(DiskFullError, match="limit"):
        put(store, [sample(50, 900_000)])
    assert get(store, put(store, [sample(1, 300_000)])[0]) is not None, "what is there may be added again"
    sweep(store, items[:1])
    compact(store)
    assert get(store, put(store, [sample(60, 300_000)])[0]) is not None


@given(st.data())
@hypothesis_settings(max_examples=30)
def test_digests_are_found_however_a_manifest_is_cut(data: st.DataObject) -> None:
    digests = data.draw(st.lists(st.binary(min_size=16, max_size=16), max_size=5))
    text = json.dumps([{"md5": each.hex(), "relpath": each.hex()[:7]} for each in digests]).encode()
    found = {root[1:] for root in ledger.roots_in(text)}
    assert found == set(digests)
