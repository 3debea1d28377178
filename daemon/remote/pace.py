"""How many requests are under way at once: as many as still bring more.

Throughput is measured over windows of completed requests. While it grows the number grows too; when it falls back, or the
remote says that it is too much, the number does. A request counts as its bytes and what its own cost would have brought, so that
ten thousand empty files are work as well.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from millpond.daemon.errors import UsageError

# A bound for what is moved, in bytes a second, for those who share a line.
RATE_SETTING = "MILLPOND_RATE"

# What a request costs beside its bytes, expressed in bytes.
REQUEST_BYTES = 32 << 10
_WINDOW_S = 0.4
# By how much it grows, at first and when it fell once; a rate below so much of the best one makes it fall.
_GROWTH, _LATER_GROWTH, _DECAY = 1.5, 1.3, 0.7


class Pace:
    """`done` is for one thread; `refused` may be called from any. `limit` is how many may be under way now, between `least` and `most`."""

    def __init__(self, most: int, *, least: int = 2, first: int = 8) -> None:
        self.most = max(most, 1)
        self._least = min(least, self.most)
        self.limit = min(max(first, self._least), self.most)
        self._began = 0.0
        self._done = 0
        self._cost = 0
        self._best = 0.0
        self._growth = _GROWTH

    def done(self, size: int, now: float | None = None) -> None:
        """A request brought `size` bytes."""
        now = time.monotonic() if now is None else now
        if not self._done:
            self._began = self._began or now
        self._done += 1
        self._cost += size + REQUEST_BYTES
        if self._done >= self.limit and now - self._began >= _WINDOW_S:
            self._judge(self._cost / (now - self._began))
            self._began, self._done, self._cost = now, 0, 0

    def refused(self) -> None:
        """The remote asked for less, or failed."""
        self.limit = max(self._least, self.limit // 2)
        self._best, self._began, self._done, self._cost = 0.0, 0.0, 0, 0

    def _judge(self, rate: float) -> None:
        if rate > self._best * 1.05:
            self.limit = min(self.most, max(self.limit + 1, int(self.limit * self._growth)))
        elif rate < self._best * _DECAY:
            self.limit = max(self._least, int(self.limit * 0.75))
            # Fewer requests bring less: held against the best rate of more of them, one pause (of a sync, say) would end at the least.
            self._best, self._growth = rate, _LATER_GROWTH
            return
        # What was best long ago is not held against today's network.
        self._best = max(rate, self._best * 0.95)


def rate(environ: Mapping[str, str]) -> float | None:
    """The bound of the environment, such as `20M`: bytes a second. Raises UsageError."""
    text = environ.get(RATE_SETTING, "").strip()
    if not text:
        return None
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1].upper())
    try:
        value = float(text[:-1] if factor else text) * (factor or 1)
    except ValueError:
        value = 0.0
    if not value > 0:  # nan, too
        raise UsageError(f"{RATE_SETTING} is '{text}', which is not a number of bytes a second", hint="write it as 20M")
    return value


class Budget:
    """At most `rate` bytes a second, in the long run; a second's worth at once. Used from any thread."""

    def __init__(self, rate: float) -> None:
        self.rate = self._rate = rate
        self._lock = threading.Lock()
        self._level = rate
        self._last = time.monotonic()

    def wait_s(self, size: int) -> float:
        """Take `size` bytes; how long to sleep before going on."""
        with self._lock:
            now = time.monotonic()
            self._level = min(self._rate, self._level + (now - self._last) * self._rate) - size
            self._last = now
            return max(0.0, -self._level / self._rate)


class Turns:
    """Bounds for those who ask for one thing each, from threads of their own: `most` at once, and a budget of bytes. Who asks has his turn
    when what came before is paid for, so he has what he asked for as soon as it is there."""

    def __init__(self, most: int | None, budget: Budget | None) -> None:
        self._budget = budget
        # Under a budget no more are let in at once than a second of it has blocks: they would all ask in the same moment.
        bounds = [each for each in (most, budget and blocks_a_second(budget.rate)) if each]
        self._slots = threading.BoundedSemaphore(min(bounds)) if bounds else None

    @contextlib.contextmanager
    def turn(self, stop: threading.Event) -> Iterator[Callable[[int], None]]:
        """Wait for a turn, or until there is no need any more; to be told how many bytes came."""
        with self._slots or contextlib.nullcontext():
            if self._budget is not None and (wait := self._budget.wait_s(0)):
                stop.wait(wait)
            yield self._took

    def _took(self, size: int) -> None:
        if self._budget is not None:
            self._budget.wait_s(size)


def blocks_a_second(rate: float) -> int:
    """How many blocks of a megabyte a rate has in a second, one at least."""
    return max(1, int(rate / (1 << 20)))
