"""Outputs of stages as they are recorded, brought from remotes into the store and from there into the workspace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from millpond.daemon.errors import ObjectMissingError
from millpond.daemon.pipeline.lock import Locked, locked
from millpond.daemon.pipeline.recording import Recorder
from millpond.daemon.pipeline.stage import Stage, StageOut
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.fetch import fetch_chosen
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.placer import Placer
from millpond.daemon.project.plan import Content, Planner
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.select import Choice
from millpond.daemon.project.workspace import Workspace

Entry = dict[str, Any]


class Recorded:
    """Of one repro."""

    def __init__(self, context: VerbContext, repo: Repo, recorder: Recorder) -> None:
        self._context = context
        self._repo = repo
        self._recorder = recorder

    def entry(self, stage: Stage) -> Entry | None:
        """The stage's entry of dvc.lock."""
        return self._recorder.loaded.lock_of(stage).get(stage.name) if stage.name else None

    def outs(self, stage: Stage) -> dict[str, Locked]:
        """What each output is, by how its path is written."""
        if stage.pointer is not None:
            return {out.path: Locked(out.name) for out in stage.pointer.outs}
        return locked(self.entry(stage), "outs")

    def fetch(self, stage: Stage, outs: Iterable[StageOut], recorded: Mapping[str, Locked] | None = None) -> None:
        """Have recorded outputs in the store, those of dvc.lock unless others are given. Raises ObjectMissingError, RemoteError and
        others."""
        choices = []
        for out in outs:
            known = (self.outs(stage) if recorded is None else recorded).get(out.path)
            if known is not None and known.name is not None and out.place is not None:
                pointer = stage.lock if stage.name else stage.file
                output = Output(out.place, pointer, known.name, known.size, known.nfiles, known.isexec, True)
                choices.append(Choice(_shared(output, out)))
        found = fetch_chosen(self._context, self._repo, choices, {})
        if found["missing"] or found["damaged"]:
            raise ObjectMissingError("not all of its data is on the remote")
        self._recorder.contents.stored([each.output.name for each in choices if each.output.name is not None])

    def place(self, outs: Iterable[tuple[StageOut, Locked]]) -> None:
        """Bring outputs into the workspace. Raises ObjectMissingError."""
        contents = [Content(out.place or "", known.name, known.isexec) for out, known in outs]
        workspace = Workspace(self._repo, self._context.store)
        plans = Planner(workspace).plans(contents)
        for plan in plans:
            if plan.missing:
                where = printable(self._repo.seen(plan.content.path))
                raise ObjectMissingError(f"the data of '{where}' is not at hand", path=where)
        Placer(self._context, workspace).apply(plans)
        # Dependencies may lie inside of outputs.
        self._recorder.contents.forget()


def _shared(output: Output, out: StageOut) -> Output:
    return Output(
        output.path, output.pointer, output.name, output.size, output.nfiles, output.isexec, True, remote=out.remote,
        push=out.push,
    )  # fmt: skip
