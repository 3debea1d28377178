"""The sources of one mount, one after the other: who asks need not know that one died and another came.

The daemon starts a source after one that died, and hands its socket to the holder. Until then whoever asks waits, for a
bounded time; what the dead one had not answered is asked again.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from millpond.daemon.errors import MillpondError
from millpond.daemon.names import ObjectName
from millpond.fusefs.asking import DEADLINE_S, SourceClient, Told

T = TypeVar("T")


class Sources:
    """What SourceClient does, by whichever source there is. `successor_s` is how long is waited for the next one; with 0 there is
    none. Blocking; used from any number of threads, which the caller bounds."""

    def __init__(self, sock: socket.socket, *, successor_s: float = 0.0, deadline_s: float = DEADLINE_S) -> None:
        self._successor_s = successor_s
        self._deadline_s = deadline_s
        # Guards what follows, and is told when there is another source.
        self._came = threading.Condition()
        self._closed = False
        # Until when the next source is waited for, once this one is missed.
        self._until: float | None = None
        # What those before had moved.
        self._before = Told()
        self.started = 1
        # Called, from any thread, when `state` changes.
        self.changed: Callable[[], None] = lambda: None
        self._client = self._client_of(sock)

    @property
    def told(self) -> Told:
        """What the source last told, with the counts of those before it."""
        with self._came:
            return self._sum()

    @property
    def state(self) -> dict[str, object]:
        """{gone, started, refused, wanted}: whether there is a source, which one it is (so that two deaths are two states), why remotes
        refuse it (""), and for which object they did."""
        with self._came:
            told = self._client.told
            return {
                "gone": self._client.ended and not self._closed,
                "started": self.started,
                "refused": told.refused,
                "wanted": told.wanted,
            }

    def replace(self, sock: socket.socket) -> None:
        """Another source is there."""
        with self._came:
            if self._closed:
                sock.close()
                return
            old = self._client
            self._before = self._sum()
            self.started += 1
            self._client = self._client_of(sock)
            self._until = None
            self._came.notify_all()
        old.close()
        self.changed()

    def open(self, name: ObjectName, size: int | None = None, near: Sequence[ObjectName] = ()) -> tuple[int, int, bool]:
        """See SourceClient.open."""
        return self._ask(lambda client: client.open(name, size, near))

    def ensure(self, name: ObjectName, size: int, inode: int, offset: int, length: int) -> tuple[int, int] | int:
        """See SourceClient.ensure."""
        return self._ask(lambda client: client.ensure(name, size, inode, offset, length))

    def credentials(self, environ: int) -> None:
        """See SourceClient.credentials."""
        self._ask(lambda client: client.credentials(environ))

    def refs(self) -> dict[str, str]:
        """See SourceClient.refs."""
        return self._ask(lambda client: client.refs())

    def version(self, revision: str) -> tuple[str, bytes]:
        """See SourceClient.version."""
        return self._ask(lambda client: client.version(revision))

    def close(self) -> None:
        """Hang up; who still waits gets ObjectMissingError."""
        with self._came:
            self._closed = True
            client = self._client
            self._came.notify_all()
        client.close()

    def _client_of(self, sock: socket.socket) -> SourceClient:
        client = SourceClient(sock, deadline_s=self._deadline_s, changed=lambda: self.changed())
        if self._successor_s:
            client.listen()  # its end is to be known before somebody asks
        return client

    def _sum(self) -> Told:
        before, told = self._before, self._client.told
        return replace(told, requests=before.requests + told.requests, bytes=before.bytes + told.bytes)

    def _ask(self, work: Callable[[SourceClient], T]) -> T:
        while True:
            with self._came:
                client = self._client
            try:
                return work(client)
            except MillpondError:
                if not client.ended or not self._wait(client):
                    raise

    def _wait(self, gone: SourceClient) -> bool:
        """Whether another source comes in the time since somebody first missed this one. Who comes later waits no longer: the kernel asks
        for one page several times."""
        with self._came:
            if self._client is gone and self._until is None:
                self._until = time.monotonic() + self._successor_s
            left = 0.0 if self._until is None else self._until - time.monotonic()
            self._came.wait_for(lambda: self._closed or self._client is not gone, max(0.0, left))
            return not self._closed and self._client is not gone
