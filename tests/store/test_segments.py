"""What is appended, while other things happen to the same segment and to the disk: beside test_faults.py, by the writer alone."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest
from tests.store.helpers import (
    UID,
    FailingSyncs,
    FaultyFiles,
    lose_index,
    put,
    sample,
    settings,
    until,
)

from millpond.daemon.errors import DiskFullError, StoreDamagedError
from millpond.daemon.store import records, segments
from millpond.daemon.store.files import Files
from millpond.daemon.store.records import Kind
from millpond.daemon.store.segments import Encoded, SegmentLost, SegmentWriter
from millpond.daemon.store.store import Store


class CountingFiles(Files):
    """Counts what is taken ahead."""

    def __init__(self) -> None:
        self.taken = 0

    def take_room(self, fd: int, offset: int, size: int) -> None:
        self.taken += 1
        super().take_room(fd, offset, size)


class Between:
    """A lock behind whose n-th release something else has its turn, once."""

    def __init__(self, number: int, turn: Sequence[object]) -> None:
        self._lock = threading.Lock()
        self._left = number
        self._turn = turn

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)
        self._left -= 1
        if self._left == 0:
            for each in self._turn:
                assert callable(each)
                each()


def writer(folder: Path, files: Files, *, limit: int = 64 << 20) -> SegmentWriter:
    folder.mkdir(exist_ok=True)
    return SegmentWriter(folder, files, uuid=bytes(16), segment_bytes=limit, reserve=0, mode=0o600)


def record(size: int) -> Encoded:
    data = os.urandom(size)
    record_id = records.content_id(data)
    return Encoded(Kind.CHUNK, record_id, size, records.encode(Kind.CHUNK, record_id, data, 0))


@pytest.mark.parametrize("number", range(1, 7))
def test_a_write_fails_at_any_moment_of_a_sync(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The segment is closed and cut under the sync, or kept until that is done: it is never asked for by a descriptor that is gone, nor made
    longer again."""
    monkeypatch.setattr(segments, "_BEGIN_BYTES", 1 << 16)
    monkeypatch.setattr(segments, "_AHEAD_BYTES", 1 << 20)
    files = FaultyFiles(0, for_good=False)
    made = writer(tmp_path / "segments", files)
    made.append([record(100_000)])
    synced = made.sync()
    made.append([record(100_000)])

    def fail() -> None:
        files.fail_from_now(1)
        with pytest.raises(StoreDamagedError, match="Input/output"):
            made.append([record(1000)])
        assert files.failed == "pwritev"

    monkeypatch.setattr(made, "_lock", Between(number, [fail]))
    try:
        found = made.sync()
    except SegmentLost:
        found = synced
    assert found >= synced
    path = segments.segment_path(tmp_path / "segments", synced[0])
    if made.poisoned:
        assert path.stat().st_size in (synced[1], found[1])
    made.close()


def test_small_commits_behind_much_take_no_room_ahead(tmp_path: Path) -> None:
    files = CountingFiles()
    store = Store.open(settings(tmp_path, segment_bytes=64 << 20), files)
    put(store, [os.urandom(20 << 20)])
    before = files.taken
    assert before
    for number in range(20):
        put(store, [sample(number, 1000)])
    assert files.taken == before
    # Much again.
    put(store, [os.urandom(18 << 20)])
    assert files.taken > before
    store.close()


def test_room_that_was_taken_ahead_is_room(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_BEGIN_BYTES", 1 << 20)
    monkeypatch.setattr(segments, "_AHEAD_BYTES", 2 << 20)
    files = CountingFiles()
    made = writer(small_disk / "segments", files)
    for _ in range(20):
        made.append([record(100_000)])
    assert files.taken
    room = os.statvfs(small_disk)
    # Another one takes what is left, but for less than a record.
    with open(small_disk / "other", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - 50_000)
    made._room = 0
    for _ in range(9):
        made.append([record(100_000)])
    with pytest.raises(DiskFullError):
        for _ in range(30):
            made.append([record(100_000)])
    made.sync()
    made.close()


def test_a_note_that_is_refused_because_syncing_ahead_failed_is_in_no_journal(tmp_path: Path) -> None:
    files = FailingSyncs()
    store = Store.open(settings(tmp_path / "s"), files)
    session = store.session(UID)
    files.fails = True
    content = os.urandom(3_500_000)
    session.feed(memoryview(content), [(len(content), True, False)])
    until(lambda: not files.fails)
    with pytest.raises(StoreDamagedError, match=os.strerror(errno.EIO)):
        store.set_limit(1 << 30)
    session.abort()
    put(store, [sample(1, 1000)])
    store.close()
    again = lose_index(tmp_path / "s")
    assert again.limit is None
    again.close()
