"""Records and segment headers: the bytes of a segment (DESIGN.md, "Segments").

Record header, 56 bytes, little endian, followed by the payload and zeros up to the next multiple of 8:

    0  magic u32 | 4 kind u8 | 5 codec u8 | 6 zero u16 | 8 raw u32 | 12 stored u32 | 16 checksum u64 | 24 id 32 bytes

The checksum is XXH3-64 of the payload, seeded with XXH3-64 of the other header bytes, which is seeded with the store's
key: the first 8 bytes of its uuid. So it covers both, and nobody who cannot read the store can make bytes that pass for a
record. That matters because a scan, behind damage, goes on inside payloads, which users choose.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import zstandard
from blake3 import blake3
from xxhash import xxh3_64_intdigest

MAGIC = 0x3152504D  # "MPR1"
MAGIC_BYTES = MAGIC.to_bytes(4, "little")
HEADER = struct.Struct("<IBBHIIQ32s")
# What stands before the checksum in it, and what is the checksum and behind.
_BEFORE, _BEHIND = struct.Struct("<IBBHII"), struct.Struct("<Q32s")
# Where the checksum stands in it, and what stands there when it is made.
_SUM_AT, _NO_SUM = 16, bytes(8)
ALIGN = 8
# A chunk is at most 1 MiB; a recipe has 36 bytes a chunk, so this allows one content of about 4 TiB.
MAX_PAYLOAD = 1 << 30

SEGMENT_MAGIC = b"MPSEG001"
SEGMENT_HEADER = struct.Struct("<8sQ16s")

# Level 1 packs numbers as well as level 3 or better (tokens, tables, weights), in half the time; text and programs 5 % less.
ZSTD_LEVEL = 1
# Compression must gain at least this part, or the payload is kept raw.
MIN_GAIN = 0.05
_LOCAL = threading.local()


class Kind(IntEnum):
    """What a record holds."""

    CHUNK = 1
    RECIPE = 2
    JOURNAL = 3


class Codec(IntEnum):
    """How a payload is stored."""

    RAW = 0
    ZSTD = 1


class BadRecord(Exception):
    """These bytes are no valid record; the text says why."""


class Record(NamedTuple):
    """A record found in a segment: where its header begins, and what it says."""

    kind: int
    codec: int
    raw: int
    stored: int
    id: bytes
    offset: int

    @property
    def end(self) -> int:
        return self.offset + padded(self.stored)


class Location(NamedTuple):
    """Where a record lies: 24 bytes in the index."""

    kind: int
    codec: int
    segment: int
    offset: int
    stored: int
    raw: int

    def pack(self) -> bytes:
        return LOCATION.pack(*self)


LOCATION = struct.Struct("<BBxxIQII")


def unpack_location(value: bytes) -> Location:
    return Location(*LOCATION.unpack(value))


def padded(stored: int) -> int:
    """Bytes that a record with a payload of `stored` bytes takes."""
    return (HEADER.size + stored + ALIGN - 1) & ~(ALIGN - 1)


def content_id(data: bytes | memoryview) -> bytes:
    """BLAKE3-256."""
    return blake3(data).digest()


def compress(data: bytes | memoryview) -> tuple[int, bytes | memoryview]:
    """(codec, payload): zstd where it gains, raw where it does not. What cannot be compressed zstd finds out at 6 GB/s, so no
    sample is looked at first."""
    size = len(data)
    if size < 64:
        return Codec.RAW, data
    compressor = getattr(_LOCAL, "compressor", None)
    if compressor is None:
        compressor = _LOCAL.compressor = zstandard.ZstdCompressor(
            level=ZSTD_LEVEL, write_checksum=False, write_content_size=True
        )
    packed: bytes = compressor.compress(data)
    if len(packed) > size * (1 - MIN_GAIN):
        return Codec.RAW, data
    return Codec.ZSTD, packed


def decompress(codec: int, raw: int, payload: bytes | memoryview) -> bytes:
    """The content of a payload. Raises BadRecord."""
    if codec == Codec.RAW:
        data = bytes(payload)
    elif codec == Codec.ZSTD:
        try:
            data = _decompressor().decompress(payload, max_output_size=raw)
        except zstandard.ZstdError as error:
            raise BadRecord(f"payload does not decompress: {error}") from error
    else:
        raise BadRecord(f"unknown codec {codec}")
    if len(data) != raw:
        raise BadRecord(f"payload has {len(data)} bytes, not {raw}")
    return data


def decompress_into(view: memoryview, payload: bytes | memoryview) -> None:
    """Fill `view` with the content of a zstd payload, which must be as long. Raises BadRecord."""
    try:
        if zstandard.frame_content_size(payload) != len(view):
            raise BadRecord(f"payload has not {len(view)} bytes")
        reader = _decompressor().stream_reader(payload, read_size=len(payload), closefd=False)
        done = reader.readinto(view)
    except zstandard.ZstdError as error:
        raise BadRecord(f"payload does not decompress: {error}") from error
    if done != len(view):
        raise BadRecord(f"payload has {done} bytes, not {len(view)}")


def _decompressor() -> zstandard.ZstdDecompressor:
    """This thread's."""
    found: zstandard.ZstdDecompressor | None = getattr(_LOCAL, "decompressor", None)
    if found is None:
        found = _LOCAL.decompressor = zstandard.ZstdDecompressor()
    return found


