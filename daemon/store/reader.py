"""The read side of the store: in the daemon over its own index, in a holder over a read-only one.

Every byte that leaves was checked against its record's checksum. Segment numbers are never reused, so when a record is
not where the index said (a rewrite was faster), looking it up once more gives the new place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lmdb

from millpond.daemon.errors import StoreDamagedError, StoreFormatError
from millpond.daemon.names import ObjectName
from millpond.daemon.store import records
from millpond.daemon.store.buffers import REUSED_BYTES, Buffers
from millpond.daemon.store.format import read_format
from millpond.daemon.store.index import Content, Index, evicted_key, grant_key, unpack_content
from millpond.daemon.store.neighbours import Neighbours
from millpond.daemon.store.parts import PartReader
from millpond.daemon.store.recipes import Layout, parse_recipe
from millpond.daemon.store.records import BadRecord, Codec, Kind, Location
from millpond.daemon.store.segmentreader import SegmentReader

Bytes = bytes | memoryview
# Bytes of a segment read at once.
RUN_BYTES = 2 << 20
# What is read along with it, between two records, sooner than there are two reads.
GAP_BYTES = 16 << 10
# A content up to here has a recipe of a few pages at most.
_SHORT_RECIPE = 64 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """A record that could not be read as what the index says: its id, the reason, and where its bytes are wrong (None when
    they could not be had at all)."""

    id: bytes
    reason: str
    location: Location | None


class StoreReader:
    """Resolve names, lay out contents, read chunks. Safe in many threads."""

    def __init__(
        self,
        index: Index,
        segments: Path,
        key: int,
        on_damage: Callable[[Damage], None] | None = None,
        *,
        buffer_bytes: int = 0,
    ) -> None:
        self.index = index
        self.key = key
        self._buffers = Buffers(buffer_bytes)
        self._segments = SegmentReader(segments, self._buffers)
        self._neighbours = Neighbours(self._segments, key)
        self._on_damage = on_damage
        # Segments of which somebody read contents; see uses.py.
        self._used: set[int] = set()

    @classmethod
    def open(cls, path: Path, buffer_bytes: int = 0) -> StoreReader:
        """The store at `path`, read-only, for a process that is not the daemon. `buffer_bytes` of memory are kept for
        reading chunks. Raises StoreFormatError."""
        try:
            key = records.key_of(read_format(path).uuid)
            return cls(Index(path / "index", writable=False), path / "segments", key, buffer_bytes=buffer_bytes)
        except lmdb.Error as error:
            raise StoreFormatError(f"cannot open the store's index: {error}", path=str(path)) from error

    def resolve(self, names: Sequence[ObjectName], uid: int) -> list[Content | None]:
        """For each name the content that `uid` may read, or None."""
        with self.index.begin() as txn:
            return [self.index.granted(txn, name, uid) for name in names]

    def sizes(self, keys: Sequence[bytes], uid: int, *, evicted: bool = False) -> list[int | None]:
        """For each name's key the size of the content that `uid` may read, or None; with `evicted` also of one that
        only a remote has now."""
        index = self.index
        with index.begin() as txn:
            found: list[int | None] = []
            for key in keys:
                value = txn.get(key, db=index.objects)
                content = None if value is None else unpack_content(value)
                if content is not None and txn.get(grant_key(uid, content.id), db=index.grants) is None:
                    content = index.granted(txn, ObjectName.from_key(key), uid)  # perhaps another of its contents
                size = None if content is None else content.size
                if size is None and evicted:
                    row = txn.get(evicted_key(uid, key), db=index.evicted)
                    size = None if row is None else int.from_bytes(row, "little")
                found.append(size)
            return found

    def layout(self, content: Content) -> Layout:
        """Where each chunk of a content begins. Raises StoreDamagedError."""
        if content.kind == Kind.CHUNK:
            return Layout.single(content.id, content.size)
        return parse_recipe(self._read(content.id, Kind.RECIPE), content.id)

    def layout_at(self, content: Content, location: Location) -> Layout:
        """`layout` for a recipe whose place is known but perhaps not committed. Raises StoreDamagedError."""
        try:
            data = self._segments.read(location)
            return parse_recipe(self._content(data, content.id, Kind.RECIPE), content.id)
        except (OSError, BadRecord) as error:
            raise StoreDamagedError(f"recipe {content.id.hex()[:16]} cannot be read: {error}") from error

    def read_at(self, location: Location) -> bytes:
        """The payload of a record that is not in the index. Raises BadRecord."""
        try:
            data = self._segments.read(location)
        except OSError as error:
            raise BadRecord(f"it cannot be read: {error.strerror}") from error
        record, payload = records.decode(data, self.key)
        return records.decompress(record.codec, record.raw, payload)

    def read_chunk(self, chunk_id: bytes) -> bytes:
        """A chunk's bytes, checked. Raises StoreDamagedError."""
        return self._read(chunk_id, Kind.CHUNK)

    def parts(self, layout: Layout) -> PartReader:
        """For reading what a layout lists one after the other."""
        return PartReader(self, layout)

    def read_content(self, content: Content) -> bytes:
        """A whole small content. Raises StoreDamagedError."""
        return b"".join(self.pieces(content))

    def pieces(self, content: Content) -> Iterator[bytes]:
        """A content, chunk by chunk. Raises StoreDamagedError."""
        layout = self.layout(content)
        if layout.starts is not None:
            yield from PartReader(self, layout).pieces()
            return
        for number in range(len(layout)):
            yield self.read_chunk(layout.id(number))

    def locate(self, record_id: bytes) -> Location | None:
        """Where a record lies."""
        with self.index.begin() as txn:
            return self.index.location(txn, record_id)

    def located(self, key: bytes, uid: int) -> tuple[Content, Location] | None:
        """The content of the object with this name's key that `uid` may read, and where its record lies."""
        index = self.index
        with index.begin() as txn:
            value = txn.get(key, db=index.objects)
            content = None if value is None else unpack_content(value)
            if content is not None and txn.get(grant_key(uid, content.id), db=index.grants) is None:
                content = index.granted(txn, ObjectName.from_key(key), uid)  # perhaps another of its contents
            location = None if content is None else index.location(txn, content.id)
            return None if content is None or location is None else (content, location)

    def read_chunks(
        self, ids: Sequence[bytes], locations: Sequence[Location | None] = (), *, drop: bool = False
    ) -> list[Bytes]:
        """Several chunks' bytes, checked; `locations` is where they lie, if that is known. What lies side by side is read at once, and raw chunks
        are not copied: they are parts of what was read. With `drop` the kernel need not keep the stored form. Raises StoreDamagedError."""
        if not locations:
            with self.index.begin() as txn:
                locations = [self.index.location(txn, each) for each in ids]
        self._used.update(location.segment for location in locations if location is not None)
        found: list[Bytes] = []
        for first, count in _runs(locations):
            found += self._read_run(ids[first : first + count], locations[first : first + count], drop)
        return found

    def read_range(self, segment: int, offset: int, size: int) -> memoryview:
        """Bytes of a segment as they are, checked by nobody; fewer at its end. Raises OSError."""
        self._used.add(segment)
        return self._segments.read_range(segment, offset, size)

    def peek(self, segment: int, offset: int, size: int) -> memoryview:
        """The same, without waiting: fewer where what follows is not in the page cache. Raises OSError."""
        self._used.add(segment)
        return self._segments.peek(segment, offset, size)

    def will_need(self, chunk_id: bytes, size: int) -> None:
        """Have the kernel read `size` bytes from a chunk's record on: what was stored next to it."""
        location = self.locate(chunk_id)
        if location is not None:
            with contextlib.suppress(OSError):
                self._segments.will_need(location.segment, location.offset, size)

    def read_ahead(self, segment: int, offset: int, size: int) -> None:
        """Have the kernel begin to read bytes of a segment. Raises OSError."""
        self._segments.will_need(segment, offset, size)

    def read_chunk_nowait(self, chunk_id: bytes, unpack_bytes: int) -> Bytes | None:
        """A chunk's bytes if they are in the page cache and whole, and raw or not larger than `unpack_bytes`; None means:
        ask `read_chunk`, which may wait."""
        return self._nowait(self.locate(chunk_id), chunk_id, Kind.CHUNK, unpack_bytes)

    def layout_nowait(self, content: Content) -> Layout | None:
        """`layout` if that takes no waiting, and the content is not so large that its recipe is long."""
        if content.size > _SHORT_RECIPE:
            return None
        data = self._nowait(self.locate(content.id), content.id, Kind.RECIPE, RUN_BYTES)
        return None if data is None else parse_recipe(bytes(data), content.id)

    def whole_nowait(self, key: bytes, uid: int, size: int) -> Bytes | None:
        """The `size` bytes of the object with this name's key that `uid` may read, if it is one chunk, in the page cache and
        whole; None means: go the long way. For one thread."""
        index = self.index
        with index.begin() as txn:
            value = txn.get(key, db=index.objects)
            if value is None:
                return None
            content = unpack_content(value)
            if content.kind != Kind.CHUNK or content.size != size:
                return None
            if not size:
                return b""
            if txn.get(grant_key(uid, content.id), db=index.grants) is None:
                return None
            ready = self._neighbours.take(content.id)
            if ready is not None and len(ready) == size:
                return ready
            location = index.location(txn, content.id)
            data = self._nowait(location, content.id, Kind.CHUNK, size)
            if location is not None and data is not None:
                self._neighbours.passed(location)
            return data

    def unpack_ahead(self) -> None:
        """Do a small part of what the next `whole_nowait` will ask for, if that can be told. In the same thread as that."""
        self._neighbours.step()

    def _nowait(self, location: Location | None, record_id: bytes, kind: Kind, unpack_bytes: int) -> Bytes | None:
        if location is None or (location.codec != Codec.RAW and location.raw > unpack_bytes):
            return None
        try:
            data = self._segments.read_nowait(location)
            self._used.add(location.segment)
            return None if data is None else self._view(data, 0, record_id, kind)
        except (OSError, BadRecord):
            return None

    def take_used(self) -> set[int]:
        """Numbers of the segments that contents were read of since this was called last."""
        used, self._used = self._used, set()
        return used

    def note_used(self, segments: Iterable[int]) -> None:
        """Another process read contents of these for the same mount."""
        self._used.update(segments)

    def let_go(self) -> None:
        """Close what was removed from the store, so that its room comes back."""
        self._segments.let_go()

    def close(self) -> None:
        self._segments.close()
        self.index.close()

    def _read_run(self, ids: Sequence[bytes], locations: Sequence[Location | None], drop: bool) -> list[Bytes]:
        """Chunks that lie side by side; one by one, with all that `_read` knows to do, if anything is amiss."""
        head, tail = locations[0], locations[-1]
        if head is not None and tail is not None:
            try:
                size = tail.offset + records.padded(tail.stored) - head.offset
                data = self._segments.read_range(head.segment, head.offset, size, drop=drop)
                starts = [location.offset - head.offset for location in locations if location is not None]
                return [self._view(data, start, each) for start, each in zip(starts, ids, strict=True)]
            except (OSError, BadRecord):
                pass
        return [self.read_chunk(each) for each in ids]

    def _read(self, record_id: bytes, kind: Kind) -> bytes:
        reason, wrong = "", None
        for _ in range(2):
            location = self.locate(record_id)
            if location is None:
                reason = reason or "it is not in the index"
                break
            wrong = None
            try:
                data = self._segments.read(location)
                return self._content(data, record_id, kind)
            except OSError as error:
                reason = f"segment {location.segment} cannot be read: {error.strerror}"
            except BadRecord as error:
                reason, wrong = f"segment {location.segment} at {location.offset}: {error}", location
        if self._on_damage is not None:
            self._on_damage(Damage(record_id, reason, wrong))
        raise StoreDamagedError(
            f"{kind.name.lower()} {record_id.hex()[:16]} is damaged: {reason}",
            hint="run `millpond fsck` to see which files it hurts, and `fsck --repair` to mend what can be mended",
            details={"id": record_id.hex(), "reason": reason},
        )

    def _content(self, data: bytes, record_id: bytes, kind: Kind) -> bytes:
        record, payload = records.decode(data, self.key)
        if record.id != record_id or record.kind != kind:
            raise BadRecord("another record is there")
        return records.decompress(record.codec, record.raw, payload)

    def _view(self, data: memoryview, start: int, record_id: bytes, kind: Kind = Kind.CHUNK) -> Bytes:
        """The content of the record at `start`, not copied if it is raw. Raises BadRecord."""
        record, payload = records.decode(data, self.key, start)
        if record.id != record_id or record.kind != kind:
            raise BadRecord("another record is there")
        if record.codec == Codec.RAW and record.raw == record.stored:
            return payload
        if record.codec == Codec.ZSTD and record.raw >= REUSED_BYTES:
            content = self._buffers.take(record.raw)
            records.decompress_into(content, payload)
            return content
        return records.decompress(record.codec, record.raw, payload)


def _runs(locations: Sequence[Location | None]) -> Iterator[tuple[int, int]]:
    """(first, count) of what lies side by side in one segment, or nearly, no run longer than RUN_BYTES unless it is one record."""
    first = 0
    for number in range(1, len(locations) + 1):
        if number < len(locations):
            begin, before, here = locations[first], locations[number - 1], locations[number]
            if begin is not None and before is not None and here is not None:
                end = here.offset + records.padded(here.stored)
                gap = here.offset - before.offset - records.padded(before.stored)
                if here.segment == before.segment and 0 <= gap <= GAP_BYTES and end - begin.offset <= RUN_BYTES:
                    continue
        yield first, number - first
        first = number
