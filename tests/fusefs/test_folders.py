"""Folders in the index: any tree goes in and comes out, equal folders are one, what cannot be a path is refused."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fusefs.helpers import open_store

from millpond.daemon.errors import StoreDamagedError, TargetError
from millpond.daemon.names import ObjectName
from millpond.daemon.store import inodes
from millpond.daemon.store.folders import (
    FILE,
    FILE_INODE_BIT,
    FOLDER,
    LINK,
    Entry,
    FolderCache,
    FolderReader,
    Totals,
    forget_claimed,
    save_listing,
)
from millpond.daemon.store.store import Store
from millpond.daemon.store.trees import Files, OutOfOrder, TreeBuilder, TreeEntry, build_tree, sorted_paths

ALGORITHMS = st.sampled_from([("md5", 32), ("md5-dos2unix", 32), ("git-sha1", 40), ("git-sha256", 64)])
NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: not set(name) & {0, ord("/")} and name not in (b".", b"..")
)
# Few of them, so that they meet in the same folders.
PARTS = st.one_of(st.sampled_from([b"a", b"b", b"a.", b"a\xff", b"A"]), NAMES)
PATHS = st.lists(PARTS, min_size=1, max_size=4).map(b"/".join)


@st.composite
def object_names(draw: st.DrawFn) -> ObjectName:
    algo, length = draw(ALGORITHMS)
    return ObjectName(algo, hashlib.sha256(b"%d" % draw(st.integers(0, 20))).hexdigest()[:length])


@st.composite
def trees(draw: st.DrawFn) -> list[TreeEntry]:
    """Entries of a tree in which no path is both a file and a folder, in the order a builder needs."""
    found: dict[bytes, TreeEntry] = {}
    for path in draw(st.lists(PATHS, max_size=25)):
        parents = [path[:position] for position, byte in enumerate(path) if byte == ord("/")]
        if any(parent in found for parent in parents) or any(other.startswith(path + b"/") for other in found):
            continue
        if draw(st.booleans()):
            size, executable = draw(st.integers(0, 1 << 62)), draw(st.booleans())
            found[path] = TreeEntry(path, size, executable, draw(object_names()))
        else:
            found[path] = TreeEntry(path, target=draw(st.binary(min_size=1, max_size=40)))
    return [found[path] for path in sorted_paths(found)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = open_store(tmp_path_factory.mktemp("folders") / "store")
    yield opened
    opened.close()


def walk(reader: FolderReader, folder: bytes, prefix: bytes = b"") -> Iterator[tuple[bytes, Entry]]:
    """All that is not a folder below a folder, page by page."""
    start = 0
    while page := reader.list(folder, start, 3):
        for entry in page:
            if entry.child is not None:
                yield from walk(reader, entry.child, prefix + entry.name + b"/")
            else:
                yield prefix + entry.name, entry
        start += len(page)
    assert start == reader.count(folder)


PROPERTY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PROPERTY
@given(trees())
def test_a_tree_goes_in_and_comes_out(store: Store, tree: list[TreeEntry]) -> None:
    totals = build_tree(store, tree)
    reader = FolderReader(store.reader.index)
    found = dict(walk(reader, totals.root))
    assert sorted(found) == sorted(entry.path for entry in tree)
    for wanted in tree:
        entry = found[wanted.path]
        assert reader.walk_path(totals.root, wanted.path) == entry
        record = reader.inode(entry.inode)
        assert record is not None and entry.inode & FILE_INODE_BIT
        if wanted.target is not None:
            assert (entry.type, entry.size, record.target) == (LINK, len(wanted.target), wanted.target)
        else:
            assert (entry.type, entry.size, entry.executable) == (FILE, wanted.size, wanted.executable)
            assert (record.name, record.size, record.executable) == (wanted.name, wanted.size, wanted.executable)
    assert totals.files == len(tree)
    assert totals.bytes == sum(entry.size if entry.target is None else len(entry.target) for entry in tree)


@PROPERTY
@given(trees(), PATHS)
def test_what_is_not_there_is_not_found(store: Store, tree: list[TreeEntry], path: bytes) -> None:
    totals = build_tree(store, tree)
    reader = FolderReader(store.reader.index)
    there = {entry.path for entry in tree}
    parents = {each[:position] for each in there for position, byte in enumerate(each) if byte == ord("/")}
    found = reader.walk_path(totals.root, path)
    assert (found is not None) == (path in there | parents)
    assert (found is not None and found.type == FOLDER) == (path in parents)


@PROPERTY
@given(st.lists(trees(), min_size=1, max_size=3), st.integers(4, 40), st.data())
def test_a_cache_of_folders_finds_what_the_index_has(
    store: Store, made: list[list[TreeEntry]], max_entries: int, data: st.DataObject
) -> None:
    reader = FolderReader(store.reader.index)
    cache = FolderCache(reader, max_entries)
    roots = [build_tree(store, tree).root for tree in made]
    names = sorted({part for tree in made for entry in tree for part in entry.path.split(b"/")} | {b"none"})
    looks = data.draw(st.lists(st.tuples(st.sampled_from(roots), st.sampled_from(names)), max_size=60))
    for folder, name in looks:
        found = cache.lookup(folder, name)
        assert found == reader.lookup(folder, name)
        if found is not None and found.child is not None:
            roots.append(found.child)
        assert cache.entries <= max_entries


@PROPERTY
@given(trees())
def test_the_same_tree_is_the_same_folder_and_a_part_of_it_too(store: Store, tree: list[TreeEntry]) -> None:
    reader = FolderReader(store.reader.index)
    root = build_tree(store, tree).root
    assert build_tree(store, tree).root == root
    below = [TreeEntry(b"up/" + entry.path, entry.size, entry.executable, entry.name, entry.target) for entry in tree]
    up = reader.walk_path(build_tree(store, below).root, b"up")
    if tree:
        assert up is not None and up.child == root
    prebuilt = reader.walk_path(build_tree(store, [TreeEntry(b"up", folder=root)]).root, b"up")
    assert prebuilt is not None and prebuilt.child == root


def md5(text: str) -> ObjectName:
    return ObjectName("md5", hashlib.md5(text.encode()).hexdigest())


def test_the_blob_is_as_it_is_written_down(store: Store) -> None:
    """Golden: the byte table at the head of folders.py."""
    root = build_tree(store, [TreeEntry(b"dir/x", 3, True, md5("x")), TreeEntry(b"link", target=b"dir/x")]).root
    with store.reader.index.begin() as txn:
        blob = bytes(txn.get(root, db=store.reader.index.folders))
    assert blake3(blob).digest() == root
    assert struct.unpack_from("<4sII", blob) == (b"MPF2", 2, 1)
    rows = [struct.unpack_from("<IHBBQQ", blob, 12 + 24 * number) for number in range(2)]
    inner = build_tree(store, [TreeEntry(b"x", 3, True, md5("x"))]).root
    assert blob[12 + 24 * 2 : 12 + 24 * 2 + 32] == inner and rows[0][5] == 0
    assert [blob[row[0] : row[0] + row[1]] for row in rows] == [b"dir", b"link"]
    assert [row[2] for row in rows] == [2, 3]
    assert rows[1][5] == 5 and rows[0][4] == 0
    value = b"\x02" + struct.pack("<Q", 5) + b"dir/x"
    number = int.from_bytes(blake3(value).digest()[:8], "little") & ((1 << 61) - 1) | 1 << 61
    assert rows[1][4] == number
    assert root.hex() == "cad7fe66ab4e07946e17f73ed9f84e3d0e72af5345e3eba2c0f71c5510979bec"


def test_a_folder_in_another_form_is_as_good_as_none(store: Store) -> None:
    root = build_tree(store, [TreeEntry(b"x", 3, True, md5("x"))]).root
    reader, index = FolderReader(store.reader.index), store.reader.index
    assert reader.has(root)
    store.write(lambda txn: txn.put(root, b"MPF1" + bytes(64), db=index.folders))
    assert not reader.has(root)
    with pytest.raises(StoreDamagedError, match="mount the version again"):
        reader.list(root, 0, 10)


def test_numbers_that_meet_are_moved_on_and_stay(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two inodes with the same hash get two numbers, the same ones at every build."""

    class _Same:
        def __init__(self, data: bytes) -> None:
            self._data = data

        def digest(self, length: int) -> bytes:
            return b"\x05" * length

    monkeypatch.setattr(inodes, "blake3", _Same)
    entries = [TreeEntry(b"%d" % number, number, False, md5(f"met {number}")) for number in range(5)]
    reader = FolderReader(store.reader.index)
    first = reader.list(build_tree(store, entries).root, 0, 10)
    assert len({entry.inode for entry in first}) == 5
    assert reader.list(build_tree(store, entries).root, 0, 10) == first
    for entry, wanted in zip(first, entries, strict=True):
        record = reader.inode(entry.inode)
        assert record is not None and record.name == wanted.name


