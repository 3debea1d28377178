"""Bytes that must never move, and round trips of everything that is written."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.names import ALGORITHMS, ObjectName
from millpond.daemon.store import chunking, journal, records
from millpond.daemon.store.index import Content
from millpond.daemon.store.recipes import RecipeBuilder, parse_recipe
from millpond.daemon.store.records import BadRecord, Kind

KEY = records.key_of(bytes(range(16)))


def lengths(data: bytes, part: int) -> list[int]:
    cutter = chunking.Cutter()
    found = []
    for start in range(0, len(data), part):
        last = start + part >= len(data)
        found += [len(chunk) for chunk in cutter.feed(memoryview(data)[start : start + part], last)]
    return found


def test_chunk_boundaries_have_not_moved() -> None:
    """A moved boundary would silently end deduplication against everything that is stored."""
    data = random.Random(20261123).randbytes(6 << 20)
    found = lengths(data, len(data))
    assert sum(found) == len(data)
    assert hashlib.sha256(repr(found).encode()).hexdigest() == GOLDEN_BOUNDARIES
    assert found[:4] == GOLDEN_FIRST


@pytest.mark.parametrize("part", [997, 60_000, 1 << 20, (1 << 20) + 77, 3 << 20])
def test_chunk_boundaries_do_not_depend_on_parts(part: int) -> None:
    """Bytes that are alike have no boundary before a chunk is as long as it may be."""
    noise = random.Random(8).randbytes(4 << 20)
    data = noise + bytes(3 << 20) + noise[:100_000]
    assert lengths(data, part) == lengths(data, len(data))


@pytest.mark.parametrize("seed", range(5))
def test_a_part_that_ends_beside_a_boundary_loses_nothing(seed: int) -> None:
    data = random.Random(seed).randbytes(1_500_000)
    whole = lengths(data, len(data))
    for boundary in itertools.accumulate(whole[:-1]):
        for cut in range(boundary - 3, boundary + 4):
            cutter = chunking.Cutter()
            parts = [(memoryview(data)[:cut], False), (memoryview(data)[cut:], True)]
            assert [len(chunk) for part in parts for chunk in cutter.feed(*part)] == whole, cut


def test_what_is_put_together_of_parts_is_little() -> None:
    """It stays in memory until it is stored, for each part of sixteen contents that come beside each other."""
    data = memoryview(random.Random(9).randbytes(32 << 20))
    cutter = chunking.Cutter()
    kept: list[memoryview] = []
    held: dict[int, int] = {}
    for start in range(0, len(data), 1 << 20):
        for chunk in cutter.feed(data[start : start + (1 << 20)], start + (1 << 20) == len(data)):
            if chunk.obj is not data.obj:
                held[id(chunk.obj)] = memoryview(chunk.obj).nbytes
                kept.append(chunk)
    assert 16 < len(held) < 32
    assert sum(held.values()) < 0.6 * len(data)


GOLDEN_BOUNDARIES = "2ff479eada39abb1a3e1a9267218c0fb27534dbb85f2d20931700b60f08ddd7d"
GOLDEN_FIRST = [143352, 429532, 265627, 258518]


def test_a_record_has_not_moved() -> None:
    data = b"the same bytes for ever"
    raw = b"".join(records.encode(Kind.CHUNK, records.content_id(data), data, KEY))
    assert raw.hex() == GOLDEN_RECORD


GOLDEN_RECORD = "4d505231010000001700000017000000ba9948391a2a712312766728cd6b37ff2f4ea1e2cc2b75b71739cb0bc39b95ba46f026c59fa681057468652073616d6520627974657320666f72206576657200"


def test_names_have_not_moved() -> None:
    assert ObjectName("md5", "d41d8cd98f00b204e9800998ecf8427e").key().hex() == "01d41d8cd98f00b204e9800998ecf8427e"
    assert ObjectName("md5", "d41d8cd98f00b204e9800998ecf8427e.dir").key()[0] == 0x81


@given(st.sampled_from(sorted(ALGORITHMS)), st.binary(min_size=16, max_size=16), st.booleans())
def test_names_come_back_from_their_keys(algo: str, digest: bytes, is_dir: bool) -> None:
    name = ObjectName(algo, digest.hex() + (".dir" if is_dir else ""))
    assert ObjectName.from_key(name.key()) == name


@given(st.integers(0, 3_000_000), st.integers(5_000, 1_500_000), st.integers(0, 3))
def test_boundaries_do_not_depend_on_how_a_content_comes(size: int, part: int, seed: int) -> None:
    data = random.Random(seed).randbytes(size)
    whole = lengths(data, max(1, size))
    assert lengths(data, part) == whole
    assert all(length <= chunking.MAX_BYTES for length in whole)
    assert all(length >= chunking.MIN_BYTES for length in whole[:-1])


@given(st.binary(max_size=20_000), st.integers(0, 200))
def test_a_record_comes_back_and_any_flipped_bit_is_seen(data: bytes, where: int) -> None:
    data = data * 3 if len(data) % 2 else data
    raw = bytearray(b"".join(records.encode(Kind.CHUNK, records.content_id(data), data, KEY)))
    assert len(raw) % records.ALIGN == 0
    record, payload = records.decode(bytes(raw), KEY)
    assert records.decompress(record.codec, record.raw, payload) == data
    place = where % (records.HEADER.size + record.stored)
    raw[place] ^= 1 << (where % 8)
    with pytest.raises(BadRecord):
        other, payload = records.decode(bytes(raw), KEY)
        assert other.id == record.id  # unreachable for a changed id: the checksum covers it
        records.decompress(other.codec, other.raw, payload)


def test_what_can_be_packed_is_wherever_it_lies_in_a_chunk() -> None:
    noise, text = random.Random(5).randbytes(300_000), b"the same again, " * 10_000
    for data in (noise[:60_000] + text + noise[60_000:200_000], text[:20_000] + noise, noise + text[:20_000]):
        codec, payload = records.compress(data)
        assert codec == records.Codec.ZSTD and len(payload) < len(data) - 15_000
    assert records.compress(noise) == (records.Codec.RAW, noise)


@given(st.binary(max_size=5_000), st.integers(1, 60), st.integers(-70, 70))
def test_a_payload_is_unpacked_into_memory_of_its_length_and_no_other(data: bytes, times: int, other: int) -> None:
    data = data * times + bytes(100)
    payload = zstandard.ZstdCompressor().compress(data)
    view = memoryview(bytearray(b"x" * max(0, len(data) + other)))
    if len(view) == len(data):
        records.decompress_into(view, payload)
        assert view == data
        for damaged in (payload[:-1], payload[: len(payload) // 2], b"", bytes(len(payload))):
            with pytest.raises(BadRecord):
                records.decompress_into(view, damaged)
    else:
        with pytest.raises(BadRecord, match="has not"):
            records.decompress_into(view, payload)
        assert bytes(view) == b"x" * len(view), "nothing was written"


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=12), st.data())
def test_a_scan_loses_at_most_the_damaged_record(contents: list[bytes], data: st.DataObject) -> None:
    encoded = [b"".join(records.encode(Kind.CHUNK, records.content_id(item), item, KEY)) for item in contents]
    victim = data.draw(st.integers(0, len(encoded) - 1))
    raw = bytearray(b"".join(encoded))
    begin = sum(map(len, encoded[:victim]))
    raw[begin + data.draw(st.integers(0, records.HEADER.size - 1))] ^= 0xFF
    found = [item[0].id for item in records.scan(memoryview(raw), 0, KEY) if isinstance(item[0], records.Record)]
    assert found == [records.content_id(item) for number, item in enumerate(contents) if number != victim]


@given(st.lists(st.integers(1, 1 << 20), max_size=50))
def test_a_recipe_comes_back(sizes: list[int]) -> None:
    builder = RecipeBuilder()
    ids = [os.urandom(32) for _ in sizes]
    for chunk, size in zip(ids, sizes, strict=True):
        builder.add(chunk, size)
    layout = parse_recipe(builder.payload(), b"x" * 32)
    assert (layout.size, len(layout)) == (sum(sizes), len(sizes))
    position = 0
    for number, size in enumerate(sizes):
        assert layout.id(number) == ids[number]
        assert layout.find(position) == layout.find(position + size - 1) == number
        position += size
    with pytest.raises(StoreDamagedError):
        parse_recipe(builder.payload() + b"y", b"x" * 32)


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.binary(min_size=17, max_size=33), st.integers(0, 2**40)), max_size=20),
)
def test_journal_entries_come_back(uid: int, rows: list[tuple[bytes, int]]) -> None:
    batch = journal.NameBatch(uid)
    wanted = [(key, Content(Kind.CHUNK, key[:1] * 32, size)) for key, size in rows]
    for key, content in wanted:
        batch.add(key, content)
    assert list(batch) == wanted
    payloads = [part.payload() for part in batch.parts()]
    assert [entry for payload in payloads for entry in journal.parse(payload)[1]] == wanted
    assert all(journal.parse(payload)[0] == uid for payload in payloads)
    for payload in payloads:
        with pytest.raises(BadRecord):
            journal.parse(payload[:-1])


def test_many_names_wait_in_a_file(tmp_path: Path) -> None:
    batch = journal.NameBatch(7, tmp_path)
    count = journal.MAX_ENTRIES * (journal.MAX_PARTS + 3) + 5
    for number in range(count):
        batch.add(b"\x01" + number.to_bytes(16, "big"), Content(Kind.CHUNK, bytes(32), number))
    for _ in range(2):
        found = iter(batch)
        assert all(
            content.size == number == int.from_bytes(key[1:], "big") for number, (key, content) in enumerate(found)
        )
    assert len(batch) == count
    sizes = [len(journal.parse(part.payload())[1]) for part in batch.parts()]
    assert sizes == [journal.MAX_ENTRIES] * (journal.MAX_PARTS + 3) + [5]
    assert os.listdir(tmp_path) == [], "it has no name, so a crash leaves nothing"
    batch = journal.NameBatch(7, tmp_path / "none")
    with pytest.raises(StoreDamagedError):
        for number in range(count):
            batch.add(b"\x01" + number.to_bytes(16, "big"), Content(Kind.CHUNK, bytes(32), number))
