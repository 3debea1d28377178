"""From files to points: rows of tables, and for each plot the rows of all its series over all revisions."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.errors import InvalidFileError, MillpondError, TargetError
from millpond.daemon.pipeline import values
from millpond.daemon.pipeline.plots.definitions import TABLES, Plot, Series, kind_of
from millpond.daemon.pipeline.snapshot import Snapshot
from millpond.daemon.project import yamlio
from millpond.daemon.project.paths import printable

Row = dict[str, Any]

# Where series have fields of different names, their values come under these; where none is named for x, a count.
INFERRED, INFERRED_X, STEP = "dvc_inferred_y_value", "dvc_inferred_x_value", "step"
# A worker's memory is bounded: no chart has a use for more.
MAX_POINTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a file; `last` is the field that is drawn when none is named."""

    rows: list[Row]
    last: str | None


@dataclass(slots=True)
class Points:
    """What a plot shows: rows with `rev`, `filename` and `field`, its axes, and which series there are."""

    x: str
    y: str
    rows: list[Row] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)
    series: list[dict[str, str]] = field(default_factory=list)


class PlotError(Exception):
    """What is wrong with a plot at a revision: a sentence."""


def parse(raw: bytes, path: str, shown: str, *, header: bool) -> Table:
    """The rows of a file. Raises InvalidFileError."""
    kind = kind_of(path)
    if kind not in TABLES:
        raise InvalidFileError(f"'{shown}' is no CSV, TSV, JSON or YAML file", path=shown)
    if kind in (".csv", ".tsv"):
        return _separated(yamlio.decode(raw, shown), "," if kind == ".csv" else "\t", header=header, shown=shown)
    found: list[Row] = []
    last = None
    for rows in _lists(values.parse(raw, shown)):
        last = last or next(reversed(rows[0]), None)
        found += [{} for _ in range(len(rows) - len(found))]
        for into, row in zip(found, rows, strict=False):
            into.update({str(key): value for key, value in row.items()})
    return Table(found, last)


def _separated(text: str, separator: str, *, header: bool, shown: str) -> Table:
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    try:
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise InvalidFileError(f"'{shown}' is no table: {error}", path=shown) from error
    if not lines:
        return Table([], None)
    names = lines.pop(0) if header else [str(number) for number in range(len(lines[0]))]
    return Table([dict(zip(names, line, strict=False)) for line in lines], names[-1] if names else None)


def _lists(document: Any) -> Iterator[list[Row]]:
    """All lists of mappings in a document, the outer ones first."""
    if isinstance(document, dict):
        for value in document.values():
            yield from _lists(value)
    elif isinstance(document, list) and document and all(isinstance(row, dict) for row in document):
        yield document


class Gathering:
    """The points of one plot, gathered revision by revision."""

    def __init__(self, plot: Plot) -> None:
        self._plot = plot
        self.points: Points | None = None

    def take(self, revision: Snapshot, tables: Mapping[str, Table]) -> None:
        """Add a revision's points. Raises PlotError."""
        plot = self._plot
        series = [Series(each.path, each.field or tables[each.path].last) for each in plot.y]
        known = [each for each in series if each.field is not None and tables[each.path].rows]
        if not known:
            return
        fields = {each.field for each in known}
        y = str(known[0].field) if len(fields) == 1 else INFERRED
        x = _x_name(plot)
        names = _file_names([revision.pipelines.shown(each.path) for each in plot.y])
        shown = dict(zip((each.path for each in plot.y), names, strict=True))
        rows: list[Row] = []
        for number, each in enumerate(known):
            own = [dict(row) for row in tables[each.path].rows]
            _check(str(each.field), own)
            if y == INFERRED:
                for row in own:
                    row[INFERRED] = row.get(str(each.field))
            _put_x(plot, x, number, each, own, tables)
            told = {"rev": revision.label, "filename": shown[each.path], "field": each.field}
            rows += [{**row, **told} for row in own]
        if self.points is None:
            self.points = Points(x, y)
        points = self.points
        if len(points.rows) + len(rows) > MAX_POINTS:
            raise PlotError(f"plot '{printable(plot.name)}' has more than {MAX_POINTS:,} points")
        points.rows += rows
        points.revisions.append(revision.label)
        for each in known:
            one = {"filename": shown[each.path], "field": str(each.field)}
            if one not in points.series:
                points.series.append(one)


def _file_names(paths: list[str]) -> list[str]:
    """The paths without the folder that all of them are in."""
    common = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return [posixpath.relpath(path, common) if common else path for path in paths]


def _x_name(plot: Plot) -> str:
    fields = {str(x.field) for x in plot.x}
    return STEP if not fields else fields.pop() if len(fields) == 1 else INFERRED_X


def _put_x(plot: Plot, name: str, number: int, each: Series, own: list[Row], tables: Mapping[str, Table]) -> None:
    """Have the rows of a series a value for x, under `name`. Raises PlotError."""
    if not plot.x:
        for step, row in enumerate(own):
            row[name] = step
        return
    # That of the series' own file, else one for each series, else one for all of them.
    own_file = next((x for x in plot.x if x.path == each.path), None)
    x = own_file or (plot.x[number] if len(plot.x) == len(plot.y) else plot.x[0])
    if not x.path or x.path == each.path:
        _check(str(x.field), own)
        if x.field != name:
            for row in own:
                row[name] = row.get(str(x.field))
        return
    others = tables[x.path].rows
    _check(str(x.field), others)
    if len(others) != len(own):
        raise PlotError(
            f"'{x.field}' of '{printable(x.path)}' and '{each.field}' of '{printable(each.path)}' cannot be drawn over "
            f"each other: they have {len(others)} and {len(own)} rows"
        )
    for row, other in zip(own, others, strict=True):
        row[name] = other.get(str(x.field))


def _check(name: str, rows: list[Row]) -> None:
    if not any(name in row for row in rows):
        there = ", ".join(rows[0]) if rows else ""
        raise PlotError(f"there is no field '{printable(name)}' among '{printable(there)}'")


def tables_of(revision: Snapshot, plot: Plot, known: dict[tuple[str, bool], Table | MillpondError]) -> dict[str, Table]:
    """The tables that a plot is made of, each read once. Raises InvalidFileError, TargetError, StoreDamagedError."""
    header = plot.looks.get("header") is not False
    found = {}
    for path in dict.fromkeys([*(each.path for each in plot.y), *(each.path for each in plot.x if each.path)]):
        if (path, header) not in known:
            known[path, header] = _read(revision, path, header=header)
        table = known[path, header]
        if isinstance(table, MillpondError):
            raise table
        found[path] = table
    return found


def _read(revision: Snapshot, path: str, *, header: bool) -> Table | MillpondError:
    shown = printable(revision.pipelines.shown(path))
    try:
        raw = revision.read(path)
        if raw is None:
            return TargetError(f"'{shown}' does not exist", path=shown)
        return parse(raw, path, shown, header=header)
    except MillpondError as error:
        return error
