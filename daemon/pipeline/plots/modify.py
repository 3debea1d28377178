"""`plots modify`: how a plot of a stage looks, written into its entry in dvc.yaml; everything else there stays."""

from __future__ import annotations

import os
import posixpath
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import TargetError, UsageError
from millpond.daemon.pipeline import pipelines as loading
from millpond.daemon.pipeline.plots import figures
from millpond.daemon.pipeline.stage import PLOTS, Stage, StageOut
from millpond.daemon.project import stagefile, yamlio
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.durable import write_all, write_error
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo

SETTINGS = ("template", "x", "y", "header", "title", "x_label", "y_label")


def modify(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {target, set: {setting: value}, unset: [setting]} -> {file, stage, changed}.

    Raises NotARepoError, TargetError, UsageError, InvalidFileError; nothing was changed then.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    target = wirepath.decode(params["target"])
    wanted = {key: params["set"][key] for key in SETTINGS if key in (params.get("set") or {})}
    unset = [str(key) for key in params.get("unset") or []]
    if "template" in wanted:
        figures.template_text(str(wanted["template"]), os.path.join(repo.dvc_dir, "plots"))
    with context.lock(repo.root, "write"):
        stage, out = _plot(repo, target)
        before, document = stagefile.load(repo, stage.file)
        entries = stagefile.entry(document, stage.name, target)[PLOTS]
        number = next(number for number, entry in enumerate(entries) if _path(entry) == posixpath.normpath(out.path))
        entry = entries[number]
        options = dict(next(iter(entry.values())) or {}) if isinstance(entry, dict) else {}
        lacking = [key for key in unset if key not in options or key not in SETTINGS]
        if lacking:
            raise UsageError(f"plot '{printable(target)}' has no setting '{printable(lacking[0])}'")
        for key in unset:
            del options[key]
        options |= wanted
        entries[number] = {out.path: options} if options else out.path
        text = yamlio.dump(document)
        try:
            if text != before:
                write_all({repo.path(stage.file): text})
        except OSError as error:
            raise write_error(error) from error
    return {"file": repo.wire(stage.file), "stage": stage.name, "changed": text != before}


def _plot(repo: Repo, target: str) -> tuple[Stage, StageOut]:
    relative = repo.relative(target)
    for stage in loading.load(repo).stages:
        for out in stage.outs:
            if out.kind == PLOTS and out.place == relative:
                return stage, out
    shown = printable(target)
    raise TargetError(
        f"no stage has a plot '{shown}'", path=shown, hint="name a file that stands under `plots` of a stage"
    )


def _path(entry: Any) -> str:
    return posixpath.normpath(str(next(iter(entry)) if isinstance(entry, dict) else entry))
