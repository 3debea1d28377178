"""Reading a `.dir` manifest's entries from stored bytes, without holding it whole.

What is stored under a `.dir` name is whatever a caller sent: nothing about it is believed. Where it stops being a
manifest, reading stops.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any

_DECODER = json.JSONDecoder()
_SKIPPED = " \t\r\n[,"


class NotAManifest(Exception):
    """These bytes are no list of entries."""


def entries(pieces: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """(relpath, digest) of each entry of a manifest that comes in pieces. Raises NotAManifest behind the last good one."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
    text = ""
    try:
        for piece in pieces:
            text += decoder.decode(piece)
            end = 0
            for value, behind in _values(text):
                yield _entry(value)
                end = behind
            text = text[end:]
        decoder.decode(b"", True)
    except UnicodeDecodeError as error:
        raise NotAManifest(str(error)) from error
    if text.strip() != "]":
        raise NotAManifest("it does not end as a list")


def _values(text: str) -> Iterator[tuple[Any, int]]:
    """(value, position behind it) of the whole values in `text`."""
    position = 0
    while True:
        while position < len(text) and text[position] in _SKIPPED:
            position += 1
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError):
            return
        yield value, position


def _entry(value: Any) -> tuple[str, str]:
    relpath, digest = (value.get("relpath"), value.get("md5")) if isinstance(value, dict) else (None, None)
    if not isinstance(relpath, str) or not isinstance(digest, str):
        raise NotAManifest("an entry has no relpath or no md5")
    return relpath, digest
