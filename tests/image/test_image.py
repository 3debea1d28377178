"""The image of a version, read by a reader that knows the format alone, in any order: what is in it is the tree, and no block ever changes."""

from __future__ import annotations

import errno
import mmap
import os
import random
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fusefs.helpers import UID, open_store, put
from tests.image.erofs import BLOCK, Inode, Reader

from millpond.daemon.names import ObjectName
from millpond.daemon.store.folders import FolderReader, Totals
from millpond.daemon.store.store import Store
from millpond.daemon.store.trees import TreeEntry, build_tree
from millpond.fusefs.attributes import FileError
from millpond.fusefs.image import space
from millpond.fusefs.image.image import Image
from millpond.fusefs.image.space import Space

# Around the ends of blocks, and one that takes more blocks than are left free behind others.
SIZES = (0, 1, 100, 4095, 4096, 4097, 8192, 12_289, 300 * BLOCK + 5)
CONTENTS = [random.Random(size).randbytes(size) for size in SIZES]
OWNER, GROUP = 1234, 4321


class File(NamedTuple):
    """A file of a tree: which of CONTENTS it has."""

    content: int
    executable: bool = False


class Link(NamedTuple):
    """A link, and how many bytes its target has."""

    length: int

    @property
    def target(self) -> bytes:
        return (b"to/" * 1365)[: self.length]


Folder = Mapping[bytes, "File | Link | Folder"]


class Blocks:
    """The blocks of an image, with files' bytes in their places. A block that was seen is the same whenever it is read."""

    def __init__(self, image: Image, store: Store) -> None:
        self._image = image
        self._store = store
        self._folders = FolderReader(store.reader.index)
        self.seen: dict[int, bytes] = {}

    def __call__(self, first: int, count: int) -> bytes:
        parts = []
        for part in self._image.read(first * BLOCK, count * BLOCK):
            if isinstance(part, bytes):
                parts.append(part)
                continue
            record = self._folders.inode(part.inode)
            assert record is not None and record.name is not None and part.size
            [content] = self._store.reader.resolve([record.name], UID)
            assert content is not None
            data = self._store.reader.read_content(content)[part.offset : part.offset + part.size]
            parts.append(data + bytes(part.zeros))
        data = b"".join(parts)
        assert len(data) == count * BLOCK
        for number in range(count):
            block = data[number * BLOCK : (number + 1) * BLOCK]
            assert self.seen.setdefault(first + number, block) == block, f"block {first + number} changed"
        return data


class Stored:
    """A store with all contents, in which trees are built."""

    def __init__(self, path: Path) -> None:
        self.store = open_store(path)
        self._names: list[ObjectName] = put(self.store, CONTENTS)
        self._empty = build_tree(self.store, [])

    def build(self, tree: Folder) -> Totals:
        return build_tree(self.store, sorted(self._entries(b"", tree), key=lambda entry: entry.path.split(b"/")))

    def _entries(self, base: bytes, tree: Folder) -> Iterator[TreeEntry]:
        for name, node in tree.items():
            path = base + name
            if isinstance(node, File):
                yield TreeEntry(path, SIZES[node.content], node.executable, self._names[node.content])
            elif isinstance(node, Link):
                yield TreeEntry(path, target=node.target)
            elif node:
                yield from self._entries(path + b"/", node)
            else:
                yield TreeEntry(path, folder=self._empty.root)

    def blocks(self, totals: Totals) -> Blocks:
        fd = Space.create()
        places = Space(fd)
        os.close(fd)
        places.begin(totals.root)
        image = Image(FolderReader(self.store.reader.index), places, uid=OWNER, gid=GROUP, closed=True)
        image.totals = (totals.files, totals.bytes)
        return Blocks(image, self.store)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    made = Stored(tmp_path_factory.mktemp("image") / "store")
    yield made
    made.store.close()


