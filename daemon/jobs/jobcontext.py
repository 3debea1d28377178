"""A verb as a job: what its process is, below the shim, and what the verb gets.

Its connection is its own. The daemon may go away and come back while it runs: then a piece of work that talks to the daemon
fails as a whole and is done `again`, with the next one. What it prints goes to the job's log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from millpond.daemon import wirepath
from millpond.daemon.errors import (
    CancelledError,
    DaemonUnavailableError,
    InternalError,
    MillpondError,
    from_system,
)
from millpond.daemon.jobs import worker
from millpond.daemon.jobs.jobfolder import JobFolder
from millpond.daemon.jobs.objects import DaemonObjectStore
from millpond.daemon.jobs.worker import WorkerContext
from millpond.daemon.rpc import framing
from millpond.daemon.rpc.autostart import connect_or_start
from millpond.daemon.rpc.client import Client
from millpond.daemon.settings import from_env

T = TypeVar("T")
# A piece of work is done again with the next daemon this often, and the next daemon waited for this long.
TRIES = 5
RECONNECT_S = 120.0
_PAUSE_S = 0.2


class JobContext(WorkerContext):
    """A verb's context in a job. `again` is for verbs that run for long: each piece of work by itself, so that the rest need
    not be repeated; `client` and `store` are other objects after it."""

    def __init__(self, number: int, connect: Callable[[], Client], wait_s: float | None) -> None:
        client = connect()
        super().__init__(client, DaemonObjectStore(client), os.getuid(), wait_s)
        self._number = number
        self._connect = connect
        self._join()

    def again(self, work: Callable[[], T]) -> T:
        """Do what talks to the daemon and may be repeated as a whole; once more whenever the daemon went away meanwhile.

        Raises what `work` raises, and DaemonUnavailableError when no daemon came back in RECONNECT_S.
        """
        for left in reversed(range(TRIES)):
            try:
                return work()
            except DaemonUnavailableError as error:
                if not left:
                    raise
                self.log("warning", f"the daemon went away ({error.message}): going on with the next one")
                self._reconnect()
        raise AssertionError("the last try returns or raises")

    @contextlib.contextmanager
    def lock(self, project: str, mode: str) -> Iterator[None]:
        """See WorkerContext.lock. As long as it is held no other daemon starts, which would not know of it."""
        with super().lock(project, mode):
            _, [held] = self.client.call("jobs.hold", {})
            try:
                yield
            finally:
                os.close(held)

    def log(self, level: str, text: str) -> None:
        """A line for the job's log."""
        if level == "info":
            print(text, flush=True)
        else:
            print(f"{level.upper()}: {text}", file=sys.stderr, flush=True)

    def tell_progress(self) -> None:
        """See WorkerContext.tell_progress; without a daemon there is nobody to tell."""
        with contextlib.suppress(DaemonUnavailableError, OSError):
            super().tell_progress()

    def close(self) -> None:
        self.client.close()

    def _join(self) -> None:
        self.client.call("jobs.join", {"number": self._number})

    def _reconnect(self) -> None:
        self.client.close()
        deadline = time.monotonic() + RECONNECT_S
        while True:
            try:
                self.client = self._connect()
                self.store = DaemonObjectStore(self.client)
                self._join()
                return
            except MillpondError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_PAUSE_S)


def run_verb(folder: JobFolder, spec: Mapping[str, Any], env: Mapping[str, str], request: Mapping[str, Any]) -> int:
    """In the shim's child: run the verb and keep its answer; the exit code. SIGTERM cancels it, as it does a worker."""
    signal.signal(signal.SIGTERM, worker.cancel)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    method, params = str(spec["verb"]), dict(spec.get("params") or {})
    try:
        coded = {wirepath.encode(name): wirepath.encode(value) for name, value in env.items()}
        worker.enter({"env": coded, "cwd": spec["cwd"], "umask": spec.get("umask", 0o022)})
        result = _perform(method, params, spec, request)
        worker.deaf()
        folder.answer({"result": result})
        return 0
    except MillpondError as error:
        worker.deaf()
        return _failed(folder, error)
    except OSError as error:
        worker.deaf()
        traceback.print_exc()
        return _failed(folder, from_system(error, method))
    except BaseException as error:
        worker.deaf()
        traceback.print_exc()
        hint = "please report it with the job's log: millpond logs"
        return _failed(folder, InternalError(f"internal error in {method}: {error!r}", hint=hint))
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()


def _perform(
    method: str, params: dict[str, Any], spec: Mapping[str, Any], request: Mapping[str, Any]
) -> dict[str, Any]:
    verb = worker.find_verb(str(request["verbs"]), method)
    path, system = Path(wirepath.decode(str(request["socket"]))), bool(request["system"])
    context = JobContext(int(request["number"]), lambda: _connected(path, system=system), spec.get("wait_s"))
    try:

        def whole() -> dict[str, Any]:
            using = context.lock("", "read") if method in worker.USES_STORE else contextlib.nullcontext()
            with using:
                return verb(context, dict(params))

        result = context.again(whole)
        context.tell_progress()
        return result
    finally:
        context.close()


def _connected(path: Path, *, system: bool) -> Client:
    """The daemon at `path`; a user's own is started when there is none. Raises DaemonUnavailableError."""
    try:
        return Client.connect(path, name="job")
    except DaemonUnavailableError:
        settings = None if system else from_env(os.environ, os.getuid())
        if settings is None or settings.socket != path:
            raise
        return connect_or_start(settings, os.environ)


def _failed(folder: JobFolder, error: MillpondError) -> int:
    """Keep the error, and say it in the log."""
    if not isinstance(error, CancelledError):
        print(f"ERROR: {error}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        folder.answer({"error": framing.readable(error.to_wire())})
    return error.exit_code
