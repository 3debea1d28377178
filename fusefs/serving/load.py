"""How many processes a mount needs: seen each second, decided by what the last ones were like."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass

# Processes of one mount at most, when nobody says how many.
MOST_BY_LOAD = 8
# Of the holder's time, and of its requests: above both it has no pause.
_BUSY, _BEHIND = 0.85, 0.5
# Requests below which their share tells nothing.
_FEW = 20
# Seconds for which there must be too much, or too little, to do.
_MORE_S, _FEWER_S = 2.0, 10.0
# How much of a core must be free for one more process, and what part of the work one fewer could have to do.
_FREE, _HALF = 0.7, 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    """A mount's last second: the part of it in which the holder's loop was busy; the part of its requests that were there before it was
    back for them (None: too few to say); the processor time of all its processes, and that of which nobody made use, in cores."""

    seconds: float
    busy: float
    behind: float | None
    used: float
    free: float


class Load:
    """Decides. `most` processes at most."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._too_much_s = self._too_little_s = 0.0

    def wanted(self, processes: int, sample: Sample) -> int:
        """How many of them there should be from now on: one more, one fewer, or as many."""
        behind = sample.behind is None or sample.behind >= _BEHIND
        full = sample.busy >= _BUSY and behind and sample.free >= _FREE
        self._too_much_s = self._too_much_s + sample.seconds if full else 0.0
        slack = processes > 1 and sample.used <= _HALF * (processes - 1)
        self._too_little_s = self._too_little_s + sample.seconds if slack else 0.0
        if processes < self._most and self._too_much_s >= _MORE_S:
            self._too_much_s = self._too_little_s = 0.0
            return processes + 1
        if self._too_little_s >= _FEWER_S:
            self._too_much_s = self._too_little_s = 0.0
            return processes - 1
        return processes


class Meter:
    """Takes samples. For the thread of the holder's loop."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._thread_s = time.thread_time()
        self._own_s = time.process_time()
        self._free_s = free_seconds()
        self._others_s = 0.0

    def sample(self, asked: int, there: int, others_s: float) -> Sample:
        """Since the last one, in which the loop asked `asked` times for a request and `there` times found one waiting; the other
        processes have used `others_s` seconds of processor time since they began."""
        now, thread_s, own_s, free_s = time.monotonic(), time.thread_time(), time.process_time(), free_seconds()
        seconds = max(now - self._at, 1e-3)
        found = Sample(
            seconds,
            (thread_s - self._thread_s) / seconds,
            there / asked if asked >= _FEW else None,
            (own_s - self._own_s + max(0.0, others_s - self._others_s)) / seconds,
            (free_s - self._free_s) / seconds,
        )
        self._at, self._thread_s, self._own_s, self._free_s, self._others_s = now, thread_s, own_s, free_s, others_s
        return found


def cores() -> float:
    """Processors that this process may use: its affinity, and its cgroups' quotas."""
    return min([float(len(os.sched_getaffinity(0))), *_quotas()])


def most_by_load() -> int:
    """Processes for one mount at most, when nobody says how many: the others are the readers'."""
    return max(1, min(MOST_BY_LOAD, int(cores() / 2)))


def free_seconds() -> float:
    """Seconds for which the processors that this process may use had nothing to do, in all, since boot; 0 where that is not told, so
    that none is ever taken to be free."""
    ours = os.sched_getaffinity(0)
    ticks = 0
    with contextlib.suppress(OSError), open("/proc/stat") as file:
        for line in file:
            found = re.match(r"cpu(\d+) (.*)", line)
            if found is not None and int(found[1]) in ours:
                fields = found[2].split()
                ticks += int(fields[3]) + int(fields[4])  # idle, iowait
    return ticks / os.sysconf("SC_CLK_TCK")


def _quotas() -> list[float]:
    """What cpu.max says of the cgroup of this process and of those above it."""
    found = []
    try:
        with open("/proc/self/cgroup") as file:
            path = next((line.rstrip("\n")[3:] for line in file if line.startswith("0::")), "/")
        parts = path.strip("/").split("/") if path != "/" else []
        for depth in range(len(parts) + 1):
            name = "/".join(["/sys/fs/cgroup", *parts[:depth], "cpu.max"])
            if os.path.exists(name):
                with open(name) as file:
                    quota, period = file.read().split()
                if quota != "max":
                    found.append(int(quota) / int(period))
    except (OSError, ValueError):
        pass  # no cgroups of the second version: there is no quota that we know of
    return found
