"""What fsck finds, whom it says it hurts, and what repair can mend."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.store.helpers import UID, damage, get, lose_index, put, sample, settings

from millpond.daemon.errors import CancelledError, StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.store import journal, records, rehash
from millpond.daemon.store.index import Content
from millpond.daemon.store.records import HEADER, Kind, Location, Record
from millpond.daemon.store.segments import Encoded, mapped, scan_segment, segment_numbers, segment_path
from millpond.daemon.store.session import Stored
from millpond.daemon.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(settings(tmp_path / "s"))
    yield opened
    opened.close()


def journals(path: Path) -> list[Location]:
    """Where the journal records of a store are."""
    found = []
    for number in segment_numbers(path / "segments"):
        with mapped(segment_path(path / "segments", number)) as view:
            for item in scan_segment(view, number):
                if isinstance(item[0], Record) and item[0].kind == Kind.JOURNAL:
                    each = item[0]
                    found.append(Location(each.kind, each.codec, number, each.offset, each.stored, each.raw))
    return found


def locate(store: Store, item: Stored) -> Location:
    found = store.reader.locate(item.content.id)
    assert found is not None
    return found


def test_a_damaged_journal_record_is_written_anew_while_the_index_lives(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = Store.open(settings(path))
    contents = [sample(seed, 3000 * seed) for seed in range(1, 40)]
    stored = [*put(store, contents[:20], 1), *put(store, contents[20:], 2)]
    for at in journals(path):
        damage(path, at)
    report = store.fsck()
    assert (report.ok, report.hurt) == (False, [])
    assert {each.kind for each in report.damaged} == {"range"}
    assert store.fsck(repair=True).ok
    assert store.fsck(deep=True).damaged == []
    store.close()
    store = lose_index(path)
    owners = [1] * 20 + [2] * 19
    assert [get(store, item, uid) for item, uid in zip(stored, owners, strict=True)] == contents
    assert [get(store, item, 3 - uid) for item, uid in zip(stored, owners, strict=True)] == [None] * 39
    store.close()


def test_a_damaged_segment_header_costs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = Store.open(settings(path))
    item = put(store, [sample(1, 5000)])[0]
    store.close()
    with open(segment_path(path / "segments", 1), "r+b") as file:
        file.write(b"nothing")
    for lost in (False, True):
        store = lose_index(path) if lost else Store.open(settings(path))
        assert get(store, item) == sample(1, 5000)
        report = store.fsck()
        assert [(each.kind, each.offset) for each in report.damaged] == [("range", 0)]
        store.close()


def test_damage_met_while_reading_is_put_aside_and_healed_by_adding_again(store: Store, tmp_path: Path) -> None:
    item, other = put(store, [sample(1, 5000), sample(2, 5000)])
    damage(tmp_path / "s", locate(store, item))
    with pytest.raises(StoreDamagedError):
        get(store, item)
    store.write(lambda txn: None)  # behind the quarantine in the queue
    again = put(store, [sample(1, 5000)], uid=5)[0]
    assert again.new_bytes > 0, "what is damaged is not taken for known"
    assert [get(store, item), get(store, item, 5), get(store, other)] == [
        sample(1, 5000),
        sample(1, 5000),
        sample(2, 5000),
    ]
    assert store.fsck(deep=True).damaged == []


def test_names_are_found_again_though_their_chunk_was_stored_anew_behind_them(tmp_path: Path) -> None:
    """The journal record of the first owner stands before the chunk's second copy: a rebuild must not care."""
    path = tmp_path / "s"
    store = Store.open(settings(path))
    item = put(store, [sample(1, 5000)], uid=1)[0]
    damage(path, locate(store, item))
    assert store.fsck(repair=True).quarantined == 1
    put(store, [sample(1, 5000)], uid=2)
    store.close()
    store = lose_index(path)
    assert [get(store, item, uid) for uid in (1, 2, 3)] == [sample(1, 5000), sample(1, 5000), None]
    store.close()


def test_what_the_index_lost_is_found_in_the_segments(store: Store) -> None:
    data = os.urandom(1_500_000)
    small, large = put(store, [sample(1, 5000), data])
    victims = [small.content.id, large.content.id, store.reader.layout(large.content).id(1)]

    def lose(txn: Any) -> None:
        for victim in victims:
            assert txn.delete(victim, db=store.reader.index.records)

    store.write(lose)
    report = store.fsck()
    assert sorted(report.hurt) == sorted([str(small.name), str(large.name)])
    report = store.fsck(repair=True)
    assert (report.ok, report.repaired, report.hurt) == (True, 2, [])
    assert [get(store, small), get(store, large)] == [sample(1, 5000), data]
    assert store.fsck(deep=True).damaged == []


