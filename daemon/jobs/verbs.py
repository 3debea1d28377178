"""Verbs: requests that need the caller's rights, each run by a worker of the caller's uid."""

from __future__ import annotations

import logging
import os
import signal
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from millpond.daemon.errors import BusyError, InternalError, from_wire
from millpond.daemon.jobs.zygotes import LIMITS, Child, ZygoteHandle
from millpond.daemon.rpc import framing
from millpond.daemon.rpc.connection import Connection
from millpond.daemon.rpc.methods import Call, Registry, Reply

if TYPE_CHECKING:
    from millpond.daemon.main import Daemon

log = logging.getLogger("millpond.jobs")

VERBS = (
    *(
        "init",
        "add",
        "checkout",
        "status",
        "root",
        "diff",
        "data.status",
        "commit",
        "remove",
        "export",
        "config",
        "cache.dir",
        "doctor",
        "list",
        "du",
        "check-ignore",
        "freeze",
        "move",
        "cache.import",
        "cache.evict",
        "cache.info",
        "cache.verify",
        "cache.migrate",
        "unprotect",
        "purge",
        "destroy",
        "install",
        "get",
        "get-url",
        "list-url",
        "import",
        "import-url",
        "merge-driver",
        "push",
        "fetch",
        "pull",
        "remote",
        "remote.check",
        "remote.login",
        "status.cloud",
        "update",
        "warm",
        "stage.list",
        "stage.add",
        "repro",
        "why",
        "lineage",
        "runs",
        "dag",
    ),
    *("metrics.show", "metrics.diff", "params.diff", "plots", "plots.templates", "plots.modify"),
    *("mount", "umount", "tree", "look", "url", "fsck", "gc", "pin", "unpin", "forget-project"),
    *("job.run", "job.cancel", "job.remove"),
)
# Workers of one uid at once.
MAX_WORKERS = 64
# A cancelled worker has this long to clean up before it is killed, and one that has answered to end.
GRACE_S = 5.0


@dataclass(slots=True, eq=False)
class Worker:
    """A worker process and its connection, which ends with it: what it locked stays locked until it is gone."""

    call: Call
    zygote: ZygoteHandle
    child: Child
    connection: Connection
    # Folder, environment and umask of the request.
    context: dict[str, Any]
    ended: trio.Event = field(default_factory=trio.Event)


class VerbRunner:
    """Forwards a request to a fresh worker and its answer back."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.workers: set[Worker] = set()

    async def run(self, call: Call, params: dict[str, Any]) -> Reply:
        """The verb's result, and the memory file that holds a long one. Raises the worker's error; InternalError when it
        died."""
        if sum(1 for worker in self.workers if worker.call.uid == call.uid) >= MAX_WORKERS:
            raise BusyError(f"{MAX_WORKERS} of your requests are at work already", hint="try again later")
        worker = await self._start(call, params.get("context") or {})
        try:
            answer = await worker.connection.request(call.method, params, call.fds)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._end(worker)
            raise
        if answer is None:
            await worker.ended.wait()
            fate = await worker.child.fate()
            if worker.connection.refused is not None:
                raise worker.connection.refused
            kind = BusyError if fate == LIMITS else InternalError
            raise kind(f"the worker of {call.method} died: {fate}", hint="see `millpond daemon logs`")
        if answer.error is not None:
            raise from_wire(answer.error)
        fds, worker.connection.answer_fds = worker.connection.answer_fds, []
        return Reply(answer.result or {}, fds)

    async def run_internal(
        self, method: str, uid: int, params: dict[str, Any], *, teller: Call | None = None
    ) -> dict[str, Any]:
        """A verb that the daemon itself wants done as `uid`; the person behind `teller` is told of its progress."""
        nobody: Any = None
        call = Call(nobody, 0, method, uid, os.getpid(), f"internal-{method}", [], ended=True)
        if teller is not None:
            origin = teller.origin
            call.connection, call.number, call.ended = origin.connection, origin.number, origin.ended
        try:
            reply = await self.run(call, params)
        finally:
            call.ended = True
        framing.close_all(list(reply.fds))
        return reply.result

    async def quiet(self) -> None:
        """Until no worker runs."""
        for worker in list(self.workers):
            await worker.ended.wait()

    def context_of(self, connection: Connection) -> dict[str, Any] | None:
        """The context of the request that a worker serves; None for what is no worker's connection."""
        return next((worker.context for worker in self.workers if worker.connection is connection), None)

    async def _start(self, call: Call, context: dict[str, Any]) -> Worker:
        zygote = self._daemon.zygotes.of(call.uid)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            request = {"verbs": self._daemon.settings.verbs, "refused": self._daemon.mounts.refused(call.uid)}
            try:
                fds = [theirs.fileno(), self._daemon.listener.work_lock]
                child = await zygote.fork("worker", request, fds)
            except BaseException:
                ours.close()
                raise
        sock = trio.socket.from_stdlib_socket(ours)
        connection = self._daemon.server.connection(sock, uid=call.uid, pid=child.pid, parent=call)
        worker = Worker(call, zygote, child, connection, context)
        zygote.children += 1
        self.workers.add(worker)
        self._daemon.nursery.start_soon(self._watch, worker)
        return worker

    async def _watch(self, worker: Worker) -> None:
        """Serve the worker's own requests, and see to it that the process ends when its connection did."""
        try:
            await worker.connection.serve()
            with trio.move_on_after(GRACE_S) as grace:
                await worker.child.wait()
            if grace.cancelled_caught:
                await self._kill(worker)
                await worker.child.wait()
        finally:
            self.workers.discard(worker)
            worker.zygote.children -= 1
            worker.child.close()
            worker.ended.set()

    async def _end(self, worker: Worker) -> None:
        if worker.ended.is_set():
            return
        await worker.child.kill(signal.SIGTERM)
        with trio.move_on_after(GRACE_S) as grace:
            await worker.ended.wait()
        if grace.cancelled_caught:
            await self._kill(worker)
            with trio.move_on_after(GRACE_S):  # the kernel may hold it: a file system that does not answer
                await worker.ended.wait()

    async def _kill(self, worker: Worker) -> None:
        log.warning("worker %d does not end within %.0f s: killed", worker.child.pid, GRACE_S)
        await worker.child.kill(signal.SIGKILL)


def register(registry: Registry, daemon: Daemon) -> VerbRunner:
    """Add all verbs."""
    runner = VerbRunner(daemon)
    for name in VERBS:
        registry.register(name, runner.run)
    return runner
