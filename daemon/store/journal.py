"""Journal records: what names mean and who may read them, so that the index can be rebuilt from segments alone.

Payload: version u8 (1), type u8, zero u16, uid u32, count u32. Type 1, names: then for each entry the length of the key
u8, the key (`ObjectName.key()`), the content's kind u8, id (32 bytes), size u64. An entry means: this name has this
content, and `uid` may read it. Type 2, a note: `count` bytes of JSON, see ledger.py. The record's id is the BLAKE3-256 of
the payload. Replaying a journal's end twice changes nothing.

The names stand here and not in the chunks' own records, because a deduplicated chunk gets names after it was written.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.store.files import as_store_error
from millpond.daemon.store.index import Content
from millpond.daemon.store.records import BadRecord

HEADER = struct.Struct("<BBHII")
_CONTENT = struct.Struct("<B32sQ")
VERSION = 1
TYPE_NAMES = 1
TYPE_NOTE = 2
# Entries in one record: bounds what one damaged record costs, and the memory of a commit.
MAX_ENTRIES = 10_000
# Full parts of a batch kept in memory, about 600 kB each; more go to a file.
MAX_PARTS = 16


class Names:
    """At most MAX_ENTRIES names for one uid, packed: about 60 bytes each. What one journal record holds."""

    def __init__(self, uid: int, body: bytes = b"", count: int = 0) -> None:
        self.uid = uid
        self.body = bytearray(body)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def add(self, key: bytes, content: Content) -> None:
        self.body.append(len(key))
        self.body += key
        self.body += _CONTENT.pack(*content)
        self._count += 1

    def __iter__(self) -> Iterator[tuple[bytes, Content]]:
        return _entries(memoryview(self.body), self._count)

    def payload(self) -> bytes:
        """The journal record's payload."""
        return HEADER.pack(VERSION, TYPE_NAMES, 0, self.uid, self._count) + bytes(self.body)


class NameBatch:
    """Any number of names to be committed for one uid, in bounded memory: full parts beyond MAX_PARTS wait in an unlinked
    file in `folder`."""

    def __init__(self, uid: int, folder: Path | None = None) -> None:
        self.uid = uid
        self._folder = folder
        self._open = Names(uid)
        self._full: list[Names] = []
        self._file: IO[bytes] | None = None
        self._filed: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return sum(map(len, self._full)) + sum(count for _, count in self._filed) + len(self._open)

    def add(self, key: bytes, content: Content) -> None:
        """Add a name. Raises DiskFullError, StoreDamagedError when it must be filed and cannot."""
        if len(self._open) >= MAX_ENTRIES:
            if len(self._full) < MAX_PARTS or self._folder is None:
                self._full.append(self._open)
            else:
                self._put_on_file(self._folder, self._open)
            self._open = Names(self.uid)
        self._open.add(key, content)

    def parts(self) -> Iterator[Names]:
        """All names, in order. Raises StoreDamagedError."""
        yield from self._full
        position = 0
        for size, count in self._filed:
            assert self._file is not None
            body = os.pread(self._file.fileno(), size, position)
            if len(body) != size:
                raise StoreDamagedError("filed names cannot be read", hint="run the command again")
            position += size
            yield Names(self.uid, body, count)
        if len(self._open):
            yield self._open

    def __iter__(self) -> Iterator[tuple[bytes, Content]]:
        for part in self.parts():
            yield from part

    def _put_on_file(self, folder: Path, names: Names) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            done = self._file.write(names.body)
            if done != len(names.body):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise as_store_error(error, folder) from error
        self._filed.append((len(names.body), len(names)))


def parse(payload: bytes) -> tuple[int, list[tuple[bytes, Content]]]:
    """(uid, [(name key, content)]) of a journal record. Raises BadRecord for what this version does not know."""
    if len(payload) < HEADER.size:
        raise BadRecord("journal record is cut off")
    version, kind, _, uid, count = HEADER.unpack_from(payload)
    if (version, kind) == (VERSION, TYPE_NOTE):
        return uid, []
    if (version, kind) != (VERSION, TYPE_NAMES):
        raise BadRecord(f"journal record has unknown version {version} or type {kind}")
    try:
        return uid, list(_entries(memoryview(payload)[HEADER.size :], count))
    except (struct.error, IndexError) as error:
        raise BadRecord("journal record is cut off") from error


def note_payload(uid: int, note: dict[str, Any]) -> bytes:
    """The payload of a note."""
    body = json.dumps(note, separators=(",", ":")).encode()
    return HEADER.pack(VERSION, TYPE_NOTE, 0, uid, len(body)) + body


def parse_note(payload: bytes) -> tuple[int, dict[str, Any]] | None:
    """(uid, note) of a note's payload, None for one of names. Raises BadRecord."""
    if len(payload) < HEADER.size:
        raise BadRecord("journal record is cut off")
    version, kind, _, uid, count = HEADER.unpack_from(payload)
    if (version, kind) != (VERSION, TYPE_NOTE):
        return None
    try:
        note = json.loads(payload[HEADER.size : HEADER.size + count])
    except ValueError as error:
        raise BadRecord(f"a note in the journal is none: {error}") from error
    if not isinstance(note, dict):
        raise BadRecord("a note in the journal is none")
    return uid, note


def _entries(body: memoryview, count: int) -> Iterator[tuple[bytes, Content]]:
    position = 0
    for _ in range(count):
        length = body[position]
        key = bytes(body[position + 1 : position + 1 + length])
        position += 1 + length
        yield key, Content(*_CONTENT.unpack_from(body, position))
        position += _CONTENT.size
