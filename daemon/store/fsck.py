"""Checking the store, and saying which files a damage hurts.

Two passes. Over the segments, up to the last commit: every record's checksum, and that the index points at it (with
`deep` also that its content is what its id says). Over the names: that every record a content needs is there and sound
(with `deep` also that the content has the digest it is named by). Memory does not grow with the store unless it is damaged.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from millpond.daemon.errors import MillpondError, StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.store import manifests
from millpond.daemon.store.index import Content, Index, unpack_content
from millpond.daemon.store.records import BadRecord, Kind, Location, Record, content_id, decompress, padded
from millpond.daemon.store.records import unpack_location as unpack
from millpond.daemon.store.rehash import Named, Rehash
from millpond.daemon.store.segments import mapped, scan_segment, segment_numbers, segment_path

if TYPE_CHECKING:
    from millpond.daemon.store.store import Store

# (bytes done, bytes in all); may raise to cancel.
Progress = Callable[[int, int], None]

# Damages listed one by one, and files named for each; the counts are always whole.
MAX_LISTED = 1000
MAX_FILES = 100
# Rows read in one transaction.
_BATCH = 1000
# Bytes between two reports of progress.
_TICK = 8 << 20


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
    `hurt` are the objects that cannot be read whole (with repair: still not)."""

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


class Range(NamedTuple):
    """Bytes of a segment that are no valid record."""

    segment: int
    begin: int
    end: int