def test_an_index_that_points_elsewhere_is_seen_and_mended(store: Store) -> None:
    one, two = put(store, [sample(1, 5000), sample(2, 6000)])
    wrong = locate(store, two).pack()
    store.write(lambda txn: txn.put(one.content.id, wrong, db=store.reader.index.records))
    report = store.fsck()
    assert [each.id for each in report.damaged] == [one.content.id.hex()]
    assert store.fsck(repair=True).ok
    assert [get(store, one), get(store, two)] == [sample(1, 5000), sample(2, 6000)]


def test_a_record_that_lies_about_its_content_is_found_by_a_deep_check(store: Store) -> None:
    item = put(store, [sample(1, 5000)])[0]
    lie = records.encode(Kind.CHUNK, item.content.id, sample(7, 5000), store.reader.key)
    store.append([Encoded(Kind.CHUNK, item.content.id, 5000, lie)])
    assert store.fsck().ok
    report = store.fsck(deep=True)
    assert [(each.kind, each.id) for each in report.damaged] == [("chunk", item.content.id.hex())]
    assert str(item.name) in report.damaged[0].files[0]
    assert store.fsck(deep=True, repair=True).ok, "the first copy is still there"
    assert get(store, item) == sample(1, 5000)


def test_a_content_under_a_wrong_name_is_found_by_a_deep_check(store: Store) -> None:
    item = put(store, [sample(1, 90_000)])[0]
    wrong = ObjectName("md5", "0" * 32)
    store.write(lambda txn: txn.put(wrong.key(), item.content.pack(), db=store.reader.index.objects))
    assert store.fsck().ok
    report = store.fsck(deep=True)
    assert (report.ok, report.hurt, [each.kind for each in report.damaged]) == (False, [str(wrong)], ["object"])
    assert store.fsck(deep=True, repair=True).hurt == [str(wrong)]
    assert store.fsck(deep=True).ok, "a name that means nothing is no name"
    assert get(store, item) == sample(1, 90_000)


def test_a_missing_segment_hurts_what_was_in_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = Store.open(settings(path))
    contents = [os.urandom(900_000) for _ in range(4)]
    stored = put(store, contents)
    store.close()
    [first, *rest] = segment_numbers(path / "segments")
    assert rest
    segment_path(path / "segments", first).unlink()
    store = Store.open(settings(path))
    report = store.fsck(deep=True)
    # Which contents lie there is a matter of which thread was first.
    assert report.hurt and set(report.hurt) <= {str(item.name) for item in stored}
    by_name = dict(zip([item.name for item in stored], contents, strict=True))
    assert store.fsck(repair=True, source=by_name.get).ok
    assert [get(store, item) for item in stored] == contents
    store.close()


def test_a_source_that_gives_other_bytes_mends_nothing(store: Store, tmp_path: Path) -> None:
    item = put(store, [sample(1, 5000)])[0]
    damage(tmp_path / "s", locate(store, item))
    report = store.fsck(repair=True, source=lambda name: sample(2, 5000))
    assert (report.ok, report.repaired, report.hurt) == (False, 0, [str(item.name)])
    assert store.reader.resolve([ObjectName("md5", "0" * 32)], UID) == [None]
    assert store.stats().objects == 1


def test_mending_gives_nobody_a_new_right(store: Store, tmp_path: Path) -> None:
    item = put(store, [sample(1, 5000)], uid=77)[0]
    damage(tmp_path / "s", locate(store, item))
    assert store.fsck(repair=True, source=lambda name: sample(1, 5000)).ok
    assert [get(store, item, uid) for uid in (0, 77, os.getuid())] == [None, sample(1, 5000), None]


