"""Waiting for the kernel's next request."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from millpond.fusefs.engines.arrival import Arrival


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


class Idle:
    """What is done between requests: counted; `behind` times there is more of it."""

    def __init__(self, behind: int = 0) -> None:
        self.calls = 0
        self.behind = behind

    def __call__(self) -> bool:
        self.calls += 1
        self.behind -= 1
        return self.behind > 0


def test_what_is_there_is_seen_before_anything_else_is_done(pipe: tuple[int, int]) -> None:
    idle = Idle()
    arrival = Arrival(pipe[0], idle)
    os.write(pipe[1], b"1")
    assert arrival.comes() and not idle.calls


def test_what_somebody_waits_for_is_done_until_another_comes_or_others_must_run(pipe: tuple[int, int]) -> None:
    idle = Idle(behind=5)
    assert not Arrival(pipe[0], idle).comes() and idle.calls == 5
    idle = Idle(behind=1000)
    assert not Arrival(pipe[0], idle).comes() and 5 < idle.calls < 100

    def then_comes() -> bool:
        os.write(pipe[1], b"1")
        return True

    assert Arrival(pipe[0], then_comes).comes()


def test_when_nobody_comes_others_are_let_run_and_nothing_is_burnt(pipe: tuple[int, int]) -> None:
    idle = Idle()
    arrival = Arrival(pipe[0], idle)
    before = time.process_time()
    assert [arrival.comes() for _ in range(50)] == [False] * 50
    assert idle.calls == 50
    # 100 ms went by; looking all the time would have cost most of them.
    assert time.process_time() - before < 0.05


def test_one_who_comes_back_soon_is_seen_every_time(pipe: tuple[int, int]) -> None:
    back: tuple[int, int] = os.pipe()

    def reader() -> None:
        for _ in range(2000):
            os.write(pipe[1], b"?")
            os.read(back[0], 1)

    thread = threading.Thread(target=reader)
    thread.start()
    arrival, answered = Arrival(pipe[0], lambda: False), 0
    while answered < 2000:
        if arrival.comes():
            os.read(pipe[0], 1)
            os.write(back[1], b"!")
            answered += 1
    thread.join()
    assert not arrival.comes()
    for fd in back:
        os.close(fd)
