"""After a crash: the index caught up with the segments; and without an index, all of it made from them again."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.store import journal, records
from millpond.daemon.store.files import Files
from millpond.daemon.store.index import Content, Index, grant_key
from millpond.daemon.store.reader import StoreReader
from millpond.daemon.store.records import BadRecord, Kind, Location, Record
from millpond.daemon.store.segments import mapped, scan_segment, segment_numbers, segment_path

log = logging.getLogger("millpond.store")


def open_index(path: Path, files: Files, map_bytes: int, group: int | None, fsync: bool) -> Index:
    """The store's index; a damaged one is set aside in tmp/ and an empty one made, which `recover` fills."""
    mode = 0o600 if group is None else 0o640
    folder = path / "index"
    try:
        index = Index(folder, writable=True, map_bytes=map_bytes, mode=mode, fsync=fsync)
    except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError) as error:
        aside = path / "tmp" / f"index-damaged-{int(time.time())}"
        log.error("the index is damaged (%s): set aside as %s, made again from the segments", error, aside)
        files.rename(folder, aside)
        folder.mkdir(mode=0o700)
        index = Index(folder, writable=True, map_bytes=map_bytes, mode=mode, fsync=fsync)
    if group is not None:
        for name in ("data.mdb", "lock.mdb"):
            os.chown(folder / name, -1, group)
        # A reader registers itself in the lock file; it never writes data.
        os.chmod(folder / "lock.mdb", 0o660)
        os.chmod(folder, 0o2750)
    index.env.reader_check()
    return index


def recover(index: Index, files: Files, folder: Path) -> int:
    """Index all valid records behind the last commit, cut torn tails off; how many records were taken in.

    With an empty index this is the rebuild. Records are made durable before they are indexed.
    """
    with index.begin() as txn:
        first, offset = index.committed(txn)
    taken = 0
    for number in segment_numbers(folder):
        if number < first:
            continue
        begin = offset if number == first else records.SEGMENT_HEADER.size
        path = segment_path(folder, number)
        size = path.stat().st_size
        if size < records.SEGMENT_HEADER.size:
            log.warning("segment %d has no whole header and so no record: removed", number)
            path.unlink()
        elif size > begin:
            taken += _replay(index, files, folder, number, begin)
    if taken:
        log.warning("%d records behind the last commit were taken into the index", taken)
    return taken


def _replay(index: Index, files: Files, folder: Path, number: int, begin: int) -> int:
    path = segment_path(folder, number)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        files.fdatasync(fd)
    finally:
        os.close(fd)
    found: list[tuple[Record, bytes | None]] = []
    cut = -1
    with mapped(path) as view:
        end = len(view)
        for item in _from(view, number, begin):
            if isinstance(item[0], Record):
                record, payload = item
                assert isinstance(payload, memoryview)
                found.append((record, bytes(payload) if record.kind == Kind.JOURNAL else None))
                payload.release()
                cut = -1
            else:
                cut = int(item[0])
                log.warning("segment %d: %d bytes at %d are no record", number, int(str(item[1])) - cut, cut)
    if cut >= 0:
        files.truncate(path, max(cut, records.SEGMENT_HEADER.size))
        end = max(cut, records.SEGMENT_HEADER.size)
    reader = StoreReader(index, folder)
    index.write(files, lambda txn: _take(index, reader, txn, number, end, found))
    return len(found)


def _from(view: memoryview, number: int, begin: int) -> Iterator[Any]:
    return scan_segment(view, number) if begin <= records.SEGMENT_HEADER.size else records.scan(view, begin)


def _take(
    index: Index, reader: StoreReader, txn: Any, number: int, end: int, found: list[tuple[Record, bytes | None]]
) -> None:
    for record, _ in found:
        if record.kind != Kind.JOURNAL:
            location = Location(record.kind, record.codec, number, record.offset, record.stored, record.raw)
            txn.put(record.id, location.pack(), db=index.records)
    for record, payload in found:
        if payload is not None:
            try:
                uid, entries = journal.parse(records.decompress(record.codec, record.raw, payload))
            except BadRecord as error:
                log.error("segment %d: journal record at %d: %s", number, record.offset, error)
                continue
            for key, content in entries:
                if is_whole(reader, index, txn, content):
                    txn.put(key, content.pack(), db=index.objects)
                    txn.put(grant_key(uid, content.id), b"", db=index.grants)
    index.set_committed(txn, number, end)


def is_whole(reader: StoreReader, index: Index, txn: Any, content: Content) -> bool:
    """Whether every record that a content needs is in the index, as this transaction sees it."""
    location = index.location(txn, content.id)
    if location is None or location.kind != content.kind:
        return False
    if content.kind == Kind.CHUNK:
        return True
    try:
        layout = reader.layout_at(content, location)
    except StoreDamagedError:
        return False
    get, database = txn.get, index.records
    return all(get(layout.id(number), db=database) is not None for number in range(len(layout)))