@pytest.fixture
def soon_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not small any more is checked beside others."""
    monkeypatch.setattr(rehash, "_LARGE_BYTES", 70_000)
    monkeypatch.setattr(rehash, "_WORTH_BYTES", 1_000_000)
    monkeypatch.setattr(rehash, "_STEP_BYTES", 50_000)


@pytest.mark.parametrize("with_kernels", [True, False])
def test_large_contents_are_checked_beside_each_other(
    store: Store, tmp_path: Path, soon_together: None, with_kernels: bool
) -> None:
    """Of any sizes, in several groups: sound ones, one whose end is damaged, ones under a wrong name, a name of another kind."""
    kernels = store.kernels if with_kernels else None
    chance = random.Random(5)
    stored = put(
        store, [chance.randbytes(3_000_000 if n == 5 else 70_000 + chance.randrange(400_000)) for n in range(40)]
    )
    stored += put(store, [sample(seed, 300 * seed) for seed in range(150)])
    named = [rehash.Named(item.name, item.content) for item in stored]
    layout = store.reader.layout(stored[5].content)
    lost = layout.id(len(layout) - 1)
    at = store.reader.locate(lost)
    assert at is not None and len(layout) > 1
    damage(tmp_path / "s", at)
    wrong = [rehash.Named(ObjectName("md5", f"{n:032x}"), stored[n].content) for n in (0, 10, 100)]
    other = rehash.Named(ObjectName("md5-dos2unix", "1" * 32), stored[20].content)
    everything = [*named, *wrong, other]
    chance.shuffle(everything)
    read: list[int] = []
    found = list(rehash.Rehash(store.reader, kernels, read.append).check(everything))
    assert Counter(each for each, _ in found) == Counter(everything)
    bad = {each: because for each, because in found if because}
    assert bad == {named[5]: [lost]} | {each: [each.content.id] for each in wrong}
    whole = sum(each.content.size for each in everything)
    assert whole - stored[5].content.size <= sum(read) < whole
    assert kernels is None or kernels.tried is not None


def test_a_check_of_large_contents_is_cancelled_within_them(store: Store, soon_together: None) -> None:
    # Of chunks that are the same, so that there is little to read and much to hash.
    put(store, [os.urandom(2_000_000) * 20 for _ in range(4)])
    told: list[tuple[int, int]] = []

    def cancel(done: int, total: int) -> None:
        told.append((done, total))
        if done > total / 8:  # the segments are done with
            raise CancelledError("cancelled")

    with pytest.raises(CancelledError):
        store.fsck(deep=True, progress=cancel)
    done, total = told[-1]
    assert total > 160_000_000 and done < total
    assert not [each for each in threading.enumerate() if each.name.startswith("rehash")]
    assert store.fsck(deep=True).ok


def test_fsck_can_be_cancelled_and_tells_how_far_it_is(store: Store) -> None:
    put(store, [os.urandom(3_000_000) for _ in range(8)])
    told: list[tuple[int, int]] = []
    assert store.fsck(deep=True, progress=lambda done, total: told.append((done, total))).ok
    assert told == sorted(told) and told[-1][0] == told[-1][1] > 40_000_000 and len(told) > 3

    def cancel(done: int, total: int) -> None:
        raise CancelledError("cancelled")

    with pytest.raises(CancelledError):
        store.fsck(progress=cancel)
    assert store.fsck().ok


def test_the_index_is_made_anew_in_place(store: Store) -> None:
    contents = [sample(seed, 40_000 * seed) for seed in range(12)]
    stored = [*put(store, contents[:6], 1), *put(store, contents[6:], 2)]
    before = rows(store)
    assert store.rebuild_index() > 0
    assert rows(store) == before
    assert [get(store, item, 1 if n < 6 else 2) for n, item in enumerate(stored)] == contents


def rows(store: Store) -> dict[str, list[tuple[bytes, bytes]]]:
    """What of the index can be made from segments."""
    index = store.reader.index
    with index.begin() as txn:
        found = {}
        for name in ("records", "objects", "grants"):
            with txn.cursor(db=getattr(index, name)) as cursor:
                found[name] = [(bytes(key), bytes(value)) for key, value in cursor]
        return found


def test_bytes_inside_a_content_never_pass_for_a_record(tmp_path: Path) -> None:
    """Mallory's file holds a journal record that grants her Alice's object. When the header in front of it is damaged,
    a scan goes on inside her file; the store's key, which she does not know, keeps it from believing her."""
    path = tmp_path / "s"
    store = Store.open(settings(path))
    secret = put(store, [sample(1, 5000)], uid=1)[0]

    def forged(key: int) -> bytes:
        names = journal.NameBatch(666)
        names.add(secret.name.key(), secret.content)
        [payload] = [part.payload() for part in names.parts()]
        return b"".join(records.encode(Kind.JOURNAL, records.content_id(payload), payload, key))

    hostile = {key: bytes(HEADER.size % 8) + os.urandom(800) + forged(key) for key in (0, store.reader.key)}
    for key, data in hostile.items():
        item = put(store, [data + os.urandom(2000)], uid=666)[0]
        at = locate(store, item)
        assert at.codec == records.Codec.RAW
        damage(path, at, HEADER.size - 1 - HEADER.size)
        store.close()
        store = lose_index(path)
        got_in = get(store, secret, uid=666) is not None
        assert got_in == (key == store.reader.key), "the test forges rightly, and only the key stands against it"
    store.close()


