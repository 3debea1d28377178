"""Recipes: the list of chunks that make a content.

Payload: size u64, then for each chunk its id (32 bytes) and its length u32, little endian. The recipe's id is the
BLAKE3-256 of that payload, so a recipe commits to its content.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from dataclasses import dataclass

from millpond.daemon.errors import StoreDamagedError

_SIZE = struct.Struct("<Q")
ENTRY = struct.Struct("<32sI")


@dataclass(frozen=True, slots=True)
class Layout:
    """A content's chunks: `offsets[i]` (array of u64) is where chunk i begins, the last entry is the size in bytes;
    `ids` has 32 bytes for each chunk. An empty content has one offset and no id."""

    size: int
    offsets: array[int]
    ids: bytes

    @classmethod
    def single(cls, chunk_id: bytes, size: int) -> Layout:
        """The layout of a content that is one chunk (or nothing)."""
        return cls(size, array("Q", [0, size] if size else [0]), chunk_id if size else b"")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def id(self, number: int) -> bytes:
        return self.ids[32 * number : 32 * number + 32]

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


def parse_recipe(payload: bytes, recipe_id: bytes) -> Layout:
    """The layout of a recipe's payload. Raises StoreDamagedError when it does not add up."""
    entries = memoryview(payload)[_SIZE.size :]
    if len(payload) < _SIZE.size or len(entries) % ENTRY.size:
        raise StoreDamagedError(f"recipe {recipe_id.hex()[:16]} has an impossible length")
    size: int = _SIZE.unpack_from(payload)[0]
    offsets = array("Q", [0])
    ids = bytearray()
    position = 0
    for chunk_id, length in ENTRY.iter_unpack(entries):
        position += length
        offsets.append(position)
        ids += chunk_id
    if position != size:
        raise StoreDamagedError(f"recipe {recipe_id.hex()[:16]} does not add up to its size")
    return Layout(size, offsets, bytes(ids))
