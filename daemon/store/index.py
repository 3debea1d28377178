"""The LMDB index: where every record lies, what every name means, who may read what.

All of it can be rebuilt from the segments, but for `folders`, `inodes` and `listings`, which are caches made anew when
needed, and `uses` and `evicted`, which can be done without. One environment per process, never across a fork; a
transaction lasts one request.

    records    id 32                        -> location 24 (records.LOCATION)
    objects    ObjectName.key()             -> content 41, sorted duplicates (one name may have several contents)
    grants     uid u32be, id 32             -> when it was granted last, seconds since the epoch, u64
    quarantine id 32                        -> JSON {reason, location: hex of location 24, or null}
               "range", segment, begin, end -> the same: bytes that are no record, known, and needed by nothing
    meta       "committed"                  -> segment u64, offset u64: all before it is in the index
    projects, roots, pins                   -> see ledger.py
    uses                                    -> see uses.py
    evicted    uid u32be, ObjectName.key()  -> size u64 of a content that only a remote has now
    folders, inodes, listings               -> see folders.py
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lmdb

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.store.files import Files, disk_full
from millpond.daemon.store.records import Location, padded, unpack_location

T = TypeVar("T")

log = logging.getLogger("millpond.store")

MAX_READERS = 1024
DATABASES = (
    *("records", "objects", "grants", "quarantine", "meta", "folders", "inodes", "listings"),
    *("projects", "roots", "pins", "uses", "evicted"),
)
_CONTENT = struct.Struct("<B32sQ")
_COMMITTED = struct.Struct("<QQ")
# A file in the index's folder: this index is damaged.
DAMAGED = "damaged"
# BadTxnError is what LMDB says of a transaction that has met such a page.
_DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError, lmdb.BadTxnError)
_RANGE = struct.Struct(">5sQQQ")
_RANGE_TAG = b"range"
_MAX_MAP = 1 << 42


class Content(NamedTuple):
    """What a name means: `kind` (records.Kind.CHUNK or RECIPE), the record's id, the content's size in bytes."""

    kind: int
    id: bytes
    size: int

    def pack(self) -> bytes:
        return _CONTENT.pack(*self)


def unpack_content(value: bytes | memoryview) -> Content:
    return Content(*_CONTENT.unpack(value))


def grant_key(uid: int, content_id: bytes) -> bytes:
    return uid.to_bytes(4, "big") + content_id


def evicted_key(uid: int, key: bytes) -> bytes:
    """The row in `evicted` of a name's key."""
    return uid.to_bytes(4, "big") + key


def stamp(seconds: float) -> bytes:
    """The value of a grant that was given at this time."""
    return int(seconds).to_bytes(8, "little")


def stamped(value: bytes | memoryview) -> int:
    """When a grant was given, in seconds since the epoch; 0 when that was not kept."""
    return int.from_bytes(value, "little")


class _Gate:
    """Keeps read transactions of this process out of the way of a change of the map's size, which LMDB demands."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._change = threading.Condition(self._lock)
        self._readers = 0
        self._closed = False

    def enter(self) -> None:
        """A reader comes in."""
        with self._lock:
            while self._closed:
                self._change.wait()
            self._readers += 1

    def leave(self) -> None:
        """A reader has left."""
        with self._lock:
            self._readers -= 1
            if self._closed:
                self._change.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Until all readers have left, and with none coming in. Not from inside a reader."""
        with self._lock:
            while self._closed:
                self._change.wait()
            self._closed = True
            while self._readers:
                self._change.wait()
        try:
            yield
        finally:
            with self._lock:
                self._closed = False
                self._change.notify_all()


class _Local(threading.local):
    """A thread's read transaction."""

    txn: Any = None


class _Reading:
    """What Index.begin gives: a class, because a generator would take longer than the transaction."""

    __slots__ = ("_index", "_txn")

    def __init__(self, index: Index) -> None:
        self._index = index
        self._txn: Any = None

    def __enter__(self) -> Any:
        index = self._index
        txn = index.local.txn
        if txn is None:
            txn = self._txn = index.local.txn = index.transaction()
        return txn

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        txn, self._txn = self._txn, None
        if txn is None:
            return
        index = self._index
        index.local.txn = None
        try:
            txn.abort()
        finally:
            index.gate.leave()
        if isinstance(error, _DAMAGE):
            raise index.damaged(error) from error


