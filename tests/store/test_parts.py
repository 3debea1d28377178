"""Manifests by parts of others: the same bytes, a small part of the room, and no less safe."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.store.helpers import UID, FaultyFiles, damage, get, lose_index, put, settings

from millpond.daemon.errors import MillpondError, StoreDamagedError, StoreFormatError
from millpond.daemon.names import ObjectName
from millpond.daemon.store.gc import Sweep
from millpond.daemon.store.index import Content
from millpond.daemon.store.ledger import root_of
from millpond.daemon.store.local import LocalObjectStore
from millpond.daemon.store.parts import Follower
from millpond.daemon.store.recipes import Layout, PartsBuilder, parse_recipe
from millpond.daemon.store.records import Kind, content_id
from millpond.daemon.store.repair import sound_manifest
from millpond.daemon.store.service import gather
from millpond.daemon.store.session import Stored
from millpond.daemon.store.store import Store

FILES = 3000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(settings(tmp_path / "s"))
    yield opened
    opened.close()


def text(rows: dict[str, str]) -> bytes:
    return json.dumps([{"md5": md5, "relpath": path} for path, md5 in sorted(rows.items())]).encode()


def versions(count: int, seed: int = 1, files: int = FILES) -> list[bytes]:
    """Manifests that differ from each other in one file of a hundred, some of them new, some gone."""
    rng = random.Random(seed)
    rows = {f"class-{n % 10}/{n:06}.bin": rng.randbytes(16).hex() for n in range(files)}
    found = []
    for _ in range(count):
        found.append(text(rows))
        changed = rng.sample(sorted(rows), files // 100)
        rows.update((path, rng.randbytes(16).hex()) for path in changed)
        for path in changed[:3]:
            rows[f"{path}-moved"] = rows.pop(path)
    return found


def follow(store: Store, data: bytes, former: Stored | None, part: int = 1 << 20, uid: int = UID) -> Stored:
    session = store.session(uid)
    session.follow(None if former is None else former.content)
    stored: list[Stored] = []
    for start in range(0, len(data), part):
        piece = data[start : start + part]
        stored += session.feed(memoryview(piece), [(len(piece), start + part >= len(data), True)])
    assert session.commit() == []
    return stored[0]


def chain(store: Store, texts: list[bytes]) -> list[Stored]:
    """Each one following the one before."""
    found: list[Stored] = []
    for data in texts:
        found.append(follow(store, data, found[-1] if found else None))
    return found


def test_a_recipe_of_parts_has_not_moved() -> None:
    builder = PartsBuilder()
    builder.add(b"\xbb" * 32, 7, 65_530)
    builder.add(b"\xbb" * 32, 65_537, 3)
    builder.add(b"\xcc" * 32, 1, 2)
    payload = builder.payload()
    assert payload.hex() == "ffff000000000080" + "bb" * 32 + "07000000fdff0000" + "cc" * 32 + "0100000002000000"
    layout = parse_recipe(payload, bytes(32))
    assert (layout.size, list(layout.offsets), layout.needed()) == (
        65_535,
        [0, 65_533, 65_535],
        [b"\xbb" * 32, b"\xcc" * 32],
    )
    with pytest.raises(StoreDamagedError, match="impossible length"):
        parse_recipe(payload[:-1], bytes(32))
    with pytest.raises(StoreDamagedError, match="does not add up"):
        parse_recipe(payload[:-40], bytes(32))


def test_versions_of_a_manifest_take_little_more_than_one(store: Store) -> None:
    texts = versions(4)
    items = chain(store, texts)
    assert [get(store, item) for item in items] == texts
    assert all(item.new_bytes < items[0].new_bytes / 15 for item in items[1:])
    # No chain: each names the chunks of the first one, and its own.
    needed = [len(store.reader.layout(item.content).needed()) for item in items]
    assert [count - needed[0] for count in needed] == [0, 1, 2, 3]
    assert store.fsck(deep=True).ok


def test_what_would_have_too_many_parts_is_stored_whole(store: Store) -> None:
    items = chain(store, versions(16))
    of_parts = [store.reader.layout(item.content).starts is not None for item in items]
    whole = [number for number, parts in enumerate(of_parts) if not parts]
    assert whole[0] == 0 and 2 <= len(whole) <= 4, whole
    assert all(item.new_bytes < items[0].new_bytes / 8 for item, parts in zip(items, of_parts, strict=True) if parts)


def test_parts_are_read_from_any_byte_on(store: Store) -> None:
    texts = versions(3)
    item = chain(store, texts)[-1]
    local = LocalObjectStore(store, UID)
    assert local.read(item.name) == texts[-1]
    layout = store.reader.layout(item.content)
    parts = store.reader.parts(layout)
    rng = random.Random(5)
    for offset in (0, layout.size - 1, *(rng.randrange(layout.size) for _ in range(200))):
        number = layout.find(offset)
        begin = layout.offsets[number]
        assert bytes(parts.read(number))[offset - begin] == texts[-1][offset]


def test_an_object_store_is_told_of_a_former_manifest(store: Store) -> None:
    texts = versions(2)
    local = LocalObjectStore(store, UID)
    first = local.put_bytes(texts[0], is_dir=True)
    local.commit()
    second = local.put_bytes(texts[1], is_dir=True, like=first)
    local.commit()
    assert (local.read(first), local.read(second)) == tuple(texts)
    content = store.reader.resolve([second], UID)[0]
    assert content is not None and store.reader.layout(content).starts is not None
    # What another may not read does not help him.
    other = LocalObjectStore(store, UID + 1)
    assert other.put_bytes(versions(2, seed=2)[1], is_dir=True, like=first).is_dir
    assert other.put_bytes(texts[1], is_dir=True, like=first) == second
    other.commit()
    found = store.reader.resolve([second], UID + 1)[0]
    assert found is not None and store.reader.layout(found).starts is None


def test_users_may_have_one_manifest_by_other_parts(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """That is nothing to warn of; and each one's is there when he comes again."""
    texts = versions(2)
    first = follow(store, texts[0], None)
    of_parts, whole = follow(store, texts[1], first), follow(store, texts[1], None, uid=UID + 1)
    assert of_parts.name == whole.name and of_parts.content != whole.content
    assert not caplog.records
    before = store.stats().stored
    assert follow(store, texts[1], first) == dataclasses.replace(of_parts, new_bytes=0)
    assert follow(store, texts[1], None, uid=UID + 1) == dataclasses.replace(whole, new_bytes=0)
    assert store.stats().stored == before
    assert [get(store, whole, uid) for uid in (UID, UID + 1)] == [texts[1]] * 2


