"""One stage of a dvc.yaml or dvc.lock: which one a target means, and the files without it, everything else as it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from millpond.daemon.errors import InvalidFileError, TargetError, UsageError
from millpond.daemon.project import dvcfile, yamlio
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.stages import STAGES_FILE

# Keys of a dvc.lock that say nothing of a stage.
_FRAME = frozenset({"schema"})


def meant(repo: Repo, target: str) -> tuple[str, str | None]:
    """(file, stage in it) that a target names: None for a `.dvc` file, "" for all stages of a dvc.yaml. Raises TargetError."""
    shown = printable(target)
    relative = repo.relative(target)
    if relative is not None and relative.endswith(dvcfile.SUFFIX):
        if not os.path.isfile(repo.path(relative)):
            raise TargetError(f"'{shown}' does not exist", path=shown)
        return relative, None
    file, _, name = (target, "", "") if os.path.basename(target) == STAGES_FILE else target.rpartition(":")
    stages = repo.relative(file or STAGES_FILE)
    if stages is None or not os.path.isfile(repo.path(stages)):
        raise TargetError(f"'{shown}' is neither a .dvc file nor a stage", path=shown)
    return stages, name


def load(repo: Repo, file: str) -> tuple[str, Any]:
    """A pointer's, dvc.yaml's or dvc.lock's text, and its document, which keeps comments and order. Raises InvalidFileError."""
    shown = printable(repo.seen(file))
    try:
        with open(repo.path(file), "rb") as opened:
            text = yamlio.decode(yamlio.read(opened), shown)
    except OSError as error:
        raise InvalidFileError(f"cannot read '{shown}': {error.strerror}", path=shown) from error
    if file.endswith(dvcfile.SUFFIX):
        dvcfile.parse(text, shown)
    return text, yamlio.load(text, shown, round_trip=True)


def entry(document: Any, stage: str, target: str) -> Any:
    """The stage of a dvc.yaml's document. Raises TargetError, UsageError for what a template makes."""
    stages = document.get("stages") if isinstance(document, dict) else None
    base, at, _ = stage.partition("@")
    found = stages.get(base) if isinstance(stages, dict) else None
    shown = printable(target)
    if isinstance(found, dict) and ("foreach" in found or "matrix" in found):
        raise UsageError(
            f"'{shown}' is one of many that a template makes" if at else f"'{shown}' makes many stages",
            hint=f"edit '{STAGES_FILE}' by hand",
        )
    if not isinstance(found, dict) or at:
        raise TargetError(f"stage '{shown}' is not in '{STAGES_FILE}'", path=shown)
    return found


def without_stage(text: str, path: str, stage: str) -> str:
    """The text of a dvc.yaml or dvc.lock without a stage; "" when nothing is left of it. Comments of others stay, and the
    stage's own, in it and right above it, go. Raises InvalidFileError."""
    document = yamlio.load(text, path, round_trip=True)
    stages = document.get("stages") if isinstance(document, dict) else None
    if not isinstance(stages, dict) or stage not in stages:
        return text
    if len(stages) > 1:
        return _without_key(text, path, ["stages"], stage)
    return _without_key(text, path, [], "stages") if document.keys() - {"stages"} - _FRAME else ""


def _without_key(text: str, path: str, parents: list[str], key: str) -> str:
    """The text without a key of the mapping that `parents` lead to: its lines are cut out, which leaves all others alone."""
    expected, document = yamlio.load(text, path), yamlio.load(text, path, round_trip=True)
    mapping, wanted = document, expected
    for parent in parents:
        mapping, wanted = mapping[parent], wanted[parent]
    del wanted[key]
    first = next(iter(mapping)) == key
    cut = "".join(_cut(text.splitlines(keepends=True), *mapping.lc.key(key), first=first))
    del mapping[key]
    # In braces, or where an anchor goes: written anew, and without comments where a round trip garbles it.
    ways: list[Callable[[], str]] = [lambda: cut, lambda: yamlio.dump(document), lambda: yamlio.dump(expected)]
    for made in ways:
        with contextlib.suppress(InvalidFileError):
            if yamlio.load(left := made(), path) == expected:
                return left
    raise InvalidFileError(
        f"cannot take '{printable(key)}' out of '{printable(path)}'", path=printable(path), hint="edit it by hand"
    )


def _cut(lines: list[str], start: int, column: int, *, first: bool) -> Iterator[str]:
    """The lines but for those of the entry whose key is at line `start`, and the comment right above it; above the `first`
    entry it is taken to be about all of them."""
    end = start + 1
    for number in range(start + 1, len(lines)):
        body = lines[number].lstrip(" ")
        indent = len(lines[number]) - len(body)
        # A list may stand right below its key.
        deeper = indent > column or (indent == column and body.split(maxsplit=1)[:1] == ["-"])
        if body.strip() and deeper:
            end = number + 1
        elif body.strip() and not body.startswith("#"):
            break
    while not first and start and lines[start - 1].startswith(f"{' ' * column}#"):
        start -= 1
    blank_above = first or not lines[start - 1].strip()
    while end < len(lines) and blank_above and not lines[end].strip():
        end += 1
    if end == len(lines):
        while start and not lines[start - 1].strip():
            start -= 1
    yield from lines[:start]
    yield from lines[end:]
