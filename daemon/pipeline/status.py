"""`status` for pipelines: what differs between stages, their dvc.lock and the workspace; `.dvc` files are stages, too."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.pipeline import graph, pipelines, targets
from millpond.daemon.pipeline.changed import Comparer, status_of, unseen
from millpond.daemon.pipeline.contents import Contents
from millpond.daemon.pipeline.stage import Stage, address
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.importing.changes import Changes, changes
from millpond.daemon.project.repo import Repo


def status(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, recursive, with_deps, updates} -> {status: {stage: [...]}, tracked, frozen, unseen}: `status` is DVC's JSON,
    `tracked` the number of stages in the project, `frozen` those whose dependencies were not looked at, `unseen` the
    urls that nobody looks at here.
    Imports from repositories are compared with what is there now only with `updates`.

    Raises InvalidFileError, TargetError (unknown target), OverlapError, NotMountedError; of urls as Urls.at, of imports as `importing.changes`.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    names = [wirepath.decode(target) for target in params.get("targets") or []]
    with context.lock(repo.root, "read"):
        loaded = pipelines.load(repo)
        chosen = loaded.stages
        if names:
            chosen = targets.meant(repo, loaded, names, recursive=bool(params.get("recursive")), outputs=True)
        if params.get("with_deps"):
            chosen = graph.build(loaded.stages, repo.seen).above(chosen)
        contents = Contents.of(context, repo)
        comparer = Comparer(contents, loaded.value)
        entries = [(stage, entry_of(loaded, stage)) for stage in chosen]
        comparer.prepare(entries)
        reasons = {stage: comparer.reasons(stage, entry) for stage, entry in entries}
        contents.save()
        imports = _imports(context, repo, chosen, updates=bool(params.get("updates")))
    states = {stage: _with_import(status_of(why), imports.get(stage.file)) for stage, why in reasons.items()}
    found = {wirepath.encode(address(stage, repo.seen(stage.file))): state for stage, state in states.items() if state}
    frozen = [
        wirepath.encode(address(stage, repo.seen(stage.file)))
        for stage in chosen
        if stage.frozen and not _is_import(stage)
    ]
    unfollowed = [wirepath.encode(item.path) for stage in chosen for item in unseen(stage)]
    return {"status": found, "tracked": len(loaded.stages), "frozen": frozen, "unseen": list(dict.fromkeys(unfollowed))}


def entry_of(loaded: pipelines.Pipelines, stage: Stage) -> dict[str, Any] | None:
    """The stage's entry in its dvc.lock."""
    return loaded.lock_of(stage).get(stage.name) if stage.name else None


def _imports(context: VerbContext, repo: Repo, chosen: list[Stage], *, updates: bool) -> dict[str, Changes]:
    """What differs at the sources of imports among these stages, by their `.dvc` files."""
    files = {stage.file for stage in chosen if stage.pointer is not None and stage.pointer.deps}
    if not files:
        return {}
    return changes(context, repo, [out for out in repo.outputs() if out.pointer in files], updates=updates)


def _with_import(state: list[Any], about: Changes | None) -> list[Any]:
    """A stage's status with what is to be said of an import's source; its own dependency is that source."""
    if about is None:
        return state
    rest = [each for each in state if not (isinstance(each, dict) and "changed deps" in each)]
    deps = {wirepath.encode(name): each for name, each in about.deps.items()}
    return [*([{"changed deps": deps}] if deps else []), *rest, *(["changed checksum"] if about.checksum else [])]


def _is_import(stage: Stage) -> bool:
    """Whether it is data of another repository, whose changes are not this one's."""
    return stage.pointer is not None and any("repo" in dep for dep in stage.pointer.deps)
