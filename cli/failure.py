"""How errors are shown: one line, then what it is about where that is a list. Imported when there is one."""

from __future__ import annotations

import click
from click.exceptions import NoArgsIsHelpError

from millpond.cli.console import Console
from millpond.cli.text import printable
from millpond.daemon import wirepath
from millpond.daemon.errors import MillpondError

# Lines of a list below an error; the rest is counted.
MAX_LINES = 20


def show_error(console: Console, error: MillpondError) -> None:
    """Print an error and what it concerns beside what its sentence names; with -v its kind and code, too."""
    console.error(str(error))
    for line in detail_lines(error):
        console.tell(f"\t{line}")
    console.debug(f"error kind {error.kind}, code {error.code}, exit code {error.exit_code}")


def detail_lines(error: MillpondError) -> list[str]:
    """Lines of the lists in an error's details, `paths` and `holders` of a busy mount, but for those in its sentence."""
    lines = [printable(wirepath.decode(str(path))) for path in error.details.get("paths") or []]
    lines += [
        printable(f"{holder['command']} (pid {holder['pid']}, {holder['user']}: {holder['what']})")
        for holder in error.details.get("holders") or []
    ]
    lines = [line for line in lines if line not in error.message]
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
