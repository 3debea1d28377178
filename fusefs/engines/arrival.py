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
# Calls of `idle` in a row before other tasks run.
_IDLE_ROW = 16


class Arrival:
    """For one descriptor, `fd`; `idle` is called when there is nothing to answer, does a tenth of a millisecond's work ahead, and tells whether
    there is more of it that somebody waits for."""

    def __init__(self, fd: int, idle: Callable[[], bool]) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._idle = idle
        # With one processor, looking would keep the program from coming.
        self._longest = LOOK_S if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._look = 0.0
        self._asked = self._there = 0

    def also(self, fd: int) -> None:
        """Do not keep trio from what comes on another descriptor."""
        self._poll.register(fd, select.POLLIN)

    def not_also(self, fd: int) -> None:
        """The other descriptor is of no interest any more."""
        self._poll.unregister(fd)

    def take_counts(self) -> tuple[int, int]:
        """How often a request was asked for since this was called last, and how often one was there already."""
        found = self._asked, self._there
        self._asked = self._there = 0
        return found

    def comes(self) -> bool:
        """Whether a request is there, or comes in a moment."""
        poll = self._poll.poll
        self._asked += 1
        if found := poll(0):
            self._there += 1
            return self._is_ours(found)
        for _ in range(_IDLE_ROW):
            if not self._idle():
                break
            if found := poll(0):
                return self._is_ours(found)
        else:
            return False
        began = time.perf_counter()
        while time.perf_counter() - began < self._look:
            if found := poll(0):
                return self._is_ours(found)
        found = poll(POLL_MS)
        came = self._is_ours(found)
        self._look = self._longest if came and time.perf_counter() - began < self._longest else 0.0
        return came

    def _is_ours(self, found: list[tuple[int, int]]) -> bool:
        return any(fd == self._fd for fd, _ in found)
