"""Which outputs hold something else in the workspace than their pointers say, and what is stored nowhere."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from millpond.daemon.mounts.place import require_mounted
from millpond.daemon.names import ObjectName
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Group, fill
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.workspace import Workspace

DELETED, MODIFIED = "deleted", "modified"


@dataclass(slots=True)
class _Seen:
    """An output and what the workspace has in its place: `group` and, for a single file, the index in it."""

    output: Output
    state: str | None = None
    group: Group | None = None
    index: int | None = None
    workspace: ObjectName | None = None


def changed(context: VerbContext, repo: Repo, outputs: list[Output]) -> list[Output]:
    """Outputs whose place holds something else than their pointer says; what is gone is not among them."""
    found = _seen(context, Workspace(repo, context.store), outputs)
    return [seen.output for seen in found if seen.workspace != seen.output.name and seen.state != DELETED]


def unstored(context: VerbContext, repo: Repo, outputs: list[Output]) -> list[Output]:
    """Outputs in whose place lies something that neither the store nor DVC's cache has whole."""
    workspace = Workspace(repo, context.store)
    lost = []
    for seen in _seen(context, workspace, outputs):
        group = seen.group
        names: list[ObjectName] | None
        if group is None:
            names = None if seen.state != DELETED else []
        elif seen.index is not None:
            names = [group.name(seen.index)]
        else:
            whole = workspace.objects.store.complete(group.tree())
            names = [] if whole else [ObjectName(group.algo, each) for each in set(group.hexes())]
        if names is None or None in workspace.objects.sizes(names):
            lost.append(seen.output)
    return lost


def _seen(context: VerbContext, workspace: Workspace, outputs: list[Output]) -> list[_Seen]:
    found = [_Seen(output) for output in outputs]
    _look(workspace, found)
    groups = list({id(seen.group): seen.group for seen in found if seen.group is not None}.values())

    def progress(files: int, all_files: int, done: int, total: int) -> None:
        context.progress("hashing", (files, all_files), (done, total))

    fill(groups, context.store, keep=False, progress=progress)
    for seen in found:
        _decide(seen, workspace)
    return found


def _look(workspace: Workspace, found: list[_Seen]) -> None:
    """Find what lies in each output's place; what has no name or the wrong kind is decided at once."""
    single: dict[str, list[_Seen]] = {}
    for seen in found:
        output = seen.output
        path = workspace.repo.path(output.path)
        try:
            mode = os.stat(path).st_mode
        except OSError:
            require_mounted(path)
            seen.state = DELETED
            continue
        algo = output.name.algo if output.name is not None else "md5"
        if output.name is None or stat.S_ISDIR(mode) != output.is_dir or not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            seen.state = MODIFIED
        elif output.is_dir:
            seen.group = workspace.folder(output.path, algo)
            if seen.group.listing.odd:
                seen.group, seen.state = None, MODIFIED
        else:
            single.setdefault(algo, []).append(seen)
    for algo, several in single.items():
        group = workspace.files([seen.output.path for seen in several], algo)
        for index, seen in enumerate(several):
            seen.group, seen.index = group, index


def _decide(seen: _Seen, workspace: Workspace) -> None:
    if seen.group is not None:
        seen.workspace = seen.group.tree() if seen.index is None else seen.group.name(seen.index)
        seen.state = None if seen.workspace == seen.output.name else MODIFIED
