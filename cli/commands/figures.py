"""metrics, params: what is in files of metrics and parameters, over revisions, in DVC's words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import click

from millpond.cli import text
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Callback, Group, Spread, json_option, with_options
from millpond.daemon import wirepath
from millpond.daemon.pipeline.compare import flat

# Digits behind the point, as DVC has it.
_PRECISION = 5
_ABSENT = "-"


def _between(function: Callback) -> Callback:
    """Two revisions, and how what differs is shown."""
    return with_options(
        function,
        click.argument("a_rev", required=False),
        click.argument("b_rev", required=False),
        click.option(
            "--targets", multiple=True, metavar="PATH", type=click.Path(), help="These files: all words that follow."
        ),
        click.option("--all", "unchanged", is_flag=True, help="Show what did not change, too."),
        _markdown,
        click.option("--no-path", is_flag=True, help="Leave out the files' paths."),
        json_option,
    )


def _precision(function: Callback) -> Callback:
    return click.option(
        "--precision",
        type=click.IntRange(0),
        default=_PRECISION,
        metavar="N",
        help="Round to so many digits behind the point (5).",
    )(function)


def _markdown(function: Callback) -> Callback:
    return click.option("--md", "as_markdown", is_flag=True, help="Show a Markdown table.")(function)


@click.group(cls=Group)
def metrics() -> None:
    """Show and compare metrics."""


@metrics.command(
    "show",
    short_help="Show the metrics of the workspace, or of many revisions.",
    example="""
$ millpond metrics show
Path          accuracy    f1
metrics.json  0.96815     0.96799
""",
)
@click.argument("targets", nargs=-1, type=click.Path())
@click.option("-a", "--all-branches", is_flag=True, help="Of all branches.")
@click.option("-T", "--all-tags", is_flag=True, help="Of all tags.")
@click.option("-A", "--all-commits", is_flag=True, help="Of all commits.")
@click.option("-R", "--recursive", is_flag=True, help="Targets may be directories: all metrics below them.")
@_markdown
@_precision
@json_option
@click.pass_obj
def metrics_show(
    console: Console,
    /,
    targets: tuple[str, ...],
    as_markdown: bool,
    precision: int,
    as_json: bool,
    **options: bool,
) -> None:
    """Show TARGETS, by default all files that dvc.yaml files call metrics."""
    params = {"targets": [wirepath.encode(target) for target in targets], **options}
    found = verb(console, "metrics.show", params)["revisions"]
    told = {rev: {wirepath.decode(path): row for path, row in rows.items()} for rev, rows in found.items()}
    if as_json:
        console.write(json.dumps({rev: {"data": rows} for rev, rows in told.items()}))
    elif told:
        header, rows = _shown(told, precision)
        _write(console, header, rows, as_markdown=as_markdown)
    for rev, rows_of in told.items():
        for row in rows_of.values():
            if "error" in row:
                console.warn(f"{rev}: {row['error']['msg']}" if rev else row["error"]["msg"])


@metrics.command(
    "diff",
    cls=Spread,
    spread=("--targets",),
    short_help="Compare the metrics of two revisions.",
    example="""
$ millpond metrics diff main
Path          Metric    main     workspace    Change
metrics.json  accuracy  0.96815  0.97215      0.004
""",
)
@_between
@click.option("-R", "--recursive", is_flag=True, help="Targets may be directories: all metrics below them.")
@_precision
@click.pass_obj
def metrics_diff(console: Console, /, precision: int, recursive: bool, **options: Any) -> None:
    """Show metrics that differ between A_REV (by default HEAD) and B_REV (by default the workspace)."""
    _diff(console, "metrics.diff", "Metric", precision, {"recursive": recursive}, **options)


@click.group(cls=Group)
def params() -> None:
    """Compare parameters."""


@params.command(
    "diff",
    cls=Spread,
    spread=("--targets",),
    short_help="Compare the parameters of two revisions.",
    example="""
$ millpond params diff
Path         Param    HEAD    workspace
params.yaml  lr       0.1     0.05
""",
)
@_between
@click.option("--deps", is_flag=True, help="Only parameters that stages depend on.")
@click.pass_obj
def params_diff(console: Console, /, deps: bool, **options: Any) -> None:
    """Show parameters that differ between A_REV (by default HEAD) and B_REV (by default the workspace)."""
    _diff(console, "params.diff", "Param", None, {"deps": deps}, **options)


def _diff(
    console: Console,
    method: str,
    kind: str,
    precision: int | None,
    more: dict[str, Any],
    *,
    a_rev: str | None,
    b_rev: str | None,
    targets: tuple[str, ...],
    unchanged: bool,
    as_markdown: bool,
    no_path: bool,
    as_json: bool,
) -> None:
    asked = {"a_rev": a_rev, "b_rev": b_rev, "targets": [wirepath.encode(target) for target in targets]}
    result = verb(console, method, {**asked, "all": unchanged, **more})
    found = {wirepath.decode(path): rows for path, rows in result["diff"].items()}
    if as_json:
        console.write(json.dumps(found))
    else:
        header = [*([] if no_path else ["Path"]), kind, *result["revs"], *([] if precision is None else ["Change"])]
        shown = _rounded(precision)
        rows = [
            [*([] if no_path else [text.printable(path)]), text.printable(key), *_cells(row, shown, precision)]
            for path, values in found.items()
            for key, row in sorted(values.items())
        ]
        if rows:
            _write(console, header, rows, as_markdown=as_markdown)
    for rev, _, problem in result["failed"]:
        console.warn(f"{rev}: {problem}")


def _cells(row: dict[str, Any], shown: Callable[[Any], str], precision: int | None) -> Iterator[str]:
    yield shown(row["old"])
    yield shown(row["new"])
    if precision is not None:
        yield shown(row.get("diff"))


def _shown(told: dict[str, dict[str, Any]], precision: int) -> tuple[list[str], list[list[str]]]:
    """Header and rows of metrics: a column for each name."""
    flats = {(rev, path): flat(row.get("data") or {}) for rev, rows in told.items() for path, row in rows.items()}
    names = sorted({name for values in flats.values() for name in values})
    with_revs = list(told) != [""]
    header = [*(["Revision"] if with_revs else []), "Path", *(text.printable(name) for name in names)]
    shown = _rounded(precision)
    rows = [
        [*([text.printable(rev)] if with_revs else []), text.printable(path), *(shown(values.get(n)) for n in names)]
        for (rev, path), values in flats.items()
    ]
    return header, rows


def _rounded(precision: int | None) -> Callable[[Any], str]:
    def shown(value: Any) -> str:
        if value is None:
            return _ABSENT
        if isinstance(value, float) and precision is not None:
            return str(round(value, precision))
        return text.printable(str(value))

    return shown


def _write(console: Console, header: list[str], rows: list[list[str]], *, as_markdown: bool) -> None:
    for line in text.markdown(header, rows) if as_markdown else text.table(header, rows, pad=2):
        console.write(line)
    if as_markdown:
        console.write("")
