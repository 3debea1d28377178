"""After a crash: the index caught up with the segments; and without an index, all of it made from them again."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lmdb

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.store import journal, ledger, records, walk_index
from millpond.daemon.store.files import Files
from millpond.daemon.store.index import DAMAGED, Content, Index, evicted_key, grant_key, stamp
from millpond.daemon.store.reader import StoreReader
from millpond.daemon.store.records import BadRecord, Kind, Location, Record
from millpond.daemon.store.segments import mapped, scan_segment, segment_numbers, segment_path

log = logging.getLogger("millpond.store")

# Names replayed in one transaction, and not many more.
_NAMES = 10_000
# A file in the index's folder: it is open for writing, or whoever had it open ended badly.
OPEN = "open"
# Damaged indexes kept for whoever wants to look at them.
_KEPT = 2


def open_index(path: Path, files: Files, key: int, map_bytes: int, group: int | None, fsync: bool) -> Index:
    """The store's index, with all that is in the segments. One that is damaged is set aside in tmp/ and made anew.

    Raises StoreDamagedError, DiskFullError, OSError.
    """
    folder = path / "index"
    if (folder / DAMAGED).exists() or ((folder / OPEN).exists() and not _can_be_walked(folder)):
        _set_aside(path, files)
    try:
        return _open_recovered(path, files, key, map_bytes, group, fsync)
    except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError) as error:
        log.error("the index does not open: %s", error)
    except StoreDamagedError:
        if not (folder / DAMAGED).exists():
            raise
    _set_aside(path, files)
    return _open_recovered(path, files, key, map_bytes, group, fsync)


def _can_be_walked(folder: Path) -> bool:
    """Whether a process that reads the whole index lives to tell: asked when the last daemon did not end well.

    Where no such process can be had, nothing is known against the index."""
    if not (folder / "data.mdb").exists():
        return True
    command = [sys.executable, "-I", walk_index.__file__, os.fspath(folder)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        log.warning("the index is not checked: %s", error)
        return True
    if done.returncode:
        log.error("reading the index ended with %d: %s", done.returncode, done.stderr.strip()[-200:])
    return done.returncode != walk_index.DAMAGED and done.returncode >= 0


def _set_aside(path: Path, files: Files) -> None:
    """Move the index away and make an empty one's folder; only the last few are kept."""
    log.error("the index is set aside in '%s' and made anew from the segments", path / "tmp")
    kept = sorted((path / "tmp").glob("index-damaged-*"))
    for old in kept[: -(_KEPT - 1)]:
        shutil.rmtree(old, ignore_errors=True)
    files.rename(path / "index", path / "tmp" / f"index-damaged-{time.time_ns():020d}")
    (path / "index").mkdir(mode=0o700)


def _open_recovered(path: Path, files: Files, key: int, map_bytes: int, group: int | None, fsync: bool) -> Index:
    mode = 0o600 if group is None else 0o640
    folder = path / "index"
    (folder / OPEN).touch()
    index = Index(folder, writable=True, map_bytes=map_bytes, mode=mode, fsync=fsync)
    try:
        if group is not None:
            for name in ("data.mdb", "lock.mdb"):
                os.chown(folder / name, -1, group)
            os.chmod(folder / "data.mdb", 0o640)
            # A reader registers itself in the lock file; it never writes data.
            os.chmod(folder / "lock.mdb", 0o660)
            os.chown(folder, -1, group)
            os.chmod(folder, 0o2750)
        index.env.reader_check()
        recover(index, files, path / "segments", key)
    except BaseException:
        index.close()
        raise
    return index


def recover(index: Index, files: Files, folder: Path, key: int) -> int:
    """Index all valid records behind the last commit, cut torn tails off; how many records were taken in.

    With an empty index this is the rebuild. Records are made durable before they are indexed. Names come last: what they
    need may have been stored again in a later segment. Only then the mark moves, so a crash on the way starts this anew.
    """
    with index.begin() as txn:
        first, offset = index.committed(txn)
    numbers = segment_numbers(folder)
    if not first and not numbers:  # a new store: from now on no mark means that the index was lost
        index.write(files, lambda txn: index.set_committed(txn, 1, records.SEGMENT_HEADER.size))
        return 0
    rebuild = first == 0
    taken, mark = 0, (first, offset)
    journals: list[Location] = []
    for number in numbers:
        if number < first:
            continue
        begin = offset if number == first else records.SEGMENT_HEADER.size
        path = segment_path(folder, number)
        size = path.stat().st_size
        if size < records.SEGMENT_HEADER.size:
            log.warning("segment %d has no whole header and so no record: removed", number)
            path.unlink()
        elif size > begin:
            found, end = _take_records(index, files, path, number, key, begin, rebuild)
            journals += [at for _, at in found if at.kind == Kind.JOURNAL]
            taken, mark = taken + len(found), (number, end)
    if mark == (first, offset):
        return 0
    reader = StoreReader(index, folder, key)
    _take_names(index, files, reader, journals)

    def finish(txn: Any) -> None:
        index.set_committed(txn, *mark)
        if rebuild:
            txn.put(ledger.REBUILT, stamp(time.time()), db=index.meta)

    index.write(files, finish)
    log.warning("%d records were taken into the index%s", taken, "" if rebuild else " that came after the last commit")
    return taken


