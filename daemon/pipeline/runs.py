"""`runs`: the last runs of stages, as they were recorded."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.pipeline import pipelines, targets
from millpond.daemon.pipeline.provenance import KEEP, Records
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.repo import Repo


def runs(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, most} -> {runs}: the records (see DESIGN.md) of at most so many runs of each stage that the targets
    mean, all stages without any, the newest first. Raises TargetError, InvalidFileError."""
    repo = Repo.open(os.getcwd(), os.environ)
    names = [wirepath.decode(target) for target in params.get("targets") or []]
    most = int(params.get("most") or KEEP)
    with context.lock(repo.root, "read"):
        loaded = pipelines.load(repo)
        stages = targets.meant(repo, loaded, names, outputs=True) if names else loaded.stages
        records = Records(repo)
        found = [record for stage in stages if stage.name for record in records.of_stage(stage, most)]
    return {"runs": sorted(found, key=lambda record: record["began"], reverse=True)}
