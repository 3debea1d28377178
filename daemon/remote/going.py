"""How far an upload is, in bytes: told while large objects go, not only when they are there for good."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from millpond.daemon.objects import Data
from millpond.daemon.remote.backend import told


class Going:
    """`went`, where there is one, is told of the bytes that went so far in all, by `tell`, in one thread; `add` may be called from any."""

    def __init__(self, went: Callable[[int], None] | None) -> None:
        self._went = went
        self._lock = threading.Lock()
        self._bytes = 0
        self._told = 0

    def add(self, size: int) -> None:
        """So many bytes more went."""
        with self._lock:
            self._bytes += size

    def tell(self) -> None:
        """Tell what has not been told yet."""
        if self._went is not None and self._told != self._bytes:
            self._told = self._bytes
            self._went(self._told)

    def telling(self, pieces: Iterable[Data]) -> Iterator[Data]:
        """The same pieces, each counted and told when the next one is asked for."""
        return told(pieces, self._add_and_tell)

    def _add_and_tell(self, size: int) -> None:
        self.add(size)
        self.tell()
