"""Per-project locks, held in the daemon: first come, first served, and who waits is told for whom.

Readers share, a writer is alone. The queue is strict: a reader behind a waiting writer waits too, so nobody starves. A
lock ends with the connection that took it. Who holds a lock may take it again, in the same mode or for reading; it is
free when it was released as often.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import trio

from millpond.daemon import wirepath
from millpond.daemon.errors import BusyError, LockTimeoutError, ProtocolError
from millpond.daemon.rpc.methods import Call, Registry
from millpond.daemon.rpc.server import user_name

MAX_WAITING = 1000
# Locks of one connection: a worker needs one or two.
MAX_HELD = 64
# A waiter is told for whom he waits at once, and then this often.
TELL_S = 1.0


@dataclass(slots=True, eq=False)
class Claim:
    """One connection's hold of a lock, or its place in the queue; `depth` counts how often it was taken."""

    owner: int
    write: bool
    who: str
    since: float
    depth: int = 1
    granted: trio.Event = field(default_factory=trio.Event)

    def describe(self) -> str:
        return f"{self.who}, {time.monotonic() - self.since:.0f} s"


@dataclass(slots=True)
class ProjectLock:
    """One project's holders and queue. Invariant after `grant`: the head of the queue conflicts with a holder."""

    holders: list[Claim] = field(default_factory=list)
    queue: deque[Claim] = field(default_factory=deque)

    def grant(self) -> None:
        """Let in those at the head of the queue who may come in now."""
        while self.queue:
            head = self.queue[0]
            if self.holders and (head.write or self.holders[0].write):
                return
            self.queue.popleft()
            self.holders.append(head)
            head.since = time.monotonic()
            head.granted.set()

    def held_by(self, owner: int) -> Claim | None:
        return next((claim for claim in self.holders if claim.owner == owner), None)

    def blocker(self) -> str:
        """Who is in the way of the queue's head, as a person reads it."""
        if not self.holders:
            return "the queue"
        more = f" and {len(self.holders) - 1} more" if len(self.holders) > 1 else ""
        return self.holders[0].describe() + more


class LockTable:
    """All projects' locks."""

    def __init__(self) -> None:
        self._locks: dict[str, ProjectLock] = {}
        # Projects of each connection that ever asked; gone with it.
        self._owners: dict[int, set[str]] = {}

    async def acquire(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{project: path, mode: read|write, timeout: seconds|null} -> {} once it is held. Raises LockTimeoutError."""
        project, write, timeout = _parameters(params)
        owner = call.connection.id
        lock = self._locks.setdefault(project, ProjectLock())
        held = lock.held_by(owner)
        if held is not None:
            if write and not held.write:
                raise ProtocolError("a lock that is held for reading cannot be taken for writing")
            held.depth += 1
            return {}
        if len(lock.queue) >= MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} requests wait for this project already")
        self._remember(call, project)
        who = f"{call.origin.method} by {user_name(call.uid)} (pid {call.origin.pid})"
        claim = Claim(owner, write, who, time.monotonic())
        lock.queue.append(claim)
        lock.grant()
        try:
            with trio.fail_after(timeout):
                await _wait(call, lock, claim)
        except trio.TooSlowError:
            blocker = lock.blocker()
            self._withdraw(project, lock, claim)
            raise LockTimeoutError(
                f"'{wirepath.decode(project)}' is still locked after {timeout:g} s: {blocker}",
                path=wirepath.decode(project),
                hint="try again later, or wait with --wait-for-lock",
            ) from None
        except BaseException:
            self._withdraw(project, lock, claim)
            raise
        return {}

    async def release(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{project} -> {}. Raises ProtocolError when it is not held."""
        project = str(params["project"])
        lock = self._locks.get(project)
        claim = lock.held_by(call.connection.id) if lock else None
        if lock is None or claim is None:
            raise ProtocolError(f"'{wirepath.decode(project)}' is not locked by this worker")
        claim.depth -= 1
        if claim.depth == 0:
            self._withdraw(project, lock, claim)
        return {}

    def state(self) -> list[dict[str, Any]]:
        """Who holds and who waits, for `daemon.status`."""
        return [
            {
                "project": project,
                "mode": "write" if lock.holders and lock.holders[0].write else "read",
                "held_by": [claim.describe() for claim in lock.holders],
                "waiting": [claim.describe() for claim in lock.queue],
            }
            for project, lock in self._locks.items()
        ]

    def _remember(self, call: Call, project: str) -> None:
        owner = call.connection.id
        if owner not in self._owners:
            self._owners[owner] = set()
            call.connection.on_close(lambda: self._drop(owner))
        if len(self._owners[owner]) >= MAX_HELD and project not in self._owners[owner]:
            raise BusyError(f"a worker holds {MAX_HELD} locks already")
        self._owners[owner].add(project)

    def _drop(self, owner: int) -> None:
        """The connection is gone, and with it what it holds."""
        for project in self._owners.pop(owner):
            lock = self._locks.get(project)
            claim = lock.held_by(owner) if lock else None
            if lock is not None and claim is not None:
                self._withdraw(project, lock, claim)

    def _withdraw(self, project: str, lock: ProjectLock, claim: Claim) -> None:
        """Take a claim out of the lock, wherever it is by now."""
        if claim in lock.holders:
            lock.holders.remove(claim)
        elif claim in lock.queue:
            lock.queue.remove(claim)
        lock.grant()
        if not lock.holders and not lock.queue and self._locks.get(project) is lock:
            del self._locks[project]


async def _wait(call: Call, lock: ProjectLock, claim: Claim) -> None:
    since = time.monotonic()
    while not claim.granted.is_set():
        call.waiting(lock.blocker(), time.monotonic() - since)
        with trio.move_on_after(TELL_S):
            await claim.granted.wait()


def _parameters(params: dict[str, Any]) -> tuple[str, bool, float]:
    project, mode, timeout = str(params["project"]), params.get("mode"), params.get("timeout")
    if mode not in ("read", "write"):
        raise ProtocolError("a lock's mode is read or write")
    if timeout is None:
        return project, mode == "write", math.inf
    if not isinstance(timeout, int | float) or not timeout >= 0:
        raise ProtocolError("a lock's timeout is a number of seconds, or null")
    return project, mode == "write", float(timeout)


def register(registry: Registry) -> LockTable:
    """Add the locks' methods."""
    table = LockTable()
    registry.register("lock.acquire", table.acquire, who="worker")
    registry.register("lock.release", table.release, who="worker")
    return table
