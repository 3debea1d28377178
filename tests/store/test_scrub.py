"""Scrubbing: damage is found, named and healed; a pass that is stopped goes on; and the daemon does it by itself."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from tests.store.helpers import UID, get, put, sample, settings

from millpond.daemon.store.scrub import EVERY_S, Scrub
from millpond.daemon.store.scrubstate import state_of
from millpond.daemon.store.segments import segment_numbers, segment_path
from millpond.daemon.store.store import Store


class Stopped(Exception):
    pass


def free(size: int) -> None:
    pass


def flip(store: Store, content: bytes) -> int:
    """Change a byte of a raw content on disk; the segment's number."""
    folder = store.path / "segments"
    for number in segment_numbers(folder):
        path = segment_path(folder, number)
        raw = bytearray(path.read_bytes())
        at = raw.find(content[100:160])
        if at >= 0:
            raw[at] ^= 1
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(raw[at : at + 1])
            return number
    raise AssertionError("it is in no segment")


def test_a_sound_store_is_read_once_a_week(tmp_path: Path) -> None:
    store, now = Store.open(settings(tmp_path / "s")), 1e9
    put(store, [os.urandom(300_000) for _ in range(10)])
    scrub, told = Scrub(store, free, lambda: now), list[int]()
    assert scrub.is_due()
    found = Scrub(store, told.append, lambda: now).run()
    assert (found.passed, found.passed_damaged, found.began) == (now, 0, 0.0)
    assert sum(told) >= 3_000_000
    assert not scrub.is_due()
    now += EVERY_S + 1
    assert scrub.is_due()
    now = 0.5e9  # the clock was put back
    assert scrub.is_due()
    store.close()


def test_damage_is_named_with_its_files_and_healed_by_adding_again(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    data = [os.urandom(5_000) for _ in range(20)]
    items = put(store, data)
    text = (
        "[" + ", ".join(f'{{"md5": "{item.name.value}", "relpath": "f{n}"}}' for n, item in enumerate(items)) + "]"
    ).encode()
    session = store.session(UID)
    folder = session.feed(memoryview(text), [(len(text), True, True)])[0]
    assert session.commit() == []
    flip(store, data[7])
    found = Scrub(store, free).run()
    assert found.passed_damaged == 1
    assert f"object {items[7].name}" in found.hurt and f"f7 in {folder.name.value}" in found.hurt
    assert not any(each.startswith("f8 in") for each in found.hurt)
    put(store, [data[7]])
    assert get(store, items[7]) == data[7]
    assert store.fsck(deep=True).damaged_count == state_of(store.reader.index).passed_damaged
    store.close()


def test_a_segment_that_is_gone_is_missed(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    data = [os.urandom(400_000) for _ in range(8)]
    items = put(store, data)
    assert len(segment_numbers(store.path / "segments")) > 2
    store.close()  # else its reader may still have the file open
    segment_path(store.path / "segments", 1).unlink()
    store = Store.open(settings(tmp_path / "s"))
    found = Scrub(store, free).run()
    lost = [item for item, content in zip(items, data, strict=True) if f"object {item.name}" in found.hurt]
    assert lost and found.passed_damaged >= len(lost)
    store.close()


@pytest.mark.parametrize("after", [1, 2])
def test_a_pass_that_is_stopped_goes_on_where_it_was(tmp_path: Path, after: int) -> None:
    store = Store.open(settings(tmp_path / "s"))
    put(store, [os.urandom(400_000) for _ in range(8)])
    whole, counter = list[int](), itertools.count(1)
    Scrub(store, whole.append).run()

    def stop(size: int) -> None:
        if next(counter) > after:
            raise Stopped

    later = state_of(store.reader.index).passed + EVERY_S + 1
    with pytest.raises(Stopped):
        Scrub(store, stop, lambda: later).run()
    store.close()
    store = Store.open(settings(tmp_path / "s"))
    assert state_of(store.reader.index).segment == after
    rest, told = Scrub(store, (parts := list[int]()).append, lambda: later), len(whole)
    assert rest.is_due() and rest.run().passed == later
    assert len(parts) == told - after
    store.close()


def test_a_limit_outlives_the_index(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    item = put(store, [sample(1, 100_000)])[0]
    store.set_limit(123_000_000)
    store.rebuild_index()
    store.close()
    for path in (tmp_path / "s/index").glob("*.mdb"):
        path.unlink()
    store = Store.open(settings(tmp_path / "s"))
    assert store.limit == 123_000_000 and get(store, item) is not None
    store.set_limit(None)
    store.close()
    store = Store.open(settings(tmp_path / "s"))
    assert store.limit is None
    store.close()
