"""Calls to a remote: many at once, in order, tried again, in bounded memory.

What a remote fails to do is tried again a few times, with growing pauses of random length; what it refuses (no permission, no such
object) is not. Results come in the order in which they were asked for.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from millpond.daemon.errors import CancelledError, RemoteError
from millpond.daemon.objects import Data
from millpond.daemon.remote.backend import Got
from millpond.daemon.remote.pace import Budget, Pace
from millpond.daemon.remote.silence import Silence

T = TypeVar("T")
# Bytes asked for at once, and so held for each request under way; whole blocks of partial.py.
RANGE_BYTES = 2 << 20
# Requests under way, unless the remote's `jobs` says less: with RANGE_BYTES each, 96 MiB.
MOST = 48
# What is paid for at once under a rate.
_PAID_BYTES = 256 << 10
_TRIES = 4
_PAUSE_S = 0.3
# Time for all tries of one request.
DEADLINE_S = 120.0
# How often who waits looks whether the remote is silent.
_TICK_S = 0.5


class Flow:
    """Threads for one remote's calls, and how many of them may be under way. `requests` were answered and brought or
    took `moved` bytes; `stop` is set when nobody waits any more."""

    def __init__(self, jobs: int | None, budget: Budget | None, patience_s: float, silence: Silence) -> None:
        self.pace = Pace(min(jobs or MOST, MOST), least=min(jobs or 2, 2))
        # A page of a listing is small, and who lists waits for the last one: all at once, unless the remote asks for less.
        self.listing = Pace(self.pace.most, least=min(jobs or 2, 2), first=self.pace.most)
        self.stop = threading.Event()
        self.requests = 0
        self.moved = 0
        self._pool = ThreadPoolExecutor(self.pace.most, thread_name_prefix="transfer")
        self._budget = budget
        self._patience_s = patience_s
        self._silence = silence
        self._lock = threading.Lock()

    def close(self) -> None:
        """Nobody waits for anything any more."""
        self.stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def in_order(self, work: Iterable[Callable[[], T]], most: int = MOST, *, pace: Pace | None = None) -> Iterator[T]:
        """Run calls, as many at once as the pace (of transfers, or a given one) allows; results in order. What is begun and not asked
        for ends with the pool."""
        pace = pace or self.pace
        flying: deque[Future[T]] = deque()
        source = iter(work)
        more = True
        while more or flying:
            while more and len(flying) < min(pace.limit, most):
                call = next(source, None)
                if call is None:
                    more = False
                else:
                    flying.append(self.submit(call))
            if flying:
                result = self.wait(flying.popleft())
                self.count(*_moved(result), pace=pace)
                yield result

    def submit(self, call: Callable[[], T], tries: int = _TRIES) -> Future[T]:
        """Run a call in a thread."""
        return self._pool.submit(lambda: self.attempt(call, tries, patience_s=self._patience_s))

    def wait(self, task: Future[T]) -> T:
        """What a call gave that was submitted; who waits is told where the remote is silent. Raises what the call raised."""
        while self._silence.is_told and not task.done():
            wait([task], timeout=_TICK_S)
            self._silence.tell()
        return task.result()

    def look(self) -> None:
        """Tell who waits otherwise than by `wait`, where the remote is silent."""
        self._silence.tell()

    def count(self, requests: int, size: int, *, pause: bool = True, pace: Pace | None = None) -> None:
        """`took` for the pace, too; in one thread. Unless told not to, it waits until what was moved is paid for."""
        self.took(requests, size)
        (pace or self.pace).done(size)
        if pause:
            self.pause(size)

    def took(self, requests: int, size: int) -> None:
        """So many requests moved `size` bytes; from any thread."""
        with self._lock:
            self.requests += requests
            self.moved += size

    def pause(self, size: int) -> None:
        """Wait until `size` bytes are paid for."""
        if self._budget is not None and (wait := self._budget.wait_s(size)):
            self.stop.wait(wait)

    def paid(self, pieces: Iterable[Data]) -> Iterable[Data]:
        """The same bytes, each when it is paid for; a piece is valid until the next one is asked for."""
        return pieces if self._budget is None else self._paying(pieces)

    def _paying(self, pieces: Iterable[Data]) -> Iterator[Data]:
        for piece in pieces:
            with memoryview(piece) as whole:
                for start in range(0, len(whole) or 1, _PAID_BYTES):
                    with whole[start : start + _PAID_BYTES] as part:
                        self.pause(len(part))
                        yield part

    def attempt(self, call: Callable[[], T], tries: int = _TRIES, *, patience_s: float = DEADLINE_S) -> T:
        """A call, tried again. Raises what it raised last, CancelledError."""
        deadline = time.monotonic() + patience_s
        for number in range(1, tries + 1):
            if self.stop.is_set():
                raise CancelledError("the transfer was cancelled")
            try:
                with self._silence.asked():
                    return call()
            except RemoteError as error:
                pause = _PAUSE_S * 2**number * random.uniform(0.5, 1.0)
                final = error.details.get("again") is False or self._silence.is_too_long(error)
                if number == tries or time.monotonic() + pause > deadline or final:
                    raise
                self.pace.refused()
                self.listing.refused()
                self.stop.wait(pause)
        raise AssertionError


def _moved(result: object) -> tuple[int, int]:
    """Requests and bytes that a call's result stands for."""
    if isinstance(result, Got):
        return 1, len(result.data)
    if isinstance(result, list) and any(isinstance(each, Got) for each in result):
        return len(result), sum(len(each.data) for each in result if isinstance(each, Got))
    return 1, 0
