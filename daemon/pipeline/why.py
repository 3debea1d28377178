"""`why`: the reasons for which a stage would run now, or for which it ran last."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.pipeline import pipelines, targets
from millpond.daemon.pipeline.changed import Comparer
from millpond.daemon.pipeline.contents import Contents
from millpond.daemon.pipeline.memory import Memory
from millpond.daemon.pipeline.provenance import Records
from millpond.daemon.pipeline.stage import address
from millpond.daemon.pipeline.status import entry_of
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.repo import Repo


def why(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, last} -> {stages: [{name, outcome, reasons, seconds, run}]}: of each stage that the targets mean.

    `outcome`: "would run" or "unchanged"; with `last` that of its last turn in a repro, None when nobody remembers one.
    `seconds` its commands took when they last ran, None if they did not; with `last`, `run` is the record of its last run (see DESIGN.md),
    which may be older than that turn. Raises as `status`.
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
        chosen = [(stage, entry_of(loaded, stage)) for stage in targets.meant(repo, loaded, names, outputs=True)]
        if not params.get("last"):
            comparer.prepare(chosen)
        for stage, entry in chosen:
            kept = memory.stages.get(address(stage, stage.file), {})
            outcome, reasons = kept.get("outcome"), kept.get("reasons") or []
            if not params.get("last"):
                reasons = [reason.to_json() for reason in comparer.reasons(stage, entry)]
                outcome = "would run" if reasons else "unchanged"
            name = wirepath.encode(address(stage, repo.seen(stage.file)))
            row = {"name": name, "outcome": outcome, "reasons": reasons, "seconds": kept.get("seconds")}
            if params.get("last"):
                row["run"] = next(records.of_stage(stage, 1), None) if stage.name else None
            rows.append(row)
        contents.save()
    return {"stages": rows}
