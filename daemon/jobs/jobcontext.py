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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from millpond.daemon import wirepath
from millpond.daemon.errors import (
    DaemonUnavailableError,
    InternalError,
    MillpondError,
    from_system,
)
from millpond.daemon.jobs import worker
from millpond.daemon.jobs.commands import GRACE_S
from millpond.daemon.jobs.jobfolder import JobFolder
from millpond.daemon.jobs.objects import DaemonObjectStore
from millpond.daemon.jobs.worker import WorkerContext
from millpond.daemon.rpc import framing
from millpond.daemon.rpc.autostart import connect_or_start
from millpond.daemon.rpc.client import Client, Notify
from millpond.daemon.settings import from_env

T = TypeVar("T")
# A piece of work is done again with the next daemon this often, and the next daemon waited for this long.
TRIES = 5
RECONNECT_S = 120.0
_PAUSE_S = 0.2


class JobPeer:
    """The daemon, whichever it is by now: what a verb has as its client. `connect` gives a connection that has joined the job."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect
        self._client = connect()
        self.on_notify: Notify | None = None

    def call(self, method: str, params: dict[str, Any], *, fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """See Client.call."""
        return self._client.call(method, params, fds=fds, on_notify=self.on_notify)

    def start(self, method: str, params: dict[str, Any], fds: Sequence[int] = ()) -> int:
        """See Client.start; what was started is lost with its daemon."""
        return self._client.start(method, params, fds)

    def wait(self, request: int) -> tuple[dict[str, Any], list[int]]:
        """See Client.wait."""
        return self._client.wait(request)

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """See Client.notify."""
        self._client.notify(method, params)

    def renew(self) -> None:
        """Leave the daemon that went away for the next one. Raises DaemonUnavailableError when none comes in RECONNECT_S."""
        self._client.close()
        deadline = time.monotonic() + RECONNECT_S
        while True:
            try:
                self._client = self._connect()
                return
            except MillpondError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_PAUSE_S)

    def close(self) -> None:
        self._client.close()


@dataclass(slots=True, eq=False)
class _Lock:
    """A lock that is held: of which project, how, and the descriptor that the next daemon waits for."""

    project: str
    mode: str
    patient: bool = False
    held: int = -1

    def let_go(self) -> None:
        if self.held >= 0:
            os.close(self.held)
            self.held = -1


class JobContext(WorkerContext):
    """A verb's context in a job. The daemon may go away and come back: a lock that nobody holds any more is asked of the next one,
    and what was under way within one fails, to be done `again`. `fds` are where its output goes; `number` is the job's; its
    commands have `grace_s` to end when it is cancelled."""

    def __init__(self, peer: JobPeer, number: int, wait_s: float | None, grace_s: float | None) -> None:
        super().__init__(peer, DaemonObjectStore(peer), os.getuid(), wait_s)
        self._peer = peer
        self.number = number
        self.grace_s = GRACE_S if grace_s is None else grace_s
        self._locks: list[_Lock] = []
        self.fds = [1, 2]
        self._waiting_for = ""
        peer.on_notify = self._heard

    def again(self, work: Callable[[], T]) -> T:
        """Do what talks to the daemon and may be repeated as a whole; once more whenever the daemon went away meanwhile. Locks
        that are held around it are taken again first: what they guard may have been changed since.

        Raises what `work` raises, and DaemonUnavailableError when no daemon came back.
        """
        for left in reversed(range(TRIES)):
            try:
                return work()
            except DaemonUnavailableError as error:
                if not left:
                    raise
                self._renew(error)
        raise AssertionError("the last try returns or raises")

    @contextlib.contextmanager
    def lock(self, project: str, mode: str, *, patient: bool = False) -> Iterator[None]:
        """See WorkerContext.lock. As long as it is held no other daemon starts, which would not know of it. A daemon that went away
        while no lock was held has not been missed."""
        lock = _Lock(project, mode, patient)
        self._locks.append(lock)
        try:
            if len(self._locks) == 1:
                self.again(lambda: self._take(lock))
            else:
                self._take(lock)
            yield
        finally:
            # A broken connection has released it already.
            with contextlib.suppress(DaemonUnavailableError, OSError):
                if lock.held >= 0:
                    self.client.call("lock.release", {"project": wirepath.encode(project)})
            lock.let_go()
            self._locks.remove(lock)

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

    def waiting(self, for_whom: str, since_s: float) -> None:
        """See WorkerContext.waiting; a line of the log, once."""
        self._heard("$/waiting", {"for": for_whom})

    def _heard(self, method: str, params: dict[str, Any]) -> None:
        """The daemon says whom this job waits for: a line of the log, not one a second."""
        if method == "$/waiting":
            whom = str(params.get("for")).rpartition(", ")[0] or str(params.get("for"))
            if whom != self._waiting_for:
                self.log("info", f"waiting for {whom}")
            self._waiting_for = whom

    def _take(self, lock: _Lock) -> None:
        params = {
            "project": wirepath.encode(lock.project),
            "mode": lock.mode,
            "timeout": None if lock.patient else self.wait_s,
        }
        self.client.call("lock.acquire", params)
        lock.held = self.client.call("jobs.hold", {})[1][0]

    def _renew(self, error: DaemonUnavailableError) -> None:
        held = [lock for lock in self._locks if lock.held >= 0]
        for lock in held:  # or the next daemon would wait for this process
            lock.let_go()
        self.log("warning", f"going on with the next daemon: {error.message}")
        self._peer.renew()
        self.store.forget()
        for lock in held:
            self._take(lock)


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
    number = int(request["number"])
    peer = JobPeer(lambda: _joined(path, number, system=system))
    context = JobContext(peer, number, spec.get("wait_s"), spec.get("grace_s"))
    try:

        def whole() -> dict[str, Any]:
            using = context.lock("", "read") if method in worker.USES_STORE else contextlib.nullcontext()
            with using:
                return verb(context, dict(params))

        result = context.again(whole)
        context.tell_progress()
        return result
    finally:
        peer.close()


def _joined(path: Path, number: int, *, system: bool) -> Client:
    """A connection to the daemon at `path` as this job's. Raises DaemonUnavailableError."""
    client = _connected(path, system=system)
    try:
        client.call("jobs.join", {"number": number})
        return client
    except BaseException:
        client.close()
        raise


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
    """Keep the error; the shim says it in the log."""
    with contextlib.suppress(OSError):
        folder.answer({"error": framing.readable(error.to_wire())})
    return error.exit_code
