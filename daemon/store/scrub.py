"""Scrubbing: all segments read again, slowly, while nobody wants anything, so that damage is found while a good copy is still
elsewhere.

A pass goes over the segments in order; what it has done is noted in the index after each, so it goes on where it was, in another
daemon too. A record that is damaged is read once more by the ordinary way, which puts it into quarantine (adding the
same bytes heals it) and names it in the log; then the files that it hurts are looked up, from the index alone.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.store.gc import rows
from millpond.daemon.store.index import Content
from millpond.daemon.store.records import Kind, Record, unpack_location
from millpond.daemon.store.scrubstate import STATE, ScrubState, state_of
from millpond.daemon.store.segments import mapped, scan_segment, segment_numbers, segment_path

if TYPE_CHECKING:
    from millpond.daemon.store.store import Store

log = logging.getLogger("millpond.store")

# A pass begins this long after the one before has ended.
EVERY_S = 7 * 86_400.0
# Hurt files and damaged records that are listed.
_MAX_LISTED = 100


class Scrub:
    """One store's. `pace` is told of bytes before they are read: it may wait, and raises to stop."""

    def __init__(self, store: Store, pace: Callable[[int], None], clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._index = store.reader.index
        self._folder = store.path / "segments"
        self._pace = pace
        self._clock = clock

    def is_due(self) -> bool:
        """Whether a pass is under way, or should begin. A clock that was put back does not put it off."""
        state = state_of(self._index)
        return bool(state.began) or not 0 <= self._clock() - state.passed < EVERY_S

    def run(self) -> ScrubState:
        """Go on with a pass to its end. Raises what `pace` raises; what was read up to then is not read again."""
        state = state_of(self._index)
        if not state.began:
            state = ScrubState(self._clock(), passed=state.passed, passed_damaged=state.passed_damaged)
        self._missing(state)
        while (number := self._next(state.segment)) is not None:
            self._segment(state, number)
            state.segment = number
            self._note(state)
        done = ScrubState(passed=self._clock(), passed_damaged=state.damaged, hurt=state.hurt)
        self._note(done)
        log.info("all segments were read: %d damaged records", state.damaged)
        return done

    def _next(self, after: int) -> int | None:
        with self._index.begin() as txn:
            last = self._index.committed(txn)[0]
        return next((number for number in segment_numbers(self._folder) if after < number <= last), None)

    def _segment(self, state: ScrubState, number: int) -> None:
        path = segment_path(self._folder, number)
        with self._index.begin() as txn:
            last, end = self._index.committed(txn)
        try:
            size = path.stat().st_size
            bad: list[tuple[int, int]] = []
            with mapped(path, min(size, end) if number == last else size, self._pace) as view:
                for item in scan_segment(view, number, self._store.reader.key):
                    if not isinstance(item[0], Record):
                        bad.append((int(item[0]), int(str(item[1]))))
        except FileNotFoundError:  # rewritten meanwhile
            return
        state.bytes += size
        if bad:
            self._damaged(state, number, lambda offset: any(begin <= offset < end for begin, end in bad))

    def _missing(self, state: ScrubState) -> None:
        """Segments that the index counts on and that are not there."""
        there = set(segment_numbers(self._folder))
        needed = {unpack_location(value).segment for _, value in rows(self._index, self._index.records)}
        for number in sorted(needed - there):
            if number > state.segment:
                self._damaged(state, number, lambda offset: True)

    def _damaged(self, state: ScrubState, number: int, within: Callable[[int], bool]) -> None:
        """Read what the index has in a part of a segment that is not sound, and take note of what cannot be read."""
        found = []
        for key, value in rows(self._index, self._index.records):
            at = unpack_location(value)
            if at.segment != number or not within(at.offset):
                continue
            try:
                if at.kind == Kind.CHUNK:
                    self._store.reader.read_chunk(key)
                else:
                    self._store.reader.layout(Content(at.kind, key, 0))
            except StoreDamagedError:
                found.append(key)
        if found:
            state.damaged += len(found)
            hurt = [*state.hurt, *self._store.hurt_by(found)]
            state.hurt = list(dict.fromkeys(hurt))[:_MAX_LISTED]

    def _note(self, state: ScrubState) -> None:
        note(self._store, state)


def note(store: Store, state: ScrubState) -> None:
    """Remember where a pass is. Raises as `Store.write`."""

    def work(txn: Any) -> None:
        txn.put(STATE, json.dumps(asdict(state)).encode(), db=store.reader.index.meta)

    store.write(work)
