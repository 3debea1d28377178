"""daemon start, stop, restart, status, logs."""

from __future__ import annotations

import json
import os
import select
import time

import click

from millpond.cli import exits, render, text
from millpond.cli.connection import ask, running, settings
from millpond.cli.console import Console
from millpond.cli.group import Group, json_option
from millpond.daemon.errors import AccessError, DaemonUnavailableError
from millpond.daemon.rpc.autostart import connect_or_start
from millpond.daemon.rpc.client import Client

# A daemon lets requests under way end for 10 s, then cancels them.
STOP_S = 30.0
DEFAULT_LINES = 20


@click.group(cls=Group)
def daemon() -> None:
    """Start, stop and look at the daemon.

    Commands start it when they need it, and it ends by itself when it is idle: none of these is needed every day.
    Mounts and jobs live on without it.
    """


@daemon.command(short_help="Start the daemon.", example="$ millpond daemon start")
@click.pass_obj
def start(console: Console) -> None:
    """Start the daemon, if it does not run."""
    client = running(greet=False)
    if client is not None:
        with client:
            pid = ask(console, client, "daemon.status", {})["pid"]
        console.say(f"The daemon runs already: pid {pid}")
        return
    _start(console)


@daemon.command(short_help="Stop the daemon.", example="$ millpond daemon stop")
@click.pass_obj
def stop(console: Console) -> None:
    """Stop the daemon, after the requests that are under way. Jobs and mounts go on without it."""
    client = running(greet=False)
    if client is None:
        console.say("The daemon is not running.")
        return
    with client:
        jobs = (ask(console, client, "daemon.status", {}).get("jobs") or {}).get("running", 0)
        console.say(f"The daemon has stopped: pid {_stop(console, client)}")
    if jobs:
        console.say(f"{text.plural(jobs, 'job')} {'goes' if jobs == 1 else 'go'} on without it.")


@daemon.command(short_help="Stop and start the daemon.", example="$ millpond daemon restart")
@click.pass_obj
def restart(console: Console) -> None:
    """Stop the daemon, if it runs, and start it."""
    client = running(greet=False)
    if client is not None:
        with client:
            _stop(console, client)
    _start(console)


@daemon.command(
    short_help="Print whether it runs.",
    example="""
$ millpond daemon status
The daemon runs: pid 4711, since 2 min 10 s
...
""",
)
@json_option
@click.pass_obj
def status(console: Console, as_json: bool) -> int:
    """Print whether the daemon runs, and what it does. The exit code is 3 when it does not run."""
    client = running(greet=False)
    if client is None:
        console.write("null") if as_json else console.say("The daemon is not running.")
        return exits.NOT_RUNNING
    with client:
        result = ask(console, client, "daemon.status", {})
    if as_json:
        console.write(json.dumps(result))
    else:
        for line in render.daemon_lines(result, now=time.time()):
            console.say(line)
    return exits.OK


@daemon.command(
    short_help="Print the end of its log.",
    example="""
$ millpond daemon logs -n 50
$ millpond daemon logs -f
""",
)
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is logged, until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=DEFAULT_LINES, show_default=True, help="Lines to begin with."
)
@json_option
@click.pass_obj
def logs(console: Console, follow: bool, lines: int, as_json: bool) -> None:
    """Print the end of the daemon's log; --json prints its lines as they are."""
    from millpond.cli.logs import follow_lines, last_lines, poll, shown

    path = settings().log

    def show(line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\n")
        console.write(text if as_json else shown(text))

    try:
        found, position = last_lines(path, lines)
    except FileNotFoundError:
        found, position = [], None
        if not follow:
            console.say(f"There is no log yet: {path}")
    except OSError as error:
        raise AccessError(f"cannot read the log '{path}': {error.strerror}", path=str(path)) from error
    for line in found:
        show(line)
    if follow:
        console.flush()
        for line in follow_lines(path, position, pause=poll):
            show(line)
            console.flush()


def _start(console: Console) -> None:
    with connect_or_start(settings(), os.environ) as client:
        result = ask(console, client, "daemon.status", {})
    console.say(f"The daemon runs: pid {result['pid']}")


def _stop(console: Console, client: Client) -> int:
    """Ask it to end and wait until its process is gone, so that the next one finds its store free."""
    pid = int(ask(console, client, "daemon.status", {})["pid"])
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return pid
    try:
        ask(console, client, "daemon.stop", {})
        # Its connections count as work that is under way: hang up before waiting.
        client.close()
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(STOP_S * 1000):
            raise DaemonUnavailableError(
                f"the daemon (pid {pid}) has not ended after {STOP_S:.0f} s", hint="see `millpond daemon logs`"
            )
    finally:
        os.close(process)
    return pid
