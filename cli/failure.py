"""How errors are shown: one line, then what it is about where that is a list. Imported when there is one."""

from __future__ import annotations

from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from millpond.cli.console import Console
from millpond.cli.text import printable
from millpond.daemon import wirepath
from millpond.daemon.errors import MillpondError

# Lines of a list below an error; the rest is counted.
MAX_LINES = 20


def show_error(console: Console, error: MillpondError) -> None:
    """Print an error; with -v its kind and code, too."""
    console.error(str(error))
    for line in detail_lines(error.details):
        console.tell(f"\t{line}")
    console.debug(f"error kind {error.kind}, code {error.code}, exit code {error.exit_code}")


def detail_lines(details: dict[str, Any]) -> list[str]:
    """Lines of the lists in an error's details: `paths` (percent-encoded) and `holders` of a busy mount."""
    lines = [printable(wirepath.decode(str(path))) for path in details.get("paths") or []]
    for holder in details.get("holders") or []:
        lines.append(printable(f"pid {holder['pid']} ({holder['command']}, {holder['user']}): {holder['what']}"))
    if len(lines) > MAX_LINES:
        lines[MAX_LINES:] = [f"... and {len(lines) - MAX_LINES} more"]
    return lines


def show_usage_error(console: Console, error: click.ClickException) -> None:
    """Print what is wrong with the command line, and how it is used."""
    if isinstance(error, NoArgsIsHelpError):
        console.tell(error.format_message())
        return
    console.error(error.format_message())
    ctx = getattr(error, "ctx", None)
    if ctx is not None:
        console.tell(ctx.get_usage())
        console.tell(f"See `{ctx.command_path} --help`.")
