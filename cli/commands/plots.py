"""plots: data files drawn, over revisions, with DVC's options; in a terminal, too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import click

from millpond.cli import exits, text
from millpond.cli.commands import chart
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Callback, Group, Spread, refused, with_options
from millpond.daemon import wirepath
from millpond.daemon.errors import InvalidFileError


def _looks(function: Callback) -> Callback:
    """How a plot looks."""
    return with_options(
        function,
        click.option("-t", "--template", metavar="NAME", help="Draw by this template."),
        click.option("-x", "x", metavar="FIELD", help="Field of the x axis."),
        click.option("-y", "y", metavar="FIELD", help="Field of the y axis."),
        click.option("--no-header", is_flag=True, help="The first line of CSV and TSV files is data."),
        click.option("--title", metavar="TEXT", help="Title of the plot."),
        click.option("--x-label", metavar="TEXT", help="Label of the x axis."),
        click.option("--y-label", metavar="TEXT", help="Label of the y axis."),
    )


def _output(function: Callback) -> Callback:
    """What becomes of it."""
    return with_options(
        function,
        click.option("-o", "--out", metavar="PATH", type=click.Path(), help="Folder for the report (dvc_plots)."),
        click.option("--show-vega", is_flag=True, help="Print the Vega-Lite specification of one plot."),
        click.option("--json", "as_json", is_flag=True, help="Print all plots as JSON."),
        click.option("--text", "as_text", is_flag=True, help="Draw in the terminal."),
        click.option("--open", "opened", is_flag=True, help="Open the report in the browser."),
        refused("--split", is_flag=True, hidden=True, reason="the specification is printed whole, with its data"),
        click.option("--html-template", metavar="PATH", type=click.Path(), help="A page of your own to put plots in."),
    )


@click.group(cls=Group)
def plots() -> None:
    """Draw data files, over revisions."""


@plots.command(
    "show",
    short_help="Draw the plots of the workspace.",
    example="""
$ millpond plots show
file:///home/alice/project/dvc_plots/index.html
""",
)
@click.argument("targets", nargs=-1, type=click.Path())
@_looks
@_output
@click.pass_obj
def show(console: Console, /, targets: tuple[str, ...], **options: Any) -> int:
    """Draw TARGETS (files, or names of plots), by default all plots that dvc.yaml files define, into one HTML file that needs
    no network."""
    return _draw(console, targets, None, **options)


@plots.command(
    "diff",
    short_help="Draw the plots of several revisions over each other.",
    example="""
$ millpond plots diff v1 v2
file:///home/alice/project/dvc_plots/index.html
""",
)
@click.argument("revisions", nargs=-1)
@click.option("--targets", "targets", multiple=True, metavar="PATH", type=click.Path(), help="Only these plots.")
@refused("-e", "--experiment", is_flag=True, reason="it has no experiments")
@_looks
@_output
@click.pass_obj
def diff(console: Console, /, revisions: tuple[str, ...], targets: tuple[str, ...], **options: Any) -> int:
    """Draw the plots of REVISIONS: by default HEAD and the workspace, and one revision is compared with the workspace."""
    return _draw(console, targets, list(revisions), **options)


@plots.command(
    "modify",
    cls=Spread,
    spread=("--unset",),
    short_help="Write into dvc.yaml how a plot of a stage looks.",
    example="""
$ millpond plots modify confusion.csv -t confusion -x actual -y predicted
Modifying stage 'evaluate' in 'dvc.yaml'
""",
)
@click.argument("target", type=click.Path())
@_looks
@click.option("--unset", multiple=True, metavar="SETTING", help="Take settings away: all words that follow.")
@click.pass_obj
def modify(console: Console, /, target: str, unset: tuple[str, ...], **options: Any) -> None:
    """Change how TARGET, a plot of a stage, looks; images look as they do."""
    wanted = _wanted(options)
    result = verb(console, "plots.modify", {"target": wirepath.encode(target), "set": wanted, "unset": list(unset)})
    if result["changed"]:
        shown = text.printable(wirepath.decode(result["file"]))
        console.say(f"Modifying stage '{text.printable(result['stage'])}' in '{shown}'")


@plots.command(
    "templates",
    short_help="List the templates of plots, or print one.",
    example="""
$ millpond plots templates
simple
linear
...
""",
)
@click.argument("template", required=False)
@click.pass_obj
def templates(console: Console, template: str | None) -> None:
    """List the templates, or print the Vega-Lite of TEMPLATE. Own ones are JSON files in .dvc/plots."""
    for line in verb(console, "plots.templates", {"name": template})["lines"]:
        console.write(line)


def _draw(
    console: Console,
    targets: tuple[str, ...],
    revs: list[str] | None,
    *,
    out: str | None,
    show_vega: bool,
    as_json: bool,
    as_text: bool,
    opened: bool,
    html_template: str | None,
    **looks: Any,
) -> int:
    form = "json" if as_json else "vega" if show_vega else "points" if as_text else "html"
    params: dict[str, Any] = {
        "targets": [wirepath.encode(target) for target in targets],
        "revs": revs,
        "looks": _wanted(looks),
        "as": form,
    }
    params |= {key: wirepath.encode(path) for key, path in (("out", out), ("page", html_template)) if path}
    result = verb(console, "plots", params)
    for line in _lines(result, form, console):
        console.write(line)
    for each in result["problems"]:
        console.warn(f"{each['rev']}: {each['msg']}")
    if form == "html" and result["path"] is None:
        if result["problems"]:
            raise InvalidFileError("no plot could be drawn", hint="the warnings say why")
        console.say("There are no plots: dvc.yaml defines none.")
    if result["path"] is not None:
        path = os.path.abspath(wirepath.decode(result["path"]))
        console.write(f"file://{text.printable(path)}")
        if opened or result["open"]:
            click.launch(path)
    return exits.OK


def _lines(result: dict[str, Any], form: str, console: Console) -> Iterator[str]:
    figures = result["figures"]
    if form == "json":
        yield json.dumps(_as_dvc(result))
    elif form == "vega":
        # One is printed as it is, so that it can be piped.
        specs = [figure["spec"] for figure in figures if figure.get("spec")]
        yield from (json.dumps(spec) for spec in specs)
    elif form == "points":
        for figure in figures:
            if "points" in figure:
                yield from chart.lines(figure["name"], figure["points"], paint=console.paint)
                yield ""


def _as_dvc(result: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    data: dict[str, list[dict[str, Any]]] = {}
    for figure in result["figures"]:
        if "images" in figure:
            data[figure["name"]] = [
                {"type": "image", "revisions": [rev], "url": os.path.abspath(wirepath.decode(path))}
                for rev, path in figure["images"]
            ]
        else:
            whole = {"type": "vega", "revisions": figure["revisions"], "content": figure["spec"]}
            data[figure["name"]] = [whole] if figure["spec"] else []
    if result["problems"]:
        told["errors"] = [
            {key: each[key] for key in ("name", "rev", "source", "msg") if each[key]} for each in result["problems"]
        ]
    return {**told, "data": data} if data else told


def _wanted(options: dict[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in options.items() if value is not None and key != "no_header"}
    return {**found, "header": False} if options.get("no_header") else found