def test_the_first_version_may_go(store: Store, tmp_path: Path) -> None:
    texts = versions(3)
    items = chain(store, texts)
    Sweep(store, UID, [root_of(items[2].name)], grace_s=-1.0).run(dry=False)
    assert [get(store, item) for item in items] == [None, None, texts[2]]
    assert store.fsck(deep=True).ok
    assert get(store, follow(store, texts[1], items[2])) == texts[1]
    Sweep(store, UID, [], grace_s=-1.0).run(dry=False)
    with store.reader.index.begin() as txn:
        assert txn.stat(db=store.reader.index.records)["entries"] == 0


def test_an_index_made_anew_knows_them(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    texts = versions(3)
    items = chain(store, texts)
    store.close()
    store = lose_index(tmp_path / "s")
    assert [get(store, item) for item in items] == texts
    store.close()


@pytest.mark.parametrize("victim", ["shared", "fresh", "recipe"])
def test_damage_is_found_and_mended(tmp_path: Path, victim: str) -> None:
    store = Store.open(settings(tmp_path / "s"))
    texts = versions(3)
    items = chain(store, texts)
    needed = store.reader.layout(items[1].content).needed()
    record = items[1].content.id if victim == "recipe" else needed[0 if victim == "shared" else 1]
    at = store.reader.locate(record)
    assert at is not None
    damage(tmp_path / "s", at)
    with pytest.raises(StoreDamagedError):
        get(store, items[1])
    # What cannot be read is no ground to refuse a new version.
    fourth = versions(4)[3]
    assert get(store, follow(store, fourth, items[1])) == fourth
    by_name = {item.name: data for item, data in zip(items, texts, strict=True)}
    assert not store.fsck(deep=True).ok
    report = store.fsck(deep=True, repair=True, source=by_name.get)
    assert report.ok, report
    assert [get(store, item) for item in items] == texts
    assert store.fsck(deep=True).ok
    store.close()
    store = lose_index(tmp_path / "s")
    assert [get(store, item) for item in items] == texts
    assert get(store, follow(store, fourth, None)) == fourth
    store.close()


@pytest.mark.parametrize("victim", ["shared", "fresh", "recipe"])
def test_damage_is_mended_for_all_who_could_read_it(store: Store, tmp_path: Path, victim: str) -> None:
    texts = versions(2)
    items = chain(store, texts)
    follow(store, texts[0], None, uid=UID + 1)
    assert follow(store, texts[1], items[0], uid=UID + 1).content == items[1].content
    needed = store.reader.layout(items[1].content).needed()
    record = items[1].content.id if victim == "recipe" else needed[0 if victim == "shared" else 1]
    at = store.reader.locate(record)
    assert at is not None
    damage(tmp_path / "s", at)
    second = {items[1].name: texts[1]}
    report = store.fsck(deep=True, repair=True, source=second.get)
    # What one user has of the first version nobody brought; the second one is whole for both.
    assert report.hurt == ([str(items[0].name)] if victim == "shared" else [])
    assert [get(store, items[1], uid) for uid in (UID, UID + 1, UID + 2)] == [texts[1], texts[1], None]
    assert store.fsck(deep=True).ok == (victim != "shared")


def test_what_one_user_gave_again_takes_the_place_of_what_is_damaged_for_all(store: Store, tmp_path: Path) -> None:
    texts = versions(2)
    items = chain(store, texts)
    follow(store, texts[0], None, uid=UID + 1)
    follow(store, texts[1], items[0], uid=UID + 1)
    at = store.reader.locate(store.reader.layout(items[1].content).needed()[1])
    assert at is not None
    damage(tmp_path / "s", at)
    source = partial(sound_manifest, store, UID)
    assert store.fsck(repair=True, source=source).hurt == [str(items[1].name)]
    put(store, [texts[1]], is_dir=True)
    assert store.fsck(repair=True, source=source).ok
    assert [get(store, items[1], uid) for uid in (UID, UID + 1, UID + 2)] == [texts[1], texts[1], None]
    assert store.fsck(deep=True).ok


@pytest.mark.parametrize("fail_at", range(1, 7))
def test_the_nth_operation_fails(tmp_path: Path, fail_at: int) -> None:
    texts = versions(3)
    files = FaultyFiles(0)
    store = Store.open(settings(tmp_path / "s", threads=1), files)
    items = chain(store, texts[:2])
    files.fail_from_now(fail_at)
    try:
        follow(store, texts[2], items[1])
        assert not files.failed
    except MillpondError:
        assert files.failed
    with contextlib.suppress(MillpondError, OSError):
        store.close()
    store = Store.open(settings(tmp_path / "s"))
    assert [get(store, item) for item in items] == texts[:2]
    assert get(store, follow(store, texts[2], items[1])) == texts[2]
    assert store.fsck(deep=True).damaged == []
    store.close()


def test_a_store_of_the_former_format_is_read_and_becomes_one_of_this(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    texts = versions(2)
    first = put(store, [texts[0]], is_dir=True)[0]
    store.close()
    path = tmp_path / "s" / "format.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"format": 1}))
    files = FaultyFiles(1)
    with pytest.raises(MillpondError):
        Store.open(settings(tmp_path / "s"), files)
    assert files.failed and json.loads(path.read_text())["format"] == 1
    store = Store.open(settings(tmp_path / "s"))
    assert json.loads(path.read_text()) == said
    assert get(store, first) == texts[0]
    assert get(store, follow(store, texts[1], first)) == texts[1]
    store.close()
    path.write_text(json.dumps(said | {"format": 0}))
    with pytest.raises(StoreFormatError, match="format 0"):
        Store.open(settings(tmp_path / "s"))


ROWS = st.binary(max_size=3000) | st.integers(0, 10_000).map(
    lambda seed: random.Random(seed).randbytes(90).hex().encode()
)
BORDERED = st.lists(ROWS | st.just(b'{"md5": "x"'), max_size=30).map(b"}, ".join)


@given(BORDERED, st.data())
@hypothesis_settings(max_examples=60, deadline=None)
def test_any_bytes_come_back(former: bytes, data: st.DataObject) -> None:
    """Whatever both are, a follower's recipe gives the bytes that it was fed: of a former content whole, and of parts."""
    chunks: dict[bytes, bytes] = {}

    def keep(fresh: bytes) -> tuple[bytes, int]:
        chunks[content_id(fresh)] = fresh
        return content_id(fresh), len(fresh)

    def read(layout: Layout) -> bytes:
        starts = layout.starts or [0] * len(layout)
        spans = zip(layout.offsets, layout.offsets[1:], strict=False)
        return b"".join(
            chunks[layout.id(n)][starts[n] : starts[n] + end - begin] for n, (begin, end) in enumerate(spans)
        )

    layout = Layout.single(keep(former)[0], len(former))
    for _ in range(3):
        rows = former.split(b"}, ")
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, len(rows)))
            rows[at : at + data.draw(st.integers(0, 3))] = data.draw(st.lists(ROWS, max_size=2))
        former = b"}, ".join(rows)
        size = max(1, data.draw(st.integers(1, max(1, len(former)))))
        pieces = iter([whole for start in range(0, layout.size, 700) if (whole := read(layout)[start : start + 700])])
        follower = Follower(layout, pieces, keep)
        for start in range(0, len(former), size):
            follower.feed(memoryview(former[start : start + size]))
        payload = follower.finish().payload()
        layout = parse_recipe(payload, content_id(payload))
        assert read(layout) == former


