"""Keeping `.gitignore` beside tracked data, so that Git leaves the data alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence

from millpond.daemon.errors import TargetError
from millpond.daemon.project.repo import Repo, printable

GITIGNORE = ".gitignore"
_SPECIAL = frozenset("!#*?[]\\")


def entry(name: str) -> str:
    """The line that makes Git ignore exactly `name` in the folder of its `.gitignore`."""
    text = "".join(f"\\{char}" if char in _SPECIAL else char for char in name)
    # Git drops spaces at a line's end unless the last is escaped.
    return f"/{text[:-1]}\\ " if text.endswith(" ") else f"/{text}"


def check(repo: Repo, relative: str) -> None:
    """Raise TargetError for an output that no line of a `.gitignore` could name, or whose `.gitignore` is a link."""
    if repo.git is None:
        return
    if "\n" in relative or "\r" in os.path.basename(relative)[-1:]:
        raise TargetError(
            f"cannot track '{printable(relative)}': Git cannot ignore a name with a line break",
            path=printable(relative),
            hint="rename it",
        )
    path = repo.path(_file(relative))
    if os.path.islink(path):
        raise TargetError(
            f"'{printable(repo.seen(_file(relative)))}' is a symbolic link, which Git does not follow",
            path=printable(path),
            hint="replace it by a file",
        )


def texts(repo: Repo, relatives: Iterable[str]) -> dict[str, str]:
    """What each `.gitignore` (relative) must say so that Git ignores these outputs; only files that must change."""
    if repo.git is None:
        return {}
    wanted: dict[str, list[str]] = {}
    for relative in relatives:
        if not is_ignored(repo, relative):
            wanted.setdefault(_file(relative), []).append(entry(os.path.basename(relative)))
    return {file: _with_lines(repo.path(file), lines) for file, lines in wanted.items()}


def without(repo: Repo, relatives: Iterable[str]) -> dict[str, str]:
    """What each `.gitignore` (relative) must say when these outputs are tracked no more; "" for one that is not needed.
    Only files that must change."""
    if repo.git is None:
        return {}
    unwanted: dict[str, set[str]] = {}
    for relative in relatives:
        unwanted.setdefault(_file(relative), set()).add(entry(os.path.basename(relative)))
    found = {}
    for file, lines in unwanted.items():
        with contextlib.suppress(FileNotFoundError):
            with open(repo.path(file), encoding="utf-8", errors="surrogateescape", newline="") as old:
                text = old.read()
            kept = "".join(line for line in text.splitlines(keepends=True) if line.rstrip("\r\n") not in lines)
            if kept != text:
                found[file] = kept
    return found


def _with_lines(path: str, lines: Sequence[str]) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as old:
            text = old.read()
    except FileNotFoundError:
        text = ""
    if text and not text.endswith("\n"):
        text += "\n"
    have = set(text.splitlines())
    return text + "".join(f"{line}\n" for line in lines if line not in have)


def is_ignored(repo: Repo, relative: str) -> bool:
    """Whether Git ignores the output (as a folder, too, if it is one); False without Git."""
    if repo.git is None:
        return False
    path = repo.git_path(relative)
    return repo.git.is_ignored(path) or (os.path.isdir(repo.path(relative)) and repo.git.is_ignored(f"{path}/"))


def _file(relative: str) -> str:
    """The `.gitignore` beside an output."""
    return os.path.join(os.path.dirname(relative), GITIGNORE)
