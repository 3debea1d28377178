"""Many small contents at once, compared with the same contents one by one."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fusefs.helpers import UID, File, Link, Node, open_store, put_tree
from tests.fusefs.test_damage import flip

from millpond.daemon.store import gather
from millpond.daemon.store.folders import FILE, LINK, FolderReader
from millpond.daemon.store.gather import Small
from millpond.daemon.store.reader import StoreReader
from millpond.daemon.store.records import Kind
from millpond.daemon.store.store import Store

# The last ones have several chunks.
SIZES = (1, 63, 64, 4096, 20_000, 65_535, 65_536, 131_072, 300_000, 3 << 20)


def content(number: int) -> bytes:
    """Every second one compresses; a tenth are equal to others."""
    size = SIZES[number % len(SIZES)] + number // 50 % 3
    noise = random.Random(number if number % 7 else 0).randbytes(size)
    return noise if number % 2 else (noise[: size // 2] + bytes(size))[:size]


TREE: dict[bytes, Node] = {b"%03d" % number: File(content(number), number % 5 == 0) for number in range(150)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = open_store(tmp_path / "store")
    try:
        yield found
    finally:
        found.close()


def put_all(store: Store, uid: int = UID) -> dict[bytes, int]:
    """Names of TREE's files, and of a link; their inodes."""
    totals = put_tree(store, {**TREE, b"link": Link(b"000")}, uid)
    entries = FolderReader(store.reader.index).list(totals.root, 0, 1000)
    assert {entry.type for entry in entries} == {FILE, LINK}
    return {entry.name: entry.inode for entry in entries}


def data_of(name: bytes) -> bytes:
    node = TREE[name]
    assert isinstance(node, File)
    return node.data


def got(reader: StoreReader, inodes: list[int]) -> tuple[list[Small], dict[int, bytes | None], set[int]]:
    """What was found, what was read of it, and which are not single chunks."""
    found, others = gather.find(reader, inodes, UID)
    assert found == sorted(found)
    read = {small.inode: None if data is None else bytes(data) for small, data in gather.read(reader, found)}
    assert all(content.kind == Kind.RECIPE for _, content in others)
    return found, read, {inode for inode, _ in others}


def test_all_are_found_and_are_what_was_stored(store: Store) -> None:
    inodes = put_all(store)
    wanted = [*inodes.values(), 12345, (1 << 61) + 7]
    random.Random(1).shuffle(wanted)
    found, read, others = got(store.reader, wanted)
    for name, inode in inodes.items():
        if name == b"link":
            assert inode not in read and inode not in others
        elif inode not in others:
            assert read[inode] == data_of(name)
    assert {len(data_of(name)) for name, inode in inodes.items() if inode in others} >= {3 << 20}
    assert sum(len(data) < 70_000 for data in map(data_of, TREE)) > 60 and len(read) > 60
    assert {small.segment for small in found} <= store.reader.take_used()
    # In any part of them, too, with gaps between.
    part = found[::3]
    assert [data and bytes(data) for _, data in gather.read(store.reader, part)] == [
        read[small.inode] for small in part
    ]


def test_what_another_user_stored_is_not_found(store: Store) -> None:
    inodes = put_all(store, uid=UID + 1)
    assert gather.find(store.reader, list(inodes.values()), UID) == ([], [])
    assert len(gather.find(store.reader, list(inodes.values()), UID + 1)[0]) > 60


def test_what_is_damaged_or_gone_is_none_and_nothing_else(store: Store) -> None:
    inodes = put_all(store)
    found, _, _ = got(store.reader, list(inodes.values()))
    hurt = inodes[b"003"], inodes[b"013"], inodes[b"095"]
    for name in (b"003", b"013", b"095"):
        flip(store.path, data_of(name))
    read = {small.inode: data for small, data in gather.read(store.reader, found)}
    for name, inode in inodes.items():
        if inode in hurt:
            assert read[inode] is None
        elif inode in read:
            assert read[inode] == data_of(name)
    # Where something else lies by now.
    moved = [small._replace(offset=small.offset + 8) for small in found[:20]]
    assert [data for _, data in gather.read(store.reader, moved)] == [None] * 20
    first = next(small for small in found if small.id != found[0].id)
    other = [found[0]._replace(id=first.id), first._replace(size=first.size + 1)]
    assert [data for _, data in gather.read(store.reader, sorted(other))] == [None, None]
    for segment in (store.path / "segments").iterdir():
        os.truncate(segment, 1000)
    assert [data for _, data in gather.read(store.reader, found[-20:])] == [None] * 20
    assert [data for _, data in gather.read(store.reader, [found[0]._replace(segment=99)])] == [None]
