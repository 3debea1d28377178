"""Files of parameters and metrics: YAML, JSON, TOML and Python, and keys in them (`train.epochs`, `layers.0`)."""

from __future__ import annotations

import ast
import json
import posixpath
import tomllib
from typing import Any

from millpond.daemon.errors import InvalidFileError
from millpond.daemon.project import yamlio

ABSENT = object()


def parse(raw: bytes, path: str) -> Any:
    """The document of a file, by the end of its name (YAML for any other); {} for an empty one. `path` is for errors.

    Raises InvalidFileError.
    """
    text = yamlio.decode(raw, path)
    kind = posixpath.splitext(path)[1].lower()
    try:
        if kind == ".json":
            return json.loads(text)
        if kind == ".toml":
            return tomllib.loads(text)
        if kind == ".py":
            return _python(ast.parse(text).body, own=False)
    except json.JSONDecodeError as error:
        raise yamlio.invalid(path, error.msg, error.lineno, error.colno) from error
    except SyntaxError as error:
        raise yamlio.invalid(path, f"it is no Python: {error.msg}", error.lineno or 1, error.offset or 1) from error
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise InvalidFileError(f"'{path}' cannot be read: {error}", path=path) from error
    return yamlio.load(text, path) or {}


def get(document: Any, key: str) -> Any:
    """The value at a key with dots; ABSENT when there is none."""
    found = document
    for part in key.split("."):
        if isinstance(found, dict):
            # A number in YAML is a number as a key, too.
            found = found.get(part, found.get(int(part), ABSENT) if _is_index(part) else ABSENT)
        elif isinstance(found, list | tuple) and _is_index(part) and -len(found) <= int(part) < len(found):
            found = found[int(part)]
        else:
            return ABSENT
        if found is ABSENT:
            return ABSENT
    return found


def _is_index(part: str) -> bool:
    return part.removeprefix("-").isdigit() and part.isascii()


def _python(body: list[ast.stmt], *, own: bool) -> dict[str, Any]:
    """What is assigned in a module, in its classes, and to `self` in their `__init__` (`own`); only literal values."""
    found: dict[str, Any] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = _python(node.body, own=False)
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            found |= _python(node.body, own=True)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            name = _assigned(target, own=own)
            single = isinstance(node, ast.AnnAssign) or len(node.targets) == 1
            if name is not None and single and node.value is not None:
                try:
                    found[name] = ast.literal_eval(node.value)
                except (ValueError, TypeError):
                    continue
    return found


def _assigned(target: ast.expr, *, own: bool) -> str | None:
    if isinstance(target, ast.Name) and not own:
        return target.id
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
        return target.attr
    return None