def key_of(uuid: bytes) -> int:
    """The key that a store's checksums are made with."""
    return int.from_bytes(uuid[:8], "little")


def _checksum(header: bytes, payload: bytes | memoryview, key: int) -> int:
    """`header` with zeros for the checksum."""
    return xxh3_64_intdigest(payload, xxh3_64_intdigest(header, key))


def encode(kind: int, record_id: bytes, data: bytes | memoryview, key: int) -> list[bytes | memoryview]:
    """A record as buffers to be written one after the other: header, payload, padding."""
    codec, payload = compress(data)
    stored, raw = len(payload), len(data)
    total = _checksum(HEADER.pack(MAGIC, kind, codec, 0, raw, stored, 0, record_id), payload, key)
    header = HEADER.pack(MAGIC, kind, codec, 0, raw, stored, total, record_id)
    return [header, payload, bytes(padded(stored) - HEADER.size - stored)]


def decode_header(data: bytes | memoryview, offset: int = 0) -> tuple[Record, int]:
    """(record, checksum) of the header at `offset` of `data`. Raises BadRecord; the payload is not looked at."""
    if len(data) - offset < HEADER.size:
        raise BadRecord("header is cut off")
    magic, kind, codec, zero, raw, stored, total, record_id = HEADER.unpack_from(data, offset)
    if magic != MAGIC:
        raise BadRecord("no record begins here")
    if zero or kind not in (1, 2, 3) or codec not in (0, 1) or stored > MAX_PAYLOAD or raw > MAX_PAYLOAD:
        raise BadRecord("header has impossible values")
    return Record(kind, codec, raw, stored, record_id, offset), total


def decode(data: bytes | memoryview, key: int, offset: int = 0) -> tuple[Record, memoryview]:
    """(record, stored payload) of a whole record in `data`, its checksum checked. Raises BadRecord."""
    record, total = decode_header(data, offset)
    begin = offset + HEADER.size
    payload = memoryview(data)[begin : begin + record.stored]
    if len(payload) != record.stored:
        raise BadRecord("payload is cut off")
    header = bytes(data[offset : offset + _SUM_AT]) + _NO_SUM + record.id
    if _checksum(header, payload, key) != total:
        raise BadRecord("checksum does not match")
    return record, payload


def chunk_at(data: memoryview, offset: int, key: int, chunk_id: bytes, size: int) -> bytes | memoryview:
    """The content of the chunk with this id and size whose record is at `offset`; a raw one is a part of `data`. As `decode` and `decompress`, for who
    reads many small ones. Raises BadRecord."""
    begin = offset + HEADER.size
    if begin > len(data):
        raise BadRecord("header is cut off")
    before = bytes(data[offset : offset + _SUM_AT])
    magic, kind, codec, _, raw, stored = _BEFORE.unpack(before)
    total, record_id = _BEHIND.unpack_from(data, offset + _SUM_AT)
    if magic != MAGIC or kind != Kind.CHUNK or record_id != chunk_id or raw != size:
        raise BadRecord("another record is there")
    payload = data[begin : begin + stored]
    if len(payload) != stored or _checksum(before + _NO_SUM + record_id, payload, key) != total:
        raise BadRecord("checksum does not match")
    return payload if codec == Codec.RAW and stored == raw else decompress(codec, raw, payload)


def scan(data: memoryview, start: int, key: int) -> Iterator[tuple[Record, memoryview] | tuple[int, int]]:
    """Walk a segment's bytes from `start`: (record, payload) for each valid one, (begin, end) for what is not one.

    After damage it goes on at the next place where a record begins, so one bad record costs one record.
    """
    position, bad_from = start, -1
    end = len(data)
    while position + HEADER.size <= end:
        try:
            record, payload = decode(data, key, position)
        except BadRecord:
            if bad_from < 0:
                bad_from = position
            position = _next_magic(data, position + ALIGN)
            continue
        if bad_from >= 0:
            yield bad_from, position
            bad_from = -1
        yield record, payload
        position = record.end
    if bad_from >= 0 or position < end:
        yield bad_from if bad_from >= 0 else position, end


def _next_magic(data: memoryview, position: int) -> int:
    """The next multiple of ALIGN at which the magic stands, or the end."""
    window = 1 << 20
    while position < len(data):
        part = bytes(data[position : position + window])
        found = part.find(MAGIC_BYTES)
        while found >= 0 and found % ALIGN:
            found = part.find(MAGIC_BYTES, found + 1)
        if found >= 0:
            return position + found
        position += window
    return len(data)
