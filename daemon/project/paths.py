"""Paths as text: which text can be a file's name, and how a name is shown on one line."""

from __future__ import annotations

import os


def printable(path: str) -> str:
    """A path for a message: one line, valid Unicode; what is neither appears as escapes."""
    if path.isprintable():  # nearly all: looked at as a whole, which is quick
        return path
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        raw = path.encode("utf-8", "backslashreplace")
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def overlap(one: str, other: str) -> bool:
    """Whether of two paths, or urls, one lies in the other, or they are the same; "" holds all."""
    one, other = one.rstrip("/"), other.rstrip("/")
    return not one or not other or one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def is_utf8(text: str) -> bool:
    """Whether a name, or several, can be in a file of text: file names are any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_file_name(path: str) -> bool:
    """Whether the text (of one path, or of many) is how the bytes of file names are read.

    Text from a file of the project need not be: lone surrogates may be no byte at all, or a second spelling of a name.
    """
    try:
        return os.fsdecode(os.fsencode(path)) == path
    except UnicodeEncodeError:
        return False