class Fsck:
    """One run over one open store. Afterwards `bad` holds what is damaged (by record id), `where` the places of damaged
    records, `ranges` the bytes that no damaged record explains, `hurt` what cannot be read and because of which ids,
    `misnamed` what does not have the digest of its name."""

    def __init__(self, store: Store, index: Index, folder: Path, *, deep: bool, progress: Progress) -> None:
        self._store = store
        self._index = index
        self._folder = folder
        self._deep = deep
        self._progress = progress
        self._done = self._told = self._total = 0
        self.report = FsckReport(deep=deep)
        self.bad: dict[bytes, Damaged] = {}
        self.where: dict[bytes, Location] = {}
        self.ranges: list[Range] = []
        self.hurt: dict[Named, list[bytes]] = {}
        self.misnamed: list[Named] = []

    def run(self) -> FsckReport:
        """Check everything. Raises what `progress` raises."""
        # On a full or failing disk what is pending stays so, and is not looked at.
        with contextlib.suppress(MillpondError):
            self._store.flush()
        with self._index.begin() as txn:
            self._mark = self._index.committed(txn)
        sizes = {n: self._limit(n) for n in segment_numbers(self._folder) if n <= self._mark[0]}
        self._total = sum(sizes.values()) + (self._logical() if self._deep else 0)
        self._check_index(self._check_segments(sizes))
        self._check_names()
        self._name_files()
        self._explain_ranges()
        report = self.report
        listed = [*self.bad.values(), *(_damaged_range(each) for each in self.ranges)]
        report.damaged, report.damaged_count = listed[:MAX_LISTED], len(listed)
        report.ok = not listed
        report.hurt = [*dict.fromkeys(str(each.name) for each in self.hurt)][:MAX_LISTED]
        self._progress(self._total, self._total)
        return report

    def hurt_by(self, ids: Iterable[bytes]) -> list[str]:
        """The objects, and files in readable manifests, that cannot be read without these records; nothing else is checked."""
        for each in ids:
            self._damage(each, Kind.CHUNK, "it is damaged")
        self._check_names()
        self._name_files()
        return [*dict.fromkeys(text for found in self.bad.values() for text in found.files)]

    def _advance(self, size: int) -> None:
        self._done += size
        if self._done - self._told >= _TICK:
            self._told = self._done
            self._progress(self._done, max(self._done, self._total))

    # -- segments -------------------------------------------------------------------------------------------------

    def _limit(self, number: int) -> int:
        """Bytes of a segment that are behind the last commit; the rest is being written just now."""
        size = segment_path(self._folder, number).stat().st_size
        return min(size, self._mark[1]) if number == self._mark[0] else size

    def _check_segments(self, sizes: dict[int, int]) -> Counter[int]:
        """For each segment how many records are where the index says."""
        met: Counter[int] = Counter()
        for number, size in sizes.items():
            self.report.segments += 1
            self.report.bytes += size
            with mapped(segment_path(self._folder, number), size) as view:
                for item in scan_segment(view, number, self._store.reader.key):
                    if isinstance(item[0], Record):
                        assert isinstance(item[1], memoryview)
                        met[number] += self._check_record(number, item[0], item[1])
                        self._advance(padded(item[0].stored))
                    else:
                        self._bad_range(Range(number, int(item[0]), int(str(item[1]))))
        return met

    def _check_record(self, number: int, record: Record, payload: memoryview) -> bool:
        """Whether the index points at this record."""
        self.report.records += 1
        if record.kind == Kind.JOURNAL:
            return False
        location = Location(record.kind, record.codec, number, record.offset, record.stored, record.raw)
        with self._index.begin() as txn:
            if self._index.location(txn, record.id) != location:
                return False
        if self._deep:
            try:
                if content_id(decompress(record.codec, record.raw, payload)) != record.id:
                    raise BadRecord("its content is not what its id says")
            except BadRecord as error:
                self._damage(record.id, location.kind, str(error), location)
        return True

    def _bad_range(self, found: Range) -> None:
        with self._index.begin() as txn:
            known = self._index.has_range(txn, *found)
        if not known:
            self.ranges.append(found)

    def _explain_ranges(self) -> None:
        """A range that consists of damaged records has been told of."""
        explained: Counter[Range] = Counter()
        for location in self.where.values():
            for each in self.ranges:
                if location.segment == each.segment and each.begin <= location.offset < each.end:
                    explained[each] += padded(location.stored)
        self.ranges = [each for each in self.ranges if explained[each] < each.end - each.begin]

    # -- index ----------------------------------------------------------------------------------------------------

    def _check_index(self, met: Counter[int]) -> None:
        """Where the scan did not meet as many records as are indexed: find those that are not where the index says."""
        with self._index.begin() as txn:
            if int(txn.stat(db=self._index.records)["entries"]) == met.total():
                return
        indexed = Counter(at.segment for _, at in self._locations() if (at.segment, at.offset) < self._mark)
        odd = {number for number in indexed.keys() | met.keys() if indexed[number] != met[number]}
        for record_id, at in self._locations():
            if at.segment not in odd or record_id in self.bad or (at.segment, at.offset) >= self._mark:
                continue
            try:
                if at.kind == Kind.CHUNK:
                    self._store.reader.read_chunk(record_id)
                else:
                    self._store.reader.layout(Content(at.kind, record_id, 0))
            except StoreDamagedError as error:
                self._damage(record_id, at.kind, str(error.details.get("reason", error.message)), at)

    def _locations(self) -> Iterator[tuple[bytes, Location]]:
        """All indexed records."""
        for key, value in _rows(self._index, self._index.records):
            yield key, unpack(value)

    # -- names ----------------------------------------------------------------------------------------------------

    def names(self) -> Iterator[Named]:
        """All contents of all names."""
        for key, value in _rows(self._index, self._index.objects):
            yield Named(ObjectName.from_key(key), unpack_content(value))

    def _logical(self) -> int:
        return sum(each.content.size for each in self.names())

    def _check_names(self) -> None:
        whole = self._whole()
        if not self._deep:
            for _ in whole:
                pass
            return
        rehash = Rehash(self._store.reader, self._store.kernels, self._advance)
        with contextlib.closing(rehash.check(whole)) as checked:
            for named, because in checked:
                self._take_digest(named, because)

    def _whole(self) -> Iterator[Named]:
        """Those of all contents whose records are there and sound; the others are noted as hurt."""
        for named in self.names():
            self.report.objects += 1
            because = self.missing(named.content)
            if because:
                self.hurt[named] = because
            else:
                yield named

    def missing(self, content: Content) -> list[bytes]:
        """The records that a content needs and has not, or not sound; each is noted as damaged."""
        if content.id in self.bad:
            return [content.id]
        with self._index.begin() as txn:
            there = self._index.location(txn, content.id) is not None
        if not there:
            self._damage(content.id, content.kind, "its record is not in the index")
            return [content.id]
        if content.kind == Kind.CHUNK:
            return []
        try:
            layout = self._store.reader.layout(content)
        except StoreDamagedError as error:
            self._damage(content.id, content.kind, str(error.details.get("reason", error.message)))
            return [content.id]
        found = []
        with self._index.begin() as txn:
            for chunk in layout.needed():
                if chunk not in self.bad and self._index.location(txn, chunk) is None:
                    self._damage(chunk, Kind.CHUNK, "its record is not in the index")
                if chunk in self.bad:
                    found.append(chunk)
        return found

    def _take_digest(self, named: Named, because: list[bytes]) -> None:
        """Note what the rehash of a content found."""
        for each in because:
            if each == named.content.id and self._store.reader.locate(each) is not None:
                self.misnamed.append(named)
                reason = f"its content does not have the digest {named.name}"
                self.bad.setdefault(_misnamed_key(named), Damaged("object", each.hex(), None, None, reason))
                each = _misnamed_key(named)
            else:
                self._damage(each, Kind.CHUNK, "it cannot be read")
            self.hurt.setdefault(named, []).append(each)

    def _name_files(self) -> None:
        """Write into each damage the files that it hurts, from all readable manifests."""
        if not self.hurt:
            return
        by_hex: dict[str, list[bytes]] = {}
        for named, because in self.hurt.items():
            by_hex.setdefault(named.name.value, []).extend(because)
            self._add_file(because, f"object {named.name}")
        for named in self.names():
            if named.name.is_dir and named not in self.hurt:
                try:
                    for relpath, digest in manifests.entries(self._store.reader.pieces(named.content)):
                        self._add_file(by_hex.get(digest, ()), f"{relpath} in {named.name.value}")
                except (manifests.NotAManifest, StoreDamagedError):
                    continue

    def _add_file(self, because: Any, text: str) -> None:
        for each in set(because):
            found = self.bad[each]
            if len(found.files) < MAX_FILES:
                found.files.append(text)

    def _damage(self, record_id: bytes, kind: int, reason: str, location: Location | None = None) -> None:
        if record_id in self.bad:
            return
        if location is None:
            with self._index.begin() as txn:
                known = self._index.quarantined(txn, record_id)
            if known is not None:
                reason, location = known
        if location is not None:
            self.where[record_id] = location
        segment, offset = (location.segment, location.offset) if location else (None, None)
        self.bad[record_id] = Damaged(Kind(kind).name.lower(), record_id.hex(), segment, offset, reason)


def _rows(index: Index, database: Any) -> Iterator[tuple[bytes, bytes]]:
    """All rows, a bounded transaction at a time, so that a long check holds no old pages."""
    after: tuple[bytes, bytes] | None = None
    while True:
        rows: list[tuple[bytes, bytes]] = []
        with index.begin() as txn, txn.cursor(db=database) as cursor:
            there = cursor.first() if after is None else cursor.set_range(after[0])
            while there and len(rows) < _BATCH:
                row = (bytes(cursor.key()), bytes(cursor.value()))
                if after is None or row > after:
                    rows.append(row)
                there = cursor.next()
        if not rows:
            return
        yield from rows
        after = rows[-1]


def _misnamed_key(named: Named) -> bytes:
    """A key in `bad` that is no record's id: the record itself is sound."""
    return named.name.key() + named.content.id


def _damaged_range(found: Range) -> Damaged:
    return Damaged("range", "", found.segment, found.begin, f"{found.end - found.begin} bytes are no valid record")
