"""Many at once: sessions whose disks fail under each other, crashes between them, a check while others write."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.store.helpers import UID, FaultyFiles, get, put, sample, settings

from millpond.daemon.errors import BusyError, MillpondError, ProtocolError, StoreDamagedError
from millpond.daemon.store.files import Files
from millpond.daemon.store.session import Stored
from millpond.daemon.store.store import Store


def in_threads(*works: Callable[[], None]) -> None:
    """Run all at once; the first failure of any is raised."""
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class HeldFiles(Files):
    """The next write of at least `size` bytes, once armed, waits until it is let go."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.armed = False
        self.waiting, self.go = threading.Event(), threading.Event()

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        if self.armed and sum(map(len, buffers)) >= self.size:
            self.armed = False
            self.waiting.set()
            assert self.go.wait(30)
        return super().pwritev(fd, buffers, offset)


def crash_image(path: Path, name: str) -> Path:
    """What is on disk just now, as a store of its own."""
    copy = path.with_name(name)
    shutil.copytree(path, copy)
    (copy / "lock").unlink()
    return copy


def test_a_commit_beside_a_write_under_way_does_not_hide_it(tmp_path: Path) -> None:
    files = HeldFiles(100_000)
    store = Store.open(settings(tmp_path / "s"), files)
    slow_data = os.urandom(300_000)
    slow = store.session(1)
    files.armed = True

    def feed_slowly() -> None:
        slow.feed(memoryview(slow_data), [(len(slow_data), True, False)])

    images: list[Path] = []
    quick: list[Stored] = []

    def commit_quickly() -> None:
        assert files.waiting.wait(30)
        quick.extend(put(store, [sample(2, 9000)], uid=2))
        assert store.fsck(deep=True).damaged == [], "what is being written is not damage"
        images.append(crash_image(tmp_path / "s", "before"))
        files.go.set()

    in_threads(feed_slowly, commit_quickly)
    images.append(crash_image(tmp_path / "s", "after"))
    store.close()
    for image, known in zip(images, (False, True), strict=True):
        copy = Store.open(settings(image))
        assert copy.fsck(deep=True).damaged == []
        assert get(copy, quick[0], 2) == sample(2, 9000)
        again = put(copy, [slow_data], uid=1)[0]
        assert get(copy, again, 1) == slow_data
        if known:
            assert again.new_bytes < 1000, "chunks written before the crash are found by the next add"
        copy.close()


class FailingOnce(Files):
    """The next operation of one kind fails, once armed."""

    def __init__(self, kind: str) -> None:
        self.armed = False
        self._kind = kind

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        self._fail("pwritev")
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self._fail("fdatasync")

    def _fail(self, kind: str) -> None:
        if self.armed and kind == self._kind:
            self.armed = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_chunks_lost_with_anothers_segment_must_be_brought_again(tmp_path: Path) -> None:
    files = FailingOnce("fdatasync")
    store = Store.open(settings(tmp_path / "s"), files)
    before = put(store, [sample(9, 3000)])[0]
    mine = store.session(1)
    item = mine.feed(memoryview(sample(1, 5000)), [(5000, True, False)])[0]
    files.armed = True
    with pytest.raises(MillpondError):
        put(store, [sample(2, 5000)], uid=2)
    assert mine.commit() == [item.name], "its chunk was in the segment that failed"
    assert get(store, item, 1) is None
    assert get(store, put(store, [sample(1, 5000)], uid=1)[0], 1) == sample(1, 5000)
    assert get(store, before) == sample(9, 3000)
    assert store.fsck(deep=True).damaged == []
    store.close()


FAILURES = [pytest.param(n, marks=() if n % 6 == 1 else pytest.mark.long) for n in range(1, 61)]


@pytest.mark.parametrize("fail_at", FAILURES)
def test_one_failure_under_many_sessions(tmp_path: Path, fail_at: int) -> None:
    """Whoever it hits is told, or told to bring it again; nobody is told that something is kept that is not."""
    files = FaultyFiles(fail_at, for_good=False)
    kept: list[tuple[int, Stored, bytes]] = []
    small = settings(tmp_path / "s", segment_bytes=200_000)
    try:
        store = Store.open(small, files)
    except MillpondError:
        assert files.failed
        store = Store.open(small, files)

    def work(uid: int) -> None:
        for turn in range(4):
            contents = [sample(10 * uid + turn, 60_000 + uid), sample(turn, 30_000), sample(uid, 150_000)]
            session = store.session(uid)
            try:
                stored = session.feed(memoryview(b"".join(contents)), [(len(data), True, False) for data in contents])
                lost = session.commit()
            except MillpondError:
                assert files.failed
                continue
            kept.extend((uid, item, data) for item, data in zip(stored, contents, strict=True) if item.name not in lost)

    in_threads(*[lambda uid=uid: work(uid) for uid in (1, 2, 3)])
    assert len(kept) >= 3 * 4 * 3 - 9 * 3
    for _ in range(2):
        assert [get(store, item, uid) for uid, item, _ in kept] == [data for _, _, data in kept]
        assert store.fsck(deep=True).hurt == []
        store.close()
        store = Store.open(settings(tmp_path / "s"))
    assert store.fsck(deep=True).ok or files.failed == "truncate"
    store.close()


def test_a_check_while_others_write_finds_nothing(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    over = threading.Event()

    def write() -> None:
        try:
            for seed in range(60):
                put(store, [sample(seed, 20_000 + seed), os.urandom(90_000)])
        finally:
            over.set()

    checks = 0

    def check() -> None:
        nonlocal checks
        while not over.is_set():
            assert store.fsck(deep=checks % 2 == 0).damaged == []
            checks += 1

    in_threads(write, check)
    assert checks > 0
    store.close()


def test_a_closing_store_answers_everyone(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path / "s"))
    kept: list[tuple[Stored, bytes]] = []
    begun = threading.Event()

    def write(uid: int) -> None:
        for seed in range(10_000):
            data = sample(seed * 4 + uid, 2000)
            try:
                [item] = put(store, [data])
            except BusyError:
                return
            kept.append((item, data))
            if len(kept) > 20:
                begun.set()

    def close() -> None:
        assert begun.wait(30)
        store.close()

    in_threads(*[lambda uid=uid: write(uid) for uid in range(4)], close)
    with pytest.raises(BusyError):
        store.write(lambda txn: None)
    store.close()
    again = Store.open(settings(tmp_path / "s"))
    assert [get(again, item) for item, _ in kept] == [data for _, data in kept]
    again.close()


def test_a_session_that_failed_takes_no_more(tmp_path: Path) -> None:
    """Part of a content may be lost in it: its digest and its chunks would no longer be of the same bytes."""
    files = FailingOnce("pwritev")
    store = Store.open(settings(tmp_path / "s"), files)
    data = os.urandom(3_000_000)
    session = store.session(UID)
    files.armed = True
    with pytest.raises(StoreDamagedError):
        session.feed(memoryview(data), [(len(data), False, False)])
    with pytest.raises(ProtocolError):
        session.feed(memoryview(b"rest"), [(4, True, False)])
    with pytest.raises(ProtocolError):
        session.commit()
    session.abort()
    assert store.stats().objects == 0
    store.close()
