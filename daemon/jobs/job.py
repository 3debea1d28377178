"""A job that has not ended, as the daemon has it in memory, and what the requests of its own connections belong to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from millpond.daemon.jobs.record import JobRecord
from millpond.daemon.rpc.methods import Call

if TYPE_CHECKING:
    from millpond.daemon.rpc.connection import Connection


@dataclass(slots=True, eq=False)
class Job:
    """A job that has not ended. `cancelled` says who asked for its end; `progress` is what its verb told last."""

    record: JobRecord
    cancelled: str | None = None
    progress: dict[str, Any] | None = None
    returns: int = 0
    joined: int = 0
    changed: trio.Event = field(default_factory=trio.Event)

    def tell(self) -> None:
        """Have those who wait look at it again."""
        self.changed.set()
        self.changed = trio.Event()

    def left(self) -> None:
        """One of its connections has ended."""
        self.joined -= 1
        self.progress = None


class JobCall(Call):
    """What the requests of a job's own connection belong to: their progress is the job's; whom they wait for it is told, too."""

    def __init__(self, job: Job, connection: Connection, pid: int) -> None:
        number = job.record.number
        super().__init__(connection, number, f"job {number}", job.record.uid, pid, f"job-{number}", [])
        self._job = job

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """See Call.notify."""
        self.tell(method, params)

    def tell(self, method: str, params: dict[str, Any]) -> None:
        """See Call.tell."""
        if method != "$/log":
            self._job.progress = params
        if method == "$/waiting":
            super().tell(method, params)
