"""Listings: what a manifest names is what its tree holds, in whatever order it comes, and whoever has the objects."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.fusefs.helpers import UID, open_store, put

from millpond.daemon.errors import BusyError, DiskFullError, InvalidFileError, ObjectMissingError, ProtocolError
from millpond.daemon.mounts import listing, sorting
from millpond.daemon.mounts.sorting import FileRow, RowSorter
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.store import inodes
from millpond.daemon.store.folders import FolderReader, Totals
from millpond.daemon.store.store import Store
from millpond.daemon.store.trees import Files

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


def build(
    store: Store,
    name: ObjectName,
    size_of: Callable[[bytes], int] | None = None,
    foretold: Sequence[dict[bytes, int]] = (),
) -> Totals:
    """What a worker gets who brings sizes when he is asked, and tells some before."""
    with contextlib.closing(listing.Building(store, UID, name)) as building:
        answer = building.step()
        for number, part in enumerate(foretold if isinstance(answer, bytes) else ()):
            if number == 1:
                building.catch_up()
            building.foretell(part)
        if foretold and isinstance(answer, bytes):
            answer = building.step(None)
        while isinstance(answer, bytes):
            assert size_of is not None and answer
            building.catch_up()
            keys = [answer[start : start + listing.KEY_BYTES] for start in range(0, len(answer), listing.KEY_BYTES)]
            answer = building.step([size_of(key) for key in keys])
    assert listing.remembered(store, UID, name) == answer
    return answer


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
@given(st.dictionaries(PATHS, st.integers(0, 30), max_size=25), st.booleans(), st.integers(1, 9), st.data())
def test_a_tree_is_its_manifest(
    store: Store, files: dict[str, int], shuffled: bool, batch: int, data: st.DataObject
) -> None:
    """Whatever of the sizes is told before they are asked for; and what is said of objects that the store has is not believed."""
    folders = {path[:end] for path in files for end in range(len(path)) if path[end] == "/"}
    assume(not folders & files.keys())
    have = data.draw(st.sets(st.sampled_from(sorted(set(files.values()) or {0}))))
    put(store, [content(number) for number in have])
    paths = data.draw(st.permutations(sorted(files))) if shuffled else sorted(files)
    name = put_manifest(store, [(path, name_of(content(files[path])).value) for path in paths])
    sizes = {name_of(content(number)).key(): len(content(number)) for number in range(31)}
    told = data.draw(st.lists(st.dictionaries(st.integers(0, 30), st.integers(0, 5), max_size=9), max_size=3))
    has = {number for number in range(31) if store.reader.sizes([name_of(content(number)).key()], UID)[0] is not None}
    wrong = {number: size if number in has else len(content(number)) for part in told for number, size in part.items()}
    foretold = [{name_of(content(number)).key(): wrong[number] for number in part} for part in told]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "_BATCH", batch)
        patch.setattr(inodes, "MOST_AHEAD", 12)
        patch.setattr(inodes, "_WRITTEN_AHEAD", 3)
        totals = build(store, name, sizes.__getitem__, foretold)
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
            sorter.add_files(Files([row[0]], [row[2]], {row[2]: row[1]}))
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
        build(store, put_manifest(store, rows), lambda key: 1)


def test_files_that_nobody_has_are_named(store: Store) -> None:
    put(store, [b"here"])
    rows = [("first", name_of(b"first").value), ("gone", "e" * 32), ("here", name_of(b"here").value)]
    name = put_manifest(store, rows)
    asked: list[bytes] = []

    def sizes(key: bytes) -> int:
        asked.append(key)
        return listing.UNKNOWN if key == ObjectName("md5", "e" * 32).key() else 5

    with pytest.raises(ObjectMissingError, match=r"a file of this version is .*: 'gone'"):
        build(store, name, sizes)
    assert asked == [ObjectName("md5", digest).key() for _, digest in rows[:2]]
    assert listing.remembered(store, UID, name) is None


def test_what_is_foretold_is_a_claim_and_not_asked_for_again(store: Store) -> None:
    put(store, [b"known"])
    rows = [("a", "a1" * 16), ("b", "b1" * 16), ("known", name_of(b"known").value)]
    name = put_manifest(store, rows)
    keys = [ObjectName("md5", digest).key() for _, digest in rows]
    building = listing.Building(store, UID, name)
    assert building.step() == keys[0] + keys[1]
    building.foretell({keys[1]: 8, keys[2]: 99})
    assert building.step(None) == keys[0], "what nobody told"
    totals = building.step([7])
    assert isinstance(totals, Totals) and totals.bytes == 7 + 8 + len(b"known")
    assert FolderReader(store.reader.index).is_claimed(UID, name)


def test_a_disk_that_is_full_while_sizes_are_foretold_is_told_by_the_next_step(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(work: object) -> Future[None]:
        failed = Future[None]()
        failed.set_exception(DiskFullError("the disk is full"))
        return failed

    monkeypatch.setattr(inodes, "_WRITTEN_AHEAD", 1)
    key = ObjectName("md5", "f1" * 16).key()
    building = listing.Building(store, UID, put_manifest(store, [("a", "f1" * 16)]))
    assert building.step() == key
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_behind", full)
        building.foretell({key: 1})
    with pytest.raises(DiskFullError):
        building.step(None)


@pytest.mark.parametrize("sizes", [[], [1, 2]])
def test_sizes_that_were_not_asked_for_are_refused(store: Store, sizes: list[int]) -> None:
    building = listing.Building(store, UID, put_manifest(store, [("gone", "d" * 32)]))
    assert building.step() == ObjectName("md5", "d" * 32).key()
    with pytest.raises(ProtocolError, match="sizes were sent for 1"):
        building.step(sizes)


def test_what_fails_between_steps_is_told_by_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that a tree that was broken off leaves nothing that a mount would take for whole."""
    monkeypatch.setattr(listing, "_BATCH", 1)
    # What is read at once is all but the last entry.
    name = put_manifest(store, [("a", "1" * 32), ("a", "2" * 32), ("b", "3" * 32)])
    building = listing.Building(store, UID, name)
    building.step()
    building.catch_up()
    building.step([1, 1])
    building.catch_up()
    with pytest.raises(InvalidFileError, match="twice"):
        building.step([1])
    assert listing.remembered(store, UID, name) is None


