"""Whatever fails, and whenever: what was acknowledged stays, and the store opens and checks clean."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.stateful as hs
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.store.helpers import UID, FailingSyncs, FaultyFiles, get, put, sample, settings, take_room_early, until

from millpond.daemon.errors import MillpondError, StoreDamagedError
from millpond.daemon.store.segments import segment_numbers, segment_path
from millpond.daemon.store.session import Stored
from millpond.daemon.store.store import Store

# Contents of the scenario below: small ones, one of several chunks, one that is there already.
BATCHES = [[sample(1, 3000), sample(2, 200_000)], [sample(3, 70_000), sample(1, 3000), b""], [sample(4, 1_500_000)]]


def scenario(path: Path, files: FaultyFiles) -> list[tuple[Stored, bytes]]:
    """Three commits over a store that is opened and closed once between; what was acknowledged. Raises at the failure."""
    with pytest.MonkeyPatch.context() as patch:
        take_room_early(patch)
        return _scenario(path, files)


def _scenario(path: Path, files: FaultyFiles) -> list[tuple[Stored, bytes]]:
    kept: list[tuple[Stored, bytes]] = []
    try:
        for batches in (BATCHES[:2], BATCHES[2:]):
            store = Store.open(settings(path), files)
            try:
                for batch in batches:
                    kept.extend(zip(put(store, batch), batch, strict=True))
            finally:
                store.close()
    except (MillpondError, OSError):
        assert files.failed, "nothing was made to fail"
    return kept


def check(path: Path, kept: list[tuple[Stored, bytes]]) -> None:
    """Reopen with a healthy disk: acknowledged contents are whole, the store is clean, and takes the rest again."""
    store = Store.open(settings(path))
    assert [get(store, item) for item, _ in kept] == [data for _, data in kept]
    assert store.fsck(deep=True).damaged == []
    for batch in BATCHES:
        assert [get(store, item) for item in put(store, batch)] == batch
    assert store.fsck(deep=True).ok
    store.close()
    (path / "index" / "data.mdb").unlink()
    store = Store.open(settings(path))
    assert [get(store, item) for item, _ in kept] == [data for _, data in kept]
    store.close()


def operations() -> int:
    """How many operations the scenario takes."""
    with tempfile.TemporaryDirectory() as folder:
        files = FaultyFiles(0)
        assert len(scenario(Path(folder) / "s", files)) == sum(map(len, BATCHES))
        return files.count


TOTAL = operations()


def _sampled(number: int) -> Any:
    """Every third failure in the quick run, all of them in the long one."""
    return pytest.param(number, marks=() if number % 3 == 1 else pytest.mark.long)


@pytest.mark.parametrize("for_good", [True, False], ids=["crash", "once"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("fail_at", [_sampled(n) for n in range(1, TOTAL + 1)])
def test_the_nth_operation_fails(tmp_path: Path, fail_at: int, number: int, for_good: bool) -> None:
    files = FaultyFiles(fail_at, number=number, for_good=for_good)
    kept = scenario(tmp_path / "s", files)
    assert files.failed
    check(tmp_path / "s", kept)


def test_full_segments_are_synced_while_others_are_filled(tmp_path: Path) -> None:
    files, content = FailingSyncs(), random.Random(1).randbytes(6_500_000)
    store = Store.open(settings(tmp_path / "s"), files)
    session = store.session(UID)
    before = files.synced
    session.feed(memoryview(content), [(len(content), True, False)])
    full = len(segment_numbers(tmp_path / "s" / "segments")) - 1
    assert full >= 3
    # The last one may have become full just now, and is no task of a commit's either.
    until(lambda: files.synced - before >= full)
    before = files.synced
    assert session.commit() == []
    assert files.synced - before <= 2
    store.close()


def test_a_sync_that_failed_ahead_is_told_by_the_commit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files, content = FailingSyncs(), random.Random(2).randbytes(3_500_000)
    store = Store.open(settings(tmp_path / "s"), files)
    session = store.session(UID)
    files.fails = True
    session.feed(memoryview(content), [(len(content), True, False)])
    until(lambda: not files.fails)
    with pytest.raises(StoreDamagedError, match="cannot write"):
        session.commit()
    assert "syncing ahead of the commit: cannot write" in caplog.text
    # It is told once, and what was lost is named by nothing.
    assert len(session.commit()) == 1
    (stored,) = put(store, [content])
    assert get(store, stored) == content
    assert store.fsck(deep=True).damaged == []
    store.close()


MANY, MORE = 3000, 150
# What a commit of MORE names behind MANY does: the journal, the sync, three transactions.
STEPS = ("pwritev", "fdatasync", "commit", "commit", "commit")


@pytest.mark.parametrize("for_good", [True, False], ids=["crash", "once"])
@pytest.mark.parametrize("fail_at", range(1, len(STEPS) + 1))
def test_an_operation_fails_in_a_commit_of_many_names(tmp_path: Path, fail_at: int, for_good: bool) -> None:
    """Such a commit is several transactions: whichever fails, nobody was answered, and all can be put again."""
    first = [b"%06d" % number for number in range(MANY)]
    second = [b"more %06d" % number for number in range(MORE)]
    files = FaultyFiles(0, for_good=for_good)
    store = Store.open(settings(tmp_path / "s", threads=1, map_bytes=1 << 24, segment_bytes=1 << 24), files)
    kept = put(store, first)
    session = store.session(UID)
    session.feed(memoryview(b"".join(second)), [(len(data), True, False) for data in second])
    files.fail_from_now(fail_at)
    with pytest.raises(MillpondError):
        session.commit()
    assert files.failed == STEPS[fail_at - 1]
    if for_good:
        crash(store)
        store = Store.open(settings(tmp_path / "s", map_bytes=1 << 24))
    else:
        files.fail_from_now(0)
    assert [get(store, item) for item in kept[::100]] == first[::100]
    assert [get(store, item) for item in put(store, second)] == second
    report = store.fsck(deep=True)
    assert report.ok or not for_good, report
    assert report.damaged == []
    store.close()
    (tmp_path / "s" / "index" / "data.mdb").unlink()
    store = Store.open(settings(tmp_path / "s", map_bytes=1 << 24))
    found = put(store, second)
    assert [get(store, item) for item in found] == second
    assert {item.new_bytes for item in found} == {0}
    store.close()


WRITERS = 3
WRITER = f"""
import sys, threading
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).resolve().parents[2])!r}, {str(Path(__file__).resolve().parents[2] / ".src")!r}]
from tests.store.helpers import put, sample, settings
from millpond.daemon.store import segments
from millpond.daemon.store.store import Store
segments._BEGIN_BYTES, segments._AHEAD_BYTES = 64 << 10, 256 << 10
store = Store.open(settings(Path(sys.argv[1]), fsync=True))
def write(seed):
    while True:
        seeds = [seed * 3 + i for i in range(3)]
        put(store, [sample(s, (s * 7919) % 400_000) for s in seeds])
        sys.stdout.write(f"{{seed}}\\n")
        sys.stdout.flush()
        seed += {WRITERS}