class Index:
    """An open environment and its databases, as attributes named like DATABASES."""

    records: Any
    objects: Any
    grants: Any
    quarantine: Any
    meta: Any
    folders: Any
    inodes: Any
    listings: Any
    projects: Any
    roots: Any
    pins: Any
    uses: Any
    evicted: Any

    def __init__(
        self, path: Path, *, writable: bool, map_bytes: int = 16 << 30, mode: int = 0o600, fsync: bool = True
    ) -> None:
        self.path = path
        self.gate = _Gate()
        self.local = _Local()
        self._writable = writable
        self.env = lmdb.open(
            os.fspath(path),
            map_size=map_bytes if writable else 0,
            max_dbs=len(DATABASES),
            max_readers=MAX_READERS,
            readonly=not writable,
            create=writable,
            mode=mode,
            sync=fsync,
            max_spare_txns=8,
        )
        try:
            for name in DATABASES:
                duplicates = name == "objects"
                database = self.env.open_db(name.encode(), create=writable, dupsort=duplicates, dupfixed=duplicates)
                setattr(self, name, database)
        except BaseException:
            self.env.close()
            raise

    def close(self) -> None:
        self.env.close()

    def begin(self) -> _Reading:
        """A read transaction with zero-copy values: what is kept must be copied before it ends.

        Inside another one of the same thread it is that one, so that no thread waits for itself."""
        return _Reading(self)

    def transaction(self) -> Any:
        """A read transaction that has entered the gate. Raises StoreDamagedError, also when a commit of this process failed half-way."""
        while True:
            self.gate.enter()
            try:
                return self.env.begin(buffers=True)
            except lmdb.MapResizedError:
                self.gate.leave()
            except _DAMAGE as error:
                self.gate.leave()
                raise self.damaged(error) from error
            except BaseException:
                self.gate.leave()
                raise
            with self.gate.alone():  # another process made the map larger
                self.env.set_mapsize(0)

    @property
    def is_reading(self) -> bool:
        """Whether this thread is inside `begin`."""
        return self.local.txn is not None

    def write(self, files: Files, work: Callable[[Any], T]) -> T:
        """Run `work` in a write transaction and commit it; again with twice the map when that is full.

        Only the store's commit thread calls this. Raises DiskFullError, StoreDamagedError.
        """
        while True:
            try:
                txn = self.env.begin(write=True)
            except lmdb.Error as error:
                raise self.damaged(error) from error
            try:
                result = work(txn)
                files.commit(txn)
                return result
            except lmdb.MapFullError:
                txn.abort()
                self._grow()
            except (lmdb.DiskError, OSError) as error:
                txn.abort()
                raise self._translated(error) from error
            except _DAMAGE as error:
                txn.abort()
                raise self.damaged(error) from error
            except lmdb.Error as error:
                txn.abort()
                if _errno_of(error) is not None:
                    raise self._translated(error) from error
                raise
            except BaseException:
                txn.abort()
                raise

    def location(self, txn: Any, record_id: bytes) -> Location | None:
        value = txn.get(record_id, db=self.records)
        return None if value is None else unpack_location(value)

    def contents(self, txn: Any, name: ObjectName) -> list[Content]:
        """All contents of a name, whoever may read them."""
        found = []
        with txn.cursor(db=self.objects) as cursor:
            if cursor.set_key(name.key()):
                found = [unpack_content(bytes(value)) for value in cursor.iternext_dup()]
        return found

    def is_granted(self, txn: Any, uid: int, content: Content) -> bool:
        """Whether `uid` may read a content."""
        return txn.get(grant_key(uid, content.id), db=self.grants) is not None

    def granted(self, txn: Any, name: ObjectName, uid: int) -> Content | None:
        """The first content of a name that `uid` may read."""
        first = txn.get(name.key(), db=self.objects)
        if first is None:
            return None
        content = unpack_content(first)
        if txn.get(grant_key(uid, content.id), db=self.grants) is not None:
            return content
        for content in self.contents(txn, name)[1:]:
            if txn.get(grant_key(uid, content.id), db=self.grants) is not None:
                return content
        return None

    def committed(self, txn: Any) -> tuple[int, int]:
        """(segment, offset) up to which the index knows everything; (0, 0) for a new one."""
        value = txn.get(b"committed", db=self.meta)
        return (0, 0) if value is None else _COMMITTED.unpack(value)

    def set_committed(self, txn: Any, segment: int, offset: int) -> None:
        txn.put(b"committed", _COMMITTED.pack(segment, offset), db=self.meta)

    def set_aside(self, txn: Any, record_id: bytes, reason: str, location: Location | None) -> None:
        """Put a record into quarantine: it is not found any more, so the same bytes can be stored again."""
        where = None if location is None else location.pack().hex()
        value = json.dumps({"reason": reason, "location": where}).encode()
        txn.put(record_id, value, db=self.quarantine)
        txn.delete(record_id, db=self.records)
        if location is not None:
            end = location.offset + padded(location.stored)
            self.set_aside_range(txn, location.segment, location.offset, end, reason)

    def set_aside_range(self, txn: Any, segment: int, begin: int, end: int, reason: str) -> None:
        """Remember bytes of a segment that are no record, and that nothing needs."""
        value = json.dumps({"reason": reason, "location": None}).encode()
        txn.put(_RANGE.pack(_RANGE_TAG, segment, begin, end), value, db=self.quarantine)

    def forget_ranges(self, txn: Any, segment: int) -> None:
        """A segment is gone, and its ranges with it."""
        prefix = _RANGE.pack(_RANGE_TAG, segment, 0, 0)[:-16]
        with txn.cursor(db=self.quarantine) as cursor:
            there = cursor.set_range(prefix)
            while there and len(cursor.key()) == _RANGE.size and bytes(cursor.key()[: len(prefix)]) == prefix:
                there = cursor.delete()

    def has_range(self, txn: Any, segment: int, begin: int, end: int) -> bool:
        """Whether ranges that were set aside cover this one."""
        with txn.cursor(db=self.quarantine) as cursor:
            while begin < end:
                # The last noted range that begins here or before.
                after = _RANGE.pack(_RANGE_TAG, segment, begin + 1, 0)
                there = cursor.prev() if cursor.set_range(after) else cursor.last()
                if not there or len(cursor.key()) != _RANGE.size:
                    return False
                tag, number, _, noted = _RANGE.unpack(cursor.key())
                if tag != _RANGE_TAG or number != segment or noted <= begin:
                    return False
                begin = noted
        return True

    def quarantined(self, txn: Any, record_id: bytes) -> tuple[str, Location | None] | None:
        """(reason, where it was) of a record in quarantine."""
        value = txn.get(record_id, db=self.quarantine)
        if value is None:
            return None
        found = json.loads(bytes(value))
        where = found["location"]
        return found["reason"], None if where is None else unpack_location(bytes.fromhex(where))

    def uids(self, txn: Any) -> list[int]:
        """All who were granted anything."""
        found = []
        with txn.cursor(db=self.grants) as cursor:
            there = cursor.first()
            while there:
                uid = int.from_bytes(cursor.key()[:4], "big")
                found.append(uid)
                there = uid < 0xFFFFFFFF and cursor.set_range((uid + 1).to_bytes(4, "big"))
        return found

    def _grow(self) -> None:
        size = self.env.info()["map_size"] * 2
        if size > _MAX_MAP:
            raise StoreDamagedError(f"the index would need more than {_MAX_MAP >> 40} TiB", path=str(self.path))
        with self.gate.alone():
            self.env.set_mapsize(size)

    def damaged(self, error: lmdb.Error) -> StoreDamagedError:
        """The error for an index that is not sound; it is marked, so that the next start makes it anew."""
        log.error("the index is damaged: %s", error)
        if not isinstance(error, lmdb.PanicError):  # that one is about what went before, in this process
            with contextlib.suppress(OSError):
                (self.path / DAMAGED).touch()
        return StoreDamagedError(
            f"the index is damaged: {error}",
            path=str(self.path),
            hint="run `millpond daemon restart`: it is made anew from the segments",
        )

    def _translated(self, error: Exception) -> Exception:
        """LMDB says "Input/output error" for a full disk: look at the disk before believing it."""
        free = os.statvfs(self.path)
        if _errno_of(error) in (errno.ENOSPC, errno.EDQUOT) or free.f_bavail * free.f_frsize < 4 << 20:
            return disk_full(self.path)
        return StoreDamagedError(f"cannot write the index: {error}", path=str(self.path), hint="check the disk")


def _errno_of(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    text = str(error)
    # The last is what the kernel makes of a file system whose disk failed.
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
        if os.strerror(number) in text:
            return number
    return None
