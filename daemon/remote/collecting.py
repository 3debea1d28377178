"""How a collection of garbage on a remote and pushes to it are kept from spoiling each other's work, whoever's they are.

A push finds an old object there, does not send it, and writes a manifest that names it; a collection that began before finds the
object named by nobody, and removes it. So a collection says that it is under way, by an object of its own below `.millpond/gc/`, and that it has
ended, by a new `.millpond/gc/last`; a push looks at that folder first and last, and where it is not the same, or one is under way, waits
and looks again for all that it relied on. DVC neither says nor looks: DESIGN.md, "Garbage on remotes".
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from millpond.daemon.errors import BusyError, CredentialsError, MillpondError, RemoteConfigError, RemoteError
from millpond.daemon.project.paths import printable
from millpond.daemon.remote.backend import Backend, Entry
from millpond.daemon.remote.transfer import Transfer

FOLDER = ".millpond/gc"
_LAST = f"{FOLDER}/last"
# How often a collection says again that it is under way.
_SAY_S = 15.0
# It removes nothing any more when it could not say so for this long; a request that is on its way then ends before DEAD_S.
_SILENT_S = 150.0
# One that said nothing for so long has died.
DEAD_S = 300.0
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Marks:
    """What the folder says: `seen` changes with each collection that began or ended; `running` are under way, or died."""

    seen: frozenset[tuple[str, str | None]]
    running: tuple[Entry, ...]


def marks(transfer: Transfer) -> Marks | None:
    """What it says now; None where the caller may not look, or such a remote has no listings. Raises RemoteError."""
    try:
        found = [entry for page in transfer.listings([FOLDER]) for entry in page]
    except (CredentialsError, RemoteConfigError):
        return None
    seen = frozenset((entry.key, entry.etag) for entry in found)
    return Marks(seen, tuple(entry for entry in found if entry.key != _LAST))


def settled(transfer: Transfer, tell: Callable[[str], None]) -> Marks | None:
    """As `marks`, once no collection is under way. One that was not heard of for DEAD_S, by this process's clock, has died, and is waited for
    no longer. `tell` is called meanwhile, with why; it may raise."""
    heard: dict[tuple[str, str | None], float] = {}
    while True:
        found = marks(transfer)
        if found is None:
            return None
        now = time.monotonic()
        heard = {(each.key, each.etag): heard.get((each.key, each.etag), now) for each in found.running}
        if all(now - since >= DEAD_S for since in heard.values()):
            return found
        backend = transfer.backend
        tell(f"waiting for a collection of garbage on remote '{backend.name}' ({_who(backend, found.running[0])})")
        time.sleep(_POLL_S)


class Collection:
    """A collection under way on a remote, for as long as the block lasts; `now` is the remote's own time when it began. Raises
    BusyError while there is another, RemoteError, CredentialsError."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._key = f"{FOLDER}/{secrets.token_hex(8)}"
        self._said = _now()
        self._ended = threading.Event()
        self._saying = threading.Thread(target=self._say_on, name="collecting", daemon=True)
        self.now = 0.0

    def __enter__(self) -> Collection:
        self._say()
        self._saying.start()
        try:
            own = self._backend.head(self._key)
            self.now = time.time() if own is None else own.modified
            for other in self._backend.list(FOLDER):
                if other.key in (self._key, _LAST):
                    continue
                # Both times are the remote's.
                if self.now - other.modified < DEAD_S:
                    who = _who(self._backend, other)
                    raise BusyError(
                        f"another collection of garbage is under way on remote '{self._backend.name}' ({who})",
                        hint=f"try again when it has ended; one that was killed counts as ended after {DEAD_S:.0f} s",
                    )
                self._backend.delete(other.key)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def go_on(self) -> None:
        """Called before each request that removes, from any thread. Raises RemoteError where it could not be said for so long that it
        goes on that a push may have taken it for dead."""
        if self._silent():
            raise RemoteError(
                f"the collection on remote '{self._backend.name}' was stopped: for too long it could not say that it goes on",
                hint="run it again: what is left goes then",
                details={"again": False},
            )

    def _silent(self) -> bool:
        return _now() - self._said > _SILENT_S

    def _say_on(self) -> None:
        """Say it from time to time, whatever else is done meanwhile. Once it is too late nothing is said any more."""
        while not self._ended.wait(_SAY_S) and not self._silent():
            with contextlib.suppress(MillpondError):
                self._say()

    def _say(self) -> None:
        began = _now()
        text = {"host": socket.gethostname(), "pid": os.getpid(), "said": time.time()}
        self._backend.put(self._key, json.dumps(text).encode())
        self._said = began

    def _end(self) -> None:
        """Where this fails the collection looks as if it had died."""
        self._ended.set()
        self._saying.join()
        with contextlib.suppress(MillpondError):
            self._backend.put(_LAST, secrets.token_hex(16).encode())
            self._backend.delete(self._key)


def _now() -> float:
    """Seconds, of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _who(backend: Backend, entry: Entry) -> str:
    """Where a collection runs, as far as it says."""
    try:
        said = json.loads(bytes(backend.get(entry.key).data))
        return printable(f"process {int(said['pid'])} on {said['host']!s:.100}")
    except (MillpondError, ValueError, TypeError, KeyError):
        return "somewhere"
