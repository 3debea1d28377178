"""Journal records: what names mean and who may read them, so that the index can be rebuilt from segments alone.

Payload: version u8 (1), type u8 (1: names), zero u16, uid u32, count u32; then for each entry the length of the key u8,
the key (`ObjectName.key()`), the content's kind u8, id (32 bytes), size u64. An entry means: this name has this content,
and `uid` may read it. The record's id is the BLAKE3-256 of the payload. Replaying an entry twice changes nothing.

The names stand here and not in the chunks' own records, because a deduplicated chunk gets names after it was written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from millpond.daemon.store.index import Content
from millpond.daemon.store.records import BadRecord

HEADER = struct.Struct("<BBHII")
_CONTENT = struct.Struct("<B32sQ")
VERSION = 1
TYPE_NAMES = 1
# Entries in one record: bounds what one damaged record costs, and the memory of a commit.
MAX_ENTRIES = 50_000


class NameBatch:
    """Names to be committed for one uid, packed: about 60 bytes each."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self._parts: list[tuple[bytearray, int]] = []

    def __len__(self) -> int:
        return sum(count for _, count in self._parts)

    def add(self, key: bytes, content: Content) -> None:
        if not self._parts or self._parts[-1][1] >= MAX_ENTRIES:
            self._parts.append((bytearray(), 0))
        body, count = self._parts[-1]
        body.append(len(key))
        body += key
        body += _CONTENT.pack(*content)
        self._parts[-1] = (body, count + 1)

    def __iter__(self) -> Iterator[tuple[bytes, Content]]:
        for body, count in self._parts:
            yield from _entries(memoryview(body), count)

    def payloads(self) -> Iterator[bytes]:
        """The journal records' payloads, at most MAX_ENTRIES names each."""
        for body, count in self._parts:
            yield HEADER.pack(VERSION, TYPE_NAMES, 0, self.uid, count) + bytes(body)


def parse(payload: bytes) -> tuple[int, list[tuple[bytes, Content]]]:
    """(uid, [(name key, content)]) of a journal record. Raises BadRecord for what this version does not know."""
    if len(payload) < HEADER.size:
        raise BadRecord("journal record is cut off")
    version, kind, _, uid, count = HEADER.unpack_from(payload)
    if (version, kind) != (VERSION, TYPE_NAMES):
        raise BadRecord(f"journal record has unknown version {version} or type {kind}")
    try:
        return uid, list(_entries(memoryview(payload)[HEADER.size :], count))
    except (struct.error, IndexError) as error:
        raise BadRecord("journal record is cut off") from error


def _entries(body: memoryview, count: int) -> Iterator[tuple[bytes, Content]]:
    position = 0
    for _ in range(count):
        length = body[position]
        key = bytes(body[position + 1 : position + 1 + length])
        position += 1 + length
        yield key, Content(*_CONTENT.unpack_from(body, position))
        position += _CONTENT.size
