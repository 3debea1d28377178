"""Checking the store, saying which files a damage hurts, and mending what can be mended.

Two passes. Over the segments: every record's checksum, and that the index points at it (with `deep` also that a chunk
is what its id says). Over the names: that every record a content needs is there and sound (with `deep` also that the
content has the digest it is named by). Memory does not grow with the store unless it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.store import recovery
from millpond.daemon.store.index import Content, Index, unpack_content
from millpond.daemon.store.journal import NameBatch
from millpond.daemon.store.records import BadRecord, Kind, Location, Record, content_id, decompress, unpack_location
from millpond.daemon.store.segments import mapped, scan_segment, segment_numbers, segment_path

if TYPE_CHECKING:
    from millpond.daemon.store.store import Store

# (bytes done, bytes in all); may raise to cancel.
Progress = Callable[[int, int], None]
# A content's bytes for its name from elsewhere, or None.
Source = Callable[[ObjectName], bytes | None]

_RANGE = struct.Struct(">5sQQQ")
_RANGE_TAG = b"range"
# Damages listed one by one, and files named for each; the counts are always whole.
MAX_LISTED = 1000
MAX_FILES = 100


@dataclass(slots=True)
class Damaged:
    """One damage: `kind` is chunk, recipe, object or range; `files` are the paths in manifests that it hurts."""

    kind: str
    id: str
    segment: int | None
    offset: int | None
    reason: str
    files: list[str] = field(default_factory=list)


@dataclass(slots=True)
class FsckReport:
    """What was checked and found. `ok` is False when anything named cannot be read, or anything was found damaged;
    `hurt` are the objects that cannot be read whole."""

    ok: bool = True
    deep: bool = False
    segments: int = 0
    records: int = 0
    objects: int = 0
    bytes: int = 0
    damaged: list[Damaged] = field(default_factory=list)
    damaged_count: int = 0
    hurt: list[str] = field(default_factory=list)
    repaired: int = 0
    quarantined: int = 0


class Fsck:
    """One run over one open store."""

    def __init__(self, store: Store, index: Index, folder: Path, *, deep: bool, progress: Progress | None) -> None:
        self._store = store
        self._index = index
        self._folder = folder
        self._deep = deep
        self._progress = progress or (lambda done, total: None)
        self._report = FsckReport(deep=deep)
        self._bad: dict[bytes, Damaged] = {}
        self._ranges: list[tuple[int, int, int]] = []

    def run(self, *, repair: bool, source: Source | None) -> FsckReport:
        """Check everything; with `repair`, quarantine and mend."""
        self._check_segments()
        if self._matched != self._count_records():
            self._check_index()
        hurt = self._check_names()
        self._name_files(hurt)
        report = self._report
        report.damaged = [*self._bad.values()][:MAX_LISTED]
        report.damaged_count = len(self._bad)
        report.ok = not self._bad
        report.hurt = [str(name) for name in hurt][:MAX_LISTED]
        if repair and self._bad:
            self._repair(hurt, source)
        return report

    # -- segments -------------------------------------------------------------------------------------------------

    def _check_segments(self) -> None:
        numbers = segment_numbers(self._folder)
        total = sum(segment_path(self._folder, number).stat().st_size for number in numbers)
        self._matched = done = 0
        for number in numbers:
            self._report.segments += 1
            with mapped(segment_path(self._folder, number)) as view:
                size = len(view)
                for item in scan_segment(view, number):
                    if isinstance(item[0], Record):
                        self._check_record(number, item[0], item[1])
                        self._progress(done + item[0].end, total)
                    else:
                        self._bad_range(number, int(item[0]), int(str(item[1])))
            done += size
        self._report.bytes = done
        self._progress(done, total)

    def _check_record(self, number: int, record: Record, payload: Any) -> None:
        self._report.records += 1
        if record.kind == Kind.JOURNAL:
            payload.release()
            return
        location = Location(record.kind, record.codec, number, record.offset, record.stored, record.raw)
        with self._index.begin() as txn:
            if self._index.location(txn, record.id) == location:
                self._matched += 1
                if self._deep:
                    self._check_content(record, payload, location)
        payload.release()

    def _check_content(self, record: Record, payload: Any, location: Location) -> None:
        try:
            if content_id(decompress(record.codec, record.raw, payload)) != record.id:
                raise BadRecord("the content is not what its id says")
        except BadRecord as error:
            self._damage(record.id, location, str(error))

    def _bad_range(self, number: int, begin: int, end: int) -> None:
        with self._index.begin() as txn:
            if txn.get(_RANGE.pack(_RANGE_TAG, number, begin, end), db=self._index.quarantine) is not None:
                return  # known since an earlier repair, and nothing needs it
            tail = (number, begin) >= self._index.committed(txn)
        if tail and end == segment_path(self._folder, number).stat().st_size:
            return  # being written just now
        self._ranges.append((number, begin, end))
        key = _RANGE.pack(_RANGE_TAG, number, begin, end)
        self._bad[key] = Damaged("range", "", number, begin, f"{end - begin} bytes are no valid record")

    # -- index ----------------------------------------------------------------------------------------------------

    def _count_records(self) -> int:
        with self._index.begin() as txn:
            return int(txn.stat(db=self._index.records)["entries"])

    def _check_index(self) -> None:
        """Only when the scan did not meet every indexed record: find those that are not where the index says."""
        for record_id, location in self._locations():
            if record_id in self._bad:
                continue
            try:
                if location.kind == Kind.CHUNK:
                    self._store.reader.read_chunk(record_id)
                else:
                    self._store.reader.layout(Content(location.kind, record_id, 0))
            except StoreDamagedError as error:
                self._damage(record_id, location, str(error.details.get("reason", error.message)))

    def _locations(self) -> Iterator[tuple[bytes, Location]]:
        """All indexed records, a bounded transaction at a time."""
        after = b""
        while True:
            with self._index.begin() as txn, txn.cursor(db=self._index.records) as cursor:
                rows = []
                if cursor.set_range(after):
                    for key, value in cursor:
                        rows.append((bytes(key), unpack_location(value)))
                        if len(rows) == 1000:
                            break
            rows = [row for row in rows if row[0] != after]
            if not rows:
                return
            yield from rows
            after = rows[-1][0]

    # -- names ----------------------------------------------------------------------------------------------------

    def _check_names(self) -> dict[ObjectName, list[bytes]]:
        """For each name that cannot be read whole, the damages that hurt it."""
        hurt: dict[ObjectName, list[bytes]] = {}
        bad = set(self._bad)
        for name, content in self._names():
            self._report.objects += 1
            found = self._missing_records(content, bad)
            if not found and self._deep and not self._digest_matches(name, content):
                self._damage(content.id, None, f"object {name} has another digest", kind="object")
                found = [content.id]
            if found:
                hurt.setdefault(name, []).extend(found)
        return hurt

    def _names(self) -> Iterator[tuple[ObjectName, Content]]:
        after: tuple[bytes, bytes] | None = None
        while True:
            rows: list[tuple[bytes, bytes]] = []
            with self._index.begin() as txn, txn.cursor(db=self._index.objects) as cursor:
                there = cursor.first() if after is None else cursor.set_range_dup(*after) or cursor.set_range(after[0])
                while there and len(rows) < 1000:
                    row = (bytes(cursor.key()), bytes(cursor.value()))
                    if after is None or row > after:
                        rows.append(row)
                    there = cursor.next()
            if not rows:
                return
            for key, value in rows:
                yield ObjectName.from_key(key), unpack_content(value)
            after = rows[-1]

    def _missing_records(self, content: Content, bad: set[bytes]) -> list[bytes]:
        if content.id in bad:
            return [content.id]
        with self._index.begin() as txn:
            if recovery.is_whole(self._store.reader, self._index, txn, content) and not bad:
                return []
            location = self._index.location(txn, content.id)
        if location is None:
            self._damage(content.id, None, "its record is not in the index", kind="object")
            return [content.id]
        if content.kind == Kind.CHUNK:
            return []
        found = []
        layout = self._store.reader.layout(content)
        with self._index.begin() as txn:
            for number in range(len(layout)):
                chunk = layout.id(number)
                if chunk not in bad and self._index.location(txn, chunk) is None:
                    self._damage(chunk, None, "its record is not in the index")
                    bad.add(chunk)
                if chunk in bad:
                    found.append(chunk)
        return found

    def _digest_matches(self, name: ObjectName, content: Content) -> bool:
        if name.algo != "md5":
            return True  # md5-dos2unix names a changed text; Git's names have a header: neither is made here
        digest = hashlib.md5(usedforsecurity=False)
        try:
            layout = self._store.reader.layout(content)
            for number in range(len(layout)):
                digest.update(self._store.reader.read_chunk(layout.id(number)))
        except StoreDamagedError:
            return False
        return digest.hexdigest() == name.hex

    def _name_files(self, hurt: dict[ObjectName, list[bytes]]) -> None:
        """Write into each damage the files that it hurts, from all readable manifests."""
        if not hurt:
            return
        by_hex = {(name.algo, name.value): damages for name, damages in hurt.items()}
        for name, damages in hurt.items():
            self._add_file(damages, f"object {name}")
        for name, content in self._names():
            if name.is_dir and name not in hurt:
                layout = self._store.reader.layout(content)
                text = b"".join(self._store.reader.read_chunk(layout.id(i)) for i in range(len(layout)))
                for entry in json.loads(text):
                    damages = by_hex.get(("md5", entry.get("md5", "")), [])
                    self._add_file(damages, f"{entry.get('relpath')} in {name.value}")

    def _add_file(self, damages: list[bytes], text: str) -> None:
        for damage in set(damages):
            found = self._bad.get(damage)
            if found is not None and len(found.files) < MAX_FILES:
                found.files.append(text)

    def _damage(self, record_id: bytes, location: Location | None, reason: str, kind: str = "") -> None:
        segment, offset = (location.segment, location.offset) if location else (None, None)
        if not kind:
            kind = Kind(location.kind).name.lower() if location else "chunk"
        self._bad.setdefault(record_id, Damaged(kind, record_id.hex(), segment, offset, reason))

    # -- repair ---------------------------------------------------------------------------------------------------

    def _repair(self, hurt: dict[ObjectName, list[bytes]], source: Source | None) -> None:
        """Quarantine damaged records, so that the same bytes can be stored again; take hurt objects from `source`;
        write the journal anew when a segment lost a range, which may have been a journal record."""
        bad = dict(self._bad)

        def quarantine(txn: Any) -> int:
            for key, damage in bad.items():
                reason = {"reason": damage.reason, "segment": damage.segment, "offset": damage.offset}
                txn.put(key, json.dumps(reason).encode(), db=self._index.quarantine)
                if damage.kind != "range":
                    txn.delete(key, db=self._index.records)
            return sum(1 for damage in bad.values() if damage.kind != "range")

        self._report.quarantined = self._store.write(quarantine)
        self._store.forget_complete()
        for name in hurt:
            data = source(name) if source is not None else None
            if data is not None and self._mend(name, data):
                self._report.repaired += 1
        if self._ranges:
            self._rewrite_journal()
        unmended = len(hurt) - self._report.repaired
        self._report.ok = unmended == 0

    def _mend(self, name: ObjectName, data: bytes) -> bool:
        session = self._store.session(self._owner(name))
        stored = session.feed(memoryview(data), [(len(data), True, name.is_dir)])[0]
        if stored.name != name:
            session.abort()
            return False
        return not session.commit()

    def _owner(self, name: ObjectName) -> int:
        """A uid that may read the object already: mending gives nobody a new right."""
        with self._index.begin() as txn:
            wanted = {content.id for content in self._index.contents(txn, name)}
        for uid, content in self._grants():
            if content in wanted:
                return uid
        return 0

    def _grants(self) -> Iterator[tuple[int, bytes]]:
        with self._index.begin() as txn, txn.cursor(db=self._index.grants) as cursor:
            rows = [(int.from_bytes(key[:4], "big"), bytes(key[4:])) for key, _ in cursor]
        yield from rows

    def _rewrite_journal(self) -> None:
        by_content: dict[bytes, list[int]] = {}
        for uid, content in self._grants():
            by_content.setdefault(content, []).append(uid)
        batches: dict[int, NameBatch] = {}
        for name, found in self._names():
            for uid in by_content.get(found.id, []):
                batches.setdefault(uid, NameBatch(uid)).add(name.key(), found)
        for batch in batches.values():
            self._store.commit_names(batch)