def made_of(rows: Callable[[random.Random], bytes], seed: int, size: int = 6 << 20) -> bytes:
    rng = random.Random(seed)
    found = [row := rows(rng)]
    return b"}, ".join(found + [rows(rng) for _ in range(size // (len(row) + 3))])


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(lambda rng: rng.randbytes(6 << 20), id="no border"),
        pytest.param(lambda rng: rng.randbytes(3), id="tiny entries", marks=pytest.mark.long),
        pytest.param(lambda rng: b"", id="borders only", marks=pytest.mark.long),
    ],
)
def test_memory_is_bounded_for_what_is_no_manifest_of_dvcs(rows: Callable[[random.Random], bytes]) -> None:
    """Who sends it chooses the bytes of both."""
    former, later = made_of(rows, 1), made_of(rows, 2)
    layout = Layout.single(content_id(former), len(former))
    pieces = (former[start : start + (256 << 10)] for start in range(0, len(former), 256 << 10))
    follower = Follower(layout, pieces, lambda fresh: (content_id(fresh), len(fresh)))
    tracemalloc.start()
    for start in range(0, len(later), 1 << 20):
        follower.feed(memoryview(later)[start : start + (1 << 20)])
    recipe = follower.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert recipe.size == len(later)
    assert len(recipe) < 1000
    assert peak < 14e6, peak


def test_small_parts_of_many_chunks_keep_none_of_them(tmp_path: Path) -> None:
    """Who makes manifests of manifests can have each part come from another chunk; an answer holds the parts alone."""
    store = Store.open(settings(tmp_path / "s", segment_bytes=64 << 20))
    data = random.Random(4).randbytes(24 << 20)
    layout = store.reader.layout(put(store, [data])[0].content)
    builder, wanted = PartsBuilder(), bytearray()
    for number in [*range(len(layout))] * 3:
        builder.add(layout.id(number), 5, 20)
        wanted += data[layout.offsets[number] + 5 :][:20]
    payload = builder.payload()
    store.append([store.encode(Kind.RECIPE, content_id(payload), payload)])
    store.commit()
    content = Content(Kind.RECIPE, content_id(payload), builder.size)
    tracemalloc.start()
    found = bytearray()
    gather(
        store.reader, [ObjectName("md5", "0" * 32 + ".dir")], [content], 0, lambda part: found.extend(b"".join(part))
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == wanted
    store.close()
    assert peak < 32e6, peak


@pytest.mark.parametrize("gone", [0.3, pytest.param(0.6, marks=pytest.mark.long)])
def test_where_much_is_gone_the_rest_is_found_again(tmp_path: Path, gone: float) -> None:
    """More than is known ahead at first; and memory stays bounded."""
    store = Store.open(settings(tmp_path / "s", map_bytes=1 << 24, segment_bytes=64 << 20))
    rng = random.Random(3)
    rows = {f"{n:07}.bin": rng.randbytes(16).hex() for n in range(200_000)}
    first = follow(store, text(rows), None, 16 << 20)
    kept = dict(sorted(rows.items())[round(len(rows) * gone) :])
    second = follow(store, text(kept), first, 16 << 20)
    assert get(store, second) == text(kept)
    assert second.new_bytes < first.new_bytes / 3
    store.close()
