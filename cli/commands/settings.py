"""config: DVC's settings, with DVC's options and words."""

from __future__ import annotations

from typing import Any

import click

from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Callback, Verb
from millpond.daemon import wirepath
from millpond.daemon.errors import UsageError

_LEVELS = {
    "global": "Use global config.",
    "system": "Use system config.",
    "project": "Use project config (.dvc/config).",
    "local": "Use local config (.dvc/config.local).",
}


def level_options(function: Callback) -> Callback:
    """--global, --system, --project, --local: one of them at most, as `level`."""

    def choose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if not value:
            return
        level, before = str(param.name).removesuffix("_level"), ctx.params.get("level")
        if before not in (None, level):
            raise UsageError(f"--{level} is not allowed together with --{before}")
        ctx.params["level"] = level

    for name, text in _LEVELS.items():
        function = click.option(
            f"--{name}", f"{name}_level", is_flag=True, expose_value=False, callback=choose, help=text
        )(function)
    return function


@click.command(
    cls=Verb,
    example="""
$ millpond config core.autostage true
$ millpond config --list --show-origin
.dvc/config	core.autostage=true
""",
)
@click.argument("name", required=False)
@click.argument("value", required=False)
@level_options
@click.option("-u", "--unset", is_flag=True, help="Unset option.")
@click.option("-l", "--list", "as_list", is_flag=True, help="List all defined config values.")
@click.option("--show-origin", is_flag=True, help="Show the source file containing each config value.")
@click.pass_obj
def config(
    console: Console,
    name: str | None,
    value: str | None,
    unset: bool,
    as_list: bool,
    show_origin: bool,
    level: str | None = None,
) -> None:
    """Get or set config options: NAME is section.option or remote.name.option.

    Without a level the strongest one's value is printed, and the project's is changed. The file is written as DVC writes
    it, without comments.
    """
    if show_origin and (value is not None or unset):
        raise UsageError("--show-origin can't be used together with any of these options: -u/--unset, value")
    if as_list and (name is not None or unset):
        raise UsageError("-l/--list can't be used together with any of these options: -u/--unset, name, value")
    if name is None and not as_list:
        raise UsageError("name argument is required")
    if unset and value is not None:
        raise UsageError("-u/--unset takes no value")
    params: dict[str, Any] = {
        "name": name,
        "value": None if value is None else wirepath.encode(value),
        "unset": unset,
        "level": level,
    }
    for row in verb(console, "config", params)["rows"]:
        found = {key: wirepath.decode(row[key]) for key in ("name", "value", "file")}
        origin = f"{found['file']}\t" if show_origin else ""
        console.write(f"{origin}{found['name']}={found['value']}" if as_list else f"{origin}{found['value']}")