class Walk:
    """A tree and its image, looked at in the order that chance has."""

    def __init__(self, blocks: Blocks, tree: Folder, chance: random.Random) -> None:
        self._blocks = blocks
        self._chance = chance
        self.reader = Reader(blocks)
        self.visited = 0
        root = self.reader.inode(self.reader.root)
        assert root.mode == stat.S_IFDIR | 0o500
        # What was found but not looked at: an inode, what it should be, and its parent's number.
        self._left: list[tuple[int, Folder | File | Link, int]] = [(root.nid, tree, root.nid)]

    def all(self) -> None:
        while self._left:
            self._left.append(self._left.pop(self._chance.randrange(len(self._left))))
            if self._chance.random() < 0.3:
                self._anywhere()
            nid, node, parent = self._left.pop()
            inode = self.reader.inode(nid)
            assert (inode.uid, inode.gid, inode.links) == (OWNER, GROUP, 1)
            self._look(inode, node, parent)
            self.visited += 1

    def _look(self, inode: Inode, node: Folder | File | Link, parent: int) -> None:
        if isinstance(node, File):
            assert inode.mode == stat.S_IFREG | (0o555 if node.executable else 0o444)
            assert self.reader.data(inode) == CONTENTS[node.content]
        elif isinstance(node, Link):
            assert inode.mode == stat.S_IFLNK | 0o777
            assert self.reader.data(inode) == node.target
        else:
            self._look_into(inode, node, parent)

    def _look_into(self, folder: Inode, tree: Folder, parent: int) -> None:
        assert folder.mode & ~0o055 == stat.S_IFDIR | 0o500 and folder.size and folder.size % BLOCK == 0
        names = {name: (nid, kind) for name, nid, kind in self.reader.names(folder)}
        assert names.pop(b".") == (folder.nid, stat.S_IFDIR)
        assert names.pop(b"..") == (parent, stat.S_IFDIR)
        assert names.keys() == tree.keys()
        for name, node in tree.items():
            nid, kind = names[name]
            assert kind == {File: stat.S_IFREG, Link: stat.S_IFLNK}.get(type(node), stat.S_IFDIR)
            self._left.append((nid, node, folder.nid))
        for name in self._chance.sample(sorted(tree), min(len(tree), 3)):
            found = self.reader.find(folder, name)
            assert found is not None and found.nid == names[name][0]
            assert self.reader.find(folder, name + b"\x01") is None or name + b"\x01" in tree

    def _anywhere(self) -> None:
        """As the kernel reads ahead: what is not anything yet is an error, never bytes that change later."""
        area, size = self._chance.choice(
            [(space.NAMES_BLOCK, 60), (space.DATA_BLOCK, 2000), (space.INODES_BLOCK, 12), (space.INODES_BLOCK - 50, 60)]
        )
        first = area + self._chance.randrange(size)
        try:
            self._blocks(first, self._chance.choice((1, 4, 32, 256)))
        except FileError as error:
            assert error.errno == errno.EIO


STRANGE = [
    b"!",
    b"-",
    b".!",
    b".-",
    b".-x",
    b"...",
    b"..a",
    b".a",
    b"/".replace(b"/", b"0"),
    b"\x01",
    b"\xff",
    b"\xff" * 255,
]
NAMES = st.one_of(
    st.sampled_from(STRANGE),
    st.binary(min_size=1, max_size=255).filter(lambda name: name not in (b".", b"..") and not set(name) & {0, 0x2F}),
)
NODES = st.one_of(
    st.builds(File, st.integers(0, len(SIZES) - 1), st.booleans()), st.builds(Link, st.sampled_from([1, 100, 4095]))
)
TREES = st.recursive(
    NODES, lambda inner: st.dictionaries(NAMES, inner, max_size=20), max_leaves=40
).filter(lambda tree: isinstance(tree, dict))  # fmt: skip


@given(tree=TREES, seed=st.integers(0, 1 << 32))
def test_a_tree_is_found_in_its_image_in_whatever_order(stored: Stored, tree: Folder, seed: int) -> None:
    blocks = stored.blocks(stored.build(tree))
    for each in (seed, seed + 1):  # the second time everything has its place
        walk = Walk(blocks, tree, random.Random(each))
        walk.all()


def numbered(count: int, length: int = 0) -> dict[bytes, File | Link]:
    return {b"%06d" % number + b"x" * max(0, length - 6): File(number % 3) for number in range(count)}


@pytest.mark.parametrize(
    ("count", "length"),
    [(0, 0), (1, 0), (15, 255), (14, 255), (13, 255), (16, 0), (63, 0), (64, 0), (65, 0), (128, 0), (226, 6), (227, 6), (228, 6),
],
)  # fmt: skip
def test_a_folder_of_any_size(stored: Stored, count: int, length: int) -> None:
    """Around what one block has room for, of names and of inodes."""
    tree: Folder = {b"folder": numbered(count, length), b"next": {b"a": File(4), b"b": {b"c": File(2)}}}
    walk = Walk(stored.blocks(stored.build(tree)), tree, random.Random(count))
    walk.all()
    assert walk.visited == count + 6


@pytest.mark.long
def test_a_folder_of_a_hundred_thousand(stored: Stored) -> None:
    count = 100_000
    reader = Reader(stored.blocks(stored.build({b"folder": numbered(count)})))
    folder = reader.find(reader.inode(reader.root), b"folder")
    assert folder is not None
    assert len(reader.names(folder)) == count + 2
    for number in random.Random(1).sample(range(count), 300):
        found = reader.find(folder, b"%06d" % number)
        assert found is not None and reader.data(found) == CONTENTS[number % 3]
    assert reader.find(folder, b"%06d" % count) is None


