"""What may become of a job: states and events as data. An event that a state does not know is a mistake of ours."""

from __future__ import annotations

from typing import Literal

State = Literal["queued", "starting", "running", "succeeded", "failed", "cancelled", "lost"]
# chosen: the scheduler gave it a place. begun: its shim has written so. returned: nothing of it had begun, so it waits again.
Event = Literal["chosen", "begun", "returned", "succeeded", "failed", "cancelled", "lost"]

_OUTCOMES: dict[Event, State] = {
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "cancelled",
    "lost": "lost",
}
TRANSITIONS: dict[State, dict[Event, State]] = {
    "queued": {"chosen": "starting", "cancelled": "cancelled"},
    # A daemon that was away may find the outcome of a job whose beginning it never saw.
    "starting": {"begun": "running", "returned": "queued", **_OUTCOMES},
    "running": dict(_OUTCOMES),
    "succeeded": {},
    "failed": {},
    "cancelled": {},
    "lost": {},
}
ENDED: frozenset[State] = frozenset(state for state, events in TRANSITIONS.items() if not events)
ACTIVE: frozenset[State] = frozenset(TRANSITIONS) - ENDED
# With a process, or about to have one.
PLACED: frozenset[State] = frozenset({"starting", "running"})


def after(state: State, event: Event) -> State:
    """The state that follows. Raises ValueError, and nothing has changed, for an event that cannot happen there."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise ValueError(f"a job that is {state} cannot be {event}") from None
