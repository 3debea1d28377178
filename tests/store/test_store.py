"""The store as its users see it: put, commit, read, deduplicate, grant, refuse."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.store.helpers import SIZES, UID, damage, get, put, sample, settings

from millpond.daemon.errors import BusyError, DiskFullError, StoreDamagedError, StoreFormatError
from millpond.daemon.store.files import Files
from millpond.daemon.store.local import LocalObjectStore
from millpond.daemon.store.segments import segment_path
from millpond.daemon.store.service import gather
from millpond.daemon.store.store import Store


def test_contents_of_every_size_come_back_under_their_md5(tmp_path: Path) -> None:
    contents = [sample(size, size) for size in SIZES]
    store = Store.open(settings(tmp_path / "s"))
    stored = put(store, contents)
    assert [item.name.value for item in stored] == [hashlib.md5(data).hexdigest() for data in contents]
    assert [get(store, item) for item in stored] == contents
    store.close()
    store = Store.open(settings(tmp_path / "s"))
    assert [get(store, item) for item in stored] == contents
    assert store.fsck(deep=True).ok
    store.close()


def test_a_content_may_come_in_any_parts(tmp_path: Path) -> None:
    data = sample(1, 3_000_000)
    store = Store.open(settings(tmp_path / "s"))
    for step in (100_000, 1_000_001, 2_999_999):
        session = store.session(UID)
        found = []
        for start in range(0, len(data), step):
            part = memoryview(data)[start : start + step]
            found += session.feed(part, [(len(part), start + step >= len(data), False)])
        assert [item.name.value for item in found] == [hashlib.md5(data).hexdigest()]
        assert session.commit() == []
        assert get(store, found[0]) == data
    assert store.stats().objects == 1
    store.close()


def test_equal_bytes_are_stored_once(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    data = sample(2, 4_000_000)
    first = put(store, [data])[0]
    edited = data[:2_000_000] + b"!" + data[2_000_000:]
    second = put(store, [data, edited])
    assert second[0].new_bytes == 0
    assert 0 < second[1].new_bytes < first.new_bytes / 2
    assert get(store, second[1]) == edited
    store.close()


def test_what_one_user_stored_another_may_not_read_until_he_brings_it(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    item = put(store, [b"secret"], uid=1)[0]
    assert get(store, item, uid=1) == b"secret"
    assert get(store, item, uid=2) is None
    put(store, [b"secret"], uid=2)
    assert get(store, item, uid=2) == b"secret"
    store.close()


def test_nothing_is_named_before_the_commit_nor_after_an_abort(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    session = store.session(UID)
    item = session.feed(memoryview(b"data"), [(4, True, False)])[0]
    assert get(store, item) is None
    session.abort()
    assert session.commit() == []
    assert get(store, item) is None
    store.close()


def test_many_sessions_commit_together(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s", fsync=True))
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(3):
                data = [sample(number * 10 + turn, 5000), sample(turn, 200_000)]
                assert [get(store, item, number) for item in put(store, data, uid=number)] == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.fsck(deep=True).ok
    store.close()


def test_a_second_daemon_is_refused_by_name(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    with pytest.raises(BusyError, match=f"pid {os.getpid()}"):
        Store.open(settings(tmp_path / "s"))
    store.close()
    Store.open(settings(tmp_path / "s")).close()


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    Store.open(settings(tmp_path / "s")).close()
    path = tmp_path / "s" / "format.json"
    newer = json.loads(path.read_text()) | {"format": 3}
    path.write_text(json.dumps(newer))
    with pytest.raises(StoreFormatError, match="format 3"):
        Store.open(settings(tmp_path / "s"))
    assert json.loads(path.read_text()) == newer
    path.unlink()
    put_before = list((tmp_path / "s" / "segments").iterdir())
    assert put_before == []


def test_a_holder_of_its_own_process_reads_while_the_daemon_writes(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    first = put(store, [b"one"])[0]
    script = (
        "import sys; from pathlib import Path; from millpond.daemon.store.reader import StoreReader\n"
        "from millpond.daemon.names import ObjectName\n"
        f"reader = StoreReader.open(Path({str(tmp_path / 's')!r}))\n"
        "for line in sys.stdin:\n"
        f"    content = reader.resolve([ObjectName('md5', line.strip())], {UID})[0]\n"
        "    print(reader.read_content(content).hex() if content else None, flush=True)\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root / ".src")}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as reader:
        assert reader.stdin is not None and reader.stdout is not None

        def ask(value: str) -> str:
            assert reader.stdin is not None and reader.stdout is not None
            reader.stdin.write(value + "\n")
            reader.stdin.flush()
            return reader.stdout.readline().strip()

        assert ask(first.name.value) == b"one".hex()
        # So much that the map must grow, which the reader finds out by itself.
        more = put(store, [os.urandom(40) for _ in range(60_000)])
        assert ask(more[-1].name.value) != "None"
        reader.stdin.close()
    store.close()


@pytest.mark.parametrize("kind", ["chunk", "recipe"])
def test_a_flipped_byte_is_an_error_named_by_fsck_and_mended_by_the_same_bytes(tmp_path: Path, kind: str) -> None:
    store = Store.open(settings(tmp_path / "s"))
    files = {"sub/small.txt": sample(1, 5000), "large.bin": sample(2, 900_000), "other.bin": sample(3, 400_000)}
    stored = dict(zip(files, put(store, list(files.values())), strict=True))
    rows = [{"md5": stored[path].name.value, "relpath": path} for path in sorted(files)]
    manifest = put(store, [json.dumps(rows, sort_keys=True).encode()], is_dir=True)[0]
    victim = "sub/small.txt" if kind == "chunk" else "large.bin"
    location = store.reader.locate(stored[victim].content.id)
    assert location is not None
    store.close()
    with open(segment_path(tmp_path / "s" / "segments", location.segment), "r+b") as file:
        file.seek(location.offset + 60)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    store = Store.open(settings(tmp_path / "s"))
    with pytest.raises(StoreDamagedError):
        get(store, stored[victim])
    assert get(store, stored["other.bin"]) == files["other.bin"]
    report = store.fsck()
    assert not report.ok
    named = [text for damage in report.damaged for text in damage.files]
    assert f"{victim} in {manifest.name.value}" in named
    assert not any("other.bin" in text for text in named)
    repaired = store.fsck(repair=True, source=lambda name: files[victim] if name == stored[victim].name else None)
    assert (repaired.ok, repaired.repaired, repaired.quarantined) == (True, 1, 1)
    assert get(store, stored[victim]) == files[victim]
    assert store.fsck(deep=True).ok
    store.close()
    (tmp_path / "s" / "index" / "data.mdb").unlink()
    store = Store.open(settings(tmp_path / "s"))
    assert {path: get(store, item) for path, item in stored.items()} == files
    store.close()


def test_damage_without_a_source_is_quarantined_and_stays_an_error(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    item = put(store, [sample(1, 5000)])[0]
    location = store.reader.locate(item.content.id)
    assert location is not None
    with open(segment_path(tmp_path / "s" / "segments", location.segment), "r+b") as file:
        file.seek(location.offset + 100)
        file.write(b"????????")
    report = store.fsck(repair=True)
    assert not report.ok and report.quarantined == 1
    with pytest.raises(StoreDamagedError):
        get(store, item)
    put(store, [sample(1, 5000)])
    assert get(store, item) == sample(1, 5000)
    assert store.fsck(deep=True).ok
    store.close()


def test_a_lost_or_damaged_index_is_made_again_from_the_segments(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    contents = [sample(size, size) for size in SIZES]
    stored = put(store, contents, uid=7)
    store.close()
    for how in ("unlink", "garbage"):
        path = tmp_path / "s" / "index" / "data.mdb"
        path.unlink() if how == "unlink" else path.write_bytes(b"garbage" * 2000)
        store = Store.open(settings(tmp_path / "s"))
        assert [get(store, item, 7) for item in stored] == contents
        assert [get(store, item, 8) for item in stored] == [None] * len(contents)
        assert store.fsck(deep=True).ok
        store.close()
    assert any((tmp_path / "s" / "tmp").iterdir()), "the damaged index is kept aside"


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    store = Store.open(settings(small_disk / "s", reserve_bytes=2 << 20, fsync=True))
    kept = put(store, [sample(1, 2_000_000)])[0]
    session = store.session(UID)
    with pytest.raises(DiskFullError):
        for _ in range(100):
            data = os.urandom(1_000_000)
            session.feed(memoryview(data), [(len(data), True, False)])
    session.abort()
    assert get(store, kept) == sample(1, 2_000_000)
    store.close()
    store = Store.open(settings(small_disk / "s", reserve_bytes=2 << 20))
    assert get(store, kept) == sample(1, 2_000_000)
    assert store.fsck(deep=True).ok
    store.close()


def test_a_disk_that_others_fill_is_an_error_and_loses_nothing(small_disk: Path) -> None:
    store = Store.open(settings(small_disk / "s", reserve_bytes=0, fsync=True))
    kept = put(store, [sample(1, 1_000_000)])[0]
    with open(small_disk / "ballast", "wb") as ballast, pytest.raises(OSError):
        while True:
            ballast.write(os.urandom(1 << 20))
    with pytest.raises((DiskFullError, StoreDamagedError)):
        put(store, [os.urandom(3_000_000)])
    assert get(store, kept) == sample(1, 1_000_000)
    (small_disk / "ballast").unlink()
    after = put(store, [sample(9, 500_000)])[0]
    assert get(store, after) == sample(9, 500_000)
    store.close()
    store = Store.open(settings(small_disk / "s", reserve_bytes=0))
    assert [get(store, item) for item in (kept, after)] == [sample(1, 1_000_000), sample(9, 500_000)]
    assert store.fsck(deep=True).ok
    store.close()


def test_the_object_store_protocol_over_it(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    objects = LocalObjectStore(store, UID)
    paths = []
    for size in SIZES:
        path = tmp_path / f"f{size}"
        path.write_bytes(sample(size, size))
        paths.append(str(path))
    told: list[tuple[int, int]] = []
    puts = list(objects.put_files(paths, tick=lambda files, size: told.append((files, size))))
    assert objects.sizes([item.name for item in puts]) == [None] * len(SIZES)
    objects.commit()
    assert objects.sizes([item.name for item in puts]) == list(SIZES)
    assert told[-1] == (len(SIZES), sum(SIZES))
    assert [objects.read(item.name) for item in puts] == [sample(size, size) for size in SIZES]
    hashed = list(objects.put_files(paths, store=False))
    assert [item.name for item in hashed] == [item.name for item in puts]
    store.close()


def test_chunks_read_together_are_the_same_as_one_by_one(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s", segment_bytes=64 << 20))
    data = [os.urandom(2_000_000), sample(5, 1_000_000), bytes(3_000_000), os.urandom(70_000)]
    stored = put(store, data)
    ids = [
        layout.id(n) for item in stored for layout in [store.reader.layout(item.content)] for n in range(len(layout))
    ]
    for order in (ids, ids[::-1], ids[::2], ids + ids[:3], []):
        one_by_one = [store.reader.read_chunk(each) for each in order]
        assert [bytes(each) for each in store.reader.read_chunks(order)] == one_by_one
        assert [bytes(each) for each in store.reader.read_chunks(order, drop=True)] == one_by_one
    for each in ids:
        found = store.reader.read_chunk_nowait(each, 1 << 20)
        assert found is None or bytes(found) == store.reader.read_chunk(each)
    location = store.reader.locate(ids[1])
    assert location is not None
    damage(tmp_path / "s", location)
    with pytest.raises(StoreDamagedError, match=ids[1].hex()[:16]):
        store.reader.read_chunks(ids)
    assert store.reader.read_chunk_nowait(ids[1], 1 << 20) is None
    store.close()


def test_the_map_grows_under_readers(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s", map_bytes=1 << 18))
    first = put(store, [b"one"])[0]
    stop = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                with store.reader.index.begin() as outer, store.reader.index.begin() as inner:
                    assert outer is inner
                    assert get(store, first) == b"one"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for batch in range(10):
        put(store, [b"%d %d" % (batch, number) for number in range(1000)])
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.reader.index.env.info()["map_size"] > 1 << 18
    assert store.stats().objects == 10_001
    with store.reader.index.begin(), pytest.raises(AssertionError, match="read transaction"):
        store.write(lambda txn: None)
    store.close()


class BegunFiles(Files):
    """Notes which ranges the kernel was told to begin to write."""

    def __init__(self) -> None:
        self.begun: dict[str, list[tuple[int, int]]] = {}

    def begin_writing(self, fd: int, offset: int, size: int) -> None:
        self.begun.setdefault(os.readlink(f"/proc/self/fd/{fd}"), []).append((offset, offset + size))
        super().begin_writing(fd, offset, size)


def test_much_is_on_its_way_to_the_disk_before_the_commit(tmp_path: Path) -> None:
    files = BegunFiles()
    store = Store.open(settings(tmp_path, segment_bytes=40 << 20), files)
    session = store.session(UID)
    data = memoryview(random.Random(11).randbytes(60 << 20))
    for start in range(0, len(data), 4 << 20):
        session.feed(data[start : start + (4 << 20)], [(4 << 20, start + (4 << 20) == len(data), False)])
    assert len(files.begun) == 2
    for ranges in files.begun.values():
        assert ranges[0][0] == 0 and all(end == begin for (_, end), (begin, _) in itertools.pairwise(ranges))
    assert sum(ranges[-1][1] for ranges in files.begun.values()) > len(data) - (33 << 20)
    assert session.commit() == []
    store.close()


def _ahead(folder: Path) -> int:
    """Bytes that segments have on the disk behind their ends."""
    found = [path.stat() for path in (folder / "segments").glob("*.seg")]
    return sum(max(0, each.st_blocks * 512 - each.st_size) for each in found)


def test_room_that_is_taken_ahead_is_given_back(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path, segment_bytes=64 << 20))
    session = store.session(UID)
    data = random.Random(12).randbytes(90 << 20)
    session.feed(memoryview(data), [(len(data), True, False)])
    if _ahead(tmp_path) < 1 << 20:
        pytest.skip("this file system takes none")
    assert session.commit() == []
    assert _ahead(tmp_path) < 1 << 20
    # As a crash would leave it.
    path = max((tmp_path / "segments").glob("*.seg"))
    content = path.read_bytes()
    with path.open("rb+") as file:
        Files().take_room(file.fileno(), len(content), 20 << 20)
    assert _ahead(tmp_path) > 10 << 20
    store.close()
    assert path.read_bytes() == content
    store = Store.open(settings(tmp_path, segment_bytes=64 << 20))
    assert _ahead(tmp_path) < 1 << 20
    assert path.read_bytes() == content
    assert store.fsck(deep=True).ok
    store.close()


@pytest.mark.parametrize("wrong", [-1, 1])
def test_contents_of_another_length_than_the_index_says_are_not_handed_out(tmp_path: Path, wrong: int) -> None:
    """Contents go out back to back: what comes behind such a one would be cut at the wrong place."""
    store = Store.open(settings(tmp_path / "s"))
    names = [item.name for item in put(store, [sample(1, 1000), sample(2, 2000)])]
    first, second = store.resolve(names, UID, 0)
    assert first is not None and second is not None
    data: list[Any] = []
    pieces, following = gather(store.reader, names, [first, second], 0, data.extend)
    assert b"".join(data) == sample(1, 1000) + sample(2, 2000)
    assert [length for _, length, _ in pieces] == [1000, 2000] and following == (2, 0)
    with pytest.raises(StoreDamagedError):
        gather(store.reader, names, [first._replace(size=first.size + wrong), second], 0, data.extend)
    store.close()