def _take_records(
    index: Index, files: Files, path: Path, number: int, key: int, begin: int, rebuild: bool
) -> tuple[list[tuple[bytes, Location]], int]:
    """Index one segment's records from `begin`; all of them with their ids, and the segment's end.

    What is no record was being written when the crash came, so nothing needs it: at the end it is cut off, between records
    it is noted. In a rebuild that is not known, so it stays, and fsck tells of it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        files.fdatasync(fd)
    finally:
        os.close(fd)
    found: list[tuple[bytes, Location]] = []
    gaps: list[tuple[int, int]] = []
    with mapped(path) as view:
        end = len(view)
        for item in scan_segment(view, number, key, begin):
            if isinstance(item[0], Record):
                record = item[0]
                at = Location(record.kind, record.codec, number, record.offset, record.stored, record.raw)
                found.append((record.id, at))
            else:
                gaps.append((int(item[0]), int(str(item[1]))))
                log.warning("segment %d: bytes %d to %d are no record", number, *gaps[-1])
    if gaps and gaps[-1][1] == end and not rebuild:
        end = gaps.pop()[0]
        files.truncate(path, end)

    def take(txn: Any) -> None:
        for record_id, at in found:
            if at.kind != Kind.JOURNAL:
                txn.put(record_id, at.pack(), db=index.records)
        for first, last in [] if rebuild else gaps:
            index.set_aside_range(txn, number, first, last, "left by a crash")

    index.write(files, take)
    return found, end


def _take_names(index: Index, files: Files, reader: StoreReader, journals: list[Location]) -> None:
    """Name and grant what journal records say, where it is whole."""
    parsed: list[tuple[int, list[tuple[bytes, Content]]]] = []
    notes: list[tuple[int, dict[str, Any]]] = []
    count = 0
    for at in journals:
        try:
            payload = reader.read_at(at)
            note = journal.parse_note(payload)
            if note is not None:
                notes.append(note)
                continue
            parsed.append(journal.parse(payload))
            count += len(parsed[-1][1])
        except BadRecord as error:
            log.error("segment %d: journal record at %d: %s", at.segment, at.offset, error)
        if count >= _NAMES:
            index.write(files, functools.partial(_name, index, reader, parsed))
            parsed, count = [], 0
    index.write(files, functools.partial(_name, index, reader, parsed))

    def apply(txn: Any) -> None:
        for uid, note in notes:
            ledger.apply(index, txn, uid, note)

    if notes:
        index.write(files, apply)


def _name(index: Index, reader: StoreReader, parsed: list[tuple[int, list[tuple[bytes, Content]]]], txn: Any) -> None:
    # When they were granted is not known: they are taken for young.
    now = stamp(time.time())
    for uid, entries in parsed:
        for key, content in entries:
            if is_whole(reader, index, txn, content):
                txn.put(key, content.pack(), db=index.objects)
                txn.put(grant_key(uid, content.id), now, db=index.grants)
                txn.delete(evicted_key(uid, key), db=index.evicted)


def find_again(index: Index, files: Files, folder: Path, key: int, wanted: set[bytes]) -> int:
    """Look through all segments for sound records of these ids and index them; how many were found.

    For records that the index lost, or of which another copy is damaged. Runs on the commit thread.
    """
    found: dict[bytes, Location] = {}
    for number in segment_numbers(folder):
        with mapped(segment_path(folder, number)) as view:
            for item in scan_segment(view, number, key):
                if isinstance(item[0], Record) and item[0].id in wanted:
                    record = item[0]
                    assert isinstance(item[1], memoryview)
                    with contextlib.suppress(BadRecord):
                        if records.content_id(records.decompress(record.codec, record.raw, item[1])) == record.id:
                            at = Location(record.kind, record.codec, number, record.offset, record.stored, record.raw)
                            found[record.id] = at

    def take(txn: Any) -> None:
        for record_id, at in found.items():
            txn.put(record_id, at.pack(), db=index.records)
            txn.delete(record_id, db=index.quarantine)

    index.write(files, take)
    return len(found)


def rebuild(index: Index, files: Files, folder: Path, key: int) -> int:
    """Forget all that can be made from the segments, and make it anew; how many records there are. Runs on the commit
    thread. A crash on the way is a crash with an empty index."""

    def forget(txn: Any) -> None:
        for database in (index.records, index.objects, index.grants, index.quarantine, index.meta):
            txn.drop(database, delete=False)
        for database in (index.projects, index.roots, index.pins):
            txn.drop(database, delete=False)

    index.write(files, forget)
    return recover(index, files, folder, key)


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
    return all(get(chunk_id, db=database) is not None for chunk_id in layout.needed())
