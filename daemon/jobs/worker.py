"""A worker: one request, run as its caller, in a process of its own.

It gets the request over its socket, takes on the client's environment, folder and umask, runs the verb, and answers with
the result or a typed error. SIGTERM cancels it: the verb sees a CancelledError and cleans up.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import CancelledError, DaemonUnavailableError, InternalError, MillpondError, TargetError
from millpond.daemon.jobs.objects import DaemonObjectStore
from millpond.daemon.rpc.client import Client

PROGRESS_S = 0.1


@dataclass(slots=True)
class WorkerContext:
    """What a verb gets: the store with the caller's rights, locks, progress, and the daemon's other requests."""

    client: Client
    store: DaemonObjectStore
    uid: int
    wait_s: float | None = None
    _told: float = field(default=0.0)
    _phase: str = field(default="")

    @contextlib.contextmanager
    def lock(self, project: str, mode: str) -> Iterator[None]:
        """Hold the project's lock, `read` or `write`. Raises LockTimeoutError."""
        self.client.call("lock.acquire", {"project": project, "mode": mode, "timeout": self.wait_s})
        try:
            yield
        finally:
            # A broken connection has released the lock already.
            with contextlib.suppress(DaemonUnavailableError, OSError):
                self.client.call("lock.release", {"project": project})

    def progress(
        self,
        phase: str,
        files: tuple[int, int | None] | None = None,
        bytes: tuple[int, int | None] | None = None,
        note: str = "",
    ) -> None:
        """Tell the caller how far it is, at most every PROGRESS_S seconds in one phase."""
        now = time.monotonic()
        if phase == self._phase and now - self._told < PROGRESS_S:
            return
        self._told, self._phase = now, phase
        self.client.notify("$/progress", {"phase": phase, "files": files, "bytes": bytes, "note": note})

    def log(self, level: str, text: str) -> None:
        """A line for the person: `level` is info or warning."""
        self.client.notify("$/log", {"level": level, "text": text})


def run(request: dict[str, Any], fds: list[int]) -> int:
    """A zygote's child: serve the one request that comes on the socket `fds[0]`; the exit code."""
    signal.signal(signal.SIGTERM, _cancel)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    client = Client(socket.socket(fileno=os.dup(fds[0])))
    os.close(fds[0])
    try:
        message = client.serve_one()
    except MillpondError:
        return 1
    try:
        result = _perform(client, message["method"], message["params"], request["verbs"])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        client.answer(message["id"], result=result)
        return 0
    except MillpondError as error:
        return _fail(client, message["id"], error)
    except MemoryError:
        return _fail(client, message["id"], InternalError("the worker ran out of memory"))
    except Exception as error:
        text = traceback.format_exc()
        with contextlib.suppress(Exception):
            client.notify("$/trace", {"text": text[-16_000:]})
        hint = "please report it with the log: millpond daemon logs"
        return _fail(
            client, message["id"], InternalError(f"internal error in {message['method']}: {error!r}", hint=hint)
        )
    finally:
        client.close()


def _fail(client: Client, number: Any, error: MillpondError) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(DaemonUnavailableError, OSError):
        client.answer(number, error=error.to_wire())
    return 1


def _perform(client: Client, method: str, params: dict[str, Any], table: str) -> dict[str, Any]:
    module, _, name = table.partition(":")
    verbs = getattr(importlib.import_module(module), name)
    context = params.pop("context", {})
    _enter(context)
    store = DaemonObjectStore(client)
    worker = WorkerContext(client, store, os.getuid(), context.get("wait_s"))
    result: dict[str, Any] = verbs[method](worker, params)
    return result


def _enter(context: dict[str, Any]) -> None:
    """The client's environment, umask and folder, and nothing of the daemon's."""
    os.environ.clear()
    for key, value in (context.get("env") or {}).items():
        os.environ[wirepath.decode(key)] = wirepath.decode(value)
    os.umask(int(context.get("umask", 0o022)) & 0o777)
    cwd = wirepath.decode(context.get("cwd") or "/")
    try:
        os.chdir(cwd)
    except OSError as error:
        raise TargetError(f"cannot enter '{cwd}': {error.strerror}", path=cwd) from error
    logging.getLogger("millpond").addHandler(logging.NullHandler())
    sys.stdin = open(os.devnull)  # noqa: SIM115 - for the life of the process


def _cancel(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise CancelledError("the request was cancelled")