@pytest.mark.parametrize("length", [1, 2, 3, 100, 254, 255])
def test_names_of_any_length_and_around_the_two_dots(stored: Stored, length: int) -> None:
    fill = {bytes([byte]) * length: File(1) for byte in range(1, 256) if chr(byte) not in "./"}
    tree: Folder = {**fill, **dict.fromkeys(STRANGE, File(2)), b"." * max(length, 3): File(3)}
    Walk(stored.blocks(stored.build(tree)), tree, random.Random(length)).all()


def test_one_folder_at_several_paths_and_a_deep_one(stored: Stored) -> None:
    """Equal folders share all that is stored; each path has inodes of its own, and its own parent."""
    inner: Folder = {b"x": File(6), b"y": {b"z": File(7), b"none": {}}}
    tree: dict[bytes, File | Link | Folder] = {
        b"one": inner,
        b"two": {b"again": inner},
        b"three": inner,
        b"link": Link(4095),
    }
    deep: Folder = {b"bottom": File(3)}
    for number in range(200):
        deep = {b"%d" % number: deep}
    tree[b"deep"] = deep
    walk = Walk(stored.blocks(stored.build(tree)), tree, random.Random(5))
    walk.all()
    assert walk.visited == 1 + 3 * 5 + 1 + 1 + 202


def test_what_is_no_part_of_the_image_is_an_error(stored: Stored) -> None:
    blocks = stored.blocks(stored.build({b"a": File(5)}))
    for block in (space.NAMES_BLOCK, space.DATA_BLOCK, space.INODES_BLOCK, space.INODES_BLOCK - 1, space.END_BLOCK - 1):
        with pytest.raises(FileError):
            blocks(block, 1)
    Walk(blocks, {b"a": File(5)}, random.Random(1)).all()
    for behind in (
        space.NAMES_BLOCK + 1 + space.NAMES_GAP,
        space.DATA_BLOCK + 3 + space.DATA_GAP,
        space.INODES_BLOCK + 1,
    ):
        with pytest.raises(FileError):
            blocks(behind, 1)


@pytest.mark.skipif(
    subprocess.run(["which", "fsck.erofs"], capture_output=True).returncode != 0, reason="needs erofs-utils"
)
def test_the_formats_own_tools_read_it(stored: Stored, tmp_path: Path) -> None:
    """fsck.erofs takes the whole tree out of a copy of the image, of which the blocks are there that belong to something."""
    inner: Folder = {b"x": File(6), b"large": File(8, True), b"to": Link(4095), b"none": {}}
    tree: Folder = {b"a": inner, b"b": {b"a": inner}, **numbered(300), **dict.fromkeys(STRANGE[:8], File(2))}
    totals = stored.build(tree)
    blocks = stored.blocks(totals)
    Walk(blocks, tree, random.Random(3)).all()
    fd = os.memfd_create("image")
    try:
        os.ftruncate(fd, space.IMAGE_BYTES)
        for number, block in blocks.seen.items():
            os.pwrite(fd, block, number * BLOCK)
        place = tmp_path / "out"
        command = ["fsck.erofs", f"--extract={place}", f"/proc/self/fd/{fd}"]
        done = subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 and not done.stderr, done
        subprocess.run(["dump.erofs", "-s", f"/proc/self/fd/{fd}"], pass_fds=[fd], capture_output=True, check=True)
    finally:
        os.close(fd)
    assert same(place, tree) == totals.files + 5


def same(place: Path, tree: Folder) -> int:
    """How many entries a folder and those below it have, all of which are as the tree has them."""
    assert {os.fsencode(name) for name in os.listdir(place)} == tree.keys()
    count = 0
    for name, node in tree.items():
        path = place / os.fsdecode(name)
        if isinstance(node, File):
            assert path.read_bytes() == CONTENTS[node.content]
        elif isinstance(node, Link):
            assert os.fsencode(os.readlink(path)) == node.target
        else:
            count += same(path, node)
        count += 1
    return count


def test_records_are_touched_only_for_what_was_looked_at(stored: Stored) -> None:
    """The table has room for millions; memory is taken for those that somebody asked for."""
    fd = Space.create()
    try:
        places = Space(fd)
        places.begin(bytes(32))
        first = places.children(0, 1_000_000)
        places.know(first + 999_999, bytes(32), 5, 2)
        assert os.fstat(fd).st_blocks * 512 <= 4 * mmap.PAGESIZE
        with pytest.raises(FileError) as refused:
            places.children(first, space.MOST)
        assert refused.value.errno == errno.EMFILE
    finally:
        os.close(fd)
