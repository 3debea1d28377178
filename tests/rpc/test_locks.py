"""The locks' rules over any order of events: exclusion, strict order, and nobody waits for nobody."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.daemon.rpc.locks import Claim, ProjectLock

# True: a writer comes; False: a reader comes; a number: the claim of that place among the living ones goes.
EVENTS = st.lists(st.booleans() | st.integers(0, 20), max_size=60)


@settings(max_examples=300, deadline=None)
@given(events=EVENTS)
def test_exclusion_order_and_progress(events: list[bool | int]) -> None:
    lock = ProjectLock()
    numbers = itertools.count()
    arrived: list[Claim] = []
    for event in events:
        if isinstance(event, bool):
            claim = Claim(next(numbers), event, "somebody", 0.0)
            lock.queue.append(claim)
            arrived.append(claim)
        elif arrived:
            claim = arrived.pop(event % len(arrived))
            if claim in lock.holders:
                lock.holders.remove(claim)
            else:
                lock.queue.remove(claim)
        lock.grant()
        check(lock, arrived)


def check(lock: ProjectLock, arrived: list[Claim]) -> None:
    assert sorted(claim.owner for claim in (*lock.holders, *lock.queue)) == sorted(c.owner for c in arrived)
    assert all(claim.granted.is_set() for claim in lock.holders)
    assert not any(claim.granted.is_set() for claim in lock.queue)
    # Exclusion: a writer is alone.
    assert len(lock.holders) <= 1 or not any(claim.write for claim in lock.holders)
    # Strict order: who waits came after everybody who holds.
    if lock.holders and lock.queue:
        assert max(c.owner for c in lock.holders) < min(c.owner for c in lock.queue)
    assert [c.owner for c in lock.queue] == sorted(c.owner for c in lock.queue)
    # Progress: the head of the queue really has somebody in its way.
    if lock.queue:
        assert lock.holders
        assert lock.queue[0].write or lock.holders[0].write
