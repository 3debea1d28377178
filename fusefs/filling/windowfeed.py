"""What the holder tells the fillers of an image: which windows to bring, each to one of them; never waiting, and no more than they can be at."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from millpond.fusefs.filling import messages
from millpond.fusefs.filling.starting import Forked

# Windows that one filler has before it.
MOST_WAITING = 64


class WindowFeed:
    """For one thread. `kept` are the fillers that there are; it may change."""

    def __init__(self, kept: Sequence[Forked]) -> None:
        self._kept = kept

    @property
    def is_there(self) -> bool:
        """Whether there is a filler, who may have no room just now."""
        return any(each.pid for each in self._kept)

    def wake(self) -> None:
        """Something is read: have them open what they need."""
        for each in self._kept:
            _send(each, messages.AWAKE)

    def tell(self, blocks: range) -> bool:
        """Have a window brought by who has least before him; whether somebody will."""
        chosen = min((each for each in self._kept if each.pid), key=_waiting, default=None)
        if chosen is None or _waiting(chosen) >= MOST_WAITING or not _send(chosen, messages.window(blocks)):
            return False
        chosen.told += 1
        return True

    def again(self, forked: Forked) -> None:
        """There is another one in the place of one that was killed, with what that had begun."""
        forked.told = forked.tally.done


def _waiting(forked: Forked) -> int:
    return forked.told - forked.tally.done


def _send(forked: Forked, message: bytes) -> bool:
    try:
        forked.sock.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:  # there is no room, or nobody
        return False
    return True
