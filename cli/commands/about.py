"""doctor, version, completion, help."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

from millpond.cli import exits, render, text
from millpond.cli.complete import SHELLS, script
from millpond.cli.connection import running, settings, verb
from millpond.cli.console import Console
from millpond.cli.exit_table import exit_codes
from millpond.cli.group import Verb, json_option, unknown_command
from millpond.daemon.errors import MillpondError, UsageError
from millpond.daemon.rpc.client import PROTOCOL
from millpond.daemon.version import VERSION

# Shown by `version -v`: what millpond's behaviour and formats depend on.
_LIBRARIES = ("blake3", "click", "lmdb", "pyfastcdc", "pyfuse3", "pygit2", "trio", "zstandard")

ENVIRONMENT = (
    ("MILLPOND_STORE", "Where the store is; by default $XDG_CACHE_HOME/millpond."),
    ("MILLPOND_SOCKET", "Where the daemon listens; by default $XDG_RUNTIME_DIR/millpond/millpond.sock."),
    ("MILLPOND_STATE", "The daemon's log, the lists of mounts and jobs; by default $XDG_STATE_HOME/millpond."),
    (
        "MILLPOND_EXPORT",
        "Whether add and commit also bring objects into DVC's own cache: auto (where it is in use), always, never.",
    ),
    (
        "MILLPOND_RATE",
        "Bytes a second that commands, and mounts made with it, may move from and to remotes, as 20M; by default no bound.",
    ),
    (
        "MILLPOND_IDLE_EXIT",
        "Seconds without requests, mounts and jobs after which the daemon ends; 0: never. By default 600.",
    ),
    (
        "MILLPOND_SCRUB",
        "Seconds without requests after which the daemon reads its segments again; 0: never. By default 60.",
    ),
    ("MILLPOND_JOBS", "How many jobs of one user run at once; others wait. By default 64."),
    (
        "MILLPOND_SERVING",
        "How many processes serve one mount at most; more than one are started as load has it. By default half the cores, 8 at most.",
    ),
    (
        "MILLPOND_FILL",
        "How many processes of a mount bring files into the page cache ahead of who reads many small ones; 0: none. By default half the cores and one, 4 at most.",
    ),
    ("XDG_CACHE_HOME", "By default ~/.cache: the store."),
    ("XDG_STATE_HOME", "By default ~/.local/state; jobs' output, too."),
    ("XDG_RUNTIME_DIR", "By default /run/user/UID if it is there, else a folder below the state directory."),
    ("NO_COLOR", "Set: no colours. There are none outside a terminal either."),
    ("TERM", "`dumb`: no colours and no progress."),
    ("DVC_GLOBAL_CONFIG_DIR", "DVC's config of this user, read as DVC does; also DVC_SYSTEM_CONFIG_DIR."),
)


@click.command(
    cls=Verb,
    example="""
$ millpond doctor
ok    daemon       pid 4711, version 0.1.0
...
""",
)
@json_option
@click.pass_obj
def doctor(console: Console, as_json: bool) -> int:
    """Check this machine and repository for what millpond needs.

    The exit code is 1 when something is wrong; what to do about it is printed.
    """
    try:
        checks: list[dict[str, Any]] = verb(console, "doctor", {})["checks"]
        checks.insert(0, _daemon_check())
    except MillpondError as error:
        checks = [{"name": "daemon", "ok": False, "detail": error.message, "hint": error.hint}]
    if as_json:
        console.write(json.dumps({"checks": checks}))
    else:
        for line in render.doctor_lines(checks, paint=console.paint):
            console.say(line)
    return exits.OK if all(check["ok"] for check in checks) else exits.DIFFERENT


@click.command(
    cls=Verb,
    example="""
