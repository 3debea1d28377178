"""The read side of the store: in the daemon over its own index, in a holder over a read-only one.

Every byte that leaves was checked against its record's checksum. Segment numbers are never reused, so when a record is
not where the index said (a rewrite was faster), looking it up once more gives the new place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import lmdb

from millpond.daemon.errors import StoreDamagedError, StoreFormatError
from millpond.daemon.names import ObjectName
from millpond.daemon.store import records
from millpond.daemon.store.index import Content, Index
from millpond.daemon.store.recipes import Layout, parse_recipe
from millpond.daemon.store.records import BadRecord, Kind, Location
from millpond.daemon.store.segments import SegmentReader


@dataclass(frozen=True, slots=True)
class Damage:
    """A record that could not be read as what the index says: the record's id and the reason."""

    id: bytes
    reason: str


class StoreReader:
    """Resolve names, lay out contents, read chunks. Safe in many threads."""

    def __init__(self, index: Index, segments: Path, on_damage: Callable[[Damage], None] | None = None) -> None:
        self.index = index
        self._segments = SegmentReader(segments)
        self._on_damage = on_damage

    @classmethod
    def open(cls, path: Path) -> StoreReader:
        """The store at `path`, read-only, for a process that is not the daemon. Raises StoreFormatError."""
        try:
            return cls(Index(path / "index", writable=False), path / "segments")
        except lmdb.Error as error:
            raise StoreFormatError(f"cannot open the store's index: {error}", path=str(path)) from error

    def resolve(self, names: Sequence[ObjectName], uid: int) -> list[Content | None]:
        """For each name the content that `uid` may read, or None."""
        with self.index.begin() as txn:
            return [self.index.granted(txn, name, uid) for name in names]

    def layout(self, content: Content) -> Layout:
        """Where each chunk of a content begins. Raises StoreDamagedError."""
        if content.kind == Kind.CHUNK:
            return Layout.single(content.id, content.size)
        return parse_recipe(self._read(content.id, Kind.RECIPE), content.id)

    def layout_at(self, content: Content, location: Location) -> Layout:
        """`layout` for a recipe whose place is known but perhaps not committed. Raises StoreDamagedError."""
        try:
            data = self._segments.read(location)
            assert data is not None
            return parse_recipe(_content(data, content.id, Kind.RECIPE), content.id)
        except (OSError, BadRecord) as error:
            raise StoreDamagedError(f"recipe {content.id.hex()[:16]} cannot be read: {error}") from error

    def read_chunk(self, chunk_id: bytes) -> bytes:
        """A chunk's bytes, checked. Raises StoreDamagedError."""
        return self._read(chunk_id, Kind.CHUNK)

    def read_content(self, content: Content) -> bytes:
        """A whole small content. Raises StoreDamagedError."""
        layout = self.layout(content)
        return b"".join(self.read_chunk(layout.id(number)) for number in range(len(layout)))

    def locate(self, record_id: bytes) -> Location | None:
        """Where a record lies."""
        with self.index.begin() as txn:
            return self.index.location(txn, record_id)

    def read_chunk_nowait(self, chunk_id: bytes) -> bytes | None:
        """A chunk's bytes if they are in the page cache and whole; None means: ask `read_chunk`, which may wait."""
        location = self.locate(chunk_id)
        if location is None:
            return None
        try:
            data = self._segments.read(location, nowait=True)
            return None if data is None else _content(data, chunk_id, Kind.CHUNK)
        except (OSError, BadRecord):
            return None

    def drop_cache(self, chunk_id: bytes) -> None:
        """Let the kernel forget the stored form of a chunk."""
        location = self.locate(chunk_id)
        if location is not None:
            self._segments.drop_cache(location)

    def close(self) -> None:
        self._segments.close()
        self.index.close()

    def _read(self, record_id: bytes, kind: Kind) -> bytes:
        reason = ""
        for _ in range(2):
            location = self.locate(record_id)
            if location is None:
                reason = reason or "it is not in the index"
                break
            try:
                data = self._segments.read(location)
                assert data is not None
                return _content(data, record_id, kind)
            except OSError as error:
                reason = f"segment {location.segment} cannot be read: {error.strerror}"
            except BadRecord as error:
                reason = f"segment {location.segment} at {location.offset}: {error}"
        if self._on_damage is not None:
            self._on_damage(Damage(record_id, reason))
        raise StoreDamagedError(
            f"{kind.name.lower()} {record_id.hex()[:16]} is damaged: {reason}",
            hint="run `millpond fsck` to see which files it hurts, and `fsck --repair` to mend what can be mended",
            details={"id": record_id.hex(), "reason": reason},
        )


def _content(data: bytes, record_id: bytes, kind: Kind) -> bytes:
    record, payload = records.decode(data)
    if record.id != record_id or record.kind != kind:
        raise BadRecord("another record is there")
    return records.decompress(record.codec, record.raw, payload)