for number in range({WRITERS}):
    threading.Thread(target=write, args=(int(sys.argv[2]) + number,)).start()
threading.Event().wait()
"""


@pytest.mark.parametrize("rounds", [6, pytest.param(60, marks=pytest.mark.long)])
def test_a_writer_killed_at_any_instant_keeps_its_word(tmp_path: Path, rounds: int) -> None:
    rng = random.Random(7)
    acknowledged: set[int] = set()
    for _ in range(rounds):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "s"), str(max(acknowledged, default=-1) + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(rng.randint(1, 9)):
                acknowledged.add(int(process.stdout.readline()))
            os.kill(process.pid, signal.SIGKILL)
            acknowledged.update(int(line) for line in process.stdout.read().split("\n")[:-1])
        store = Store.open(settings(tmp_path / "s"))
        try:
            assert store.fsck(deep=True).damaged == []
            for seed in sorted(acknowledged)[-20:]:
                for each in range(seed * 3, seed * 3 + 3):
                    data = sample(each, (each * 7919) % 400_000)
                    item = put(store, [data])[0]
                    assert item.new_bytes == 0, "it was acknowledged, so it is there"
                    assert get(store, item) == data
        finally:
            store.close()
    assert len(acknowledged) > rounds


def crash(store: Store) -> None:
    """The end of a process as this process can have it: nothing committed or synced, lock and index gone."""
    os.close(store._lock_fd)
    store._lock_fd = -1
    store.reader.close()


@pytest.mark.parametrize("cut", [1, 20, 56, 57, 1000, 20_000])
def test_a_torn_tail_is_cut_off(tmp_path: Path, cut: int) -> None:
    store = Store.open(settings(tmp_path / "s"))
    kept = put(store, [sample(1, 5000)])[0]
    session = store.session(UID)
    session.feed(memoryview(sample(2, 60_000)), [(60_000, True, False)])
    crash(store)
    folder = tmp_path / "s" / "segments"
    path = segment_path(folder, segment_numbers(folder)[-1])
    os.truncate(path, max(path.stat().st_size - cut, 32))
    again = Store.open(settings(tmp_path / "s"))
    assert get(again, kept) == sample(1, 5000)
    assert again.fsck(deep=True).damaged == []
    again.close()


class StoreMachine(hs.RuleBasedStateMachine):
    """The store against a dict, with crashes (nothing closed) and reopening between any two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.path = Path(self.folder.name) / "s"
        self.store = Store.open(settings(self.path))
        self.model: dict[tuple[int, Stored], bytes] = {}

    @hs.rule(
        uid=st.integers(1, 3),
        seeds=st.lists(st.integers(0, 30), min_size=1, max_size=4),
        scale=st.sampled_from([1, 300, 9000]),
    )
    def add(self, uid: int, seeds: list[int], scale: int) -> None:
        contents = [sample(seed, seed * scale) for seed in seeds]
        for item, data in zip(put(self.store, contents, uid), contents, strict=True):
            self.model[uid, item] = data

    @hs.rule(seed=st.integers(31, 40))
    def abort(self, seed: int) -> None:
        session = self.store.session(1)
        data = sample(seed, 100_000)
        session.feed(memoryview(data), [(len(data), True, False)])
        session.abort()

    @hs.rule(kill=st.booleans())
    def reopen(self, kill: bool) -> None:
        if kill:
            crash(self.store)
        else:
            self.store.close()
        self.store = Store.open(settings(self.path))

    @hs.rule()
    def lose_the_index(self) -> None:
        self.store.close()
        (self.path / "index" / "data.mdb").unlink()
        self.store = Store.open(settings(self.path))

    @hs.rule()
    def check(self) -> None:
        assert self.store.fsck(deep=True).ok

    @hs.invariant()
    def reads_are_as_the_model_says(self) -> None:
        for (uid, item), data in self.model.items():
            assert get(self.store, item, uid) == data
            granted = {other for other, known in self.model if known.name == item.name}
            assert all((get(self.store, item, other) is not None) == (other in granted) for other in (1, 2, 3))

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()


TestStoreMachine = StoreMachine.TestCase
_LONG = os.environ.get("MILLPOND_TESTS") == "long"
TestStoreMachine.settings = hypothesis_settings(
    max_examples=150 if _LONG else 12, stateful_step_count=30 if _LONG else 15
)
