"""Verbs: requests that need the caller's rights, each run by a worker of the caller's uid."""

from __future__ import annotations

import logging
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import trio

from millpond.daemon.errors import BusyError, InternalError, from_wire
from millpond.daemon.jobs.zygotes import Child
from millpond.daemon.rpc.methods import Call, Registry

if TYPE_CHECKING:
    from millpond.daemon.main import Daemon

log = logging.getLogger("millpond.jobs")

VERBS = ("init", "add", "checkout", "status", "root", "doctor", "mount", "umount", "tree")
# Workers of one uid at once.
MAX_WORKERS = 64
# A cancelled worker has this long to clean up before it is killed.
GRACE_S = 5.0


class VerbRunner:
    """Forwards a request to a fresh worker and its answer back."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.workers: dict[int, Call] = {}

    async def run(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """The verb's result. Raises the worker's error; InternalError when it died."""
        if sum(1 for other in self.workers.values() if other.uid == call.uid) >= MAX_WORKERS:
            raise BusyError(f"{MAX_WORKERS} of your requests are at work already", hint="try again later")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            request = {"verbs": self._daemon.settings.verbs}
            try:
                child = await self._daemon.zygotes.of(call.uid).fork("worker", request, [theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        self.workers[child.pid] = call
        sock = trio.socket.from_stdlib_socket(ours)
        connection = self._daemon.server.connection(sock, uid=call.uid, pid=child.pid, parent=call)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.serve)
                answer = await self._answer(connection.request, call, params, child)
                nursery.cancel_scope.cancel()
        finally:
            del self.workers[child.pid]
            child.close()
        seconds = round(time.monotonic() - call.started, 3)
        log.info("%s", call.method, extra={"request": call.id, "uid": call.uid, "seconds": seconds})
        if answer is None:
            raise InternalError(f"the worker of {call.method} died", hint="see `millpond daemon logs`")
        if "error" in answer:
            raise from_wire(answer["error"])
        return answer.get("result") or {}

    async def _answer(self, request: Any, call: Call, params: dict[str, Any], child: Child) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] | None = await request(call.method, params)
            return found
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._end(child)
            raise

    async def _end(self, child: Child) -> None:
        await child.kill(signal.SIGTERM)
        with trio.move_on_after(GRACE_S) as grace:
            await child.wait()
        if grace.cancelled_caught:
            log.warning("worker %d did not end in %.0f s: killed", child.pid, GRACE_S)
            await child.kill(signal.SIGKILL)


def register(registry: Registry, daemon: Daemon) -> VerbRunner:
    """Add all verbs."""
    runner = VerbRunner(daemon)
    for name in VERBS:
        registry.register(name, runner.run)
    return runner
