"""The YAML that DVC writes, and most of what people write, a hundred times as fast as a whole parser reads it.

Block mappings and lists of plain, one-line scalars; comments; quotes without escapes; lists of plain words in brackets.
Whatever else a text has, or what is not certain to be read as a whole parser does, is left to that (`load` has no answer).
"""

from __future__ import annotations

import re
from typing import Any

_KEY = re.compile(r"([A-Za-z_](?:[A-Za-z0-9_./@=+ -]*[A-Za-z0-9_./@=+-])?)[ ]*:(?: +(.*))?")
_DIGEST = r"(?!0[xob])(?=[0-9a-f]*[a-df])[0-9a-f]{32}(?:\.dir)?"
# Begins with what no number, date or indicator begins with, or has two letters in a row, which they do not have.
_TEXT = re.compile(
    r"[A-Za-z_/$][ -~]*|\.\.?/[ -~]*|" + _DIGEST + r"|(?!0[xob])[0-9](?=[A-Za-z0-9_./-]*[A-Za-z]{2})[A-Za-z0-9_./-]*"
)
_INT = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+(?:[eE][-+][0-9]+)?|[eE][-+][0-9]+)")
_QUOTED = re.compile(r"\"([^\"\\]*)\"|'([^']*)'")
_WORDS = re.compile(r"\[ *([A-Za-z0-9_./-]+(?: *, *[A-Za-z0-9_./-]+)*) *\]")
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None}
# Words that some parser takes for something else.
_OTHER = frozenset(["true", "false", "null", "yes", "no", "on", "off", "y", "n"])
_Line = tuple[int, str]


class _UnusualError(Exception):
    """Not for this parser."""


def load(text: str) -> tuple[bool, Any]:
    """(whether this parser has an answer, the document)."""
    if not text.isascii() or "\t" in text or "\r" in text:
        return False, None
    try:
        lines = list(_lines(text))
        if not lines:
            return True, None
        value, end = _block(lines, 0)
        return (True, value) if end == len(lines) and lines[0][0] == 0 else (False, None)
    except (_UnusualError, RecursionError):
        return False, None


def is_text(word: str) -> bool:
    """Whether a one-line text can stand in a block as it is, for every parser."""
    return (
        _TEXT.fullmatch(word) is not None
        and ": " not in word
        and " #" not in word
        and word[-1] not in ": "
        and word.lower() not in _OTHER
    )


def _lines(text: str) -> list[_Line]:
    found = []
    for line in text.split("\n"):
        body = line.lstrip(" ")
        if body and body[0] != "#":
            found.append((len(line) - len(body), body.rstrip(" ")))
    return found


def _block(lines: list[_Line], at: int) -> tuple[Any, int]:
    indent, body = lines[at]
    return _sequence(lines, at, indent) if body.startswith("- ") else _mapping(lines, at, indent)


def _mapping(lines: list[_Line], at: int, indent: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    while at < len(lines) and lines[at][0] == indent:
        body = lines[at][1]
        matched = _KEY.fullmatch(body)
        if matched is None:
            # The end of a mapping in a list is the next item.
            if body.startswith("- "):
                break
            raise _UnusualError
        key, rest = matched.groups()
        if key in found or key.lower() in _OTHER:
            raise _UnusualError
        at += 1
        if rest and rest[0] != "#":
            found[key] = _scalar(rest)
        elif at < len(lines) and lines[at][0] > indent:
            found[key], at = _block(lines, at)
        elif at < len(lines) and lines[at][0] == indent and lines[at][1].startswith("- "):
            found[key], at = _sequence(lines, at, indent)
        else:
            found[key] = None
    if at < len(lines) and lines[at][0] > indent:
        raise _UnusualError
    return found, at


def _sequence(lines: list[_Line], at: int, indent: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    while at < len(lines) and lines[at][0] == indent and lines[at][1].startswith("- "):
        rest = lines[at][1][2:].lstrip(" ")
        if rest and _KEY.fullmatch(rest) is not None:
            inner = indent + len(lines[at][1]) - len(rest)
            lines[at] = inner, rest
            value, at = _mapping(lines, at, inner)
        else:
            value, at = _scalar(rest), at + 1
            if at < len(lines) and lines[at][0] > indent:
                raise _UnusualError
        found.append(value)
    if at < len(lines) and lines[at][0] > indent:
        raise _UnusualError
    return found, at


def _scalar(text: str) -> Any:
    if text[0] not in "\"'" and " #" in text:
        text = text[: text.index(" #")].rstrip(" ")
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text)
    if is_text(text):
        return text
    if _FLOAT.fullmatch(text):
        return float(text)
    if (matched := _QUOTED.fullmatch(text)) is not None:
        return matched[1] if matched[1] is not None else matched[2]
    if (matched := _WORDS.fullmatch(text)) is not None:
        return [_scalar(word.strip(" ")) for word in matched[1].split(",")]
    raise _UnusualError
