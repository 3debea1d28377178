"""Listings: what a manifest names is what its tree holds, in whatever order it comes, and whoever has the objects."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.fusefs.helpers import UID, open_store, put

from millpond.daemon.errors import InvalidFileError, ObjectMissingError
from millpond.daemon.mounts import listing
from millpond.daemon.mounts.sorting import FileRow, RowSorter
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.store.folders import FolderReader
from millpond.daemon.store.store import Store

# Few names, with characters on both sides of the slash, so that the two orders differ.
PARTS = st.text("a-.b \u00e9", min_size=1, max_size=3).filter(lambda part: part not in (".", ".."))
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
PROPERTY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = open_store(tmp_path_factory.mktemp("listing") / "store")
    yield opened
    opened.close()


def content(number: int) -> bytes:
    return b"content %d" % number


def name_of(data: bytes) -> ObjectName:
    return ObjectName("md5", hashlib.md5(data).hexdigest())


def put_manifest(store: Store, rows: list[tuple[str, str]]) -> ObjectName:
    session = store.session(UID)
    text = manifest.serialise(rows)
    stored = session.feed(memoryview(text), [(len(text), True, True)])
    session.commit()
    return stored[0].name


def listed(store: Store, root: bytes, prefix: bytes = b"") -> Iterator[tuple[str, int]]:
    reader = FolderReader(store.reader.index)
    for entry in reader.list(root, 0, 10_000):
        path = prefix + entry.name
        if entry.child is not None:
            yield from listed(store, entry.child, path + b"/")
        else:
            record = reader.inode(entry.inode)
            assert record is not None and record.name is not None
            yield f"{os.fsdecode(path)} {record.name.value}", entry.size


@PROPERTY
@given(st.dictionaries(PATHS, st.integers(0, 30), max_size=25), st.booleans(), st.data())
def test_a_tree_is_its_manifest(store: Store, files: dict[str, int], shuffled: bool, data: st.DataObject) -> None:
    folders = {path[:end] for path in files for end in range(len(path)) if path[end] == "/"}
    assume(not folders & files.keys())
    have = data.draw(st.sets(st.sampled_from(sorted(set(files.values()) or {0}))))
    put(store, [content(number) for number in have])
    paths = data.draw(st.permutations(sorted(files))) if shuffled else sorted(files)
    name = put_manifest(store, [(path, name_of(content(files[path])).value) for path in paths])
    try:
        totals = listing.listing(store, UID, name, None)
    except listing.Unknown as unknown:
        keys = [unknown.keys[start : start + 17] for start in range(0, len(unknown.keys), 17)]
        sizes = {name_of(content(number)).key(): len(content(number)) for number in range(31)}
        totals = listing.listing(store, UID, name, [sizes[key] for key in keys])
    expected = {f"{path} {name_of(content(number)).value}": len(content(number)) for path, number in files.items()}
    assert dict(listed(store, totals.root)) == expected
    assert (totals.files, totals.bytes) == (len(expected), sum(expected.values()))


@given(
    st.lists(st.tuples(PATHS, st.integers(0, 1 << 60), st.binary(min_size=17, max_size=33)), max_size=40),
    st.integers(1, 9),
)
def test_rows_are_sorted_by_parts_on_disk_as_in_memory(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, bytes]], run_rows: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    packed: list[FileRow] = [(os.fsencode(path), size, key) for path, size, key in rows]
    with RowSorter(folder, run_rows) as sorter:
        for row in packed:
            sorter.add(row)
        assert list(sorter.rows()) == sorted(packed, key=lambda row: row[0].split(b"/"))


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ([("a", "0" * 31)], "digest"),
        ([("../a", "0" * 32)], "leaves"),
        ([("a//b", "0" * 32)], "leaves"),
        ([("nul\0", "0" * 32)], "leaves"),
        ([("a", "0" * 32), ("a", "1" * 32)], "twice"),
        ([("a", "0" * 32), ("a/b", "1" * 32)], "file and as a folder"),
    ],
)
def test_a_manifest_that_is_no_tree_is_refused(store: Store, rows: list[tuple[str, str]], wrong: str) -> None:
    with pytest.raises(InvalidFileError, match=wrong):
        listing.listing(store, UID, put_manifest(store, rows), [1] * len(rows))


def test_files_that_nobody_has_are_named(store: Store) -> None:
    name = put_manifest(store, [("first", name_of(b"first").value), ("gone", "e" * 32)])
    with pytest.raises(listing.Unknown) as unknown:
        listing.listing(store, UID, name, None)
    assert len(unknown.value.keys) == 2 * listing.KEY_BYTES
    with pytest.raises(ObjectMissingError, match=r"a file of this version is .*: 'gone'"):
        listing.listing(store, UID, name, [5, listing.UNKNOWN])
    with pytest.raises(ObjectMissingError, match="came and went"):
        listing.listing(store, UID, name, [5])
    put(store, [b"first"])
    with pytest.raises(ObjectMissingError, match="came and went"):
        listing.listing(store, UID, name, [5, 5])


def test_what_is_no_manifest_is_refused(store: Store) -> None:
    session = store.session(UID)
    stored = session.feed(memoryview(b"[{]"), [(3, True, True)])
    session.commit()
    with pytest.raises(InvalidFileError, match="not a manifest"):
        listing.listing(store, UID, stored[0].name, None)
