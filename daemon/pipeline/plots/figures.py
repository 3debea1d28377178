"""Figures: the plots of several revisions matched by their names, as Vega-Lite specifications and images.

Templates and how their anchors are filled in are dvc-render's, so that a figure is the one that DVC draws.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.errors import MillpondError, TargetError, UsageError
from millpond.daemon.pipeline.plots.definitions import Plot, collect
from millpond.daemon.pipeline.plots.points import INFERRED, INFERRED_X, Gathering, PlotError, Points, Table, tables_of
from millpond.daemon.pipeline.snapshot import Snapshot
from millpond.daemon.project.paths import printable

_LOOKS = ("template", "title", "x_label", "y_label")


@dataclass(frozen=True, slots=True)
class Problem:
    """What could not be drawn; `source`: the file that is at fault, "" where none is."""

    name: str
    revision: str
    message: str
    source: str = ""


@dataclass(slots=True)
class Figure:
    """One figure: points and a specification, or one image a revision; neither where no revision has what it takes."""

    name: str
    revisions: list[str] = field(default_factory=list)
    points: Points | None = None
    spec: dict[str, Any] = field(default_factory=dict)
    images: list[tuple[str, str, bytes]] = field(default_factory=list)


class Drawing:
    """Figures of revisions. `looks` are wished for on the command line, `templates` is the folder of the project's own."""

    def __init__(self, looks: Mapping[str, Any], templates: str) -> None:
        self._looks = looks
        self._templates = templates
        self._plots: dict[tuple[str, str], tuple[Plot, Gathering]] = {}
        self._images: dict[str, Figure] = {}
        self._shown: Callable[[str], str] = str
        self.problems: list[Problem] = []

    def take(self, revision: Snapshot, targets: Iterable[str]) -> int:
        """Add a revision's plots; how many there are. Raises InvalidFileError for a definition that is none."""
        self._shown = revision.pipelines.shown
        known: dict[tuple[str, bool], Table | MillpondError] = {}
        plots = [plot.styled(self._looks) for plot in collect(revision, targets)]
        for path, error in revision.pipelines.failed.items():
            self.problems.append(Problem(path, revision.label, error.message, path))
        for plot in plots:
            if plot.is_image:
                self._take_image(revision, plot)
                continue
            own, gathering = self._plots.setdefault((plot.source, plot.name), (plot, Gathering(plot)))
            try:
                # What it looks like is as the first revision has it; what it is made of as each has it.
                gathering.take(revision, tables_of(revision, own, known))
            except PlotError as error:
                self.problems.append(Problem(plot.name, revision.label, str(error)))
            except MillpondError as error:
                self.problems.append(Problem(plot.name, revision.label, error.message, error.path or ""))
        return len(plots)

    def _take_image(self, revision: Snapshot, plot: Plot) -> None:
        path = plot.y[0].path
        name = printable(revision.pipelines.shown(path))
        try:
            raw = revision.read(path)
            if raw is None:
                raise TargetError(f"'{name}' does not exist", path=name)
        except MillpondError as error:
            self.problems.append(Problem(name, revision.label, error.message, name))
            return
        figure = self._images.setdefault(name, Figure(name))
        figure.revisions.append(revision.label)
        figure.images.append((revision.label, path, raw))

    def figures(self) -> list[Figure]:
        """All figures, named so that no two have one name. Raises UsageError for a template that there is not."""
        often = Counter(name for _, name in self._plots)
        found = []
        for (source, name), (plot, gathering) in self._plots.items():
            points = gathering.points
            full = printable(f"{self._shown(source)}::{name}" if source and often[name] > 1 else name)
            if points is None:
                found.append(Figure(full))
            else:
                found.append(Figure(full, points.revisions, points, self._spec(plot, full, points)))
        return [*found, *self._images.values()]

    def _spec(self, plot: Plot, name: str, points: Points) -> dict[str, Any]:
        looks = {key: str(plot.looks[key]) for key in _LOOKS if plot.looks.get(key) is not None}
        looks.setdefault("title", name)
        looks.setdefault("x_label", "x" if points.x == INFERRED_X else points.x)
        looks.setdefault("y_label", "y" if points.y == INFERRED else points.y)
        template = looks.pop("template", None)
        VegaRenderer, errors = _library()
        try:
            # It changes the rows that it is given.
            renderer = VegaRenderer(
                [dict(row) for row in points.rows],
                name,
                x=points.x,
                y=points.y,
                template=template,
                template_dir=self._templates if os.path.isdir(self._templates) else None,
                anchors_y_definitions=points.series,
                revs_with_datapoints=points.revisions,
                **looks,
            )
            spec: dict[str, Any] = renderer.get_filled_template()
        except errors as error:
            raise UsageError(
                f"plot '{name}' cannot be drawn by template '{template or 'linear'}': {error}",
                hint="see `millpond plots templates`; own ones are JSON files in .dvc/plots",
            ) from error
        return spec


def template_text(name: str | None, folder: str) -> list[str]:
    """The names of all templates, or the JSON of one. Raises UsageError."""
    import json

    _, errors = _library()
    from dvc_render.vega_templates import TEMPLATES, get_template

    if name is None:
        return [template.DEFAULT_NAME for template in TEMPLATES]
    try:
        return [json.dumps(get_template(name, folder if os.path.isdir(folder) else None).content)]
    except errors as error:
        raise UsageError(f"there is no template '{name}'", hint="see `millpond plots templates`") from error


def _library() -> tuple[Any, tuple[type[Exception], ...]]:
    """dvc-render's renderer and its errors. Raises UsageError."""
    try:
        from dvc_render.exceptions import DvcRenderError
        from dvc_render.vega import VegaRenderer
    except ImportError as error:
        raise UsageError(
            "plots need a package that is not installed", hint="install it with: pip install 'millpond[plots]'"
        ) from error
    return VegaRenderer, (DvcRenderError, OSError, ValueError)
