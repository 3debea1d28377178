"""Small chunks unpacked ahead of a reader who takes them in the order in which they lie.

The files of a folder are stored one behind the other, so who reads small files in order walks along a segment. When two
chunks were asked for that are neighbours, the next ones are unpacked while the reader is busy with what he got: he comes for
them after a moment. Nothing here waits: bytes come from the page cache, some dozens of records with one read.
"""

from __future__ import annotations

from millpond.daemon.store import records
from millpond.daemon.store.records import BadRecord, Kind, Location, padded
from millpond.daemon.store.segmentreader import SegmentReader

# Chunks kept at most, the size of each, and bytes read at once.
CHUNKS = 8
CHUNK_BYTES = 64 << 10
_PIECE_BYTES = 128 << 10


class Neighbours:
    """For one thread. `step` unpacks one record, if there is reason to."""

    def __init__(self, segments: SegmentReader, key: int) -> None:
        self._segments = segments
        self._key = key
        # Behind what was asked for last; what is to be unpacked next, None if the reader does not go in order.
        self._behind = (0, 0)
        self._next: tuple[int, int] | None = None
        # Bytes of a segment, and where they begin.
        self._piece = memoryview(b"")
        self._begin = (0, 0)
        self._ready: dict[bytes, bytes] = {}

    def passed(self, location: Location) -> None:
        """A chunk was read at its place."""
        in_order = self._behind == (location.segment, location.offset)
        self._behind = (location.segment, location.offset + padded(location.stored))
        self._next = self._behind if in_order else None
        self._ready.clear()

    def take(self, chunk_id: bytes) -> bytes | None:
        """A chunk that was unpacked. Those before it were passed over, and go."""
        if chunk_id not in self._ready:
            return None
        while True:
            first = next(iter(self._ready))
            data = self._ready.pop(first)
            if first == chunk_id:
                return data

    def step(self) -> None:
        """Unpack the next chunk, or pass over what is none that is small."""
        if self._next is None or len(self._ready) >= CHUNKS:
            return
        try:
            record, end = self._record(*self._next)
        except (OSError, BadRecord):  # not in the page cache, or the segment's end, or damage: for others to find out
            self._stop()
            return
        if record is not None:
            self._ready[record[0]] = record[1]
        self._next = end

    def _record(self, segment: int, offset: int) -> tuple[tuple[bytes, bytes] | None, tuple[int, int]]:
        """((id, content) of the record there, or None if it is no small chunk; the place behind it). Raises OSError, BadRecord."""
        for fresh in (False, True):
            if fresh:
                self._piece, self._begin = self._segments.peek(segment, offset, _PIECE_BYTES), (segment, offset)
            at = offset - self._begin[1]
            if segment != self._begin[0] or not 0 <= at <= len(self._piece) - records.HEADER.size:
                continue
            record, _ = records.decode_header(self._piece, at)
            end = (segment, offset + padded(record.stored))
            if record.kind != Kind.CHUNK or record.raw > CHUNK_BYTES:
                return None, end
            if at + records.HEADER.size + record.stored <= len(self._piece):
                record, payload = records.decode(self._piece, self._key, at)
                return (record.id, records.decompress(record.codec, record.raw, payload)), end
        raise BadRecord("it is not in the page cache")

    def _stop(self) -> None:
        self._next = None
        self._piece, self._begin = memoryview(b""), (0, 0)
