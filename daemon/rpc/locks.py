"""Per-project locks, held in the daemon: first come, first served, and who waits is told for whom.

Readers share, a writer is alone. The queue is strict: a reader behind a waiting writer waits too, so nobody starves. A
lock ends with the connection that took it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import trio

from millpond.daemon.errors import BusyError, LockTimeoutError, ProtocolError
from millpond.daemon.rpc.methods import Call, Registry
from millpond.daemon.rpc.server import user_name

MAX_WAITING = 1000
# A waiter is told for whom he waits at once, and then this often.
TELL_S = 1.0


@dataclass(slots=True)
class _Waiter:
    owner: int
    write: bool
    who: str
    since: float
    granted: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class _Lock:
    holders: list[_Waiter] = field(default_factory=list)
    queue: deque[_Waiter] = field(default_factory=deque)

    def grant(self) -> None:
        """Let in those at the head of the queue who may come in now."""
        while self.queue:
            head = self.queue[0]
            if self.holders and (head.write or self.holders[0].write):
                return
            self.queue.popleft()
            self.holders.append(head)
            head.granted.set()


class LockTable:
    """All projects' locks."""

    def __init__(self) -> None:
        self._locks: dict[str, _Lock] = {}

    async def acquire(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{project, mode: read|write, timeout: seconds|null} -> {} once it is held. Raises LockTimeoutError."""
        project, mode, timeout = str(params["project"]), params.get("mode"), params.get("timeout")
        if mode not in ("read", "write"):
            raise ProtocolError("a lock's mode is read or write")
        verb = call.connection.parent.method if call.connection.parent else call.method
        who = f"{verb} by {user_name(call.uid)} (pid {self._pid(call)})"
        lock = self._locks.setdefault(project, _Lock())
        if len(lock.queue) >= MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} requests wait for this project already")
        waiter = _Waiter(call.connection.id, mode == "write", who, time.monotonic())
        call.connection.on_close(lambda: self._release(project, waiter.owner))
        lock.queue.append(waiter)
        lock.grant()
        try:
            with trio.fail_after(float(timeout) if timeout is not None else float("inf")):
                await self._wait(call, lock, waiter)
        except trio.TooSlowError:
            blocker = _blockers(lock)
            raise LockTimeoutError(
                f"the project is still locked by {blocker} after {timeout} s", path=project, hint="try again later"
            ) from None
        finally:
            if not waiter.granted.is_set():
                lock.queue.remove(waiter)
                lock.grant()
        return {}

    async def release(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{project} -> {}."""
        self._release(str(params["project"]), call.connection.id)
        return {}

    async def _wait(self, call: Call, lock: _Lock, waiter: _Waiter) -> None:
        while not waiter.granted.is_set():
            call.waiting(_blockers(lock), time.monotonic() - waiter.since)
            with trio.move_on_after(TELL_S):
                await waiter.granted.wait()

    def _release(self, project: str, owner: int) -> None:
        lock = self._locks.get(project)
        if lock is None:
            return
        lock.holders = [holder for holder in lock.holders if holder.owner != owner]
        lock.grant()
        if not lock.holders and not lock.queue:
            del self._locks[project]

    @staticmethod
    def _pid(call: Call) -> int:
        return call.connection.parent.pid if call.connection.parent else call.pid


def _blockers(lock: _Lock) -> str:
    if not lock.holders:
        return "the queue"
    more = f" and {len(lock.holders) - 1} more" if len(lock.holders) > 1 else ""
    return lock.holders[0].who + more


def register(registry: Registry) -> None:
    """Add the locks' methods."""
    table = LockTable()
    registry.register("lock.acquire", table.acquire, who="worker")
    registry.register("lock.release", table.release, who="worker")
