"""A worker: one request, run as its caller, in a process of its own.

It gets the request over its socket, takes on the client's environment, folder and umask, runs the verb, and answers with
the result or a typed error. SIGTERM cancels it: the verb sees a CancelledError and cleans up.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import (
    CancelledError,
    DaemonUnavailableError,
    InternalError,
    MillpondError,
    ProtocolError,
    TargetError,
    from_system,
)
from millpond.daemon.jobs.objects import MAX_NAMES, DaemonObjectStore, Peer
from millpond.daemon.names import ObjectName
from millpond.daemon.rpc.client import IN_FILE, Client

T = TypeVar("T")
# Progress is sent at most this often; what is left out is sent with the next one, or before the answer.
PROGRESS_S = 0.1
# Verbs that put contents into the store, or count on those that are there.
USES_STORE = frozenset(
    {
        "add",
        "checkout",
        "commit",
        "fsck",
        "export",
        "fetch",
        "get",
        "import",
        "import-url",
        "pull",
        "push",
        "cache.evict",
        "cache.import",
        "look",
        "merge-driver",
        "mount",
        "move",
        "pin",
        "remount",
        "remove",
        "update",
        "warm",
    }
)
# Bytes of a result in its frame.
MAX_RESULT = 1 << 20
# Bytes of a traceback for the daemon's log.
MAX_TRACE = 16_000


@dataclass(slots=True)
class WorkerContext:
    """What a verb gets: the store with the caller's rights, locks, progress, and the daemon's other requests.

    `wait_s` bounds the wait for locks; None: as long as it takes.
    """

    client: Peer
    store: DaemonObjectStore
    uid: int
    wait_s: float | None = None
    # Descriptors that came with the request: where the client's output goes, for verbs that run commands.
    fds: list[int] = field(default_factory=list)
    _told: float = 0.0
    _latest: dict[str, Any] | None = None

    @contextlib.contextmanager
    def lock(self, project: str, mode: str, *, patient: bool = False) -> Iterator[None]:
        """Hold the project's lock, `read` or `write`; with `patient` however long it takes to get. Raises LockTimeoutError."""
        name = wirepath.encode(project)
        self.client.call("lock.acquire", {"project": name, "mode": mode, "timeout": None if patient else self.wait_s})
        try:
            yield
        finally:
            # A broken connection has released the lock already.
            with contextlib.suppress(DaemonUnavailableError, OSError):
                self.client.call("lock.release", {"project": name})

    def seen(self, project: str, git: str | None, names: Iterable[ObjectName]) -> None:
        """The project at `project` (Git directory `git`) uses these objects: gc keeps them for it."""
        path, git = wirepath.encode(project), None if git is None else wirepath.encode(git)
        texts = [str(name) for name in names]
        for start in range(0, max(len(texts), 1), MAX_NAMES):
            self.client.call("projects.seen", {"path": path, "git": git, "names": texts[start : start + MAX_NAMES]})

    def again(self, work: Callable[[], T]) -> T:
        """See VerbContext.again: a worker ends with its daemon."""
        return work()

    def progress(
        self,
        phase: str,
        files: tuple[int, int | None] | None = None,
        bytes: tuple[int, int | None] | None = None,
        note: str = "",
    ) -> None:
        """Tell the caller how far it is; called as often as one likes."""
        self._latest = {"phase": phase, "files": files, "bytes": bytes, "note": note}
        if time.monotonic() - self._told >= PROGRESS_S:
            self.tell_progress()

    def tell_progress(self) -> None:
        """Send what is not sent yet."""
        if self._latest is not None:
            latest, self._latest, self._told = self._latest, None, time.monotonic()
            self.client.notify("$/progress", latest)

    def waiting(self, for_whom: str, since_s: float) -> None:
        """Tell the caller for whom it waits."""
        self.client.notify("$/waiting", {"for": for_whom, "since_s": round(since_s, 1)})

    def log(self, level: str, text: str) -> None:
        """A line for the person: `level` is info or warning."""
        self.client.notify("$/log", {"level": level, "text": text})


