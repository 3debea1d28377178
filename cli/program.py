"""One run of `millpond`: from arguments to an exit code. No error ends in a traceback, but our own faults with -v."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import click

from millpond.cli import exits
from millpond.cli.console import Console, OutputError, open_console
from millpond.cli.group import Main
from millpond.daemon.errors import DiskFullError, InternalError, MillpondError

PROGRAM = "millpond"
# Set by a shell that asks for completions; see `complete`.
VARIABLE = "_MILLPOND_COMPLETE"

cli = Main(
    name=PROGRAM,
    help="Versions of data sets and models of DVC repositories: stored once, mounted at any revision.",
    epilog="`millpond help COMMAND` explains a command, `millpond help exit-codes` the exit codes.",
)


def run(args: Sequence[str]) -> int:
    """Run a command line; its exit code. All output is flushed."""
    console = open_console(os.environ)
    try:
        code = _run(console, args)
        console.flush()
    except KeyboardInterrupt:
        code = exits.INTERRUPTED
    except OutputError as error:
        code = _unwritable(console, error.reason)
    return exits.INTERRUPTED if console.interrupted else code


def _run(console: Console, args: Sequence[str]) -> int:
    if VARIABLE in os.environ:
        from millpond.cli.complete import complete

        for line in complete(cli, os.environ):
            console.write(line)
        return exits.OK
    try:
        # Not click's own `main`: it turns Ctrl-C and a broken pipe into exit codes of its own.
        with cli.make_context(PROGRAM, list(args), obj=console) as ctx:
            result = cli.invoke(ctx)
        return result if isinstance(result, int) else exits.OK
    except click.exceptions.Exit as done:
        return done.exit_code
    except MillpondError as error:
        from millpond.cli.failure import show_error

        show_error(console, error)
        return error.exit_code
    except click.ClickException as error:
        from millpond.cli.failure import show_usage_error

        show_usage_error(console, error)
        return exits.USAGE
    except OutputError:
        raise
    except Exception as error:
        return _internal(console, error)


def _unwritable(console: Console, reason: OSError) -> int:
    if isinstance(reason, BrokenPipeError):
        return exits.BROKEN_PIPE
    console.tell(f"ERROR: cannot write the output: {reason.strerror}")
    return DiskFullError.exit_code if reason.errno == errno.ENOSPC else MillpondError.exit_code


def _internal(console: Console, error: Exception) -> int:
    if console.verbose:
        import traceback

        console.tell(traceback.format_exc())
    hint = "" if console.verbose else "; run it with -v for the details"
    console.error(f"unexpected {type(error).__name__}: {error}{hint}")
    return InternalError.exit_code
