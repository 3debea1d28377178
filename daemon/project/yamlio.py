"""YAML 1.2 as DVC reads and writes it (ruamel.yaml), with errors that name the place."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from typing import Any, BinaryIO

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from millpond.daemon.errors import InvalidFileError
from millpond.daemon.project import quickyaml
from millpond.daemon.project.paths import printable

_CONFLICT = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)
# A pointer or a lock file larger than this is a mistake.
MAX_BYTES = 64 << 20


def load(text: str, path: str, *, round_trip: bool = False) -> Any:
    """The document of `text`; with `round_trip` one that keeps comments and order. Raises InvalidFileError."""
    conflict = _CONFLICT.search(text)
    if conflict is not None and "\n>>>>>>>" in f"\n{text}":
        line = text.count("\n", 0, conflict.start()) + 1
        raise invalid(
            path, "it has Git conflict markers", line, 1, hint="resolve the conflict, then run the command again"
        )
    if not round_trip:
        done, document = quickyaml.load(text)
        if done:
            return document
    yaml = YAML(typ="rt" if round_trip else "safe", pure=True)
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise invalid(path, str(error.problem or error.context or "bad YAML").split("\n")[0], line, column) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise invalid(path, str(error).split("\n")[0], 1, 1) from error


def dump(document: Any) -> str:
    """The text of a document, in DVC's layout."""
    yaml = YAML()
    yaml.default_flow_style = False
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def decode(raw: bytes, path: str) -> str:
    """UTF-8 text. Raises InvalidFileError."""
    if len(raw) > MAX_BYTES:
        raise invalid(path, f"it has {len(raw)} bytes, more than {MAX_BYTES}", 1, 1)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise invalid(path, "it is not UTF-8 text", line, 1) from error


def read(file: BinaryIO) -> bytes:
    """An open file's bytes, at most MAX_BYTES + 1 (`decode` refuses those). Not read(MAX_BYTES): that sets so much aside."""
    return file.read(min(os.fstat(file.fileno()).st_size, MAX_BYTES) + 1)


def invalid(path: str, problem: str, line: int, column: int, *, hint: str | None = None) -> InvalidFileError:
    """The error for a file, with the place."""
    where = {"line": line, "column": column}
    shown, problem = printable(path), printable(problem)
    return InvalidFileError(f"'{shown}' line {line}, column {column}: {problem}", path=shown, hint=hint, details=where)


def invalid_at(path: str, text: str, keys: Sequence[str | int], problem: str) -> InvalidFileError:
    """The error for what the keys and indices lead to in the document of `text`; the nearest thing that is there."""
    node = load(text, path, round_trip=True)
    line, column = 1, 1
    for key in keys:
        marks = getattr(node, "lc", None)
        if marks is None:
            break
        found = (marks.data or {}).get(key)
        line, column = (found[0] + 1, found[1] + 1) if found else ((marks.line or 0) + 1, (marks.col or 0) + 1)
        try:
            node = node[key]
        except (KeyError, IndexError, TypeError):
            break
    return invalid(path, problem, line, column)
