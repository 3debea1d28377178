"""Segments: append-only files of records, and the one place where bytes are appended. Reading them: segmentreader.py.

A segment's number is never used twice and nothing in it is ever overwritten, so a location stays true for as long as
the file is there. A failed write or fsync poisons the segment: its unsynced records are not trusted, writing goes on
in a new one.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from millpond.daemon.errors import MillpondError
from millpond.daemon.store import records
from millpond.daemon.store.files import Files, as_store_error, disk_full, over_limit
from millpond.daemon.store.records import Location, Record

log = logging.getLogger("millpond.store")

# iovecs in one pwritev: below the kernel's IOV_MAX of 1024.
_MAX_BUFFERS = 1000
# The part (one in so many) of the reserve that is left for the index when room is made.
_INDEX_PART = 4
# Bytes after which the kernel is told to begin to write them: what a commit must wait for stays small, and small commits
# cost nothing more.
_BEGIN_BYTES = 16 << 20
# Room on the disk that is taken ahead of what is written, once so much was: in one piece instead of block by block.
_AHEAD_BYTES = 24 << 20
# Bytes read at once in a scan, and the least that is given up for one that cannot be read.
_SCAN_BYTES = 4 << 20
_SECTOR = 4096


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"{number:010d}.seg"


def segment_numbers(folder: Path) -> list[int]:
    """Numbers of the segments that are there, ascending."""
    return sorted(int(path.stem) for path in folder.glob("*.seg") if path.stem.isdigit())


@contextmanager
def mapped(path: Path, limit: int | None = None, pace: Callable[[int], None] | None = None) -> Iterator[memoryview]:
    """A segment's bytes (the first `limit` of them) in memory of their own, for a scan. `pace` is told of each part's size
    before it is read.

    Not the file itself mapped: there a bad sector or a cut is a SIGBUS. What cannot be read is zeros, so a scan finds it
    damaged.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        size = size if limit is None else min(size, limit)
        if size == 0:
            yield memoryview(b"")
            return
        # Freed with the last payload that is a part of it.
        view = memoryview(mmap.mmap(-1, size))
        for start in range(0, size, _SCAN_BYTES):
            if pace is not None:
                pace(min(_SCAN_BYTES, size - start))
            _fill(fd, view[start : start + _SCAN_BYTES], start)
        yield view
    finally:
        os.close(fd)


