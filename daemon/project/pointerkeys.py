"""The keys that a `.dvc` file may have and what they may hold. What DVC refuses is refused; so are sizes that no file has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from millpond.daemon.project.paths import is_file_name

# Where something is wrong: the keys and indices that lead to it. What is wrong: part of a sentence.
Problem = tuple[tuple[str | int, ...], str]

_TEXT, _FLAG, _NUMBER, _LIST, _MAPPING, _ANY = "text", "true or false", "a number", "a list", "a mapping", ""
_TYPES: Mapping[str, type] = {_TEXT: str, _FLAG: bool, _NUMBER: int, _LIST: list, _MAPPING: dict, _ANY: object}
_STAGE: Mapping[str, str] = {
    "md5": _TEXT,
    "wdir": _TEXT,
    "frozen": _FLAG,
    "locked": _FLAG,
    "deps": _LIST,
    "outs": _LIST,
    "meta": _ANY,
    "desc": _TEXT,
    "always_changed": _FLAG,
    "cmd": _ANY,
}
_OUT: Mapping[str, str] = {
    **dict.fromkeys(("md5", "hash", "remote", "desc", "type", "etag", "checksum", "version_id", "path"), _TEXT),
    **dict.fromkeys(("isexec", "cache", "persist", "push"), _FLAG),
    **dict.fromkeys(("size", "nfiles"), _NUMBER),
    **dict.fromkeys(("labels", "files"), _LIST),
    **dict.fromkeys(("cloud", "fs_config"), _MAPPING),
    "meta": _ANY,
}
_DEP: Mapping[str, str] = {
    **dict.fromkeys(("path", "md5", "hash", "etag", "checksum", "version_id"), _TEXT),
    **dict.fromkeys(("size", "nfiles"), _NUMBER),
    **dict.fromkeys(("repo", "db", "cloud", "fs_config"), _MAPPING),
    "isexec": _FLAG,
    "files": _LIST,
}
# What may be there without a value.
_NULLABLE = frozenset(["md5", "wdir", "deps", "outs", "etag", "checksum"])
_MD5 = re.compile(r"(?:[0-9a-f]{32}(?:\.dir)?)?")
_MAX_NUMBER = (1 << 63) - 1


def problems(document: Any) -> Iterator[Problem]:
    """Everything that is wrong with a pointer's document, first things first."""
    if document is None:
        yield (), "it is empty"
        return
    if not isinstance(document, dict):
        yield (), "it is not a mapping"
        return
    yield from _typed(document, _STAGE, ())
    if "cmd" in document:
        yield ("cmd",), "it has a command, as DVC 0.x wrote; move the command to dvc.yaml"
    for index, out in enumerate(document.get("outs") or []):
        yield from _out(out, ("outs", index))
    for index, dep in enumerate(document.get("deps") or []):
        if not isinstance(dep, dict):
            yield ("deps", index), "a dependency is not a mapping"
        else:
            yield from _typed(dep, _DEP, ("deps", index))


def _out(out: Any, at: tuple[str | int, ...]) -> Iterator[Problem]:
    if not isinstance(out, dict) or not isinstance(out.get("path"), str):
        yield (*at, "path"), "an out needs a path"
        return
    yield from _typed(out, _OUT, at)
    if "\0" in out["path"] or not is_file_name(out["path"]):
        yield (*at, "path"), f"{out['path']!r} can be no file's path"
    if not _MD5.fullmatch(out.get("md5") or ""):
        yield (*at, "md5"), f"'{out['md5']}' is not an MD5"
    for key in ("size", "nfiles"):
        if not 0 <= (out.get(key) or 0) <= _MAX_NUMBER:
            yield (*at, key), f"'{key}' cannot be {out[key]}"


def _typed(mapping: dict[Any, Any], known: Mapping[str, str], at: tuple[str | int, ...]) -> Iterator[Problem]:
    for key, value in mapping.items():
        if key not in known:
            yield (*at, key), f"unknown key '{key}'"
        elif not (isinstance(value, _TYPES[known[key]]) or (value is None and key in _NULLABLE)):
            yield (*at, key), f"'{key}' is not {known[key]}"
