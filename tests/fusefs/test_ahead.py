"""What is brought of an image ahead of its readers: which ranges, when, and how much; and that readers find it."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fusefs.helpers import UID, File, eventually, mount, open_store, put_tree

from millpond.daemon.store.folders import FolderReader
from millpond.daemon.store.reader import StoreReader
from millpond.fusefs.image.ahead import Ahead
from millpond.fusefs.image.format import BLOCK
from millpond.fusefs.image.image import Image
from millpond.fusefs.image.space import DATA_BLOCK, NAMES_BLOCK, ROOT_NID, Kind, Space

FOLDERS, FILES, SIZE = 20, 64, 20_000
# Of a folder's files, in whole blocks: no more of the windows in which they lie is brought.
FOLDER_BYTES = FILES * 5 * BLOCK
READER = 1


class Looked:
    """An image of a few folders of small files and a large one, all of it looked at; `data` is where each folder's data begins."""

    def __init__(self, reader: StoreReader, root: bytes) -> None:
        fd = Space.create()
        self.space = Space(fd)
        os.close(fd)
        self.space.begin(root)
        self.image = Image(FolderReader(reader.index), self.space, uid=UID, gid=UID, closed=True)
        self.image.read(BLOCK, BLOCK)  # the root's inode; then names give inodes a place, and those data
        names = NAMES_BLOCK
        self.image.read(names * BLOCK, BLOCK)
        inodes = self.space.inodes(0, 1)
        self.image.read(inodes * BLOCK, BLOCK)
        self.data = []
        for record in range(1, FOLDERS + 2):
            self.image.read(self.space.names(record, 1) * BLOCK, BLOCK)
            self.image.read(self.space.inodes(record, 1) * BLOCK, BLOCK)
            self.data.append(self.space.data_place(record))


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Looked]:
    base = tmp_path_factory.mktemp("ahead")
    rng = random.Random(7)
    tree = {b"%d/%03d" % (n, m): File(rng.randbytes(SIZE)) for n in range(FOLDERS) for m in range(FILES)}
    tree[b"large/one"] = File(rng.randbytes(3 << 20))
    store = open_store(base / "store")
    try:
        totals = put_tree(store, tree)
    finally:
        store.close()
    reader = StoreReader.open(base / "store")
    try:
        yield Looked(reader, totals.root)
    finally:
        reader.close()


class Running:
    """`Ahead` with its thread, which reads a file as large as an image in which nothing is."""

    def __init__(self, looked: Looked, base: Path, room: int = 1 << 30) -> None:
        self.ahead = Ahead(looked.image, lambda: room)
        (base / "image").touch()
        os.truncate(base / "image", 1 << 43)
        self._fd = os.open(base / "image", os.O_RDONLY)
        self._thread = threading.Thread(target=self.ahead.run, args=(self._fd,), daemon=True)
        self._thread.start()

    def asked(self, block: int, pid: int = READER) -> None:
        self.ahead.read(pid, block * BLOCK, 4 * BLOCK)

    def settled(self) -> int:
        """Bytes that were brought when all was."""
        before = -1
        while before != self.ahead.brought:
            before = self.ahead.brought
            time.sleep(0.05)
        return before

    def end(self) -> int:
        """The same, and it ends."""
        self.settled()
        self.ahead.end()
        self._thread.join(10)
        assert not self._thread.is_alive()
        os.close(self._fd)
        return self.ahead.brought


def test_who_reads_one_file_of_a_folder_gets_that_alone(looked: Looked, tmp_path: Path) -> None:
    running = Running(looked, tmp_path)
    for data in looked.data[:8]:
        running.asked(data)
    assert running.end() == 0


def test_the_second_file_of_a_folder_brings_its_others(looked: Looked, tmp_path: Path) -> None:
    running = Running(looked, tmp_path)
    running.asked(looked.data[0])
    running.asked(looked.data[0] + 5)
    assert running.end() == FOLDER_BYTES


def test_what_was_brought_is_not_brought_again(looked: Looked, tmp_path: Path) -> None:
    running = Running(looked, tmp_path)
    for number in range(FILES):
        running.asked(looked.data[0] + 5 * number)
    assert running.end() == FOLDER_BYTES


def test_who_reads_many_files_needs_no_second_one(looked: Looked, tmp_path: Path) -> None:
    running = Running(looked, tmp_path)
    for data in looked.data[:17]:
        running.asked(data)
    assert running.end() == FOLDER_BYTES


def test_who_reads_files_in_order_is_left_to_the_kernel(looked: Looked, tmp_path: Path) -> None:
    running = Running(looked, tmp_path)
    for data in looked.data[:6]:
        for number in range(FILES):
            running.asked(data + 5 * number)
    # Two folders until it was known: what is brought is asked for no more, and so tells nothing.
    before = running.settled()
    assert before == 2 * FOLDER_BYTES
    for number in (40, 3, 20, 9):
        running.asked(looked.data[7] + 5 * number)
    assert running.end() > before


def test_its_own_requests_and_large_files_bring_nothing(looked: Looked, tmp_path: Path) -> None:
    running = Running(looked, tmp_path)
    eventually(lambda: running.ahead.is_of(running._thread.native_id or 0), "the thread has begun")
    for number in range(10):
        running.asked(looked.data[0] + 5 * number, pid=running._thread.native_id or 0)
        running.asked(looked.data[FOLDERS] + 32 * number)
    assert running.end() == 0


def test_no_more_than_there_is_room_for(looked: Looked, tmp_path: Path) -> None:
    running = Running(looked, tmp_path, room=1 << 20)
    for data in looked.data[:4]:
        for number in range(4):
            running.asked(data + 5 * number)
    assert 0 < running.end() <= 1 << 20


def test_names_and_inodes_are_brought_as_far_as_places_were_given_out(looked: Looked, tmp_path: Path) -> None:
    running = Running(looked, tmp_path)
    kind, end = looked.image.given(NAMES_BLOCK)
    assert kind is Kind.NAMES and end < DATA_BLOCK
    for _ in range(3):
        running.asked(NAMES_BLOCK)
    assert running.end() == (end - NAMES_BLOCK - 1) * BLOCK
    assert looked.space.nids(0) == (ROOT_NID, ROOT_NID)


@pytest.mark.fuse
@pytest.mark.parametrize("engine", ["erofs"], indirect=True)
def test_readers_find_what_was_brought(base: Path) -> None:
    """Few requests for many files, and every byte right."""
    rng = random.Random(8)
    tree = {b"%d/%03d" % (n, m): File(rng.randbytes(rng.randrange(1, 40_000))) for n in range(8) for m in range(100)}
    store = open_store(base / "store")
    try:
        totals = put_tree(store, tree)
    finally:
        store.close()
    with mount(base / "store", totals, base / "m", fill=1) as mounted:
        order = sorted(tree)
        rng.shuffle(order)
        for path in order:
            node = tree[path]
            assert isinstance(node, File)
            assert Path(os.path.join(os.fsencode(mounted.place), path).decode()).read_bytes() == node.data
        found = mounted.stats()
        assert found["image"] == "cached" and found["filling_why"] == ""
        eventually(lambda: mounted.stats()["filled_bytes"] > 4 << 20, "most of it was brought")