def run(request: dict[str, Any], fds: list[int]) -> int:
    """A zygote's child: serve the one request that comes on the socket `fds[0]`; the exit code.

    `fds[1]`, if there is one, is the lock that tells a new daemon that this worker still runs: it is kept open.
    """
    signal.signal(signal.SIGTERM, cancel)
    client = Client(socket.socket(fileno=fds[0]), serving=True)
    try:
        message = client.serve_one()
    except MillpondError:  # the daemon is gone, or the request was cancelled before it came
        return 1
    number, method = message["id"], message["method"]
    try:
        result = _perform(client, method, message.get("params") or {}, request["verbs"])
        deaf()
        _answer(client, number, result)
        _revive(client, request.get("refused") or [])
        return 0
    except MillpondError as error:
        deaf()
        code = _fail(client, number, error)
        _revive(client, request.get("refused") or [])
        return code
    except MemoryError:
        deaf()
        return _fail(client, number, InternalError(f"{method} ran out of memory", hint="free some and try again"))
    except OSError as error:
        deaf()
        _trace(client)
        return _fail(client, number, from_system(error, method))
    except BaseException as error:
        deaf()
        _trace(client)
        hint = "please report it with the log: millpond daemon logs"
        return _fail(client, number, InternalError(f"internal error in {method}: {error!r}", hint=hint))


def _revive(client: Client, refused: Sequence[tuple[str, str, str]]) -> None:
    """The caller has his answer; mounts of his that want credentials may have the ones of this command."""
    if refused:
        from millpond.daemon.mounts.revival import revive

        revive(client, refused)


def _trace(client: Client) -> None:
    """Have the daemon log where the error came from."""
    with contextlib.suppress(DaemonUnavailableError, OSError):
        client.notify("$/trace", {"text": traceback.format_exc()[-MAX_TRACE:]})


def _answer(client: Client, number: Any, result: dict[str, Any]) -> None:
    """Send the result; one that is too long for a frame in a memory file. Raises TargetError for one beyond its bound."""
    text = msgspec.json.encode(result)
    if len(text) <= MAX_RESULT:
        client.answer(number, result=result)
        return
    if len(text) > memfd.MAX_BYTES:
        raise TargetError(
            f"the answer has {len(text)} bytes, more than the {memfd.MAX_BYTES} that can be passed on",
            hint="ask for less: name targets",
        )
    fd = memfd.from_bytes(text)
    try:
        client.answer(number, result=IN_FILE, fds=[fd])
    finally:
        os.close(fd)


def _fail(client: Client, number: Any, error: MillpondError) -> int:
    with contextlib.suppress(DaemonUnavailableError, OSError):
        client.answer(number, error=error.to_wire())
    return 1


def _perform(client: Client, method: str, params: dict[str, Any], table: str) -> dict[str, Any]:
    verb = find_verb(table, method)
    context = params.pop("context", None) or {}
    enter(context)
    store = DaemonObjectStore(client)
    worker = WorkerContext(client, store, os.getuid(), context.get("wait_s"), client.request_fds)
    # While gc runs nobody relies on what is stored; gc itself takes this lock alone.
    using = worker.lock("", "read") if method in USES_STORE else contextlib.nullcontext()
    with using:
        result = verb(worker, params)
    worker.tell_progress()
    return result


def find_verb(table: str, method: str) -> Callable[[Any, dict[str, Any]], dict[str, Any]]:
    """The verb of that name in `table`, `module:NAME`. Raises ProtocolError."""
    module, _, name = table.partition(":")
    verbs: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = getattr(importlib.import_module(module), name)
    if method not in verbs:
        raise ProtocolError(f"this daemon has no verb '{method}'", hint="is it older? millpond daemon restart")
    return verbs[method]


def enter(context: dict[str, Any]) -> None:
    """The client's environment, umask and folder, and nothing of the daemon's."""
    try:
        env = {wirepath.decode(key): wirepath.decode(value) for key, value in (context.get("env") or {}).items()}
        umask = int(context.get("umask", 0o022)) & 0o777
        cwd = wirepath.decode(context.get("cwd") or "/")
        os.environ.clear()
        os.environ.update(env)
    except (AttributeError, TypeError, ValueError, OSError) as error:
        raise ProtocolError(f"the request's context is not {{cwd, env, umask}} as it should be: {error}") from error
    os.umask(umask)
    try:
        os.chdir(cwd)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise TargetError(f"cannot enter '{cwd}': {reason}", path=cwd) from error
    time.tzset()
    _refresh_git()


def _refresh_git() -> None:
    """libgit2 found the places of Git's configuration when it was loaded, from the zygote's environment."""
    git = sys.modules.get("pygit2")
    if git is not None:
        for level in (git.enums.ConfigLevel.SYSTEM, git.enums.ConfigLevel.XDG, git.enums.ConfigLevel.GLOBAL):
            git.settings.search_path[level] = None


def deaf() -> None:
    """The outcome is known: a cancellation comes too late, and must not tear the answer apart."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def cancel(*_: object) -> None:
    deaf()
    raise CancelledError("the request was cancelled")
