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


def test_what_is_there_is_seen_before_anything_else_is_done(pipe: tuple[int, int]) -> None:
    idle: list[None] = []
    arrival = Arrival(pipe[0], lambda: idle.append(None))
    os.write(pipe[1], b"1")
    assert arrival.comes() and not idle


def test_when_nobody_comes_others_are_let_run_and_nothing_is_burnt(pipe: tuple[int, int]) -> None:
    idle: list[None] = []
    arrival = Arrival(pipe[0], lambda: idle.append(None))
    before = time.process_time()
    assert [arrival.comes() for _ in range(50)] == [False] * 50
    assert len(idle) == 50
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
    arrival, answered = Arrival(pipe[0], lambda: None), 0
    while answered < 2000:
        if arrival.comes():
            os.read(pipe[0], 1)
            os.write(back[1], b"!")
            answered += 1
    thread.join()
    assert not arrival.comes()
    for fd in back:
        os.close(fd)
