"""Waiting for the kernel's next request: a moment in a loop, a longer one in poll.

A thread that sleeps in poll is woken by its processor being fetched out of its halt, which costs more than most answers do:
on a virtual machine 20 to 40 us, twice for each small file that is read. A program that reads one file after the other comes
back sooner than that. So after a short wait the next one is spent looking again and again, as the kernel's own halt polling
does it; after a long one, not: who comes seldom, or is kept busy by his own work, costs no processor time.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

# The longest wait that is spent looking, and how long to sleep in poll behind it, before trio's other tasks are let run.
LOOK_S = 150e-6
POLL_MS = 2


class Arrival:
    """For one descriptor; `idle` is called when there is nothing to answer, and does microseconds of work ahead."""

    def __init__(self, fd: int, idle: Callable[[], None]) -> None:
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._idle = idle
        # With one processor, looking would keep the program from coming.
        self._longest = LOOK_S if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._look = 0.0

    def comes(self) -> bool:
        """Whether a request is there, or comes in a moment."""
        poll = self._poll.poll
        if poll(0):
            return True
        self._idle()
        began = time.perf_counter()
        while time.perf_counter() - began < self._look:
            if poll(0):
                return True
        came = bool(poll(POLL_MS))
        self._look = self._longest if came and time.perf_counter() - began < self._longest else 0.0
        return came
