"""Scrubbing by the daemon, when nothing was asked of it for a while: a few percent of a processor, by its rate."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import trio

from millpond.daemon.errors import MillpondError
from millpond.daemon.store.scrub import Scrub

if TYPE_CHECKING:
    from millpond.daemon.core import Daemon

log = logging.getLogger("millpond.store")

# Bytes a second.
RATE = 32 << 20
# How often it is seen whether there is time, at most.
_LOOK_S = 30.0


class _Stop(Exception):
    """There is other work: the rest is for later."""


class ScrubService:
    """One daemon's. It keeps no idle daemon alive: what was read is noted, the next one goes on."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._after_s = daemon.settings.scrub_after_s
        self._stopping = threading.Event()
        self._scrub = Scrub(daemon.store, self._pace)

    async def run(self) -> None:
        """Look, and scrub when there is time, for as long as the daemon lives."""
        while self._after_s:
            await trio.sleep(min(_LOOK_S, self._after_s))
            if self._is_idle():
                try:
                    await trio.to_thread.run_sync(self._work)
                except MillpondError as error:
                    log.warning("scrubbing has stopped: %s", error)

    async def stop_with_daemon(self) -> None:
        """Have a pass end when the daemon does."""
        await self._daemon.stop.wait()
        self._stopping.set()

    def _work(self) -> None:
        try:
            if self._scrub.is_due():
                self._scrub.run()
        except _Stop:
            pass

    def _is_idle(self) -> bool:
        daemon = self._daemon
        if daemon.server.calls or daemon.verbs.workers:
            return False
        return time.monotonic() - daemon.server.last_request >= self._after_s

    def _pace(self, size: int) -> None:
        """Wait as long as reading may take; in a thread."""
        if self._stopping.wait(size / RATE) or not self._is_idle():
            raise _Stop


def register(daemon: Daemon) -> ScrubService:
    """Have the daemon scrub."""
    service = ScrubService(daemon)
    daemon.at_start.append(service.stop_with_daemon)
    daemon.at_start.append(service.run)
    return service
