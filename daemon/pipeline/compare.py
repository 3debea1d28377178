"""Values of two revisions side by side: {file: {key: {old, new, diff}}}, as DVC has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Flat = dict[str, Any]
Changes = dict[str, dict[str, dict[str, Any]]]


def flat(value: Any, prefix: str = "") -> Flat:
    """The leaves of nested mappings by their keys with dots; a list is one leaf, an empty mapping none."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: Flat = {}
    for key, each in value.items():
        found |= flat(each, f"{prefix}.{key}" if prefix else str(key))
    return found


def changes(old: Mapping[str, Any], new: Mapping[str, Any], *, unchanged: bool) -> Changes:
    """What differs between documents by file; with `unchanged` what does not, too."""
    found: Changes = {}
    for path in {**old, **new}:
        if rows := _rows(flat(old.get(path) or {}), flat(new.get(path) or {}), unchanged=unchanged):
            found[path] = rows
    return found


def _rows(old: Flat, new: Flat, *, unchanged: bool) -> dict[str, dict[str, Any]]:
    found = {}
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if before == after and not unchanged:
            continue
        row = {"old": _shown(before), "new": _shown(after)}
        # A truth value is a number here: DVC counts with them.
        if isinstance(before, int | float) and isinstance(after, int | float):
            row["diff"] = after - before
        found[key] = row
    return found


def _shown(value: Any) -> Any:
    """A list is told as a text."""
    return json.dumps(value) if isinstance(value, list | tuple) else value