@pytest.mark.parametrize(
    "paths",
    [
        [b"a", b"a"],
        [b"a", b"a/b"],
        [b"."],
        [b".."],
        [b"a/../b"],
        [b"a/./b"],
        [b""],
        [b"/a"],
        [b"a/"],
        [b"a//b"],
        [b"x" * 256],
        [b"y" * 256 + b"/z"],
        [b"nul\0"],
    ],
)
def test_what_cannot_be_a_path_is_refused(store: Store, paths: list[bytes]) -> None:
    with pytest.raises(TargetError):
        build_tree(store, [TreeEntry(path, 1, name=md5("x")) for path in paths])


@pytest.mark.parametrize("paths", [[b"a/x", b"b", b"a/y"], [b"b", b"a"], [b"a-b/x", b"a/x"]])
def test_paths_must_come_in_the_order_of_their_parts(store: Store, paths: list[bytes]) -> None:
    with pytest.raises(OutOfOrder):
        build_tree(store, [TreeEntry(path, 1, name=md5("x")) for path in paths])


def test_a_folder_that_is_not_there_is_damage(store: Store) -> None:
    reader = FolderReader(store.reader.index)
    with pytest.raises(StoreDamagedError):
        reader.lookup(bytes(32), b"x")
    with pytest.raises(StoreDamagedError):
        reader.list(bytes(32), 0, 1)
    assert not reader.has(bytes(32))
    assert reader.inode(FILE_INODE_BIT) is None


