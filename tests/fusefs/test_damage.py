"""Damage below a mount: the file that is hurt gives EIO, never wrong bytes; all others read on; the holder lives."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fusefs.helpers import File, Mounted, Node, mixed, mount, open_store, put, put_tree

from millpond.daemon.store.segments import segment_path
from millpond.daemon.store.trees import TreeEntry, build_tree

pytestmark = pytest.mark.fuse

RANDOM = random.Random(7).randbytes(3_000_000)
TREE: dict[bytes, Node] = {
    b"big": File(RANDOM),
    b"compressed": File(mixed(2_000_000, 8)),
    b"small": File(random.Random(9).randbytes(5000)),
    b"folder/fine": File(b"untouched"),
}


def damage_of(path: Path) -> str | None:
    """The name of the errno of reading a file, None when it reads; what it reads must then be right."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    node = TREE[os.fsencode(path.name)] if path.name != "fine" else TREE[b"folder/fine"]
    assert isinstance(node, File) and data == node.data
    return None


def flip(store: Path, needle: bytes) -> None:
    """Change one bit of stored bytes that are found by what they are."""
    for segment in sorted((store / "segments").iterdir()):
        data = segment.read_bytes()
        position = data.find(needle)
        if position >= 0:
            with open(segment, "r+b") as file:
                file.seek(position + len(needle) // 2)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 0x10]))
            return
    raise AssertionError("the bytes are not in the store")


def still_lives(mounted: Mounted) -> None:
    assert damage_of(mounted.place / "folder/fine") is None
    assert mounted.ask()["pid"] == mounted.pid
    assert mounted.guard.poll() is None


def test_a_flipped_bit_hurts_its_chunk_alone(base: Path) -> None:
    store = open_store(base / "store")
    totals = put_tree(store, TREE)
    store.close()
    flip(base / "store", RANDOM[2_000_000:2_000_100])
    with mount(base / "store", totals, base / "m") as mounted:
        assert damage_of(mounted.place / "big") == "EIO"
        with open(mounted.place / "big", "rb") as file:
            assert file.read(200_000) == RANDOM[:200_000]
        assert damage_of(mounted.place / "compressed") is None
        assert damage_of(mounted.place / "small") is None
        assert "damaged" in mounted.stats()["last_error"] and mounted.stats()["errors"] > 0
        name = hashlib.md5(RANDOM, usedforsecurity=False).hexdigest()
        told = [line for line in mounted.log.read_text().splitlines() if "damaged" in line]
        assert told and all(
            re.search(rf"cannot read md5:{name}, \d+ bytes from \d+: chunk [0-9a-f]+ is", line) for line in told
        )
        still_lives(mounted)


def test_a_flipped_bit_of_a_small_file(base: Path) -> None:
    store = open_store(base / "store")
    totals = put_tree(store, TREE)
    store.close()
    small = TREE[b"small"]
    assert isinstance(small, File)
    flip(base / "store", small.data[1000:1100])
    with mount(base / "store", totals, base / "m") as mounted:
        assert damage_of(mounted.place / "small") == "EIO"
        assert damage_of(mounted.place / "big") is None
        still_lives(mounted)


@pytest.mark.parametrize(
    "hurt",
    [
        lambda path: path.unlink(),
        lambda path: os.truncate(path, 100_000),
        lambda path: path.write_bytes(b"\0" * 500_000),
    ],
    ids=["gone", "cut", "zeroed"],
)
def test_a_segment_that_is_no_longer_whole(base: Path, hurt: Callable[[Path], object]) -> None:
    store = open_store(base / "store")
    fine = put(store, [b"untouched"])[0]
    store.close()
    store = open_store(base / "store")  # a new segment
    names = put(store, [RANDOM])
    entries = [TreeEntry(b"big", len(RANDOM), name=names[0]), TreeEntry(b"folder/fine", 9, name=fine)]
    totals = build_tree(store, entries)
    store.close()
    hurt(segment_path(base / "store/segments", 2))
    with mount(base / "store", totals, base / "m") as mounted:
        assert damage_of(mounted.place / "big") == "EIO"
        still_lives(mounted)


def test_a_segment_hurt_while_it_is_read(base: Path) -> None:
    store = open_store(base / "store")
    totals = put_tree(store, TREE)
    store.close()
    with mount(base / "store", totals, base / "m") as mounted:
        fd = os.open(mounted.place / "big", os.O_RDONLY)
        try:
            assert os.pread(fd, 4096, 0) == RANDOM[:4096]
            assert damage_of(mounted.place / "folder/fine") is None
            os.truncate(segment_path(base / "store/segments", 1), 64)
            with pytest.raises(OSError) as refused:
                os.pread(fd, 4096, 2_900_000)
            assert refused.value.errno == errno.EIO
            assert os.pread(fd, 4096, 0) == RANDOM[:4096]  # from the kernel's pages
        finally:
            os.close(fd)
        still_lives(mounted)


def test_a_folder_that_is_not_in_the_index(base: Path) -> None:
    """After a rebuild of the index the folders of old mounts are gone."""
    store = open_store(base / "store")
    names = put(store, [b"untouched"])
    entries = [TreeEntry(b"folder/fine", 9, name=names[0]), TreeEntry(b"lost", folder=bytes(range(32)))]
    totals = build_tree(store, entries)
    store.close()
    with mount(base / "store", totals, base / "m") as mounted:
        assert (mounted.place / "lost").is_dir()
        for touch in (lambda: os.listdir(mounted.place / "lost"), lambda: os.stat(mounted.place / "lost/x")):
            with pytest.raises(OSError) as refused:
                touch()
            assert refused.value.errno == errno.EIO
        assert "not in the index" in mounted.stats()["last_error"]
        still_lives(mounted)


def test_an_inode_that_is_not_in_the_index(base: Path) -> None:
    store = open_store(base / "store")
    totals = put_tree(store, TREE)

    with store.reader.index.begin() as txn, txn.cursor(db=store.reader.index.inodes) as cursor:
        keys = [bytes(key) for key in cursor.iternext(keys=True, values=False)]
    store.write(lambda txn: [txn.delete(key, db=store.reader.index.inodes) for key in keys])
    store.close()
    with mount(base / "store", totals, base / "m") as mounted:
        assert sorted(os.listdir(mounted.place)) == ["big", "compressed", "folder", "small"]
        with pytest.raises(OSError) as refused:
            (mounted.place / "small").read_bytes()
        assert refused.value.errno == errno.ESTALE
        assert mounted.ask()["pid"] == mounted.pid


def test_a_size_that_is_not_the_contents(base: Path) -> None:
    """A listing whose sizes are a claim: what is longer or shorter is refused, not cut or filled with zeros."""
    store = open_store(base / "store")
    names = put(store, [b"untouched", b"ten bytes.", RANDOM])
    entries = [
        TreeEntry(b"folder/fine", 9, name=names[0]),
        TreeEntry(b"long", 100, name=names[1]),
        TreeEntry(b"short", 4, name=names[1]),
        TreeEntry(b"short-large", 1 << 20, name=names[2]),
    ]
    totals = build_tree(store, entries)
    store.close()
    with mount(base / "store", totals, base / "m") as mounted:
        for name in ("long", "short", "short-large"):
            with pytest.raises(OSError) as refused:
                (mounted.place / name).read_bytes()
            assert refused.value.errno == errno.EIO
        still_lives(mounted)
