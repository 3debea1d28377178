"""What a filler of an image brings: every byte what the image holds, in whole blocks, and nothing that is damaged or another's."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from tests.fusefs.helpers import UID, File, Node, open_store, put_tree, sample_tree
from tests.fusefs.test_damage import flip

from millpond.daemon.jobs import process
from millpond.daemon.store.folders import FolderReader
from millpond.daemon.store.reader import StoreReader
from millpond.fusefs.engines.protocol import NOTIFY_STORE, STORE_HEAD
from millpond.fusefs.filling import messages
from millpond.fusefs.filling.filler import FillerSettings
from millpond.fusefs.filling.starting import Forked
from millpond.fusefs.filling.tally import Tally
from millpond.fusefs.filling.windowfeed import MOST_WAITING, WindowFeed
from millpond.fusefs.filling.windows import LARGEST, Windows
from millpond.fusefs.image.format import BLOCK, IMAGE_INODE, INODES
from millpond.fusefs.image.image import Image
from millpond.fusefs.image.shape import Shapes
from millpond.fusefs.image.space import ROOT, Space

WINDOW = 256


class Looked:
    """The image of a stored tree, all of whose directories were looked into; `space_fd` is its memory, `data` where each directory's data lies."""

    def __init__(self, reader: StoreReader, root: bytes) -> None:
        self.reader = reader
        self.folders = FolderReader(reader.index)
        self.space_fd = Space.create()
        space = Space(self.space_fd)
        space.begin(root)
        image = Image(self.folders, space, uid=UID, gid=UID, closed=True)
        shapes = Shapes(self.folders)
        image.read(BLOCK, BLOCK)
        self.data: list[range] = []
        # What each block of a file holds: the file's inode and where in it.
        self.expected: dict[int, tuple[int, int]] = {}
        todo = [ROOT]
        while todo:
            record = todo.pop()
            shape = shapes.measured(space.folder(record))
            image.read(space.names(record, shape.name_blocks) * BLOCK, shape.name_blocks * BLOCK)
            blocks = -(-shape.count // INODES)
            image.read(space.inodes(record, shape.count) * BLOCK, blocks * BLOCK)
            if shape.folders:
                first = space.children(record, shape.folders)
                todo += range(first, first + shape.folders)
            if shape.data_blocks:
                begin = space.data_place(record)
                self.data.append(range(begin, begin + shape.data_blocks))
                self._expect(record, space, shape.starts, begin)

    def _expect(self, record: int, space: Space, starts: Sequence[int], begin: int) -> None:
        for number, entry in enumerate(self.folders.list(space.folder(record), 0, 1 << 20)):
            for at in range(-(-entry.size // BLOCK) if entry.child is None else 0):
                self.expected[begin + starts[number] + at] = entry.inode, at * BLOCK

    def windows(self) -> Iterator[range]:
        """All of them, as readers would have them told."""
        for data in self.data:
            for first in range(data.start // WINDOW * WINDOW, data.stop, WINDOW):
                yield range(max(first, data.start), min(first + WINDOW, data.stop))

    def brought(
        self, path: Path, *, uid: int = UID, windows: list[range] | None = None
    ) -> tuple[dict[int, bytes], Tally]:
        """Blocks that were written to the kernel, each once, and what was counted."""
        tally = Tally()
        filler = Windows(uid, tally)
        filler.wake(self.reader)
        with open(path, "w+b") as device:
            filler.begin(device.fileno(), "", [os.dup(self.space_fd)])
            for window in list(self.windows()) if windows is None else windows:
                filler.hear(messages.WINDOW, messages.window(window)[1:])
                assert filler.is_busy
                filler.step()
            while filler.is_busy:
                filler.step()
            device.seek(0)
            written = device.read()
        return stores(written), tally


def stores(written: bytes) -> dict[int, bytes]:
    """The blocks of notifications, one after the other."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(written):
        length, code, unique, inode, offset, size = STORE_HEAD.unpack_from(written, at)
        assert (code, unique, inode) == (NOTIFY_STORE, 0, IMAGE_INODE)
        assert not offset % BLOCK and not size % BLOCK and size and length == STORE_HEAD.size + size
        begin = at + STORE_HEAD.size
        for step in range(0, size, BLOCK):
            block = (offset + step) // BLOCK
            assert block not in found
            found[block] = written[begin + step : begin + step + BLOCK]
        at += length
    return found


def tree() -> dict[bytes, Node]:
    """With files of one chunk and of several, equal ones, empty ones, links, and such as are too large."""
    rng = random.Random(5)
    found = dict(sample_tree())
    for number in range(400):
        found[b"many/%03d" % number] = File(rng.randbytes(rng.randrange(60_000)))
    found |= {b"twice/%d" % number: File(b"the same" * 900) for number in range(9)}
    found[b"several/half"] = File(rng.randbytes(700_000))
    found[b"several/large"] = File(rng.randbytes(LARGEST + 1))
    return found


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Mapping[bytes, Node], Looked]]:
    base = tmp_path_factory.mktemp("windows")
    nodes = tree()
    store = open_store(base / "store")
    try:
        totals = put_tree(store, nodes)
    finally:
        store.close()
    reader = StoreReader.open(base / "store")
    try:
        yield base / "store", nodes, Looked(reader, totals.root)
    finally:
        reader.close()


def contents_of(looked: Looked, nodes: Mapping[bytes, Node]) -> dict[int, bytes]:
    """What each file of the image should be, by its inode."""
    by_name = {hashlib.md5(node.data).hexdigest(): node.data for node in nodes.values() if isinstance(node, File)}
    records = {inode: looked.folders.inode(inode) for inode, _ in looked.expected.values()}
    return {
        inode: by_name[str(record.name).rpartition(":")[2]]
        for inode, record in records.items()
        if record is not None and record.name is not None
    }


def blocks_of(looked: Looked, contents: Mapping[int, bytes]) -> dict[int, bytes]:
    """The blocks that those of these files have which are brought."""
    return {
        block: contents[inode][at : at + BLOCK].ljust(BLOCK, b"\0")
        for block, (inode, at) in looked.expected.items()
        if inode in contents and len(contents[inode]) <= LARGEST
    }


def test_what_is_brought_is_what_the_image_holds(
    stored: tuple[Path, Mapping[bytes, Node], Looked], tmp_path: Path
) -> None:
    _, nodes, looked = stored
    found, tally = looked.brought(tmp_path / "device")
    wanted = blocks_of(looked, contents_of(looked, nodes))
    assert found == wanted and len(wanted) > 1000
    files = [node for node in nodes.values() if isinstance(node, File) and 0 < len(node.data) <= LARGEST]
    assert tally.counts() == (len(files), len(wanted) * BLOCK)
    assert tally.done == len(list(looked.windows()))


def test_windows_may_come_in_any_order_and_have_any_ends(
    stored: tuple[Path, Mapping[bytes, Node], Looked], tmp_path: Path
) -> None:
    _, nodes, looked = stored
    rng = random.Random(os.getpid())
    windows = []
    for data in looked.data:
        cuts = sorted({data.start, data.stop, *(rng.randrange(data.start, data.stop) for _ in range(5))})
        windows += [range(first, last) for first, last in itertools.pairwise(cuts)]
    rng.shuffle(windows)
    found, _ = looked.brought(tmp_path / "device", windows=windows)
    assert found == blocks_of(looked, contents_of(looked, nodes))


def test_what_is_another_users_is_not_brought(
    stored: tuple[Path, Mapping[bytes, Node], Looked], tmp_path: Path
) -> None:
    _, _, looked = stored
    found, tally = looked.brought(tmp_path / "device", uid=UID + 1)
    assert found == {} and tally.counts() == (0, 0) and tally.done == len(list(looked.windows()))


def test_what_is_damaged_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    nodes = {b"%02d" % number: File(random.Random(number).randbytes(9000 + number)) for number in range(40)}
    nodes |= {b"several%d" % number: File(random.Random(99 + number).randbytes(900_000)) for number in range(2)}
    store = open_store(tmp_path / "store")
    totals = put_tree(store, nodes)
    store.close()
    for name, needle in ((b"07", slice(4000, 4100)), (b"20", slice(10, 90)), (b"several1", slice(500_000, 500_090))):
        flip(tmp_path / "store", nodes.pop(name).data[needle])
    reader = StoreReader.open(tmp_path / "store")
    try:
        looked = Looked(reader, totals.root)
        named = {hashlib.md5(node.data).hexdigest(): node.data for node in nodes.values()}
        records = {inode: looked.folders.inode(inode) for inode, _ in looked.expected.values()}
        contents = {
            inode: named[md5]
            for inode, record in records.items()
            if record is not None and (md5 := str(record.name).rpartition(":")[2]) in named
        }
        found, tally = looked.brought(tmp_path / "device")
        assert found == blocks_of(looked, contents) and tally.counts()[0] == len(nodes)
    finally:
        reader.close()


def test_a_filler_that_falls_asleep_has_nothing_before_it(stored: tuple[Path, Mapping[bytes, Node], Looked]) -> None:
    """Also where no device has come, and whatever it was told: else the holder would tell it nothing any more."""
    _, _, looked = stored
    tally = Tally()
    filler = Windows(UID, tally)
    for _ in range(2):
        before = tally.done
        filler.wake(looked.reader)
        for _ in range(1000):
            filler.hear(messages.WINDOW, messages.window(looked.data[0])[1:])
        assert not filler.is_busy
        filler.sleep()
        assert tally.done == before + 1000


def test_a_directory_that_is_known_is_not_written_again() -> None:
    """Others read the records meanwhile, and what is written is zeros for a moment."""
    fd = Space.create()
    ours, theirs = Space(fd), Space(fd)
    os.close(fd)
    folder = os.urandom(32)
    ours.know(1, folder, 64, 32)
    parent = os.getpid()
    pid = os.fork()
    if not pid:  # by another process, as threads take turns
        try:
            process.die_with(parent, signal.SIGKILL)
            while True:
                ours.know(1, folder, 64, 32)
        finally:
            os._exit(1)
    try:
        for _ in range(300_000):
            assert theirs.folder(1) == folder and theirs.nids(1) == (64, 32)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def forked(sock: socket.socket) -> Forked:
    """As if it were a process: nobody asks."""
    return Forked(FillerSettings("", UID, "", ""), 1, sock, sock, Tally())


def test_no_filler_is_told_more_than_it_can_be_at() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    more, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, more, others:
        first, second = forked(ours), forked(more)
        kept = [first, second]
        feed = WindowFeed(kept)
        assert feed.is_there
        assert sum(feed.tell(range(number, number + 1)) for number in range(200)) == 2 * MOST_WAITING
        assert messages.window_of(theirs.recv(100)[1:]) == range(1) and others.recv(100) == messages.window(range(1, 2))
        for _ in range(3):
            second.tally.finish()
        assert [feed.tell(range(9)) for _ in range(4)] == [True, True, True, False]
        # One is killed: the other goes on; and its successor begins anew.
        first.pid = 0
        assert feed.is_there and not feed.tell(range(9))
        first.pid = 2
        feed.again(first)
        assert feed.tell(range(9))
        kept.clear()
        assert not feed.is_there and not feed.tell(range(9))


def test_what_is_told_who_goes_to_sleep_again_does_not_wait_for_ever(
    stored: tuple[Path, Mapping[bytes, Node], Looked],
) -> None:
    """A holder whose mount is covered by another gives no device."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        kept = forked(ours)
        feed = WindowFeed([kept])
        filler = Windows(UID, kept.tally)
        filler.wake(stored[2].reader)
        while feed.tell(range(WINDOW)):
            filler.hear(messages.WINDOW, theirs.recv(messages.MAX_BYTES)[1:])
            filler.step()
        assert kept.tally.done == 0
        filler.sleep()
        assert kept.tally.done == MOST_WAITING and feed.tell(range(WINDOW))
