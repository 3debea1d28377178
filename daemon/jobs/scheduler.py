"""Which of the waiting jobs get a place. The daemon asks whenever a job came or ended, and starts what it is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from millpond.daemon.jobs.record import JobRecord


class Scheduler(Protocol):
    """Chooses by the records alone, `resources` among them; it keeps no state, so that it may be asked at any time."""

    def choose(self, waiting: Sequence[JobRecord], placed: Sequence[JobRecord]) -> list[JobRecord]:
        """Those of `waiting` (oldest first) to start now, beside those of `placed`."""


class AtOnce:
    """First come, first served, and of each user at most so many at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def choose(self, waiting: Sequence[JobRecord], placed: Sequence[JobRecord]) -> list[JobRecord]:
        """See Scheduler."""
        taken = Counter(job.uid for job in placed)
        found = []
        for job in waiting:
            if taken[job.uid] < self._limit:
                taken[job.uid] += 1
                found.append(job)
        return found
