"""Rewriting segments of which less than half is needed, so that what gc removed gives its room back.

One segment at a time: what the index needs of it is copied to the end of the store, with the journal's entries that still
hold; that is committed; then the segment is unlinked. So at any instant each record is in the segment that the index names.
Readers that looked it up before find the file gone and look it up again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.store import journal
from millpond.daemon.store.gc import rows
from millpond.daemon.store.journal import MAX_ENTRIES, Names
from millpond.daemon.store.records import HEADER, BadRecord, Kind, Record, decompress, padded, unpack_location
from millpond.daemon.store.segments import Encoded, mapped, scan_segment, segment_numbers, segment_path

if TYPE_CHECKING:
    from millpond.daemon.store.store import Store

log = logging.getLogger("millpond.store")

# A segment is rewritten when less than this part of it is needed.
LIVE_PART = 0.5
# Bytes of records that are copied at once.
_BATCH_BYTES = 4 << 20


@dataclass(slots=True)
class CompactReport:
    """Segments that were removed, the bytes that they had, and those that were copied out of them."""

    segments: int = 0
    bytes: int = 0
    copied: int = 0


class Compaction:
    """One round over all segments of which less than `live_part` is needed, until the store has `to` bytes. `pace` is
    told of bytes that were copied: it may wait, and may raise to stop."""

    def __init__(
        self,
        store: Store,
        pace: Callable[[int], None] | None = None,
        *,
        live_part: float = LIVE_PART,
        to: int = 0,
    ) -> None:
        self._store = store
        self._index = store.reader.index
        self._folder = store.path / "segments"
        self._pace = pace or (lambda size: None)
        self._live_part = live_part
        self._to = to
        self.report = CompactReport()

    def run(self) -> CompactReport:
        """Rewrite what is mostly garbage. Raises DiskFullError, StoreDamagedError, and what `pace` raises; then what was
        done is whole, and the next round does the rest."""
        for number in self._worth_it():
            if self._store.stored <= self._to:
                break
            with self._store.maintenance:
                if segment_path(self._folder, number).exists():  # no other round has removed it
                    self._rewrite(number)
        return self.report

    def _worth_it(self) -> list[int]:
        """Segments behind the last commit of which less than `live_part` is needed, the emptiest first."""
        live: Counter[int] = Counter()
        for _, value in rows(self._index, self._index.records):
            at = unpack_location(value)
            live[at.segment] += padded(at.stored)
        with self._index.begin() as txn:
            last = self._index.committed(txn)[0]
        found = []
        for number in segment_numbers(self._folder):
            if number < last:
                part = live[number] / max(segment_path(self._folder, number).stat().st_size, 1)
                if part < self._live_part:
                    found.append((part, number))
        return [number for _, number in sorted(found)]

    def _rewrite(self, number: int) -> None:
        path = segment_path(self._folder, number)
        size = path.stat().st_size
        ids: list[bytes] = []
        has_notes = False
        batch: list[Encoded] = []
        waiting = 0
        with mapped(path) as view:
            if self._is_damaged(number, view):
                log.warning("segment %d is damaged, so it is kept as it is: see `millpond fsck`", number)
                return
            for record, payload in self._records(view, number):
                if record.kind == Kind.JOURNAL:
                    has_notes |= self._keep_journal(number, record, payload)
                    continue
                ids.append(record.id)
                if not self._is_needed(number, record):
                    continue
                data = view[record.offset : record.end]
                parts = [data[: HEADER.size], payload, data[HEADER.size + record.stored :]]
                batch.append(Encoded(record.kind, record.id, record.raw, parts))
                waiting += len(data)
                if waiting >= _BATCH_BYTES:
                    waiting = self._copy(batch, waiting)
            self._copy(batch, waiting)
        if has_notes:
            self._store.ledger.snapshot()
        self._store.commit()
        if self._store.drop_segment(number, ids):
            self.report.segments += 1
            self.report.bytes += size
            log.info("segment %d is removed; it had %d bytes", number, size)

    def _copy(self, batch: list[Encoded], size: int) -> int:
        if batch:
            self._store.copy_records(batch)
            batch.clear()
            self.report.copied += size
            self._pace(size)
        return 0

    def _records(self, view: memoryview, number: int) -> Iterator[tuple[Record, memoryview]]:
        for item in scan_segment(view, number):
            if isinstance(item[0], Record):
                assert isinstance(item[1], memoryview)
                yield item[0], item[1]

    def _is_damaged(self, number: int, view: memoryview) -> bool:
        """Whether bytes of it are no record, and nobody knows why: fsck is to say first what they cost."""
        for item in scan_segment(view, number, self._store.reader.key):
            if not isinstance(item[0], Record):
                with self._index.begin() as txn:
                    if not self._index.has_range(txn, number, int(item[0]), int(str(item[1]))):
                        return True
        return False

    def _is_needed(self, number: int, record: Record) -> bool:
        at = self._store.reader.locate(record.id)
        return at is not None and (at.segment, at.offset) == (number, record.offset)

    def _keep_journal(self, number: int, record: Record, payload: memoryview) -> bool:
        """Say again what a record of names says, where it still holds; whether it was a note instead."""
        try:
            data = decompress(record.codec, record.raw, payload)
            if journal.parse_note(data) is not None:
                return True
            uid, entries = journal.parse(data)
        except BadRecord as error:
            raise StoreDamagedError(f"a journal record of segment {number} is not understood: {error}") from error
        for start in range(0, len(entries), MAX_ENTRIES):
            names = Names(uid)
            for key, content in entries[start : start + MAX_ENTRIES]:
                names.add(key, content)
            self._store.keep_names(names)
        return False
