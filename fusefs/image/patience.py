"""A request for several files of which one is elsewhere, on a remote perhaps that does not answer: who asked for one of them is not to wait for it.

The kernel asks for neighbours without being asked. An error is no harm to anybody then: it asks again, for each page that somebody wants alone,
and only who wants the one that does not come waits for it. So such a request has a moment, and for a while after one that was
given up, none.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Awaitable, Callable

import trio

# The moment, and the while, in seconds.
_WAIT_S, _SHORT_S = 1.0, 15.0


class Patience:
    """For one image; `error(unique, errno)` answers a request."""

    def __init__(self, error: Callable[[int, int], None]) -> None:
        self._error = error
        self._short_until = 0.0

    async def of(self, unique: int, work: Callable[[], Awaitable[None]]) -> None:
        """Have `work` answer a request, or answer it with EIO. What was begun goes on to its own deadline. Raises what it raises."""
        if time.monotonic() < self._short_until:
            self._error(unique, errno.EIO)
            return
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up, unique)
            try:
                await work()
            except Exception as error:  # as it is, and not in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _give_up(self, unique: int) -> None:
        await trio.sleep(_WAIT_S)
        self._short_until = time.monotonic() + _SHORT_S
        self._error(unique, errno.EIO)
