"""A remote that takes connections and says nothing: who waits is told, and after a while it is not asked again.

Any answer counts, also one that refuses, and any way in which a connection is lost: the other side is there. So a remote that is slow is never
given up for that, as long as it sends something.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from millpond.daemon.errors import RemoteError

# Who waits is told after so long, and so often.
TOLD_S, _AGAIN_S = 3.0, 5.0
# A request that had no answer is not tried again when a remote that never answered was asked so long ago; and when one that did has said
# nothing for so long. A request itself takes 20 s to fail where nothing comes.
FIRST_S, LATER_S = 15.0, 45.0
# For whom somebody waits, and how long already, in seconds.
Tell = Callable[[str, float], None]


class Silence:
    """Of one remote; from any number of threads, but for `tell`."""

    def __init__(self, name: str, tell: Tell | None) -> None:
        self._name = name
        self._tell = tell
        self._lock = threading.Lock()
        # Requests under way; when something came last, or the first of them was begun.
        self._asked = 0
        self._since = 0.0
        self._has_answered = False
        self._told = 0.0

    @property
    def is_told(self) -> bool:
        """Whether somebody wants to be told."""
        return self._tell is not None

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Around a request."""
        with self._lock:
            self._asked += 1
            if self._asked == 1 and (self._has_answered or not self._since):
                self._since = time.monotonic()
        try:
            yield
        except RemoteError as error:
            self._end(heard=not error.details.get("silent"))
            raise
        except BaseException:
            self._end(heard=True)
            raise
        self._end(heard=True)

    def _end(self, *, heard: bool) -> None:
        with self._lock:
            self._asked -= 1
            if heard:
                self._since, self._has_answered = time.monotonic(), True

    def is_too_long(self, error: RemoteError) -> bool:
        """Whether a request that ended so is not to be tried again, because nothing comes of the remote."""
        with self._lock:
            silent_s = time.monotonic() - self._since
            return bool(error.details.get("silent")) and silent_s >= (LATER_S if self._has_answered else FIRST_S)

    def tell(self) -> None:
        """Tell who waits, if it is time to. Raises what telling raises."""
        now = time.monotonic()
        with self._lock:
            silent_s = now - self._since if self._asked else 0.0
            due = silent_s >= TOLD_S and now - self._told >= _AGAIN_S
            if due:
                self._told = now
        if due and self._tell is not None:
            self._tell(f"remote '{self._name}' to answer", silent_s)
