"""This process's connections: to the daemon, which is started when there is none, and to sources.

A connection is one thread's while a request is under way on it. After a fork the child has none: what it inherited is closed
there, which its parent does not notice.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from millpond.daemon import wirepath
from millpond.daemon.errors import DaemonUnavailableError, MillpondError, ProtocolError
from millpond.daemon.rpc import framing
from millpond.daemon.rpc.autostart import connect_or_start
from millpond.daemon.rpc.client import Client
from millpond.daemon.rpc.surroundings import surroundings
from millpond.daemon.settings import Settings, from_env

if TYPE_CHECKING:
    from millpond.fusefs.asking import SourceClient

# Requests of this process that are under way at once, and connections that wait for the next one.
MAX_CALLS, MAX_IDLE = 16, 4
# Sources of one process: one a repository.
MAX_SOURCES = 4
# A lock that another command holds is waited for so long, as by the command line.
LOCK_WAIT_S = 10.0

_NOTHING: Mapping[str, str] = MappingProxyType({})
Answer = tuple[dict[str, Any], list[int]]


class Connections:
    """To one daemon. Used by any number of threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turns = threading.BoundedSemaphore(MAX_CALLS)
        self._lock = threading.Lock()
        self._idle: list[Client] = []
        self._open: set[Client] = set()
        self._sources: dict[tuple[Any, ...], SourceClient] = {}
        # Held while a source is started.
        self._starting = threading.Lock()

    def call(self, method: str, params: dict[str, Any]) -> Answer:
        """A request's result and descriptors, which are the caller's. Asked once more when the daemon ended meanwhile: all of
        this library's requests can be. Raises MillpondError."""
        with self._turns:
            while True:
                client, used = self._take()
                try:
                    answer = client.call(method, params)
                except MillpondError as error:
                    lost = isinstance(error, DaemonUnavailableError | ProtocolError)
                    self._give_back(client, lost=lost)
                    if used and isinstance(error, DaemonUnavailableError):
                        continue
                    raise
                except BaseException:  # in the middle of a frame, perhaps
                    self._give_back(client, lost=True)
                    raise
                self._give_back(client)
                return answer

    def verb(self, method: str, params: dict[str, Any], environ: Mapping[str, str] = _NOTHING) -> dict[str, Any]:
        """The result of a request that runs as this user, in this directory and environment, to which `environ` is added. Raises
        MillpondError."""
        context = surroundings({**os.environ, **environ}, LOCK_WAIT_S)
        result, fds = self.call(method, {**params, "context": context})
        framing.close_all(fds)
        return result

    def source(
        self, root: str, caches: list[str], commit: str | None = None, environ: Mapping[str, str] = _NOTHING
    ) -> SourceClient:
        """The process of this user that gives what the store has not, for the repository at `root`, a clone's at `commit`; `environ` as for
        `verb`. Raises MillpondError."""
        key = root, commit, *environ.items()
        with self._starting:
            found = self._sources.get(key)
            if found is None or found.ended:
                if found is not None:
                    found.close()
                found = self._sources[key] = self._start_source(root, caches, commit, environ)
                while len(self._sources) > MAX_SOURCES:
                    self._sources.pop(next(iter(self._sources))).close()
            return found

    def abandon(self) -> None:
        """This is a child of the process whose connections these are."""
        for client in list(self._open):
            client.close()
        for source in list(self._sources.values()):
            source.abandon()

    def close(self) -> None:
        """End all that is not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._open.difference_update(idle)
        for client in idle:
            client.close()
        with self._starting:
            while self._sources:
                self._sources.popitem()[1].close()

    def _start_source(
        self, root: str, caches: list[str], commit: str | None, environ: Mapping[str, str]
    ) -> SourceClient:
        from millpond.fusefs.asking import SourceClient  # late: most programs need none

        context = surroundings({**os.environ, **environ}, LOCK_WAIT_S)
        folders = [wirepath.encode(folder) for folder in caches]
        params = {"repo": wirepath.encode(root), "caches": folders, "commit": commit}
        _, fds = self.call("source.open", {**params, "context": context})
        if len(fds) != 1:
            framing.close_all(fds)
            raise ProtocolError("the daemon gave no socket of a source")
        return SourceClient(socket.socket(fileno=fds[0]))

    def _take(self) -> tuple[Client, bool]:
        """A connection, and whether it was used before."""
        with self._lock:
            if self._idle:
                return self._idle.pop(), True
        client = connect_or_start(self._settings, os.environ)
        with self._lock:
            self._open.add(client)
        return client, False

    def _give_back(self, client: Client, *, lost: bool = False) -> None:
        with self._lock:
            if not lost and len(self._idle) < MAX_IDLE:
                self._idle.append(client)
                return
            self._open.discard(client)
        client.close()


class _Process:
    """The connections of one process, by daemon: programs may come to another by their environment."""

    def __init__(self) -> None:
        self.by_settings: dict[Settings, Connections] = {}
        os.register_at_fork(after_in_child=self._forked)
        atexit.register(self.close)

    def close(self) -> None:
        """End them; the next request makes new ones."""
        while self.by_settings:
            with contextlib.suppress(KeyError):
                self.by_settings.popitem()[1].close()

    def _forked(self) -> None:
        inherited, self.by_settings = self.by_settings, {}
        for connections in inherited.values():
            connections.abandon()


# Sockets are a process's own, whatever object is asked to read: so their table is, too.
_process = _Process()


def connections() -> Connections:
    """Those of this process to the daemon that its environment names. Raises UsageError."""
    settings = from_env(os.environ, os.getuid())
    found = _process.by_settings.get(settings)
    return found if found is not None else _process.by_settings.setdefault(settings, Connections(settings))


def close() -> None:
    """End this process's connections; the next request makes new ones."""
    _process.close()
