"""Taking contents in by feeds that overlap."""

from __future__ import annotations

import hashlib
import itertools
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.store.helpers import UID, FaultyFiles, get, put, sample, settings

from millpond.daemon.errors import MillpondError, ProtocolError
from millpond.daemon.store.session import Feed, Stored
from millpond.daemon.store.store import Store


@given(
    st.lists(st.integers(0, 900_000), min_size=1, max_size=8), st.lists(st.integers(1, 700_000), min_size=1), st.data()
)
@hypothesis.settings(max_examples=20, deadline=None)
def test_feeds_that_overlap_give_what_one_after_the_other_would(
    sizes: list[int], cuts: list[int], data: st.DataObject
) -> None:
    contents = [sample(number, size) for number, size in enumerate(sizes)]
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(settings(Path(folder) / "s"))
        session = store.session(UID)
        flying: list[Feed] = []
        found: list[Stored] = []
        for view, pieces in _feeds(contents, cuts):
            flying.append(session.begin(view, pieces))
            for _ in range(data.draw(st.integers(0, len(flying)))):
                found += session.finish(flying.pop(0))
        for feed in flying:
            found += session.finish(feed)
        assert [item.name.value for item in found] == [hashlib.md5(each).hexdigest() for each in contents]
        assert session.commit() == []
        assert [get(store, item) for item in found] == contents
        assert store.fsck(deep=True).ok
        store.close()


def _feeds(contents: list[bytes], cuts: list[int]) -> Iterator[tuple[memoryview, list[tuple[int, bool, bool]]]]:
    """Contents one behind the other, cut into feeds of the given sizes, over and over."""
    lengths = itertools.cycle(cuts)
    room, view, pieces = next(lengths), b"", []
    for content in contents:
        offset, last = 0, False
        while not last:
            part = content[offset : offset + room]
            offset += len(part)
            last = offset == len(content)
            view, room = view + part, room - len(part)
            pieces.append((len(part), last, False))
            if not room:
                yield memoryview(view), pieces
                room, view, pieces = next(lengths), b"", []
    if pieces:
        yield memoryview(view), pieces


@given(st.lists(st.integers(0, 400_000), min_size=2, max_size=8), st.randoms(use_true_random=False), st.booleans())
@hypothesis.settings(max_examples=20, deadline=None)
def test_contents_that_come_beside_each_other(sizes: list[int], chance: random.Random, with_kernels: bool) -> None:
    """Each on a strand, small ones between them; with kernels and, where those are not to be had, without."""
    contents = [sample(number, size) for number, size in enumerate(sizes)]
    offsets = dict.fromkeys(range(len(contents)), 0)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(settings(Path(folder) / "s"))
        if not with_kernels:
            store.kernels = None
        session = store.session(UID)
        found: list[Stored] = []
        ended: list[bytes] = []
        while offsets:
            view = b""
            pieces: list[tuple[int, bool, bool, int]] = []
            for _ in range(chance.randrange(1, 9)):
                number = chance.choice(list(offsets)) if offsets else -1
                content = contents[number] if offsets else b"between them"
                start = offsets.get(number, 0)
                part = content[start : start + chance.choice([0, 1, 64, 65_536, 300_000])] if offsets else content
                last = start + len(part) == len(content)
                view += part
                pieces.append((len(part), last, False, number + 1))
                if last:
                    ended.append(content)
                    offsets.pop(number, None)
                else:
                    offsets[number] = start + len(part)
            found += session.feed(memoryview(view), pieces)
        assert [item.name.value for item in found] == [hashlib.md5(each).hexdigest() for each in ended]
        assert session.commit() == []
        assert [get(store, item) for item in found] == ended
        assert store.fsck(deep=True).ok
        store.close()


@pytest.mark.parametrize("strand", [-1, 17, 1 << 40])
def test_there_are_so_many_strands_and_no_more(tmp_path: Path, strand: int) -> None:
    store = Store.open(settings(tmp_path / "s"))
    with pytest.raises(ProtocolError, match="strand"):
        store.session(UID).feed(memoryview(bytes(70_000)), [(70_000, False, False, strand)])
    store.close()


def test_behind_a_feed_that_failed_nothing_more_is_taken(tmp_path: Path) -> None:
    Store.open(settings(tmp_path / "s"), (counting := FaultyFiles(1 << 30))).close()
    Store.open(settings(tmp_path / "s"), (counting := FaultyFiles(1 << 30))).close()
    store = Store.open(settings(tmp_path / "s"), FaultyFiles(counting.count + 2))
    session, data = store.session(UID), sample(1, 4_000_000)
    feeds = [
        session.begin(memoryview(data)[at : at + 1_000_000], [(1_000_000, False, False)])
        for at in range(0, 3_000_000, 1_000_000)
    ]
    failures = 0
    for feed in feeds:
        try:
            session.finish(feed)
        except MillpondError:
            failures += 1
    assert failures > 0
    with pytest.raises(ProtocolError, match="has failed"):
        session.begin(memoryview(data)[3_000_000:], [(1_000_000, True, False)])
    with pytest.raises(ProtocolError, match="has failed"):
        session.commit()
    store.close()


def test_equal_chunks_that_come_together_are_stored_once(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s", threads=4, segment_bytes=64 << 20))
    session, data = store.session(UID), random.Random(1).randbytes(3_000_000)
    flying = [session.begin(memoryview(data), [(len(data), True, False)]) for _ in range(8)]
    found = [session.finish(feed)[0] for feed in flying]
    assert session.commit() == []
    assert sum(item.new_bytes for item in found) < 1.02 * len(data)
    assert store.stats().stored < 1.05 * len(data)
    assert {get(store, item) for item in found} == {data}
    store.close()


def test_names_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s", segment_bytes=64 << 20))
    contents = [b"%d" % number for number in range(3000)]
    first = put(store, contents)
    before = store.stored
    again = put(store, contents)
    assert store.stored == before, "nothing is new"
    assert [item.name for item in again] == [item.name for item in first]
    put(store, contents, uid=UID + 1)
    assert store.stored > before, "another user's names are his own"
    assert [get(store, item, uid=UID + 1) for item in again[:3]] == contents[:3]
    store.close()


def test_a_name_whose_chunk_is_gone_is_asked_for_again(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    (item,) = put(store, [b"precious"])
    session = store.session(UID)
    session.feed(memoryview(b"precious"), [(8, True, False)])
    store.write(lambda txn: txn.delete(item.content.id, db=store.reader.index.records))
    assert session.commit() == [item.name]
    store.close()
