"""The source's successor: the daemon hears from each holder how its source is, and starts another one when there is none."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from contextlib import aclosing

import trio

from millpond.daemon import memfd
from millpond.daemon.errors import MillpondError
from millpond.daemon.mounts.holders import CONTROL_S, NO_ANSWER, Holders, lines
from millpond.daemon.mounts.mount import Mount

log = logging.getLogger("millpond.mounts")

_PAUSE_S, _MOST_PAUSE_S = 0.1, 30.0
# A source that has lived so long begins anew with short pauses.
_SETTLED_S = 60.0


class Successors:
    """Starts sources for mounts whose own have died."""

    def __init__(self, holders: Holders) -> None:
        self._holders = holders

    async def attend(self, mount: Mount) -> None:
        """Hear from a holder how its source is, and start another one when there is none any more."""
        pause, started = _PAUSE_S, 0.0
        while True:
            try:
                async with await self._holders.connect(mount) as stream:
                    await stream.send_all(b'{"op": "watch"}\n')
                    async with aclosing(lines(stream)) as states:
                        async for state in states:
                            mount.refused, mount.wanted = (str(state.get(key) or "") for key in ("refused", "wanted"))
                            if state.get("gone"):
                                if time.monotonic() - started > _SETTLED_S:
                                    pause = _PAUSE_S
                                await trio.sleep(pause)
                                pause, started = min(2 * pause, _MOST_PAUSE_S), time.monotonic()
                                log.warning("the source of mount %s is gone: another one is started", mount.record.id)
                                await self._succeed(mount)
            except (*NO_ANSWER, MillpondError) as error:
                log.warning("the holder of mount %s is not heard: %s", mount.record.id, error)
            # It is not there yet, is of an older version, or no source could be started.
            await trio.sleep(1.0)

    async def _succeed(self, mount: Mount) -> None:
        """Start another source, with what files say of credentials: those of the caller's environment are kept nowhere."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            environ = memfd.from_bytes(json.dumps(mount.record.context.get("env") or {}).encode())
            try:
                await self._holders.fork_source(mount.record, theirs, environ)
            finally:
                os.close(environ)
            await self._holders.control(mount, {"op": "source"}, [ours.fileno()], CONTROL_S)
