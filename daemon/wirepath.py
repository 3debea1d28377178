"""Paths on the wire: percent-encoded bytes, because JSON text cannot carry every file name.

A file name on Linux is any bytes but NUL and slash; Python shows undecodable ones as lone surrogates, which strict JSON
refuses. `encode` keeps printable ASCII but `%` readable; everything else becomes `%XX` (upper case) of its bytes.
"""

from __future__ import annotations

import os
from urllib.parse import unquote_to_bytes

_PLAIN = frozenset(range(0x20, 0x7F)) - {0x25}
_TABLE = [chr(b) if b in _PLAIN else f"%{b:02X}" for b in range(256)]


def encode(path: str | bytes) -> str:
    """The wire form of a path."""
    return "".join([_TABLE[b] for b in os.fsencode(path)])


def decode(text: str) -> str:
    """The path (with surrogates for undecodable bytes) of a wire form."""
    return os.fsdecode(unquote_to_bytes(text))
