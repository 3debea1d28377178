"""Eviction: what goes has been seen on a remote of every project that needs it, whatever fails and whoever works
meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.store.evicting import HOME, held_of, project, run, shrink
from tests.store.helpers import UID, FaultyFiles, damage, get, lose_index, put, sample, settings

from millpond.daemon.errors import MillpondError
from millpond.daemon.store import claims, evict
from millpond.daemon.store.evict import PlanIsOld
from millpond.daemon.store.ledger import Pin, root_of
from millpond.daemon.store.store import Store
from millpond.daemon.store.uses import ages, note_used


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(settings(tmp_path / "s"))
    yield opened
    opened.close()


def test_what_a_remote_holds_goes_with_its_room_and_its_size_stays(store: Store) -> None:
    contents = [sample(seed, 200_000) for seed in range(8)]
    items = put(store, contents)
    project(store, items)
    held = held_of(items[:6])
    before = store.stats().stored
    dry = run(store, {HOME: held}, dry=True)
    assert [get(store, item) for item in items] == contents, "nothing goes that was only asked about"
    done = run(store, {HOME: held})
    assert (done.evicted, done.freed) == (dry.evicted, dry.freed) and done.evicted.objects == 6
    assert done.lacking[HOME].objects == 2
    assert [get(store, item) for item in items] == [*[None] * 6, *contents[6:]]
    shrink(store)
    assert store.stats().stored < before / 2
    sizes = store.reader.sizes([item.name.key() for item in items], UID, evicted=True)
    assert sizes == [200_000] * 8 and evict.evicted(store, UID).objects == 6
    assert put(store, contents[:1]) and evict.evicted(store, UID).objects == 5
    assert store.fsck(deep=True).ok


def test_what_fsck_has_set_aside_a_part_of_goes_as_well(store: Store) -> None:
    items = put(store, [sample(seed, 4_000_000) for seed in range(2)])
    project(store, items)
    at = store.reader.locate(store.reader.layout(items[0].content).id(1))
    assert at is not None
    damage(store.path, at)
    assert store.fsck(repair=True).quarantined == 1
    report = run(store, {HOME: held_of(items)})
    assert report.evicted.objects == 2 and [get(store, item) for item in items] == [None, None]
    sizes = store.reader.sizes([item.name.key() for item in items], UID, evicted=True)
    assert sizes == [4_000_000] * 2, "they are asked for where they are"


def test_no_more_goes_than_is_wanted_and_what_was_used_longest_ago_first(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s", segment_bytes=20_000))
    items = [put(store, [sample(seed, 60_000)])[0] for seed in range(8)]
    project(store, items)
    locations = [store.reader.locate(item.content.id) for item in items]
    segments = [at.segment for at in locations if at is not None]
    note_used(store, [segments[0], segments[2]])
    assert [number for number, (warm, _) in ages(store).items() if warm] == [segments[0], segments[2]]
    there = run(store, {HOME: held_of(items)}, dry=True).there
    report = run(store, {HOME: held_of(items)}, to=there * 5 // 8)
    assert report.evicted.objects == 3 and report.evictable.objects == 8
    gone = [get(store, item) is None for item in items]
    assert gone == [False, True, False, True, True, False, False, False]
    assert run(store, {HOME: held_of(items)}, to=0).evicted.objects == 5
    store.close()


def test_what_was_read_of_segments_is_noted(store: Store) -> None:
    [item] = put(store, [sample(1, 300_000)])
    store.reader.take_used()
    assert get(store, item) is not None
    ids = [store.reader.layout(item.content).id(0)]
    assert not store.reader.take_used(), "what the store reads for itself is no use"
    store.reader.read_chunks(ids)
    used = store.reader.take_used()
    assert used and not store.reader.take_used()
    note_used(store, [*used, 4711])
    assert set(ages(store)) == used, "a segment that is gone has no row"


def test_each_project_must_hold_it_and_in_its_size(store: Store) -> None:
    items = put(store, [sample(seed, 5000) for seed in range(3)])
    project(store, items)
    project(store, items[1:], "/home/other")
    wrong = {root_of(items[0].name): 4999, root_of(items[1].name): 5000, root_of(items[2].name): 5000}
    report = run(store, {HOME: wrong, "/home/other": held_of(items[2:])})
    assert [get(store, item) is None for item in items] == [False, False, True]
    assert (report.lacking[HOME].objects, report.lacking["/home/other"].objects) == (1, 1)


def test_what_stays_whatever_remotes_hold(store: Store) -> None:
    files = put(store, [sample(seed, 5000) for seed in range(6)])
    rows = [{"md5": item.name.value, "relpath": f"{n}"} for n, item in enumerate(files[:2])]
    manifest = put(store, [json.dumps(rows).encode()], is_dir=True)
    project(store, [*manifest, *files[2:5]])
    store.ledger.pin(UID, Pin("1", HOME, "x", None, 1.0, [root_of(files[2].name).hex()]))
    store.claims.begin(7)
    store.claims.add(7, [files[3].content.id])
    report = run(store, {HOME: held_of([*files, *manifest])})
    assert [get(store, item) is None for item in files] == [True, True, False, False, True, False]
    assert {why: part.objects for why, part in report.kept.items()} == {
        evict.MANIFEST: 1,
        evict.PINNED: 1,
        evict.IN_USE: 1,
        evict.UNNAMED: 1,
    }
    assert get(store, manifest[0]) is not None
    store.ledger.unpin(UID, "1")
    store.claims.end(7)
    assert run(store, {HOME: held_of(files)}).evicted.objects == 2


def test_a_manifest_in_use_keeps_its_files(store: Store) -> None:
    files = put(store, [sample(seed, 5000) for seed in range(2)])
    rows = [{"md5": item.name.value, "relpath": f"{n}"} for n, item in enumerate(files)]
    [manifest] = put(store, [json.dumps(rows).encode()], is_dir=True)
    project(store, [manifest])
    store.claims.begin(7)
    store.claims.add(7, manifests=[root_of(manifest.name)])
    assert run(store, {HOME: held_of(files)}).kept[evict.IN_USE].objects == 2
    store.claims.end(7)
    assert run(store, {HOME: held_of(files)}).evicted.objects == 2


def test_a_name_with_two_contents_and_a_content_with_two_names_stay(store: Store) -> None:
    items = put(store, [sample(1, 5000), sample(2, 5000)])
    project(store, items)
    index = store.reader.index
    other = put(store, [sample(3, 5000)])[0]
    store.write(lambda txn: txn.put(items[0].name.key(), other.content.pack(), db=index.objects))
    both = put(store, [sample(2, 5000)], is_dir=True)[0]
    assert both.content == items[1].content
    report = run(store, {HOME: held_of([*items, other])})
    assert not report.evicted.objects and report.kept[evict.MANIFEST].objects == 1


def test_what_others_may_read_stays_until_each_lets_go(store: Store) -> None:
    content = sample(1, 100_000)
    [item] = put(store, [content])
    put(store, [content], uid=UID + 1)
    project(store, [item])
    project(store, [item], uid=UID + 1)
    held = {HOME: held_of([item])}
    assert run(store, held).kept[evict.OTHERS].objects == 1
    report = run(store, held, shared=True)
    assert (report.evicted.objects, report.freed) == (1, 0)
    assert get(store, item) is None and get(store, item, UID + 1) == content
    assert run(store, {}, uid=UID + 1).lacking[HOME].objects == 1, (
        "what one says of his remotes is nothing to the other"
    )
    assert run(store, held, uid=UID + 1).freed > 100_000 // 2
    assert get(store, item, UID + 1) is None


def test_chunks_that_others_need_stay(store: Store) -> None:
    common = sample(1, 3_000_000)
    items = put(store, [common + b"one", common + b"two"])
    project(store, items)
    report = run(store, {HOME: held_of(items[:1])})
    assert report.evicted.objects == 1 and report.freed < 1_500_000
    assert get(store, items[1]) == common + b"two"
    shrink(store)
    assert get(store, items[1]) == common + b"two" and store.fsck(deep=True).ok


def test_what_was_broken_off_goes_first_but_not_what_goes_on(store: Store) -> None:
    items = put(store, [sample(1, 100_000)])
    project(store, items)
    store.session(UID).feed(memoryview(sample(2, 500_000)), [(500_000, True, False)])
    store.claims.begin(7)
    store.claims.puts(7, store.mark, store.now() + 3600)
    going_on = store.session(UID, 7)
    content = sample(3, 500_000)
    going_on.feed(memoryview(content), [(len(content), True, False)])
    report = run(store, {HOME: held_of(items)}, to=600_000)
    assert report.garbage > 200_000 and not report.evicted.objects
    shrink(store)
    assert store.stats().stored < 600_000
    assert going_on.commit() == [], "nothing of what it has written was lost"
    store.claims.end(7)
    assert store.fsck(deep=True).ok


def test_what_an_add_found_here_is_there_when_it_commits(store: Store) -> None:
    """An object that one project has pushed is added in another, whose remote has it not, while it is being evicted."""
    content = sample(1, 400_000)
    [item] = put(store, [content])
    project(store, [item])
    store.claims.begin(7)
    store.claims.puts(7, store.mark, store.now())
    adding = store.session(UID, 7)
    adding.feed(memoryview(content), [(len(content), True, False)])
    held = {HOME: held_of([item])}
    assert run(store, held).kept[evict.IN_USE].objects == 1
    assert adding.commit() == []
    assert run(store, held).kept[evict.IN_USE].objects == 1, "its pointer is not written yet"
    store.claims.hold(7)
    store.claims.end(7)
    assert run(store, held).kept[evict.IN_USE].objects == 1, "its project is not noted yet"
    project(store, [item], "/home/other")
    store.claims.end(7)
    assert run(store, held).lacking["/home/other"].objects == 1
    assert get(store, item) == content


def test_what_is_noted_while_a_plan_is_carried_out_ends_it(store: Store) -> None:
    items = put(store, [sample(seed, 5000) for seed in range(4)])
    project(store, items)

    def tell(what: str, done: int) -> None:
        if what == "evicting":
            project(store, items[:1], "/home/other")

    with pytest.raises(PlanIsOld):
        run(store, {HOME: held_of(items)}, progress=tell)
    assert None not in [get(store, item) for item in items]
    assert run(store, {HOME: held_of(items)}).evicted.objects == 3


def test_too_many_claims_claim_everything(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    items = put(store, [sample(seed, 5000) for seed in range(3)])
    project(store, items)
    monkeypatch.setattr(claims, "MAX_IDS", 10)
    store.claims.begin(7)
    store.claims.add(7, (bytes([number]) for number in range(20)))
    assert run(store, {HOME: held_of(items)}).kept[evict.IN_USE].objects == 3
    store.claims.end(7)
    assert run(store, {HOME: held_of(items)}).evicted.objects == 3


def test_adding_and_evicting_at_once_loses_nothing(tmp_path: Path) -> None:
    """Threads add the same contents in projects of their own, pushing nothing, while everything that the first project
    has pushed is evicted again and again."""
    store = Store.open(settings(tmp_path / "s"))
    contents = [sample(seed, 70_000 * (seed % 3) + 3000) for seed in range(12)]
    held = {HOME: held_of(put(store, contents))}
    store.ledger.replace(UID, HOME, None, list(held[HOME]))
    failures: list[Exception] = []
    # What was granted in the second in which an add begins may be its own: so some seconds are needed to see anything
    # go.
    end = time.monotonic() + 3

    def add(number: int) -> None:
        rng = random.Random(number)
        try:
            for round_ in itertools.count():
                owner = 1000 * number + round_
                store.claims.begin(owner)
                store.claims.puts(owner, store.mark, store.now())
                some = rng.sample(contents, 3)
                session = store.session(UID, owner)
                stored = session.feed(memoryview(b"".join(some)), [(len(data), True, False) for data in some])
                assert session.commit() == []
                project(store, stored, f"/home/{number}")
                store.claims.end(owner)
                time.sleep(0.02)
                assert [get(store, item) for item in stored] == some
                project(store, [], f"/home/{number}")
                if time.monotonic() > end:
                    return
                time.sleep(0.02)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    evicted = 0
    while any(thread.is_alive() for thread in threads):
        try:
            evicted += run(store, held).evicted.objects
        except PlanIsOld:
            continue
        put(store, contents)
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert not failures and evicted, failures
    assert store.fsck(deep=True).ok
    store.close()


def test_whatever_fails_each_object_is_here_or_was_seen_on_a_remote(tmp_path: Path) -> None:
    """The n-th operation of an eviction and the rewriting behind it fails, for every n; then the store is opened
    again."""
    contents = [sample(seed, 90_000) for seed in range(8)]
    for fail_at in itertools.count(1):
        path = tmp_path / str(fail_at)
        small = settings(path, segment_bytes=200_000)
        store = Store.open(small)
        items = put(store, contents)
        project(store, items)
        store.close()
        files = FaultyFiles(1 << 30)
        store = Store.open(small, files)
        files.fail_from_now(fail_at)
        with contextlib.suppress(MillpondError):
            run(store, {HOME: held_of(items[::2])})
            shrink(store)
        failed = files.failed
        files.fail_from_now(1 << 30)
        with contextlib.suppress(MillpondError):
            store.close()
        for is_index_lost in (False, True):
            store = lose_index(path) if is_index_lost else Store.open(small)
            found = [get(store, item) for item in items]
            assert found[1::2] == contents[1::2], f"operation {fail_at} failed: {failed}"
            assert all(data in (None, content) for data, content in zip(found, contents, strict=True))
            assert store.fsck(deep=True).damaged == []
            store.close()
        shutil.rmtree(path)
        if failed is None:
            break
    assert fail_at > 10
