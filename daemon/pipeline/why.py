"""`why`: the reasons for which a stage would run now, or for which it ran last."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import CancelledError, MillpondError
from millpond.daemon.pipeline import pipelines, targets
from millpond.daemon.pipeline.changed import Comparer
from millpond.daemon.pipeline.contents import Contents
from millpond.daemon.pipeline.memory import Memory
from millpond.daemon.pipeline.nearest import Near, Nearest
from millpond.daemon.pipeline.provenance import Records
from millpond.daemon.pipeline.recording import Recorder
from millpond.daemon.pipeline.stage import Stage, address
from millpond.daemon.pipeline.status import entry_of
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.repo import Repo


def why(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, last} -> {stages: [{name, outcome, reasons, seconds, run, nearest}]}: of each stage that the targets mean.

    `outcome`: "would run" or "unchanged"; with `last` that of its last turn in a repro, None when nobody remembers one.
    `seconds` its commands took when they last ran, None if they did not; with `last`, `run` is the record of its last run (see DESIGN.md),
    which may be older than that turn. `nearest` (see Near.to_json) is of a stage that would run, and ran before. Raises as `status`.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    names = [wirepath.decode(target) for target in params.get("targets") or []]
    rows = []
    with context.lock(repo.root, "read"):
        loaded = pipelines.load(repo)
        memory = Memory.load(repo.temporary)
        records = Records(repo)
        contents = Contents.of(context, repo)
        comparer = Comparer(contents, loaded.value)
        recorder = Recorder(context, repo, loaded, contents, comparer)
        nearest = Nearest(records, recorder.runs)
        chosen = [(stage, entry_of(loaded, stage)) for stage in targets.meant(repo, loaded, names, outputs=True)]
        if not params.get("last"):
            comparer.prepare(chosen)
        for stage, entry in chosen:
            near: Near | None = None
            kept = memory.stages.get(address(stage, stage.file), {})
            outcome, reasons = kept.get("outcome"), kept.get("reasons") or []
            if not params.get("last"):
                reasons = [reason.to_json() for reason in comparer.reasons(stage, entry)]
                outcome = "would run" if reasons else "unchanged"
                near = _nearest(nearest, recorder, stage) if reasons and stage.name else None
            name = wirepath.encode(address(stage, repo.seen(stage.file)))
            row = {"name": name, "outcome": outcome, "reasons": reasons, "seconds": kept.get("seconds")}
            if params.get("last"):
                row["run"] = next(records.of_stage(stage, 1), None) if stage.name else None
            if near is not None:
                row["nearest"] = near.to_json()
            rows.append(row)
        contents.save()
    return {"stages": rows}


def _nearest(nearest: Nearest, recorder: Recorder, stage: Stage) -> Near | None:
    try:
        return nearest.of(stage, recorder.inputs(stage))
    except CancelledError:
        raise
    except MillpondError:  # something that it needs is missing, which is among the reasons
        return None
