"""Asking a project's remotes for those who wait: not again at once where they have refused, and with other credentials when some come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from millpond.daemon.errors import CredentialsError
from millpond.daemon.names import ObjectName
from millpond.daemon.remote.backend import Got
from millpond.daemon.remote.places import Limits, Places

# A refusal holds for so long: a thousand files do not ask a thousand times.
_REFUSED_S = 5.0


class Gate:
    """Used from any number of threads."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._lock = threading.Lock()
        # When a remote refused to be asked, and why, until one answers; and how often credentials were renewed: a refusal of those
        # before does not count.
        self._refused: tuple[float, CredentialsError] | None = None
        self._wanted: ObjectName | None = None
        self._generation = 0

    @property
    def moved(self) -> tuple[int, int]:
        """Requests and bytes so far."""
        return self._places.moved

    @property
    def limits(self) -> Limits:
        """What bounds reading."""
        return self._places.limits

    @property
    def refused(self) -> str:
        """Why remotes refuse to be asked; empty if they do not."""
        with self._lock:
            return "" if self._refused is None else self._refused[1].message

    @property
    def wanted(self) -> ObjectName | None:
        """What was asked for when they last refused."""
        with self._lock:
            return self._wanted

    def get(
        self,
        name: ObjectName,
        start: int,
        size: int | None,
        *,
        etag: str | None = None,
        accept: Callable[[Got], None] = lambda got: None,
    ) -> Got:
        """As Places.get; a remote that refused just now is not asked: where no other has the object, its refusal is told again."""
        with self._lock:
            refused, generation = self._refused, self._generation
        if refused is not None and time.monotonic() - refused[0] < _REFUSED_S:
            return self._places.get(name, start, size, etag=etag, accept=accept, again=False)
        try:
            got = self._places.get(name, start, size, etag=etag, accept=accept)
        except CredentialsError as error:
            self._refuse(error, generation, name)
            self._places.renew()
            raise
        if refused is not None and not self._places.refuses:
            self._admit(generation)
        return got

    def is_damaged(self, name: ObjectName) -> bool:
        """See Places."""
        return self._places.is_damaged(name)

    def prepare(self) -> None:
        """Have the remotes connected; nothing is asked."""
        self._places.prepare()

    def renew(self) -> None:
        """The environment is another one: ask the remotes with it. Raises CredentialsError, RemoteError, RemoteConfigError."""
        with self._lock:
            self._generation += 1
            generation, wanted = self._generation, self._wanted
        self._places.renew(forgive=True)
        try:
            self._places.check(wanted)
        except CredentialsError as error:
            self._refuse(error, generation, wanted)
            raise
        self._admit(generation)

    def _refuse(self, error: CredentialsError, generation: int, name: ObjectName | None) -> None:
        with self._lock:
            if generation == self._generation:
                self._refused, self._wanted = (time.monotonic(), error), name

    def _admit(self, generation: int) -> None:
        with self._lock:
            if generation == self._generation:
                self._refused = None
