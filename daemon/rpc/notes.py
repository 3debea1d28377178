"""Notifications on their way to a client: bounded whatever he reads, and always before the answer they belong to.

Of progress and waiting only the latest is kept, sent at most every PROGRESS_S; log lines are kept in order, the oldest
dropped beyond MAX_LOGS.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio

PROGRESS_S = 0.1
MAX_LOGS = 256


class Notes:
    """The notifications of one connection. `send` is called with (method, params), one at a time."""

    def __init__(self, send: Callable[[str, dict[str, Any]], Awaitable[None]]) -> None:
        self._send = send
        self._latest: dict[tuple[Any, str], dict[str, Any]] = {}
        self._sent_at: dict[tuple[Any, str], float] = {}
        self._logs: deque[tuple[Any, dict[str, Any]]] = deque(maxlen=MAX_LOGS)
        self._wake = trio.Event()
        # Called before the first note, to have `run` run: most connections never need it.
        self.start: Callable[[], None] | None = None
        # Held while a note is taken and sent, so that `flush` returns only when what was taken before is out.
        self._sending = trio.Lock()

    def put(self, number: Any, method: str, params: dict[str, Any]) -> None:
        """Have a notification of request `number` sent when its time comes. Never blocks."""
        if method == "$/log":
            self._logs.append((number, params))
        else:
            self._latest[number, method] = params
        if self.start is not None:
            self.start()
            self.start = None
        self._wake.set()

    async def run(self) -> None:
        """Send notifications until cancelled."""
        while True:
            async with self._sending:
                found = self._take(trio.current_time())
                if found is not None:
                    await self._tell(*found)
                    continue
            with trio.move_on_at(self._next_at()):
                await self._wake.wait()
            self._wake = trio.Event()

    async def flush(self, number: Any) -> None:
        """Send what there is for a request that ends."""
        async with self._sending:
            for key in [key for key in self._latest if key[0] == number and key[1] == "$/progress"]:
                await self._tell(*key, self._latest.pop(key))
            ours = [params for owner, params in self._logs if owner == number]
            self._logs = deque([item for item in self._logs if item[0] != number], maxlen=MAX_LOGS)
            for params in ours:
                await self._tell(number, "$/log", params)
            for key in [key for key in (*self._latest, *self._sent_at) if key[0] == number]:
                self._latest.pop(key, None)
                self._sent_at.pop(key, None)

    def _take(self, now: float) -> tuple[Any, str, dict[str, Any]] | None:
        """The next note that is due."""
        if self._logs:
            number, params = self._logs.popleft()
            return number, "$/log", params
        for key in self._latest:
            if self._sent_at.get(key, -PROGRESS_S) + PROGRESS_S <= now:
                self._sent_at[key] = now
                return *key, self._latest.pop(key)
        return None

    def _next_at(self) -> float:
        return min((self._sent_at.get(key, 0.0) + PROGRESS_S for key in self._latest), default=float("inf"))

    async def _tell(self, number: Any, method: str, params: dict[str, Any]) -> None:
        await self._send(method, {**params, "id": number})
