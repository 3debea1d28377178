"""The store behind a loss of power: what was acknowledged is there, whatever was synced ahead or taken of the disk ahead."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.store.helpers import UID, get, put, settings, take_room_early
from tests.store.power import Disk
from tests.store.test_faults import crash

from millpond.daemon.errors import MillpondError, StoreDamagedError
from millpond.daemon.store.session import Stored
from millpond.daemon.store.store import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path, 256 << 20)
    with contextlib.closing(made):
        yield made


def _content(seed: int) -> bytes:
    chance = random.Random(seed)
    return chance.randbytes(chance.choice([0, 1000, 70_000, 700_000, 5_000_000]))


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 16))])
def test_what_was_acknowledged_outlives_power(disk: Disk, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three writers, one of them slow: segments get full, are synced and poisoned under all of them."""
    take_room_early(monkeypatch)
    path, chance = disk.place / "s", random.Random(seed)
    options = {"fsync": True, "segment_bytes": 4 << 20, "map_bytes": 1 << 24}
    store = Store.open(settings(path, **options))
    kept: list[tuple[Stored, int]] = []

    def write(number: int) -> None:
        with contextlib.suppress(MillpondError):
            for turn in range(40):
                seeds = [seed * 10_000 + number * 1000 + turn * 10 + each for each in range(1 + 2 * number)]
                found = put(store, [_content(each) for each in seeds])
                kept.extend(zip(found, seeds, strict=True))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    enough = chance.randrange(5, 90)
    while any(each.is_alive() for each in writers) and len(kept) < enough:
        writers[0].join(0.01)
    acknowledged = list(kept)
    disk.lose_power()
    for writer in writers:
        writer.join()
    crash(store)
    again = Store.open(settings(path, **options))
    assert acknowledged
    for item, each in acknowledged:
        assert get(again, item) == _content(each)
    assert again.fsck(deep=True).ok
    folders = [each.stat() for each in (path / "segments").glob("*.seg")]
    assert all(each.st_blocks * 512 <= each.st_size + (1 << 20) for each in folders)
    (item,) = put(again, [b"more"], UID)
    assert get(again, item) == b"more"
    again.close()
    (path / "index" / "data.mdb").unlink()
    rebuilt = Store.open(settings(path, **options))
    for item, each in acknowledged:
        assert get(rebuilt, item) == _content(each)
    rebuilt.close()


def test_a_disk_that_the_kernel_gave_up_is_told_of_as_one(disk: Disk) -> None:
    store = Store.open(settings(disk.place / "s", fsync=True))
    (item,) = put(store, [_content(7)])
    disk.fail()
    for _ in range(2):
        with pytest.raises(StoreDamagedError, match="Read-only file system"):
            store.write(lambda txn: txn.put(b"some", b"thing", db=store._index.meta))
        with pytest.raises(StoreDamagedError, match="Read-only file system"):
            put(store, [_content(8)])
    assert get(store, item) == _content(7)
    crash(store)