def test_a_large_folder_is_built_in_batches_and_found(store: Store) -> None:
    count = 50_000
    entries = (TreeEntry(b"%06d" % number, number, number % 2 == 0, md5(f"large {number}")) for number in range(count))
    totals = build_tree(store, entries)
    reader = FolderReader(store.reader.index)
    assert (totals.files, totals.bytes) == (count, count * (count - 1) // 2)
    assert reader.count(totals.root) == count
    for number in (0, 1, 24_999, 49_999):
        entry = reader.lookup(totals.root, b"%06d" % number)
        assert entry is not None and (entry.size, entry.executable) == (number, number % 2 == 0)
        record = reader.inode(entry.inode)
        assert record is not None and record.name == md5(f"large {number}")
    assert reader.lookup(totals.root, b"050000") is None


def test_totals_count_folders_built_before(store: Store) -> None:
    inner = build_tree(store, [TreeEntry(b"d/y", 7, name=md5("y")), TreeEntry(b"x", 5, name=md5("x"))])
    builder = TreeBuilder(store)
    builder.add(TreeEntry(b"a", 1, name=md5("a")))
    builder.add(TreeEntry(b"in/ner", folder=inner.root), inner)
    totals = builder.finish()
    assert (totals.files, totals.bytes) == (3, 13)


def test_listings_are_each_users_own(store: Store) -> None:
    totals = build_tree(store, [TreeEntry(b"x", 5, name=md5("x"))])
    name = ObjectName("md5", "ab" * 16 + ".dir")
    save_listing(store, 1000, name, totals, claimed=False)
    reader = FolderReader(store.reader.index)
    assert reader.listing(1000, name) == totals
    assert reader.listing(1001, name) is None


def test_listings_with_sizes_that_were_claimed_are_forgotten_alone(store: Store) -> None:
    totals = build_tree(store, [TreeEntry(b"x", 5, name=md5("x"))])
    names = [ObjectName("md5", f"{number:032x}.dir") for number in range(1, 7)]
    for number, name in enumerate(names):
        save_listing(store, 2000 if number < 4 else 2001, name, totals, claimed=number % 2 == 0)
    reader = FolderReader(store.reader.index)
    assert forget_claimed(store, 2000) == 2 and forget_claimed(store, 2000) == 0
    left = [reader.listing(2000 if number < 4 else 2001, name) for number, name in enumerate(names)]
    assert left == [None, totals, None, totals, totals, totals]
    assert [reader.is_claimed(2001, name) for name in names[4:]] == [True, False]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(PATHS, st.integers(0, 9), max_size=30), st.integers(1, 9), st.booleans(), st.integers(0, 1 << 40)
)
def test_many_files_at_once_make_the_tree_that_one_by_one_make(
    store: Store, paths: dict[bytes, int], batch: int, collide: bool, salt: int
) -> None:
    """Any paths, those that clash too: then both ways say so in the same words."""
    keys = [md5(f"{salt} {number}").key() for number in range(10)]
    sizes = {key: len(key) + number for number, key in enumerate(keys)}
    ordered = list(sorted_paths(paths))

    def together() -> Totals:
        builder = TreeBuilder(store)
        for start in range(0, len(ordered), batch):
            part = ordered[start : start + batch]
            used = [keys[paths[path]] for path in part]
            builder.add_files(Files(part, used, {key: sizes[key] for key in used}))
        return builder.finish()

    def one_by_one() -> Totals:
        entries = (TreeEntry(path, sizes[keys[paths[path]]], False, name_at(paths[path])) for path in ordered)
        return build_tree(store, entries)

    def name_at(number: int) -> ObjectName:
        return ObjectName.from_key(keys[number])

    def outcome(build: Callable[[], Totals]) -> Totals | str:
        try:
            return build()
        except TargetError as error:
            return error.message

    with pytest.MonkeyPatch.context() as patch:
        if collide:
            number = FILE_INODE_BIT | (salt & 0xFFFF) << 40
            patch.setattr(inodes, "_hashed", lambda values: [number | len(value) for value in values])
        first = outcome(together)
        assert first == outcome(one_by_one)
    if isinstance(first, Totals):
        reader = FolderReader(store.reader.index)
        for path, number in paths.items():
            entry = reader.walk_path(first.root, path)
            assert entry is not None and entry.size == sizes[keys[number]]
            record = reader.inode(entry.inode)
            assert record is not None and record.name == name_at(number)
