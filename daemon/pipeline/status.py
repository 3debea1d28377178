"""`status` for pipelines: what differs between stages, their dvc.lock and the workspace; `.dvc` files are stages, too."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.pipeline import graph, pipelines, targets
from millpond.daemon.pipeline.changed import Comparer, elsewhere, status_of
from millpond.daemon.pipeline.contents import Contents
from millpond.daemon.pipeline.stage import Stage, address
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.repo import Repo


def status(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, recursive, with_deps} -> {status: {stage: [...]}, tracked, frozen, unseen}: `status` is DVC's JSON,
    `tracked` the number of stages in the project, `frozen` those whose dependencies were not looked at, `unseen` the URLs that were not.

    Raises InvalidFileError, TargetError (unknown target), OverlapError, NotMountedError.
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
    found = {
        wirepath.encode(address(stage, repo.seen(stage.file))): status_of(why) for stage, why in reasons.items() if why
    }
    frozen = [
        wirepath.encode(address(stage, repo.seen(stage.file)))
        for stage in chosen
        if stage.frozen and not _is_import(stage)
    ]
    unseen = [wirepath.encode(path) for stage in chosen for path in elsewhere(stage)]
    return {"status": found, "tracked": len(loaded.stages), "frozen": frozen, "unseen": list(dict.fromkeys(unseen))}


def entry_of(loaded: pipelines.Pipelines, stage: Stage) -> dict[str, Any] | None:
    """The stage's entry in its dvc.lock."""
    return loaded.lock_of(stage).get(stage.name) if stage.name else None


def _is_import(stage: Stage) -> bool:
    """Whether it is data of another repository, whose changes are not this one's."""
    return stage.pointer is not None and any("repo" in dep for dep in stage.pointer.deps)
