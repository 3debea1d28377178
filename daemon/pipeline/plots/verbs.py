"""`plots show`, `plots diff`, `plots templates`, `plots modify`."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import TargetError, UsageError
from millpond.daemon.pipeline import snapshot
from millpond.daemon.pipeline.plots import figures, report
from millpond.daemon.pipeline.plots.definitions import LOOKS
from millpond.daemon.pipeline.plots.figures import Drawing, Figure
from millpond.daemon.pipeline.snapshot import Snapshot
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo

_FOLDER, _TEMPLATES = "dvc_plots", "plots"


def plots(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, revs: [...] or null, looks, as: "html", "json", "vega" or "points", out, page} -> {figures, problems,
    path, open}.

    Without `revs` the workspace; an empty list is HEAD and the workspace. `figures`: [{name, revisions, spec}] for "vega" and
    "json", {points: {x, y, rows}} for "points", [{name, revisions, images: [[revision, path]]}] for images; `problems`: [{name,
    rev, msg, source}]; `path` of the HTML, `open` whether the project wants it opened.

    Raises NotARepoError, RevisionError, UsageError, TargetError, InvalidFileError, StoreDamagedError, DiskFullError.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    form = str(params.get("as") or "html")
    looks = {key: params["looks"][key] for key in (*LOOKS, "x", "y") if key in (params.get("looks") or {})}
    drawing = Drawing(looks, os.path.join(repo.dvc_dir, _TEMPLATES))
    targets = _targets(repo, params)
    with context.lock(repo.root, "read"):
        for number, revision in enumerate(_revisions(context, repo, params.get("revs"))):
            context.progress("reading revisions", (number, None))
            drawing.take(revision, targets)
        found = drawing.figures()
        drawn = [figure for figure in found if figure.spec or figure.images]
    if targets and not found and not drawing.problems:
        raise TargetError(
            f"nothing can be plotted of {', '.join(map(printable, targets))}",
            hint="a plot is a CSV, TSV, JSON or YAML file with rows, or an image",
        )
    problems = [
        {"name": each.name, "rev": each.revision, "msg": each.message, "source": each.source}
        for each in drawing.problems
    ]
    result: dict[str, Any] = {"problems": problems, "path": None, "open": repo.config.flag("plots", "auto_open")}
    folder = _folder(repo, params)
    if form == "html":
        own = _page(repo, params)
        if drawn:
            result["path"] = wirepath.encode(report.write(folder, drawn, own))
        return {**result, "figures": []}
    images = report.write_images(folder, found) if form == "json" else {}
    return {**result, "figures": [_told(figure, form, images) for figure in found]}


def templates(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {name?} -> {lines}: the names of all templates, or the JSON of one. Raises UsageError."""
    try:
        folder = os.path.join(Repo.open(os.getcwd(), os.environ).dvc_dir, _TEMPLATES)
    except Exception as error:
        if params.get("name") is None or not isinstance(error, UsageError):
            folder = ""
        else:
            raise
    return {"lines": figures.template_text(params.get("name"), folder)}


def _revisions(context: VerbContext, repo: Repo, revs: list[str] | None) -> list[Snapshot]:
    """In the order in which they are drawn: of a comparison the newer one first."""
    if revs is None:
        return [snapshot.workspace(context, repo)]
    if len(revs) >= 2:
        return [snapshot.named(context, repo, rev) for rev in revs]
    here = snapshot.workspace(context, repo)
    if not revs and (repo.git is None or repo.git.has_no_commits or not repo.git.changes("no")[0]):
        return [here]  # it is HEAD
    return [here, snapshot.revision(context, repo, revs[0] if revs else "HEAD")]


def _told(figure: Figure, form: str, images: dict[tuple[str, str], str]) -> dict[str, Any]:
    told: dict[str, Any] = {"name": figure.name, "revisions": figure.revisions}
    if figure.images:
        files = [[revision, wirepath.encode(images.get((revision, path), ""))] for revision, path, _ in figure.images]
        return {**told, "images": files}
    if form == "points" and figure.points is not None:
        points = figure.points
        return {**told, "points": {"x": points.x, "y": points.y, "rows": points.rows, "series": points.series}}
    return {**told, "spec": figure.spec}


def _targets(repo: Repo, params: dict[str, Any]) -> list[str]:
    """Paths from the project's root; what is no path of it may be a plot's name."""
    found = []
    for target in map(wirepath.decode, params.get("targets") or []):
        relative = repo.relative(target)
        there = relative is not None and os.path.lexists(os.path.join(repo.cwd, target))
        found.append(relative if there and relative is not None else target)
    return found


def _folder(repo: Repo, params: dict[str, Any]) -> str:
    out = params.get("out")
    if out:
        return os.path.join(repo.cwd, wirepath.decode(out))
    configured = repo.config.get("plots", "out_dir")
    return os.path.join(repo.root, configured) if configured else os.path.join(repo.cwd, _FOLDER)


def _page(repo: Repo, params: dict[str, Any]) -> str | None:
    if params.get("page"):
        return report.read_page(os.path.join(repo.cwd, wirepath.decode(params["page"])))
    configured = repo.config.get("plots", "html_template")
    return report.read_page(os.path.join(repo.dvc_dir, configured)) if configured else None
