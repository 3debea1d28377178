"""Pointers of imports: their keys in DVC's order, and the stage's own MD5, which DVC compares to find that a pointer was changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from millpond.daemon.names import ObjectName
from millpond.daemon.project import dvcfile, yamlio

# What the stage's MD5 does not depend on, at any depth.
_NOT_HASHED = frozenset(
    {"desc", "type", "labels", "meta", "locked", "frozen", "metric", "persist", "isexec", "size", "nfiles"}
)
# Of outputs: what says nothing when it has this value, and is not written then.
_IMPLIED = {"cache": True, "push": True, "persist": False}
# What describes the content: it goes when the content is not known.
CONTENT_KEYS = frozenset(
    {"md5", "etag", "checksum", "size", "nfiles", "isexec", "version_id", "files", "cloud", "hash"}
)


@dataclass(frozen=True, slots=True)
class Found:
    """An output's content; `name` None where it is not known (--no-exec, --no-download)."""

    name: ObjectName | None = None
    size: int | None = None
    nfiles: int | None = None

    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self.name is not None:
            fields = {"md5": self.name.value, "size": self.size}
            if self.nfiles is not None:
                fields["nfiles"] = self.nfiles
        return {**fields, "hash": "md5"}


def text(
    dep: Mapping[str, Any],
    name: str,
    found: Found,
    *,
    whole: bool,
    old: str | None = None,
    path: str = "",
    push: bool = True,
) -> str:
    """A pointer's text: its dependency `dep`, its output `name` with what was found. `whole` False for one of --no-exec, which has no
    MD5; `push` False for what need be on no remote, for its source has that version for good. Of the text `old` (of the file `path`) what is not about the content stays: comments, the order, descriptions. Raises
    InvalidFileError."""
    out: dict[str, Any] = {**found.fields(), "path": name, **({} if push else {"push": False})}
    document: dict[str, Any] = {"frozen": True, "deps": [dict(dep)], "outs": [out]}
    if old is None:
        if whole:
            document = {"md5": stage_md5(document), **document}
        return yamlio.dump(document)
    before = yamlio.load(old, path) or {}
    kept = {
        key: value for key, value in before.items() if key not in ("md5", "frozen", "locked", "deps", "outs", "cmd")
    }
    for entry in before.get("outs") or []:
        if entry.get("path") == name:
            document["outs"] = [{**out, **{key: entry[key] for key in entry if key not in (*CONTENT_KEYS, "path")}}]
    if before.get("deps") and not (before.get("frozen") or before.get("locked")):
        del document["frozen"]
    document = {**kept, **document}
    if whole:
        document = {"md5": stage_md5(document), **document}
    result = yamlio.load(old, path, round_trip=True)
    apply(document, result)
    return yamlio.dump(result)


def stage_md5(document: Mapping[str, Any]) -> str:
    """The MD5 of a pointer's document, as DVC computes it."""
    stage = {key: value for key, value in document.items() if value and key not in ("md5", "meta", "desc")}
    if stage.get("wdir") == ".":
        del stage["wdir"]
    outs = stage.get("outs") or []
    stage["outs"] = [
        {key: value for key, value in out.items() if key not in _IMPLIED or value is not _IMPLIED[key]} for out in outs
    ]
    raw = json.dumps(_hashed(stage), sort_keys=True).encode()
    return hashlib.md5(raw, usedforsecurity=False).hexdigest()


def with_md5(text: str, path: str) -> str:
    """The text of an import's pointer that was changed, with the MD5 that belongs to it; one that has none gets none."""
    document = yamlio.load(text, path, round_trip=True)
    if "md5" not in document or document["md5"] == (right := stage_md5(yamlio.load(text, path))):
        return text
    document["md5"] = right
    return yamlio.dump(document)


def is_changed(pointer: dvcfile.DvcFile) -> bool:
    """Whether a pointer with dependencies is not as a tool wrote it: its MD5 is another one, or is not there."""
    document = yamlio.load(pointer.text, pointer.path)
    return bool(document.get("md5") != stage_md5(document))


def _hashed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _hashed(each) for key, each in value.items() if key not in _NOT_HASHED}
    return [_hashed(each) for each in value] if isinstance(value, list) else value


def apply(new: Any, old: Any) -> None:
    """Make a round-trip document say what `new` says: what is there keeps its place, what is new goes to the end, as with DVC."""
    for key in [key for key in old if key not in new]:
        del old[key]
    for key, value in new.items():
        there = old.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            apply(value, there)
        elif isinstance(value, list) and isinstance(there, list) and len(value) == len(there):
            for index, each in enumerate(value):
                if isinstance(each, dict) and isinstance(there[index], dict):
                    apply(each, there[index])
                elif each != there[index]:
                    there[index] = each
        elif value != there or key not in old:
            old[key] = value