def _fill(fd: int, part: memoryview, offset: int) -> None:
    """Read as much of `part` as can be read; after an error in smaller steps, past what is bad."""
    try:
        os.preadv(fd, [part], offset)
    except OSError:
        if len(part) > _SECTOR:
            step = max(_SECTOR, len(part) // 16)
            for start in range(0, len(part), step):
                _fill(fd, part[start : start + step], offset + start)


def scan_segment(
    view: memoryview, number: int, key: int | None = None, begin: int = 0
) -> Iterator[tuple[Record, memoryview] | tuple[int, int]]:
    """`records.scan` from `begin`, or from behind the segment's header; a wrong header is one more damaged range.

    The store's key is taken from the segment's header when it is not given."""
    size = records.SEGMENT_HEADER.size
    if key is None:
        key = records.key_of(records.SEGMENT_HEADER.unpack_from(view)[2])
    if begin > size:
        yield from records.scan(view, begin, key)
        return
    magic, said, _ = records.SEGMENT_HEADER.unpack_from(view) if len(view) >= size else (b"", 0, b"")
    if magic != records.SEGMENT_MAGIC or said != number:
        yield 0, min(size, len(view))
    yield from records.scan(view, size, key)


@dataclass(slots=True)
class Encoded:
    """A record ready to be appended."""

    kind: int
    id: bytes
    raw: int
    buffers: Sequence[bytes | memoryview]

    @property
    def size(self) -> int:
        return sum(len(buffer) for buffer in self.buffers)


class SegmentLost(Exception):
    """A segment was poisoned by someone else's failure while a commit counted on it: look again what is there."""


@dataclass(slots=True)
class _Active:
    """The segment being written: `end` is where the next record goes, `synced` how much is durable, `begun` how much the
    kernel was told to write, `users` how many writes and syncs are under way: its descriptor is closed by the last of them.
    `named`: its name is durable; `told`: somebody knows that it is full and written; `bulk`: much is being written; `ahead`: up to where it
    has room on the disk that was taken ahead."""

    number: int
    fd: int
    path: Path
    end: int
    synced: int
    begun: int = 0
    users: int = 0
    named: bool = False
    told: bool = False
    bulk: bool = False
    ahead: int = 0


class SegmentWriter:
    """Appends records; many threads write at once, each into the range it reserved."""

    def __init__(self, folder: Path, files: Files, *, uuid: bytes, segment_bytes: int, reserve: int, mode: int) -> None:
        self._folder = folder
        self._files = files
        self._uuid = uuid
        self._limit = segment_bytes
        self._reserve = reserve
        self._mode = mode
        self._lock = threading.Lock()
        self._active: _Active | None = None
        self._full: list[_Active] = []
        # Behind what was synced last; and why syncing ahead failed, until `sync` tells it.
        self._synced = (0, 0)
        self._failure: MillpondError | None = None
        self._room = 0
        self._tokens = itertools.count()
        self._unnoted: dict[int, tuple[int, int]] = {}
        self.poisoned: set[int] = set()
        # (segment, begin, end) of writes that failed: what they left may stay between records that were synced.
        self.failed: list[tuple[int, int, int]] = []
        self._next = max(segment_numbers(folder), default=0) + 1
        # Bytes that all segments may have together, and have.
        self.limit: int | None = None
        self.total = sum(self._found(segment_path(folder, number)) for number in segment_numbers(folder))

    def _found(self, path: Path) -> int:
        """The size of a segment that is there; room that was taken ahead in it before a crash is given back."""
        found = path.stat()
        if found.st_blocks * 512 > found.st_size + _BEGIN_BYTES // 4:
            with contextlib.suppress(OSError):
                self._files.truncate(path, found.st_size)
        return found.st_size

    def append(
        self,
        batch: Sequence[Encoded],
        note: Callable[[list[Location]], None] | None = None,
        *,
        free: bool = False,
        limited: bool = True,
    ) -> None:
        """Write records, not yet durably, and tell `note` where each lies; until it returns, `unnoted` counts them. `free`
        ones bring nothing new, so the store's limit does not count, and most of the reserve is for them; nor does it
        for those that are not `limited`.

        Raises DiskFullError, StoreDamagedError.
        """
        sizes = [record.size for record in batch]
        total = sum(sizes)
        with self._lock:
            self._check_room(total, free)
            if limited and not free and self.limit is not None and self.total + total > self.limit:
                raise over_limit(self._folder, self.limit)
            self.total += total
            active = self._current()
            offset = active.end
            active.end += total
            active.users += 1
            token = next(self._tokens)
            self._unnoted[token] = (active.number, offset)
        try:
            self._write(active, [buffer for record in batch for buffer in record.buffers], offset)
            self._begin_writing(active)
            self._take_ahead(active)
            if note is not None:
                note(_locations(batch, sizes, active.number, offset))
        except OSError as error:
            if not active.named:
                # What failed is noted by the segment's number, which would be another's if this one were not there after a crash.
                with contextlib.suppress(OSError):
                    self._files.fsync_dir(self._folder)
            with self._lock:
                self.failed.append((active.number, offset, offset + total))
                self._poison(active)
            raise as_store_error(error, self._folder) from error
        finally:
            with self._lock:
                del self._unnoted[token]
                active.users -= 1
                self._cut(active)

    def seal(self) -> None:
        """Have the next record begin a new segment."""
        with self._lock:
            if self._active is not None:
                self._full.append(self._active)
                self._active = None

    @property
    def mark(self) -> tuple[int, int]:
        """(segment, offset) behind which the next record will be."""
        with self._lock:
            return (self._next, 0) if self._active is None else (self._active.number, self._active.end)

    def is_open(self, number: int) -> bool:
        """Whether a segment is being written, or waits to be made durable."""
        with self._lock:
            return any(segment.number == number for segment in [*self._full, *([self._active] if self._active else [])])

    def remove(self, number: int) -> None:
        """Unlink a segment that nothing needs. Raises StoreDamagedError."""
        path = segment_path(self._folder, number)
        try:
            size = path.stat().st_size
            self._files.unlink(path)
            self._files.fsync_dir(self._folder)
        except OSError as error:
            raise as_store_error(error, path) from error
        with self._lock:
            self.total -= size

    def unnoted(self) -> tuple[int, int] | None:
        """(segment, offset) of the first record that is being written just now."""
        with self._lock:
            return min(self._unnoted.values(), default=None)

    def sync(self) -> tuple[int, int]:
        """Make everything appended so far durable; (segment, end) behind it. Raises as `append`, and SegmentLost. By one thread at a
        time, as `sync_full`.

        A segment whose fsync failed is poisoned: what the kernel dropped is not known, so asking again proves nothing.
        """
        self.check()
        return self._sync(all_=True)

    def check(self) -> None:
        """Raise what `sync_full` failed with, once."""
        with self._lock:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def is_full_written(self) -> bool:
        """Whether a segment has become full, all of it written, that was not told yet: `sync_full` would do something."""
        with self._lock:
            found = [segment for segment in self._full if not segment.users and not segment.told]
            for segment in found:
                segment.told = True
            return bool(found)

    def sync_full(self) -> None:
        """Make full segments durable that nobody writes to any more, so that the next `sync` need not wait for them. It tells what fails here."""
        try:
            self._sync(all_=False)
        except SegmentLost:
            pass  # a commit sees that it is poisoned
        except MillpondError as error:
            # Whose commit it is told to may be nobody's, who only keeps up with what is added.
            log.error("syncing ahead of the commit: %s", error)
            with self._lock:
                self._failure = error

    def _sync(self, *, all_: bool) -> tuple[int, int]:
        """With `all_` what is being written, too."""
        with self._lock:
            # Nobody writes to these any more: once they are synced they are done with.
            whole = [segment for segment in self._full if not segment.users]
            todo = [*self._full, *([self._active] if self._active else [])] if all_ else whole
            # Chosen and held in one: what another's failure closed meanwhile could not be synced.
            ends = [segment.end for segment in todo]
            for segment in todo:
                if not segment.users:
                    # Every write into it has ended, and another cannot begin as long as the lock is held.
                    with contextlib.suppress(OSError):
                        self._give_back_ahead(segment)
                segment.users += 1
        try:
            for segment in todo:
                self._sync_one(segment)
            with self._lock:
                # A write that failed meanwhile may have had its segment marked for cutting, with records in it that this
                # commit is about to name.
                if any(segment.number in self.poisoned for segment in todo):
                    raise SegmentLost
                for segment, end in zip(todo, ends, strict=True):
                    segment.synced = end
        finally:
            with self._lock:
                for segment in todo:
                    segment.users -= 1
                    self._cut(segment)
                    if segment in whole and segment in self._full and segment.synced == segment.end:
                        self._full.remove(segment)
                        os.close(segment.fd)
        if todo:
            self._synced = max(self._synced, (todo[-1].number, ends[-1]))
        return self._synced

    def _sync_one(self, segment: _Active) -> None:
        try:
            self._files.fdatasync(segment.fd)
            if not segment.named:
                # The name must be durable before a commit names records in it.
                self._files.fsync_dir(self._folder)
                segment.named = True
        except OSError as error:
            with self._lock:
                self._poison(segment)
            raise as_store_error(error, segment.path) from error

    def close(self) -> None:
        for segment in [*self._full, *([self._active] if self._active else [])]:
            with contextlib.suppress(OSError):
                self._give_back_ahead(segment)
            os.close(segment.fd)
        self._full, self._active = [], None

    def _current(self) -> _Active:
        bulk = False
        if self._active is not None and self._active.end >= self._limit:
            bulk = self._active.bulk
            self._full.append(self._active)
            self._active = None
        if self._active is None:
            self._active = self._create()
            self._active.bulk = bulk
        return self._active

    def _create(self) -> _Active:
        number, self._next = self._next, self._next + 1
        path = segment_path(self._folder, number)
        try:
            fd = self._files.create(path, self._mode)
        except OSError as error:
            raise as_store_error(error, path) from error
        try:
            header = records.SEGMENT_HEADER.pack(records.SEGMENT_MAGIC, number, self._uuid)
            self._files.pwritev(fd, [header], 0)
        except OSError as error:
            os.close(fd)
            path.unlink(missing_ok=True)  # it holds no record
            raise as_store_error(error, path) from error
        return _Active(number, fd, path, records.SEGMENT_HEADER.size, records.SEGMENT_HEADER.size)

    def _write(self, active: _Active, buffers: list[bytes | memoryview], offset: int) -> None:
        buffers = [buffer for buffer in buffers if len(buffer)]
        for start in range(0, len(buffers), _MAX_BUFFERS):
            part = buffers[start : start + _MAX_BUFFERS]
            left = sum(len(buffer) for buffer in part)
            done = self._files.pwritev(active.fd, part, offset)
            if done < left:  # a short write: rare, so simply
                rest = memoryview(b"".join(part))[done:]
                while rest:
                    done = self._files.pwritev(active.fd, [rest], offset + left - len(rest))
                    if done <= 0:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    rest = rest[done:]
            offset += left

    def _begin_writing(self, active: _Active) -> None:
        with self._lock:
            begin, size = active.begun, active.end - active.begun
            if size < _BEGIN_BYTES:
                return
            active.begun, active.bulk = active.end, True
        self._files.begin_writing(active.fd, begin, size)

    def _take_ahead(self, active: _Active) -> None:
        """Have room for what comes next, if much is being written and the disk has much more."""
        with self._lock:
            begin, end = max(active.end, active.ahead), min(active.end + _AHEAD_BYTES, self._limit)
            # Not before half of it is used, and never what others may need.
            if (
                not active.bulk
                or active.ahead > active.end + _AHEAD_BYTES // 2
                or begin >= end
                or self._room < 2 * _AHEAD_BYTES
            ):
                return
            active.ahead = end
        self._files.take_room(active.fd, begin, end - begin)

    def _give_back_ahead(self, segment: _Active) -> None:
        """Of a segment that nobody writes to just now, with the lock held; none is taken again before much more is written: small commits
        pay for nothing. Raises OSError."""
        segment.bulk, segment.begun = False, segment.end
        if segment.ahead > segment.end:
            self._files.truncate(segment.path, segment.end)
            segment.ahead = 0

    def _check_room(self, size: int, free: bool) -> None:
        """Refuse before trouble: statvfs now and then, never below the reserve; `free` records, whose writing is how room is
        made, may take it but for what the index needs."""
        self._room -= size
        if self._room < 0:
            found = os.statvfs(self._folder)
            left = found.f_bavail * found.f_frsize + self._room_ahead()
            if left - size < (self._reserve // _INDEX_PART if free else self._reserve):
                raise disk_full(self._folder)
            self._room = min((left - self._reserve) // 2, 256 << 20) - size

    def _room_ahead(self) -> int:
        """Bytes that the disk counts as used, and that are for what comes next; with the lock held. Not every disk gave what was asked for."""
        active = self._active
        if active is None or active.ahead <= active.end:
            return 0
        has = os.fstat(active.fd).st_blocks * 512
        return max(0, min(active.ahead, has) - active.end)

    def _poison(self, segment: _Active) -> None:
        """Never written or synced again, and cut back to what is durable once no write is under way."""
        self.poisoned.add(segment.number)
        if self._active is segment:
            self._active = None
        if segment in self._full:
            self._full.remove(segment)
        self._cut(segment)

    def _cut(self, segment: _Active) -> None:
        if segment.number not in self.poisoned or segment.users or segment.fd < 0:
            return
        os.close(segment.fd)
        segment.fd = -1
        # When this fails too, fsck reports the rest as a range that nothing needs.
        with contextlib.suppress(OSError):
            self._files.truncate(segment.path, segment.synced)


def _locations(batch: Sequence[Encoded], sizes: Sequence[int], number: int, offset: int) -> list[Location]:
    """Where records lie that were written one after the other from `offset`."""
    found = []
    for record, size in zip(batch, sizes, strict=True):
        codec, stored = record.buffers[0][5], len(record.buffers[1])
        found.append(Location(record.kind, codec, number, offset, stored, record.raw))
        offset += size
    return found
