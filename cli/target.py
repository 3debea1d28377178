"""`TARGET[@REV]`: which `@` parts a target from a revision, when both may hold one."""

from __future__ import annotations

import os
import re

# `@{...}` is part of a revision: HEAD@{1}, @{upstream}.
_AT = re.compile(r"@(?!\{)")


def split_target(text: str) -> tuple[str, str | None]:
    """(target, revision): revision None where none is given, target empty for the whole tree of a revision.

    The last `@` parts them. `@` alone is Git's short form of HEAD: `data@`, `data@@` are data at HEAD, `data@~1` and
    `data@@~1` at the commit before.
    """
    places = [match.start() for match in _AT.finditer(text)]
    if not places:
        # `data@{1}` asks for an older state of the branch that is checked out.
        head, mark, rest = text.partition("@{")
        return (head, mark + rest) if mark else (text, None)
    at = places[-1]
    rev = text[at + 1 :]
    if not rev or rev[0] in "~^":
        rev = "@" + rev
        if at > 0 and text[at - 1] == "@":
            at -= 1
    return text[:at], rev


def parse_target(text: str, rev: str | None) -> tuple[str | None, str | None]:
    """(target or None, revision or None) of an argument and of --rev.

    A name that is there (or whose pointer is) is taken whole, so `we@ird` means the directory of that name.
    """
    if rev is not None or os.path.lexists(text) or os.path.lexists(text.rstrip("/") + ".dvc"):
        return text or None, rev
    target, found = split_target(text)
    return target or None, found
