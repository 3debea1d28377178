"""`status`: what differs between the pointers and the workspace, in DVC's words."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.mounts.place import require_mounted
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Group, fill
from millpond.daemon.project.importing.changes import changes
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.select import select
from millpond.daemon.project.workspace import Workspace

NOT_IN_CACHE, DELETED, MODIFIED = "not in cache", "deleted", "modified"


@dataclass(slots=True)
class _Seen:
    """An output and what the workspace has in its place: `group` and, for a single file, the index in it."""

    output: Output
    state: str | None = None
    group: Group | None = None
    index: int | None = None
    workspace: ObjectName | None = None


def status(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, recursive, updates} -> {status: {stage: [{"changed deps": {source: state}}, {"changed outs": {path: state}},
    "changed checksum"]}, tracked}.

    `status` is DVC's JSON; `tracked` is the number of outputs in the whole project. Imports from repositories are compared with what
    is there now only with `updates`.

    States: "not in cache" (neither the store nor DVC's cache has the recorded data), "deleted", "modified". Raises
    NotARepoError, InvalidFileError, TargetError (unknown target), NotMountedError; of imports as `importing.changes`.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    targets = [wirepath.decode(target) for target in params.get("targets") or []]
    with context.lock(repo.root, "read"):
        outputs = repo.outputs()
        chosen = [choice.output for choice in select(repo, outputs, targets, recursive=bool(params.get("recursive")))]
        found = _compare(context, repo, chosen)
        of_imports = changes(context, repo, chosen, updates=bool(params.get("updates")))
    groups: dict[str, list[dict[str, dict[str, str]] | str]] = {}
    for seen in found:
        about = of_imports.get(seen.output.pointer)
        stage = groups.setdefault(stage_key(repo, seen.output), [])
        if about is not None and about.deps:
            stage.append({"changed deps": {wirepath.encode(name): state for name, state in about.deps.items()}})
        if seen.state is not None:
            if not stage or not isinstance(stage[-1], dict) or "changed outs" not in stage[-1]:
                stage.append({"changed outs": {}})
            last = stage[-1]
            assert isinstance(last, dict)
            last["changed outs"][repo.wire(seen.output.path)] = seen.state
        if about is not None and about.checksum:
            stage.append("changed checksum")
    return {"status": {stage: each for stage, each in groups.items() if each}, "tracked": len(outputs)}


def stage_key(repo: Repo, output: Output) -> str:
    """How DVC addresses the stage of an output: its `.dvc` file, or a stage's name with its file unless that is here."""
    if output.stage is None:
        return repo.wire(output.pointer)
    folder = os.path.dirname(output.pointer)
    file = repo.seen(os.path.join(folder, "dvc.yaml"))
    name = wirepath.encode(output.stage)
    return name if file == "dvc.yaml" else f"{wirepath.encode(file)}:{name}"


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


def _compare(context: VerbContext, repo: Repo, outputs: list[Output]) -> list[_Seen]:
    workspace = Workspace(repo, context.store)
    found = _seen(context, workspace, outputs)
    _keep(workspace, found)
    _find_missing(workspace, found)
    return found


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


def _keep(workspace: Workspace, found: list[_Seen]) -> None:
    kept: set[int] = set()
    for seen in found:
        if seen.group is None or id(seen.group) in kept:
            continue
        kept.add(id(seen.group))
        if seen.index is None:
            assert seen.workspace is not None
            workspace.keep_folder(seen.output.path, seen.group, seen.workspace.value)
        else:
            workspace.keep_files(seen.group)
    workspace.save()


def _find_missing(workspace: Workspace, found: list[_Seen]) -> None:
    """Mark outputs whose recorded data is nowhere at hand. That goes before every other state, as in DVC."""
    wanted: list[tuple[_Seen, list[ObjectName]]] = []
    for seen in found:
        name = seen.output.name
        if name is None or not seen.output.cache:
            continue
        names = [name]
        if name.is_dir and workspace.objects.store.complete(name):
            continue
        if name.is_dir:
            inside = _entries(seen, workspace)
            if inside is None:
                seen.state = NOT_IN_CACHE
                continue
            names += inside
        wanted.append((seen, names))
    sizes = workspace.objects.sizes([name for _, names in wanted for name in names])
    at = 0
    for seen, names in wanted:
        if None in sizes[at : at + len(names)]:
            seen.state = NOT_IN_CACHE
        at += len(names)


def _entries(seen: _Seen, workspace: Workspace) -> list[ObjectName] | None:
    """The objects that the recorded manifest names; None when the manifest is nowhere."""
    name = seen.output.name
    assert name is not None
    if seen.group is not None and seen.workspace == name:
        return [ObjectName(name.algo, each) for each in set(seen.group.hexes())]
    raw = workspace.objects.manifest(name)
    if raw is None:
        return None
    return list({entry.name for entry in manifest.parse(raw, source=str(name), algo=name.algo)})
