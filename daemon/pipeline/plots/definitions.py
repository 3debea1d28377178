"""What is to be plotted at a revision: by the sections `plots` of dvc.yaml files, by plots of stages, by targets."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from millpond.daemon.errors import InvalidFileError
from millpond.daemon.pipeline.places import place
from millpond.daemon.pipeline.snapshot import Snapshot
from millpond.daemon.pipeline.stage import PLOTS
from millpond.daemon.project import yamlio

TABLES = frozenset({".csv", ".tsv", ".json", ".yaml", ".yml"})
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".svg"})
# What a definition says of how it looks, beside its axes.
LOOKS = ("template", "title", "x_label", "y_label", "header")


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a plot: a file and a field of it; None for the last one."""

    path: str
    field: str | None


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot. `source`: the dvc.yaml whose section `plots` defines it, "" for plots of stages and for files; `x`: a field
    by its name alone (path ""), or one of a file of its own."""

    name: str
    source: str
    y: tuple[Series, ...]
    x: tuple[Series, ...] = ()
    looks: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def is_image(self) -> bool:
        return len(self.y) == 1 and kind_of(self.y[0].path) in IMAGES

    def styled(self, looks: Mapping[str, Any]) -> Plot:
        """With what was asked for on the command line."""
        found = replace(self, looks={**self.looks, **{key: looks[key] for key in LOOKS if key in looks}})
        if "x" in looks:
            found = replace(found, x=(Series("", str(looks["x"])),))
        if "y" in looks:
            paths = dict.fromkeys(each.path for each in self.y)
            found = replace(found, y=tuple(Series(path, str(looks["y"])) for path in paths))
        return found


def kind_of(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def collect(revision: Snapshot, targets: Iterable[str]) -> list[Plot]:
    """The plots of a revision; of `targets` (paths from the project's root, or names) those that are named, and files that
    nothing defines. Raises InvalidFileError."""
    defined = [*_sections(revision), *_of_stages(revision)]
    wanted = list(targets)
    if not wanted:
        return list(dict.fromkeys(defined))
    found: dict[Plot, None] = {}
    for target in wanted:
        named = [plot for plot in defined if _means(plot, target)]
        if not named and target not in revision.pipelines.documents:
            named = [
                Plot(revision.pipelines.shown(path), "", (Series(path, None),))
                for path in revision.files(target)
                if path == target or kind_of(path) in TABLES | IMAGES
            ]
        found.update(dict.fromkeys(named))
    return list(found)


def _means(plot: Plot, target: str) -> bool:
    if (
        target in (plot.name, plot.source or None, plot.y[0].path if plot.y else None)
        or target == f"{plot.source}::{plot.name}"
    ):
        return True
    return any(each.path == target or each.path.startswith(f"{target}/") for each in plot.y if not plot.source)


def _of_stages(revision: Snapshot) -> Iterator[Plot]:
    for stage in revision.pipelines.stages:
        for out in stage.outs:
            if out.kind != PLOTS or out.place is None:
                continue
            looks = {key: out.options[key] for key in LOOKS if key in out.options}
            for path in _files(revision, out.place):
                x = (Series("", str(out.options["x"])),) if "x" in out.options else ()
                y = out.options.get("y")
                name = revision.pipelines.shown(path)
                yield Plot(name, "", (Series(path, None if y is None else str(y)),), x, looks)


def _sections(revision: Snapshot) -> Iterator[Plot]:
    """Of several definitions of one name in a file the last one counts."""
    for file, document in revision.pipelines.documents.items():
        named: dict[str, Any] = {}
        for entry in document.plots:
            named.update(entry if isinstance(entry, dict) else {str(entry): None})
        for name, options in named.items():
            if not isinstance(options, dict | None):
                at = ("plots",)
                raise yamlio.invalid_at(document.path, document.text, at, f"'{name}' in 'plots' has no mapping")
            yield from _defined(revision, file, str(name), options or {})


def _defined(revision: Snapshot, file: str, name: str, options: Mapping[str, Any]) -> Iterator[Plot]:
    folder = posixpath.dirname(file)

    def of(path: object) -> str:
        found = place(revision.pipelines.root, folder, str(path))
        if found is None:
            raise InvalidFileError(f"plot '{name}' of '{file}' names a URL: '{path}'", path=file)
        return found

    looks = {key: options[key] for key in LOOKS if key in options}
    y, x = options.get("y"), options.get("x")
    if isinstance(x, dict):
        across = tuple(Series(of(path), str(fld)) for path, fields in x.items() for fld in _names(fields))
    else:
        across = () if x is None else (Series("", str(x)),)
    if isinstance(y, dict):
        series = tuple(Series(of(path), str(fld)) for path, fields in y.items() for fld in _names(fields))
        yield Plot(name, file, series, across, looks)
        return
    fields = tuple(map(str, _names(y))) or (None,)
    for path in _files(revision, of(name)):
        yield Plot(revision.pipelines.shown(path), file, tuple(Series(path, each) for each in fields), across, looks)


def _names(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _files(revision: Snapshot, path: str) -> list[str]:
    """A file, or those in a folder that can be plotted."""
    return [each for each in revision.files(path) if each == path or kind_of(each) in TABLES | IMAGES]
