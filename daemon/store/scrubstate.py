"""How far scrubbing is, as the index has it: for the daemon, and for holders that tell it in their mounts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from millpond.daemon.store.index import Index

# In `meta`: the state, JSON.
STATE = b"scrub"


@dataclass(slots=True)
class ScrubState:
    """Where a pass is. Times in seconds since the epoch, 0 for never; `segment` is the last one that was read; `bytes` read and
    `records` found damaged in this pass; `passed` when the last whole pass ended and `passed_damaged` what it found; `hurt` the
    files and objects that damage hurts, as far as they are listed."""

    began: float = 0.0
    segment: int = 0
    bytes: int = 0
    damaged: int = 0
    passed: float = 0.0
    passed_damaged: int = 0
    hurt: list[str] = field(default_factory=list)


def state_of(index: Index) -> ScrubState:
    """The state as the index has it."""
    with index.begin() as txn:
        raw = txn.get(STATE, db=index.meta)
    known = {} if raw is None else json.loads(bytes(raw))
    return ScrubState(**{name: known[name] for name in ScrubState.__slots__ if name in known})
