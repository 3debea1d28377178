"""Digests of files as DVC names them: `md5`, and the `md5-dos2unix` of DVC 1 and 2."""

from __future__ import annotations

import hashlib
from io import BufferedIOBase, FileIO

Readable = BufferedIOBase | FileIO

READ_BYTES = 1 << 20
# The classic heuristic: what a text's first bytes may hold.
_SAMPLE_BYTES = 512
_TEXT = bytes(range(0x20, 0x7F)) + b"\n\r\t\f\b"
_MAX_ODD = 0.30


def looks_like_text(sample: bytes) -> bool:
    """Whether a file that begins with `sample` is text: no NUL, at most 30 % bytes outside the text set; empty is text."""
    head = sample[:_SAMPLE_BYTES]
    if not head:
        return True
    if b"\0" in head:
        return False
    return len(head.translate(None, _TEXT)) / len(head) <= _MAX_ODD


def is_md5(data: bytes | bytearray, value: str) -> bool:
    """Whether bytes have this MD5 (lower-case hex)."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest() == value


def md5_of(file: Readable) -> str:
    """MD5 of the bytes, lower-case hex."""
    return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def md5_dos2unix_of(file: Readable) -> str:
    """MD5 with CRLF as LF in what looks like text. As in DVC, part by part of 1 MiB: each is judged by its own beginning,
    and a CRLF that lies across two parts stays as it is."""
    digest = hashlib.md5(usedforsecurity=False)
    while part := file.read(READ_BYTES):
        digest.update(part.replace(b"\r\n", b"\n") if looks_like_text(part) else part)
    return digest.hexdigest()


class Digest:
    """The digest of bytes that come in any pieces, by the algorithm's name."""

    def __init__(self, algo: str) -> None:
        self._digest = hashlib.md5(usedforsecurity=False)
        self._text = algo == "md5-dos2unix"
        self._waiting = bytearray()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        if not self._text:
            self._digest.update(data)
            return
        self._waiting += data
        while len(self._waiting) >= READ_BYTES:
            self._take(bytes(self._waiting[:READ_BYTES]))
            del self._waiting[:READ_BYTES]

    def hexdigest(self) -> str:
        """Of all; nothing may come after it."""
        self._take(bytes(self._waiting))
        self._waiting.clear()
        return self._digest.hexdigest()

    def _take(self, part: bytes) -> None:
        self._digest.update(part.replace(b"\r\n", b"\n") if self._text and looks_like_text(part) else part)


def digest_of(file: Readable, algo: str) -> str:
    """The digest by the algorithm's name: md5 or md5-dos2unix."""
    return md5_dos2unix_of(file) if algo == "md5-dos2unix" else md5_of(file)