def test_a_tree_that_lost_its_place_is_not_made_of_what_is_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_BATCH", 1)
    name = put_manifest(store, [(f"lost-{number}", f"{number}" * 32) for number in range(4)])
    building = listing.Building(store, UID, name)
    building.step()
    building.catch_up()
    building.close()
    with pytest.raises(BusyError):
        building.step([1])
    assert listing.remembered(store, UID, name) is None


def test_what_is_no_manifest_is_refused(store: Store) -> None:
    session = store.session(UID)
    stored = session.feed(memoryview(b"[{]"), [(3, True, True)])
    session.commit()
    with pytest.raises(InvalidFileError, match="not a manifest"):
        build(store, stored[0].name)


def test_a_full_disk_while_paths_are_sorted_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    name = put_manifest(store, [("b", "4" * 32), ("a", "5" * 32)])
    monkeypatch.setattr(sorting, "RUN_ROWS", 1)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: open("/dev/full", "r+b"))  # noqa: SIM115
    with pytest.raises(DiskFullError):
        build(store, name, lambda key: 1)
    monkeypatch.undo()
    assert [path for path, _ in listed(store, build(store, name, lambda key: 1).root)] == [
        "a " + "5" * 32,
        "b " + "4" * 32,
    ]


# A process that builds a tree, writing after each step, and is killed in the middle of it.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.fusefs.helpers import UID, open_store
from tests.mounts.test_listing import many, put_manifest
from millpond.daemon.mounts import listing, sorting
from millpond.daemon.store import inodes, trees

trees._INODES = trees._BLOBS = listing._BATCH = inodes._WRITTEN_AHEAD = 1
store = open_store(Path(sys.argv[1]))
building = listing.Building(store, UID, put_manifest(store, many()))
answer = building.step()
if sys.argv[3:]:
    keys = [answer[start : start + listing.KEY_BYTES] for start in range(0, len(answer), listing.KEY_BYTES)]
    building.foretell(dict.fromkeys(keys, 1))
for _ in range(int(sys.argv[2])):
    building.catch_up()
    answer = building.step([1] * (len(answer) // listing.KEY_BYTES))
os.kill(os.getpid(), signal.SIGKILL)
"""


def many() -> list[tuple[str, str]]:
    """A manifest of several chunks, in folders of 100."""
    rows = [(f"{number // 100:03d}/{number:06d}", name_of(content(number)).value) for number in range(20_000)]
    return sorted(rows)


@pytest.mark.parametrize("steps", ["0", "0 foretold", "1", "3"])
def test_a_tree_that_a_kill_broke_off_is_made_by_the_next_try(tmp_path: Path, steps: str) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "store"), *steps.split()]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ran = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr.decode()
    roots = []
    for place in ("store", "untouched"):
        store = open_store(tmp_path / place)
        try:
            name = put_manifest(store, many())
            assert listing.remembered(store, UID, name) is None
            totals = build(store, name, lambda key: 1)
            assert dict(listed(store, totals.root)) == {f"{path} {digest}": 1 for path, digest in many()}
            roots.append(totals)
        finally:
            store.close()
    assert roots[0] == roots[1]
