"""Recipes: the list of chunks, or of parts of chunks, that make a content.

Payload: size u64, then for each chunk its id (32 bytes) and its length u32, little endian. With bit 63 of the size set it is a
recipe of parts: for each part its chunk's id, where in the chunk it begins u32, and its length u32 (see parts.py). The
recipe's id is the BLAKE3-256 of that payload, so a recipe commits to its content.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from dataclasses import dataclass

from millpond.daemon.errors import StoreDamagedError

_SIZE = struct.Struct("<Q")
ENTRY = struct.Struct("<32sI")
PART = struct.Struct("<32sII")
# In the size: this is a recipe of parts.
_OF_PARTS = 1 << 63


@dataclass(frozen=True, slots=True)
class Layout:
    """A content's chunks: `offsets[i]` (array of u64) is where chunk i begins, the last entry is the size in bytes;
    `ids` has 32 bytes for each chunk. An empty content has one offset and no id. Of a recipe of parts each of them is a part of
    its chunk, from byte `starts[i]` on (array of u32); without `starts` chunks are whole."""

    size: int
    offsets: array[int]
    ids: bytes
    starts: array[int] | None = None

    @classmethod
    def single(cls, chunk_id: bytes, size: int) -> Layout:
        """The layout of a content that is one chunk (or nothing)."""
        return cls(size, array("Q", [0, size] if size else [0]), chunk_id if size else b"")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def id(self, number: int) -> bytes:
        return self.ids[32 * number : 32 * number + 32]

    def needed(self) -> list[bytes]:
        """The ids of all chunks, each once."""
        return list(dict.fromkeys(map(self.id, range(len(self)))))

    def find(self, offset: int) -> int:
        """The number of the chunk that holds byte `offset` (which is below the size)."""
        return bisect_right(self.offsets, offset) - 1


class RecipeBuilder:
    """Collects chunks of one content in order."""

    def __init__(self) -> None:
        self._entries = bytearray()
        self.size = 0

    def add(self, chunk_id: bytes, length: int) -> None:
        self._entries += ENTRY.pack(chunk_id, length)
        self.size += length

    def __len__(self) -> int:
        return len(self._entries) // ENTRY.size

    def payload(self) -> bytes:
        return _SIZE.pack(self.size) + bytes(self._entries)


class PartsBuilder:
    """Collects parts of chunks of one content in order. What follows its forerunner in the same chunk becomes one with it."""

    def __init__(self) -> None:
        self._entries = bytearray()
        self._last: tuple[bytes, int, int] | None = None
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries) // PART.size

    def add(self, chunk_id: bytes, start: int, length: int) -> None:
        self.size += length
        if self._last is not None and self._last[0] == chunk_id and self._last[1] + self._last[2] == start:
            _, start, before = self._last
            del self._entries[-PART.size :]
            length += before
        self._entries += PART.pack(chunk_id, start, length)
        self._last = (chunk_id, start, length)

    def payload(self) -> bytes:
        return _SIZE.pack(self.size | _OF_PARTS) + bytes(self._entries)


def parse_recipe(payload: bytes, recipe_id: bytes) -> Layout:
    """The layout of a recipe's payload. Raises StoreDamagedError when it does not add up."""
    said: int = _SIZE.unpack_from(payload)[0] if len(payload) >= _SIZE.size else 0
    size, of_parts = said & (_OF_PARTS - 1), bool(said & _OF_PARTS)
    entry = PART if of_parts else ENTRY
    entries = memoryview(payload)[_SIZE.size :]
    if len(payload) < _SIZE.size or len(entries) % entry.size:
        raise StoreDamagedError(f"recipe {recipe_id.hex()[:16]} has an impossible length")
    offsets, starts = array("Q", [0]), array("I")
    ids = bytearray()
    position = 0
    for chunk_id, *start, length in entry.iter_unpack(entries):
        position += length
        offsets.append(position)
        ids += chunk_id
        starts.extend(start)
    if position != size:
        raise StoreDamagedError(f"recipe {recipe_id.hex()[:16]} does not add up to its size")
    return Layout(size, offsets, bytes(ids), starts if of_parts else None)
