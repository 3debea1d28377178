"""Stores for tests: small, in a temporary folder, with the n-th operation made to fail."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from millpond.daemon.store import segments
from millpond.daemon.store.files import Files
from millpond.daemon.store.records import HEADER, Location
from millpond.daemon.store.segments import segment_path
from millpond.daemon.store.session import Stored
from millpond.daemon.store.store import Store, StoreSettings

UID = 1000


class FaultyFiles(Files):
    """Real operations, of which the `fail_at`-th (from 1) raises; `torn` lets half of a failing write through first.

    After the failure everything fails when `for_good` is set, as after a crash.
    """

    def __init__(self, fail_at: int, *, number: int = errno.EIO, torn: bool = True, for_good: bool = True) -> None:
        self.count = 0
        self.failed: str | None = None
        self._fail_at = fail_at
        self._number = number
        self._torn = torn
        self._for_good = for_good

    def create(self, path: Path, mode: int) -> int:
        self._step("create")
        return super().create(path, mode)

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        try:
            self._step("pwritev")
        except OSError:
            if self._torn and self.count == self._fail_at:
                whole = b"".join(buffers)
                os.pwrite(fd, whole[: len(whole) // 2], offset)
            raise
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self._step("fdatasync")

    def fsync_dir(self, path: Path) -> None:
        self._step("fsync_dir")

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename")
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._step("unlink")
        super().unlink(path)

    def truncate(self, path: Path, size: int) -> None:
        self._step("truncate")
        super().truncate(path, size)

    def commit(self, txn: Any) -> None:
        self._step("commit")
        super().commit(txn)

    def fail_from_now(self, fail_at: int) -> None:
        """Begin to count again."""
        self.count, self.failed, self._fail_at = 0, None, fail_at

    def _step(self, what: str) -> None:
        self.count += 1
        if self.count == self._fail_at or (self.failed and self._for_good):
            self.failed = self.failed or what
            raise OSError(self._number, os.strerror(self._number))


class FailingSyncs(Files):
    """Counts `fdatasync`, which fails once when `fails` is set."""

    def __init__(self) -> None:
        self.synced = 0
        self.fails = False

    def fdatasync(self, fd: int) -> None:
        self.synced += 1
        if self.fails:
            self.fails = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fdatasync(fd)


def until(what: Callable[[], bool]) -> None:
    """Wait for something that comes soon."""
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def take_room_early(patch: pytest.MonkeyPatch) -> None:
    """Room on the disk is taken ahead by small stores, too."""
    patch.setattr(segments, "_BEGIN_BYTES", 64 << 10)
    patch.setattr(segments, "_AHEAD_BYTES", 256 << 10)


def settings(path: Path, **changes: Any) -> StoreSettings:
    """A small store that does not sync, but for tests that ask for it."""
    values: dict[str, Any] = {"threads": 2, "segment_bytes": 1 << 20, "map_bytes": 1 << 22, "fsync": False}
    return StoreSettings(path, **(values | {"reserve_bytes": 0} | changes))


def put(store: Store, contents: Sequence[bytes], uid: int = UID, *, is_dir: bool = False) -> list[Stored]:
    """Store contents in one session and commit it."""
    session = store.session(uid)
    stored = session.feed(memoryview(b"".join(contents)), [(len(data), True, is_dir) for data in contents])
    assert session.commit() == []
    return stored


def get(store: Store, item: Stored, uid: int = UID) -> bytes | None:
    """A content read back by its name, None when `uid` has no such object."""
    content = store.reader.resolve([item.name], uid)[0]
    return None if content is None else store.reader.read_content(content)


def sample(seed: int, size: int) -> bytes:
    """Half-compressible bytes."""
    rng = random.Random(seed)
    half = rng.randbytes(size // 2)
    return half + (b"%08d" % seed) * (size // 16) + rng.randbytes(size - size // 2 - 8 * (size // 16))


SIZES = (0, 1, 63, 64, 4095, 4096, 65535, 65536, 65537, 300_000, 2_500_000)


def damage(path: Path, at: Location, offset: int = 4) -> None:
    """Flip a byte of a record's payload on disk, `offset` bytes into it; below 0 it is in the header."""
    with open(segment_path(path / "segments", at.segment), "r+b") as file:
        file.seek(at.offset + HEADER.size + offset)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x21]))


def lose_index(path: Path) -> Store:
    """Open a closed store whose index is gone."""
    (path / "index" / "data.mdb").unlink()
    return Store.open(settings(path))
