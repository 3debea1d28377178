"""Bringing what was found elsewhere into the store, and from there into the workspace."""

from __future__ import annotations

import os
from collections.abc import Iterator

from millpond.daemon.errors import TargetError
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data
from millpond.daemon.project import manifest
from millpond.daemon.project.checkout import refuse_loss
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Group, Objects, fill
from millpond.daemon.project.importing.pointer import Found
from millpond.daemon.project.importing.repofiles import RepoFiles
from millpond.daemon.project.importing.source import LocalSource, Source
from millpond.daemon.project.placer import Placer
from millpond.daemon.project.plan import Content, Planner
from millpond.daemon.project.portions import put_all
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.workspace import Workspace


def keep(context: VerbContext, source: Source, *, store: bool = True, like: ObjectName | None = None) -> Found:
    """Have a source's content in the store, durable; its name. With `store` False what lies on this machine is only hashed; what comes
    over a network is stored in any case. `like`: the manifest that was there before, if the store has it. Raises as the source's `read`, DiskFullError, FileChangedError."""
    names = _local(context, source, store) if isinstance(source, LocalSource) else _remote(context, source)
    found = found_of(source, names)
    if store:
        if found.name is not None and found.name.is_dir:
            context.store.put_bytes(manifest_of(source.paths, names), is_dir=True, like=like)
        context.progress("committing")
        context.store.commit()
    return found


def keep_repo(context: VerbContext, files: RepoFiles, own: Objects, like: ObjectName | None = None) -> Found:
    """As `keep`, of another repository's files; those that are at hand in the store or in the project's own cache are not read. Raises
    as RepoFiles.read, DiskFullError."""
    names = dict(enumerate(files.names))
    known = [(index, name) for index, name in names.items() if name is not None]
    sizes: dict[int, int] = {}
    for (index, _), place in zip(known, own.places([name for _, name in known]), strict=True):
        # A name of DVC 2 is written nowhere anew.
        if place is not None and place.name.algo == "md5":
            names[index], sizes[index] = place.name, place.size

    def stored(index: int, name: ObjectName, size: int) -> None:
        names[index], sizes[index] = name, size

    lacking = [index for index in names if index not in sizes]
    put_all(context.store, counted(context, "importing", files, lacking), stored)
    files.sizes = [sizes[index] for index in names]
    ordered = [name for name in names.values() if name is not None]
    found = found_of(files, ordered)
    if files.is_dir:
        context.store.put_bytes(manifest_of(files.paths, ordered), is_dir=True, like=like)
        context.store.commit()
    return found


def found_of(source: Source, names: list[ObjectName]) -> Found:
    """What a source's files make together."""
    if not source.is_dir:
        return Found(names[0], source.sizes[0])
    return Found(manifest.manifest_name(manifest_of(source.paths, names)), sum(source.sizes), len(names))


def manifest_of(paths: list[str], names: list[ObjectName]) -> bytes:
    """The manifest of files in a manifest's order."""
    return manifest.serialise((path, name.hex) for path, name in zip(paths, names, strict=True))


class Placing:
    """What `name` names (None: nothing) on its way to a relative path: looked at when made, done by `apply`. So a refusal changes
    nothing, and a pointer can be written in between: what a crash leaves is ended by `checkout`."""

    def __init__(self, context: VerbContext, repo: Repo, path: str, name: ObjectName | None) -> None:
        self._context = context
        self._repo = repo
        self._workspace = Workspace(repo, context.store)
        self._plans = Planner(self._workspace, self._progress).plans([Content(path, name)])

    def _progress(self, files: int, all_files: int, done: int, total: int) -> None:
        self._context.progress("comparing", (files, all_files), (done, total))

    @property
    def is_due(self) -> bool:
        """Whether something else is there, and all that should be is at hand, and nothing would be lost."""
        (plan,) = self._plans
        return plan.state is not None and not plan.missing and not plan.lost

    def refuse_loss(self, hint: str) -> Placing:
        """Raise ConflictError when something that is saved nowhere would be lost; `hint` says what to do then."""
        refuse_loss(self._repo, self._plans, hint)
        return self

    def apply(self) -> None:
        """Raises as Placer.apply."""
        Placer(self._context, self._workspace).apply(self._plans)


def _local(context: VerbContext, source: LocalSource, store: bool) -> list[ObjectName]:
    group = Group.of(source.base, source.listing, None)

    def progress(files: int, all_files: int, done: int, total: int) -> None:
        context.progress("importing", (files, all_files), (done, total))

    try:
        fill([group], context.store, keep=store, progress=progress)
    except OSError as error:
        shown = printable(os.fsdecode(error.filename or source.path))
        raise TargetError(f"cannot read '{shown}': {error.strerror}", path=shown) from error
    # Sizes are those of the files as they were read.
    source.sizes = [group.size(index) for index in range(len(source.paths))]
    return [group.name(index) for index in range(len(source.paths))]


def _remote(context: VerbContext, source: Source) -> list[ObjectName]:
    names: dict[int, ObjectName] = {}

    def stored(index: int, name: ObjectName, size: int) -> None:
        names[index] = name

    put_all(context.store, counted(context, "importing", source, range(len(source.paths))), stored)
    return [names[index] for index in range(len(source.paths))]


def counted(
    context: VerbContext, phase: str, source: Source, indexes: range | list[int]
) -> Iterator[tuple[int, Data, bool]]:
    """What a source gives, with progress told."""
    files, done = 0, 0
    total = sum(source.sizes[index] for index in indexes)
    for index, data, last in source.read(list(indexes)):
        yield index, data, last
        files, done = files + last, done + len(data)
        # Sizes of what only a remote has are not known before.
        context.progress(phase, (files, len(indexes)), (done, total if total >= done else None))