def test_two_contents_of_one_md5_are_kept_apart(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """The pair of Wang and Yu, 2004."""
    tail = "55ad340609f4b30283e4888325"
    one = bytes.fromhex(
        "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f89"
        + tail
        + "71415a085125e8f7cdc99fd91dbdf280373c5bd8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0"
        "e99f33420f577ee8ce54b67080a80d1ec69821bcb6a8839396f9652b6ff72a70"
    )
    two = bytearray(one)
    for place in (19, 45, 59, 83, 109, 123):
        two[place] ^= 0x80
    with caplog.at_level(logging.WARNING, "millpond.store"):
        [first] = put(store, [one], uid=1)
        [second] = put(store, [bytes(two)], uid=2)
    assert first.name == second.name and first.content != second.content
    assert [get(store, first, 1), get(store, first, 2)] == [one, bytes(two)]
    assert "more than one content" in caplog.text
    assert store.fsck(deep=True).ok


def test_fsck_reads_only_up_to_the_last_commit(store: Store) -> None:
    put(store, [sample(1, 5000)])
    half: Callable[..., Any] = store.session(UID).feed
    half(memoryview(sample(2, 500_000)), [(500_000, False, False)])
    assert store.fsck(deep=True).ok


def test_a_copy_of_a_running_store_is_a_store(store: Store, tmp_path: Path) -> None:
    item = put(store, [sample(1, 5000)])[0]
    store.session(UID).feed(memoryview(sample(2, 60_000)), [(60_000, True, False)])
    shutil.copytree(tmp_path / "s", tmp_path / "copy")
    (tmp_path / "copy" / "lock").unlink()
    with open(segment_path(tmp_path / "copy" / "segments", 1), "ab") as file:
        file.write(b"torn")
    copy = Store.open(settings(tmp_path / "copy"))
    assert get(copy, item) == sample(1, 5000)
    assert copy.fsck(deep=True).damaged == []
    assert put(copy, [sample(2, 60_000)])[0].new_bytes == 0, "found behind the last commit"
    copy.close()


def test_a_manifest_of_a_hostile_user_stops_nobody(store: Store, tmp_path: Path) -> None:
    item = put(store, [sample(1, 5000)])[0]
    for text in (b"", b"[", b"{}", b"[1]", b'[{"md5": 3, "relpath": "x"}]', b"\xff\xfe", b"[" * 100_000, b"null"):
        hostile = put(store, [text], is_dir=True)[0]
        assert not store.complete(hostile.name, UID)
    rows = [{"md5": item.name.value, "relpath": "good"}]
    manifest = put(store, [json.dumps(rows).encode()], is_dir=True)[0]
    assert store.complete(manifest.name, UID)
    damage(tmp_path / "s", locate(store, item))
    named = [text for each in store.fsck().damaged for text in each.files]
    assert f"good in {manifest.name.value}" in named
    assert isinstance(item.content, Content)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)])
def test_a_damaged_index_is_an_error_that_a_restart_mends(tmp_path: Path, seed: int) -> None:
    """Pages of LMDB are overwritten; it may also end the process, so this is one. What it prints is the oracle."""
    path = tmp_path / "s"
    store = Store.open(settings(path))
    stored = put(store, [sample(number, 300) for number in range(3000)])
    store.close()
    with open(path / "index" / "data.mdb", "r+b") as file:
        rng = random.Random(seed)
        for page in range(3, os.fstat(file.fileno()).st_size // 4096):
            file.seek(page * 4096 + 10)  # the page's flags
            file.write(rng.randbytes(2))
    ended = [subprocess.run([sys.executable, "-c", CHECK, str(path)], capture_output=True, text=True) for _ in range(3)]
    assert ended[0].stdout.strip() in ("", "damaged", "ok 3000"), ended
    assert [each.stdout.strip() for each in ended[1:]] == ["ok 3000"] * 2, ended
    assert any((path / "tmp").iterdir())
    store = Store.open(settings(path))
    assert [get(store, item) for item in stored] == [sample(number, 300) for number in range(3000)]
    store.close()


CHECK = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).resolve().parents[2])!r}, {str(Path(__file__).resolve().parents[2] / ".src")!r}]
from tests.store.helpers import settings
from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.store.store import Store
try:
    store = Store.open(settings(Path(sys.argv[1])))
    report = store.fsck(deep=True)
    print("ok" if report.ok else "hurt", report.objects)
    store.close()
except StoreDamagedError as error:
    assert "restart" in error.hint
    print("damaged")
"""