$ millpond version
millpond 0.1.0
...
""",
)
@json_option
@click.pass_obj
def version(console: Console, as_json: bool) -> None:
    """Print the versions of this program, of the daemon if it runs, and of Python and the system."""
    system = os.uname()
    found = {
        "millpond": VERSION,
        "protocol": PROTOCOL,
        "python": ".".join(map(str, sys.version_info[:3])),
        "platform": f"{system.sysname} {system.release} {system.machine}",
        "daemon": _daemon_version(),
        "store": str(settings().store),
    }
    if as_json:
        console.write(json.dumps(found | {"libraries": _libraries()}))
        return
    console.write(f"millpond {found['millpond']}")
    console.write(f"Daemon:   {found['daemon'] or 'not running'}, protocol {PROTOCOL}")
    console.write(f"Python:   {found['python']} on {found['platform']}")
    console.write(f"Store:    {text.printable(str(found['store']))}")
    if console.verbose:
        console.write("Libraries: " + ", ".join(f"{name} {number}" for name, number in _libraries().items()))


@click.command(
    cls=Verb,
    example="""
$ millpond completion bash > ~/.local/share/bash-completion/completions/millpond
$ millpond completion zsh > ~/.zfunc/_millpond
$ millpond completion fish > ~/.config/fish/completions/millpond.fish
""",
)
@click.argument("shell", required=False, type=click.Choice(SHELLS))
@click.option("-s", "--shell", "shell_option", type=click.Choice(SHELLS), help="The shell, as DVC takes it.")
@click.pass_obj
def completion(console: Console, shell: str | None, shell_option: str | None) -> None:
    """Print the script that completes millpond's commands, options and arguments in a shell."""
    if (shell is None) == (shell_option is None):
        raise UsageError(f"`completion` takes one shell: {', '.join(SHELLS)}")
    console.write(script(shell or shell_option or ""))


@click.command(
    "help",
    cls=Verb,
    example="""
$ millpond help mount
$ millpond help exit-codes
""",
)
@click.argument("topic", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def help_(ctx: click.Context, topic: tuple[str, ...]) -> None:
    """Explain a command; `exit-codes` and `environment` are explained, too."""
    console: Console = ctx.obj
    if topic == ("exit-codes",):
        console.write("\n".join(exit_code_lines()))
    elif topic == ("environment",):
        console.write("\n".join(environment_lines()))
    else:
        console.write(_command_help(ctx.find_root(), topic))


def exit_code_lines() -> list[str]:
    """The table of exit codes, as `help exit-codes` shows it."""
    rows = [[str(row.code), row.kind or "-", row.meaning] for row in exit_codes()]
    return [
        "Exit codes are stable: scripts may rely on them. KIND is what an error is called in the protocol.",
        "",
        *text.table(["CODE", "KIND", "MEANING"], rows),
    ]


def environment_lines() -> list[str]:
    """Environment variables, as `help environment` shows them."""
    return [
        "Environment variables that change what millpond does:",
        "",
        *text.table(["NAME", "MEANING"], ENVIRONMENT),
        "",
        "A command runs in the daemon with the environment of the shell that it was typed in.",
    ]


def _command_help(root: click.Context, topic: tuple[str, ...]) -> str:
    ctx, command = root, root.command
    for name in topic:
        found = command.get_command(ctx, name) if isinstance(command, click.Group) else None
        if found is None:
            raise unknown_command(" ".join(topic))
        ctx, command = click.Context(found, info_name=name, parent=ctx, obj=root.obj), found
    return command.get_help(ctx)


def _daemon_check() -> dict[str, Any]:
    client = running()
    if client is None:
        return {"name": "daemon", "ok": False, "detail": "it ended", "hint": "see `millpond daemon logs`"}
    with client:
        server = str(client.server.get("server"))
    same = server == VERSION
    detail = f"version {server}" + ("" if same else f", this program is {VERSION}")
    return {"name": "daemon", "ok": same, "detail": detail, "hint": "run `millpond daemon restart`"}


def _daemon_version() -> str | None:
    try:
        client = running()
    except MillpondError as error:
        return f"another ({error.message})"
    if client is None:
        return None
    with client:
        return str(client.server.get("server"))


def _libraries() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found
