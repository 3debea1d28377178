"""Where an import goes: an output in the project that is new, or the same one again with --force."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from millpond.daemon.errors import TargetError
from millpond.daemon.project import dvcfile, yamlio
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.targets import OutputIndex, check_place


@dataclass(frozen=True, slots=True)
class Target:
    """An output at `path` and its pointer, both relative; `old` the text of a pointer that is there already."""

    path: str
    pointer: str
    old: str | None = None

    @property
    def name(self) -> str:
        """The output's path as its pointer has it."""
        return os.path.basename(self.path)

    @property
    def folder(self) -> str:
        return os.path.dirname(self.path)


def destination(name: str, out: str | None) -> str:
    """Where what is called `name` goes, seen from the caller's folder: into `out` if that is a folder."""
    if not out:
        return name
    return os.path.join(out, name) if os.path.isdir(out) or out.endswith("/") else out


def refuse_existing(path: str, *, force: bool) -> None:
    """Raise TargetError for a place that is taken."""
    if os.path.lexists(path) and not force:
        shown = printable(path)
        raise TargetError(f"the file '{shown}' already exists locally", path=shown, hint="to override it, add --force")


def resolve(repo: Repo, place: str, outputs: Sequence[Output], *, force: bool) -> Target:
    """The target at a place, seen from the caller's folder. Raises TargetError, OverlapError, TrackedByGitError."""
    refuse_existing(os.path.join(repo.cwd, place), force=force)
    relative = repo.relative(place)
    holder = None if relative is None else OutputIndex(outputs).holder(relative)
    pointer = f"{relative}{dvcfile.SUFFIX}"
    if holder is None or holder.path != relative or holder.pointer != pointer:
        path = check_place(repo, place, outputs, is_dir=False)
        folder = os.path.dirname(repo.path(path))
        if not os.path.isdir(folder):
            shown = printable(repo.seen(os.path.dirname(path)))
            raise TargetError(f"there is no folder '{shown}'", path=shown, hint="make it first")
        return Target(path, f"{path}{dvcfile.SUFFIX}")
    if not force:
        shown = printable(repo.seen(pointer))
        raise TargetError(f"'{shown}' already exists", path=shown, hint="to override it, add --force")
    with open(repo.path(pointer), "rb") as file:
        return Target(relative, pointer, yamlio.decode(yamlio.read(file), pointer))
