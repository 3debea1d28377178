"""Asking several remotes one after the other, without waiting for one that is silent: the next one is asked beside it.

A remote that takes connections and never answers fails after 20 s only; who waits is told for whom, and others may have answered by then.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from millpond.daemon.remote.transfer import Transfer

# A remote of which nothing came for so long is silent, and so often it is said.
SILENT_S, _TELL_S = 3.0, 5.0
# How often that is looked at; and who has something to do meanwhile.
_TICK_S, _BUSY_TICK_S = 0.25, 0.03
# For whom somebody waits, and how long already, in seconds.
Tell = Callable[[str, float], None]


@dataclass(slots=True)
class _Asked:
    transfer: Transfer
    answer: Future[bool]
    requests: int
    heard: float
    told: float = 0.0

    def silent_s(self, now: float) -> float:
        """For how long nothing has come."""
        if self.transfer.requests != self.requests:
            self.requests, self.heard = self.transfer.requests, now
        return now - self.heard

    def tell(self, now: float, tell: Tell) -> None:
        silent = self.silent_s(now)
        if silent >= SILENT_S and now - self.told >= _TELL_S:
            self.told = now
            tell(f"remote '{self.transfer.backend.name}', which does not answer", silent)


def in_turn(
    transfers: Iterable[Transfer],
    ask: Callable[[Transfer], bool],
    tell: Tell,
    *,
    give_up: bool = False,
    meanwhile: Callable[[], None] | None = None,
) -> list[Transfer]:
    """Call `ask`, in threads, with one remote after the other until one call says that no further one is needed; the next one also while
    all before it are silent. Those that had not answered by then, nor for as long as all were silent with `give_up`: what they say
    does not count any more. `meanwhile` is called again and again until then. Raises what `ask`, `tell` and `meanwhile` raise."""
    waiting = deque(transfers)
    asked: list[_Asked] = []
    while waiting or asked:
        now = time.monotonic()
        silent = all(each.silent_s(now) >= SILENT_S for each in asked)
        if silent and waiting:
            asked.append(_begin(waiting.popleft(), ask))
        elif silent and give_up:
            break
        tick_s = _TICK_S if meanwhile is None else _BUSY_TICK_S
        done, _ = wait([each.answer for each in asked], timeout=tick_s, return_when=FIRST_COMPLETED)
        for answer in done:
            asked = [each for each in asked if each.answer is not answer]
            if answer.result():
                return [each.transfer for each in asked]
        for each in asked:
            each.tell(time.monotonic(), tell)
        if meanwhile is not None:
            meanwhile()
    return [each.transfer for each in asked]


def _begin(transfer: Transfer, ask: Callable[[Transfer], bool]) -> _Asked:
    answer = Future[bool]()

    def work() -> None:
        try:
            answer.set_result(ask(transfer))
        except BaseException as error:  # for who waits
            answer.set_exception(error)

    threading.Thread(target=work, name="asking", daemon=True).start()
    return _Asked(transfer, answer, transfer.requests, time.monotonic())
