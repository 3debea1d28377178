"""Reading a `.dir` manifest's entries from stored bytes, without holding it whole.

What is stored under a `.dir` name is whatever a caller sent: nothing about it is believed. Where it stops being a
manifest, reading stops.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

_DECODER = json.JSONDecoder()
# Characters of one entry: a path of 4,096 bytes, each escaped, and some more.
_MAX_ENTRY = 256 << 10
_SPACE = " \t\r\n"
# What may come next in the list: its begin; a value or the end; a value; a comma or the end; nothing.
_BEGIN, _FIRST, _VALUE, _NEXT, _OVER = range(5)
# How an entry begins, goes on behind its digest, and ends where another one follows, as DVC writes it.
_PLAIN_BEGIN, _PLAIN_MIDDLE, _PLAIN_END = '{"md5": "', '", "relpath": "', '"}, '
_PLAIN_CLOSE = '"}'
_PLAIN_BETWEEN = _PLAIN_END + _PLAIN_BEGIN
_DIGEST = 32
# Quotes of an entry; bytes that mean themselves in JSON's strings.
_QUOTES = 8
_PLAIN_BYTES = bytes(byte for byte in range(0x20, 0x100) if byte not in b'"\\')
Row = tuple[str, str]


class NotAManifest(Exception):
    """These bytes are no list of entries."""


class Rows(NamedTuple):
    """Entries side by side: their relpaths, their digests; of equal length."""

    relpaths: list[str]
    digests: list[str]


def entries(pieces: Iterable[bytes]) -> Iterator[Row]:
    """(relpath, digest) of each entry of a manifest that comes in pieces. Raises NotAManifest behind the last good one."""
    for rows in batches(pieces):
        yield from zip(*rows, strict=True)


def batches(pieces: Iterable[bytes]) -> Iterator[Rows]:
    """`entries`, many at a time: what one piece brought, or one entry that is not as DVC writes it."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
    rows = _List()
    try:
        for piece in pieces:
            yield from rows.feed(decoder.decode(piece))
        decoder.decode(b"", True)
    except UnicodeDecodeError as error:
        raise NotAManifest(str(error)) from error
    if not rows.is_over:
        raise NotAManifest("it does not end as a list")


class _List:
    """A JSON list of objects whose text comes in parts."""

    def __init__(self) -> None:
        self._text = ""
        self._want = _BEGIN

    @property
    def is_over(self) -> bool:
        """Whether all of it was read, and nothing came behind it."""
        return self._want == _OVER and not self._text

    def feed(self, text: str) -> Iterator[Rows]:
        """The entries that are whole now. Raises NotAManifest."""
        text, position = self._text + text, 0
        if self._want == _BEGIN and text.startswith("["):
            self._want, position = _FIRST, 1
        elif self._want == _NEXT and text.startswith(", "):
            self._want, position = _VALUE, 2
        elif self._want == _VALUE and text.startswith(" "):
            position = 1
        if self._want in (_FIRST, _VALUE):
            rows, position = _many(text, position)
            if rows is not None:
                self._want = _VALUE
                yield rows
        while True:
            while position < len(text) and text[position] in _SPACE:
                position += 1
            if position == len(text):
                break
            char = text[position]
            if self._want == _BEGIN and char == "[":
                self._want, position = _FIRST, position + 1
            elif self._want in (_FIRST, _NEXT) and char == "]":
                self._want, position = _OVER, position + 1
            elif self._want == _NEXT and char == ",":
                self._want, position = _VALUE, position + 1
            elif self._want in (_FIRST, _VALUE) and char == "{":
                if text.find("}", position) < 0:
                    break  # not whole yet; to be told so by the decoder takes longer
                try:
                    value, position = _DECODER.raw_decode(text, position)
                except (json.JSONDecodeError, RecursionError):
                    break  # not whole yet, or never
                self._want = _NEXT
                yield _entry(value)
            else:
                raise NotAManifest(f"{char!r} cannot stand there")
        self._text = text[position:]
        if len(self._text) > _MAX_ENTRY:
            raise NotAManifest("an entry is too long")


def _many(text: str, position: int) -> tuple[Rows | None, int]:
    """(entries, where they end): all of them from `position` to the last end of one, if they are as DVC writes them. A
    million take half a second this way, a second with names to unescape, eight seconds one by one."""
    end = text.rfind(_PLAIN_END, position) + len(_PLAIN_END)
    if end <= position + len(_PLAIN_END):
        return None, position
    rows = _plain(text[position : end - len(", ")]) or _escaped(text[position : end - len(", ")])
    return rows, position if rows is None else end


def _plain(text: str) -> Rows | None:
    """Entries of which nothing must be unescaped."""
    if not text.startswith(_PLAIN_BEGIN):
        return None
    parts, begin = text[len(_PLAIN_BEGIN) : -len(_PLAIN_CLOSE)].split(_PLAIN_BETWEEN), _DIGEST + len(_PLAIN_MIDDLE)
    if {part[_DIGEST:begin] for part in parts} != {_PLAIN_MIDDLE}:
        return None
    # All quotes are those of the fields, so none is in a digest or a path; and there is nothing else that could not be.
    if text.encode("utf-8", "surrogatepass").translate(None, _PLAIN_BYTES) != b'"' * (len(parts) * _QUOTES):
        return None
    return Rows([part[begin:] for part in parts], [part[:_DIGEST] for part in parts])


def _escaped(text: str) -> Rows | None:
    """Entries in JSON of any kind."""
    try:
        found = json.loads(f"[{text}]")
        rows = Rows([row["relpath"] for row in found], [row["md5"] for row in found])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return rows if {str}.issuperset(map(type, chain(*rows))) else None


def _entry(value: Any) -> Rows:
    relpath, digest = value.get("relpath"), value.get("md5")
    if not isinstance(relpath, str) or not isinstance(digest, str):
        raise NotAManifest("an entry has no relpath or no md5")
    return Rows([relpath], [digest])
