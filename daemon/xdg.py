"""The XDG base directories: a variable counts where it is an absolute path; the specification has all others ignored."""

from __future__ import annotations

import os
from collections.abc import Mapping


def named(environ: Mapping[str, str], variable: str) -> str | None:
    """The folder that a variable names, if it counts."""
    return absolute(environ.get(variable))


def absolute(value: str | None) -> str | None:
    """A value that counts."""
    return value if value is not None and value.startswith("/") else None


def base(environ: Mapping[str, str], variable: str, default: str, home: str | None = None) -> str:
    """The folder that a variable names, else `default` below `home` (that of the environment)."""
    found = named(environ, variable)
    return found or os.path.join(home or environ.get("HOME") or os.path.expanduser("~"), default)
