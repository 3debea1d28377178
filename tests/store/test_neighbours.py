"""What is unpacked ahead is what would be read, in whatever order it is asked for, and bounded; damage is left to others."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fusefs.helpers import UID, mixed, open_store, put

from millpond.daemon.names import ObjectName
from millpond.daemon.store.neighbours import CHUNK_BYTES, CHUNKS
from millpond.daemon.store.reader import StoreReader

SIZES = random.Random(5)
# Small files as they lie in a folder, now and then a larger one between them, which is cut into chunks.
CONTENTS = [mixed(SIZES.choice((300, 3_000, 30_000, 60_000, 64, 200_000)), seed) for seed in range(120)]


class Shelf:
    """A store with the contents, stored in order."""

    def __init__(self, path: Path) -> None:
        store = open_store(path)
        self.names: list[ObjectName] = put(store, CONTENTS)
        store.close()
        self.path = path
        self.reader = StoreReader.open(path, 1 << 20)

    def read(self, number: int) -> bytes | None:
        data = self.reader.whole_nowait(self.names[number].key(), UID, len(CONTENTS[number]))
        return None if data is None else bytes(data)

    @property
    def ready(self) -> dict[bytes, bytes]:
        return self.reader._neighbours._ready


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    made = Shelf(tmp_path_factory.mktemp("neighbours") / "store")
    yield made
    made.reader.close()


def is_small(number: int) -> bool:
    return len(CONTENTS[number]) <= CHUNK_BYTES


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(CONTENTS) - 1), st.integers(1, 12), st.integers(1, 3), st.integers(0, 10)),
        max_size=8,
    )
)
def test_any_order_gives_the_contents(shelf: Shelf, walks: list[tuple[int, int, int, int]]) -> None:
    for start, count, stride, steps in walks:
        for number in range(start, min(start + count * stride, len(CONTENTS)), stride):
            data = shelf.read(number)
            assert data == (CONTENTS[number] if is_small(number) else None)
            for _ in range(steps):
                shelf.reader.unpack_ahead()
            assert len(shelf.ready) <= CHUNKS and all(len(each) <= CHUNK_BYTES for each in shelf.ready.values())


def test_who_goes_in_order_finds_things_ready(shelf: Shelf) -> None:
    found = []
    for number in filter(is_small, range(len(CONTENTS))):
        before = len(shelf.ready)
        assert shelf.read(number) == CONTENTS[number]
        found.append(len(shelf.ready) < before)
        shelf.reader.unpack_ahead()
        shelf.reader.unpack_ahead()
    assert sum(found) > 0.8 * len(found)


def test_who_does_not_go_in_order_has_nothing_unpacked(shelf: Shelf) -> None:
    for number in filter(is_small, range(len(CONTENTS) - 1, -1, -1)):
        assert shelf.read(number) == CONTENTS[number]
        shelf.reader.unpack_ahead()
        assert not shelf.ready


def test_damage_is_not_unpacked_and_hurts_no_neighbour(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "store")
    victim = next(number for number in range(5, len(CONTENTS)) if len(CONTENTS[number]) == 30_000)
    content = shelf.reader.resolve([shelf.names[victim]], UID)[0]
    assert content is not None
    location = shelf.reader.locate(content.id)
    assert location is not None
    segment = sorted((shelf.path / "segments").iterdir())[0]
    fd = os.open(segment, os.O_RDWR)
    byte = os.pread(fd, 1, location.offset + 100)
    os.pwrite(fd, bytes([byte[0] ^ 1]), location.offset + 100)
    os.close(fd)
    for number in filter(is_small, range(len(CONTENTS))):
        assert shelf.read(number) == (None if number == victim else CONTENTS[number])
        for _ in range(3):
            shelf.reader.unpack_ahead()
        assert content.id not in shelf.ready
    shelf.reader.close()
