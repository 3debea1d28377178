"""What a server tells its holder: one SOCK_SEQPACKET message each, whose first byte says what it is."""

from __future__ import annotations

import struct
from collections.abc import Iterable

# A request as it was read; a folder that was looked into; segments that were read; a part of an image that was asked for.
REQUEST, FOLDER, USED, ASKED = b"R", b"F", b"U", b"A"
# Longer than any message.
MAX_BYTES = 64 << 10
_ASKED = struct.Struct("=IQI")
# Segments of one message.
_MAX_USED = 4096


def used(segments: Iterable[int]) -> list[bytes]:
    """Messages that tell segments' numbers."""
    numbers = sorted(segments)
    parts = [numbers[at : at + _MAX_USED] for at in range(0, len(numbers), _MAX_USED)]
    return [USED + struct.pack(f"={len(part)}Q", *part) for part in parts]


def asked(pid: int, offset: int, size: int) -> bytes:
    """A thread has asked for these bytes of an image."""
    return ASKED + _ASKED.pack(pid, offset, size)


def asked_of(body: bytes) -> tuple[int, int, int]:
    """What such a message tells, without its first byte."""
    pid, offset, size = _ASKED.unpack(body)
    return pid, offset, size


def segments_of(body: bytes) -> tuple[int, ...]:
    """The numbers that a message of `used` tells, without its first byte."""
    return struct.unpack(f"={len(body) // 8}Q", body)
