"""`commit`: record what is in the workspace, of `.dvc` files and of stages, without running anything."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.pipeline import graph, pipelines, targets
from millpond.daemon.pipeline.changed import ALWAYS, Comparer
from millpond.daemon.pipeline.contents import Contents
from millpond.daemon.pipeline.recording import Recorder
from millpond.daemon.pipeline.stage import Stage, address
from millpond.daemon.pipeline.status import entry_of
from millpond.daemon.project import commit as data
from millpond.daemon.project import running
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.repo import Repo


def commit(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, recursive, with_deps, force, no_relink} -> {unconfirmed: [{pointer, outs}]} or as `add`.

    Stages that are not as dvc.lock has them are `unconfirmed`, too, without `force`: `pointer` is the stage. Raises as `add`,
    and TargetError for what a stage needs or makes and is not there.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    names = [wirepath.decode(target) for target in params.get("targets") or []]
    with context.lock(repo.root, "write"):
        loaded = pipelines.load(repo)
        stages, rest = _split(repo, loaded, names, params)
        places = [dep.place for stage in stages for dep in stage.deps if dep.place is not None]
        places += [out.place for stage in stages for out in stage.outs if out.place is not None]
        running.refuse(repo, reads=places, env=os.environ)
        recorder = _recorder(context, repo, loaded)
        changed = _changed(repo, recorder, stages)
        result: dict[str, Any] = {"added": [], "git_add": [], "autostaged": False, "warnings": []}
        if not names or rest:
            asked = {**params, "targets": [wirepath.encode(name) for name in rest]}
            # Nothing is recorded before the person agreed to all of it.
            result = data.commit(context, asked if params.get("force") or not changed else {**asked, "dry": True})
        if not params.get("force") and (changed or "unconfirmed" in result):
            return {"unconfirmed": [*result.get("unconfirmed", []), *changed]}
        for stage in stages:
            recorder.refuse_outside(stage)
        for stage in stages:
            entry = recorder.store(stage, keep=True)
            recorder.record(stage, entry, remember=True)
            recorder.export(stage, entry)
        recorder.contents.save()
        git, written = repo.git, list(recorder.git_add)
        if git is not None and repo.config.flag("core", "autostage"):
            git.stage([repo.git_path(path) for path in written])
    result["git_add"] = [*result["git_add"], *repo.for_git(written)]
    return result


def _split(
    repo: Repo, loaded: pipelines.Pipelines, names: list[str], params: dict[str, Any]
) -> tuple[list[Stage], list[str]]:
    """The stages that have commands, and the targets that mean something else."""
    if not names:
        return [stage for stage in loaded.stages if stage.name], []
    found: dict[Stage, None] = {}
    rest = []
    for name in names:
        meant = targets.meant(repo, loaded, [name], recursive=bool(params.get("recursive")), outputs=True)
        found.update((stage, None) for stage in meant if stage.name)
        if any(not stage.name for stage in meant):
            rest.append(name)
    if params.get("with_deps"):
        above = graph.build(loaded.stages, repo.seen).above(targets.meant(repo, loaded, names, outputs=True))
        found = dict.fromkeys(stage for stage in above if stage.name)
        rest += [repo.seen(stage.file) for stage in above if not stage.name]
    return list(found), rest


def _recorder(context: VerbContext, repo: Repo, loaded: pipelines.Pipelines) -> Recorder:
    contents = Contents.of(context, repo)
    return Recorder(context, repo, loaded, contents, Comparer(contents, loaded.value))


def _changed(repo: Repo, recorder: Recorder, stages: list[Stage]) -> list[dict[str, Any]]:
    entries = [(stage, entry_of(recorder.loaded, stage)) for stage in stages]
    recorder.comparer.prepare(entries)
    found = []
    for stage, entry in entries:
        reasons = [reason for reason in recorder.comparer.reasons(stage, entry) if reason.kind != ALWAYS]
        if any(reason.state != "not in cache" for reason in reasons):
            name = wirepath.encode(address(stage, repo.seen(stage.file)))
            paths = dict.fromkeys(wirepath.encode(reason.path) for reason in reasons if reason.path)
            found.append({"pointer": name, "outs": list(paths)})
    return found
