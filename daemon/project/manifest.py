"""Manifests: DVC's `.dir` objects, byte for byte.

JSON list of {"md5", "relpath"}, keys sorted, separators ", " and ": ", ASCII only (a file name's undecodable bytes appear as
lone surrogate escapes), no newline at the end, sorted by relpath. The object's name is the MD5 of that text
with `.dir`. A manifest from elsewhere is hostile until proved otherwise: its paths are checked before use.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii

from millpond.daemon.errors import InvalidFileError
from millpond.daemon.names import DIR_SUFFIX, ObjectName

_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One file: its path below the directory, with `/`, and its object."""

    relpath: str
    name: ObjectName


def sort_key(relpath: str) -> str:
    """Manifests are sorted by the whole path as text, as DVC 3.67 does: `a.txt`, then `a/b`."""
    return relpath


def serialise(entries: Iterable[tuple[str, str]]) -> bytes:
    """The text of (relpath, md5 hex) pairs that are sorted by `sort_key`."""
    quote = encode_basestring_ascii
    return ("[" + ", ".join([f'{{"md5": "{md5}", "relpath": {quote(path)}}}' for path, md5 in entries]) + "]").encode()


def manifest_name(text: bytes) -> ObjectName:
    """The name of a manifest's text."""
    return ObjectName("md5", hashlib.md5(text, usedforsecurity=False).hexdigest() + DIR_SUFFIX)


def parse(text: bytes, *, source: str, algo: str = "md5") -> list[ManifestEntry]:
    """The entries in the order of the text. `algo` is the manifest's own; `source` is named in errors.

    Raises InvalidFileError for anything that could not be written out as a tree of files: wrong JSON, digests, paths that
    leave the directory, a path twice, a file that is also a folder.
    """
    try:
        rows = json.loads(text.decode())
        if not isinstance(rows, list):
            raise ValueError("it is not a list")
        found = [ManifestEntry(row["relpath"], ObjectName(algo, row[_digest_key(row)])) for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidFileError(f"'{source}' is not a manifest: {error}", path=source) from error
    _check(found, source)
    return found


def _digest_key(row: dict[str, str]) -> str:
    return "md5" if "md5" in row else "md5-dos2unix"


def _check(entries: Sequence[ManifestEntry], source: str) -> None:
    files: set[str] = set()
    folders: set[str] = set()
    for entry in entries:
        path, digest = entry.relpath, entry.name.value
        parts = path.split("/") if isinstance(path, str) else [""]
        if not isinstance(digest, str) or len(digest) != 32 or not _HEX.issuperset(digest):
            raise InvalidFileError(f"manifest '{source}' has a digest that is none: {digest!r}", path=source)
        if "" in parts or "." in parts or ".." in parts or "\0" in path:
            raise InvalidFileError(f"manifest '{source}' has a path that leaves its directory: {path!r}", path=source)
        if not path.isascii() and not _is_file_name(path):
            raise InvalidFileError(f"manifest '{source}' has a path that no file has: {path!r}", path=source)
        if path in files:
            raise InvalidFileError(f"manifest '{source}' names {path!r} twice", path=source)
        files.add(path)
        for end in range(len(parts) - 1, 0, -1):
            folder = "/".join(parts[:end])
            if folder in folders:
                break
            folders.add(folder)
    both = files & folders
    if both:
        raise InvalidFileError(f"manifest '{source}' has {min(both)!r} as a file and as a folder", path=source)


def _is_file_name(path: str) -> bool:
    """Whether the path is how the bytes of a file's name are read; two spellings of one name would be two files."""
    try:
        return os.fsdecode(os.fsencode(path)) == path
    except UnicodeEncodeError:
        return False
