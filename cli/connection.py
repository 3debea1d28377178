"""Requests of the command line: to the user's daemon, which is started when there is none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from millpond.cli.console import Console
from millpond.cli.progress import Reporter
from millpond.cli.text import printable
from millpond.daemon import wirepath
from millpond.daemon.errors import CancelledError, DaemonUnavailableError
from millpond.daemon.rpc.autostart import connect_or_start
from millpond.daemon.rpc.client import Client
from millpond.daemon.rpc.surroundings import surroundings
from millpond.daemon.settings import Settings, from_env

# Without --wait-for-lock a repository that another command changes is waited for this long: two quick commands at once
# are no error, a long one is named at once by `$/waiting` and then by the error.
LOCK_WAIT_S = 10.0


def settings() -> Settings:
    """This user's settings. Raises UsageError."""
    return from_env(os.environ, os.getuid())


def request(console: Console, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    """The result of a request that runs in the daemon; Ctrl-C cancels it. Raises MillpondError."""
    with _connected(console) as client:
        return ask(console, client, method, params or {})


def verb(console: Console, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The result of a request that runs as the caller, in this directory and environment. Raises MillpondError."""
    return request(console, method, _with_context(console, params))


def running_verb(console: Console, method: str, params: dict[str, Any], out: int, err: int) -> dict[str, Any]:
    """As `verb`, for one that runs commands: their output goes to the descriptors `out` and `err`, so nothing else is drawn
    on the terminal."""
    console.flush()
    console.terminal = False
    with _connected(console) as client:
        return ask(console, client, method, _with_context(console, params), fds=(out, err))


def _connected(console: Console) -> Client:
    """The user's daemon. One that runs already may have been started where the environment named another store: that is said."""
    mine = settings()
    client = connect_or_start(mine, os.environ)
    theirs = wirepath.decode(str(client.server.get("store") or ""))
    if theirs and theirs != os.fspath(mine.store) and not os.environ.get("MILLPOND_SOCKET"):
        console.warn(
            f"the daemon that runs has its store in '{printable(theirs)}', not in '{printable(os.fspath(mine.store))}' as XDG_CACHE_HOME "
            "says here: `millpond daemon restart` changes to that, MILLPOND_STORE has a daemon of its own"
        )
    return client


def _with_context(console: Console, params: dict[str, Any]) -> dict[str, Any]:
    wait_s = None if console.wait_for_lock else LOCK_WAIT_S
    return {**params, "context": surroundings(os.environ, wait_s)}


def running(*, greet: bool = True) -> Client | None:
    """A connection to the daemon if it runs; never starts it. Raises ProtocolError.

    Without a greeting it takes `daemon.status` and `daemon.stop` only, and a daemon of any protocol will do.
    """
    try:
        return Client.connect(settings().socket, greet=greet)
    except DaemonUnavailableError:
        return None


def ask(
    console: Console, client: Client, method: str, params: dict[str, Any], *, fds: Sequence[int] = ()
) -> dict[str, Any]:
    """A request on an open connection, with progress; Ctrl-C cancels it, a second one does not wait for its end."""
    with Reporter(console) as reporter:
        client.on_notify = reporter.notified
        number = client.start(method, params, fds)
        try:
            return client.wait(number)[0]
        except KeyboardInterrupt:
            console.interrupted = True
            reporter.cancelling()
            return _cancel(client, number)


def _cancel(client: Client, number: int) -> dict[str, Any]:
    try:
        client.cancel(number)
        return client.wait(number)[0]
    except (CancelledError, DaemonUnavailableError):
        raise CancelledError("interrupted") from None
