"""A request for pages of a file that is elsewhere, on a remote perhaps that does not answer: nobody else is to wait for it.

The kernel asks for what lies ahead, and for neighbours, without being asked: requests of many blocks, of which it has a bounded number under way for
all readers together. An error is no harm to anybody then: it asks again, for each block that somebody wants alone, and only who
wants the one that does not come waits for it. So such a request has a moment, and for a while after one that was given up, those for the same
files have none.
"""

from __future__ import annotations

import errno
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection

import trio

# The moment, and the while, in seconds; files that are remembered.
_WAIT_S, _SHORT_S, _MOST = 1.0, 15.0, 8192


class Patience:
    """For one image; `error(unique, errno)` answers a request."""

    def __init__(self, error: Callable[[int, int], None]) -> None:
        self._error = error
        # Files that did not come, and until when they are not waited for.
        self._late: OrderedDict[int, float] = OrderedDict()

    async def of(self, unique: int, inodes: Collection[int], work: Callable[[], Awaitable[None]]) -> None:
        """Have `work` answer a request, which must wait for these files, or answer it with EIO. What was begun goes on to its own deadline.
        Raises what it raises."""
        now = time.monotonic()
        if any(self._late.get(inode, 0.0) > now for inode in inodes):
            self._error(unique, errno.EIO)
            return
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up, unique, inodes)
            try:
                await work()
            except Exception as error:  # as it is, and not in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _give_up(self, unique: int, inodes: Collection[int]) -> None:
        await trio.sleep(_WAIT_S)
        until = time.monotonic() + _SHORT_S
        for inode in inodes:
            self._late[inode] = until
            self._late.move_to_end(inode)
        while len(self._late) > _MOST:
            self._late.popitem(last=False)
        self._error(unique, errno.EIO)
