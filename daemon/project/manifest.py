"""Manifests: DVC's `.dir` objects, byte for byte.

JSON list of {"md5", "relpath"}, keys sorted, separators ", " and ": ", ASCII only (a file name's undecodable bytes appear as
lone surrogate escapes), no newline at the end, sorted by relpath. The object's name is the MD5 of that text
with `.dir`. A manifest from elsewhere is hostile until proved otherwise: its paths are checked before use.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from itertools import repeat
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

from millpond.daemon.errors import InvalidFileError
from millpond.daemon.names import DIR_SUFFIX, ObjectName
from millpond.daemon.project.paths import is_file_name

_DIGEST = re.compile(r"[0-9a-f]{32}")
_DIGITS = b"0123456789abcdef"


class ManifestEntry(NamedTuple):
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
        paths: list[Any] = [row["relpath"] for row in rows]
        digests: list[Any] = [row["md5"] if "md5" in row else row["md5-dos2unix"] for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidFileError(f"'{source}' is not a manifest: {error}", path=source) from error
    wrong = problem(paths, digests)
    if wrong is not None:
        raise InvalidFileError(f"manifest '{source}' {wrong}", path=source)
    return list(map(ManifestEntry, paths, map(ObjectName, repeat(algo), digests)))


def problem(paths: list[Any], digests: list[Any]) -> str | None:
    """What is wrong with entries (of a manifest, or of a part of one), as the end of a sentence; None if nothing is."""
    return text_problem(paths, digests) or next(_clashes(paths), None)


def text_problem(paths: list[Any], digests: list[Any]) -> str | None:
    """`problem`, but for what is wrong with several entries together."""
    return next(_odd_texts(paths, digests), None)


def _odd_texts(paths: list[Any], digests: list[Any]) -> Iterator[str]:
    """Paths and digests that are none. All are looked at as a whole first, one by one only to name the culprit: a manifest
    may have ten million entries."""
    try:
        all_paths, all_digests = "\0".join(paths), "".join(digests)
    except TypeError:
        odd = next(value for value in (*paths, *digests) if not isinstance(value, str))
        yield f"has a path or a digest that is no text: {odd!r}"
        return
    if set(map(len, digests)) - {32} or all_digests.encode("utf-8", "replace").translate(None, _DIGITS):
        odd = next(digest for digest in digests if not _DIGEST.fullmatch(digest))
        yield f"has a digest that is none: {odd!r}"
    if paths and (all_paths.count("\0") != len(paths) - 1 or _leaves(all_paths.replace("\0", "/"))):
        odd = next(path for path in paths if "\0" in path or _leaves(path))
        yield f"has a path that leaves its directory: {odd!r}"
    if not all_paths.isascii() and not is_file_name(all_paths):
        odd = next(path for path in paths if not is_file_name(path))
        yield f"has a path that no file has: {odd!r}"


def _clashes(paths: list[str]) -> Iterator[str]:
    """Paths that cannot be in one tree."""
    files = set(paths)
    if len(files) < len(paths):
        seen: set[str] = set()
        odd = next(path for path in paths if path in seen or seen.add(path))  # type: ignore[func-returns-value]
        yield f"names {odd!r} twice"
    both = files & _folders(paths)
    if both:
        yield f"has {min(both)!r} as a file and as a folder"


def _leaves(path: str) -> bool:
    """Whether a part is empty, `.` or `..`."""
    closed = f"/{path}/"
    return "//" in closed or "/./" in closed or "/../" in closed


def _folders(paths: list[str]) -> set[str]:
    """All folders above the paths."""
    found = {path.rpartition("/")[0] for path in paths}
    level = found
    while level:
        level = {path.rpartition("/")[0] for path in level} - found
        found |= level
    found.discard("")
    return found
