"""The states of a job, their table, and who gets a place, against plain models."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from millpond.daemon.errors import BusyError, JobError
from millpond.daemon.jobs.jobtable import JobTable
from millpond.daemon.jobs.outcomes import refusal, row_of
from millpond.daemon.jobs.record import JobRecord, chosen
from millpond.daemon.jobs.scheduler import AtOnce
from millpond.daemon.jobs.states import ACTIVE, ENDED, TRANSITIONS, Event, State, after

STATES: tuple[State, ...] = get_args(State)
EVENTS: tuple[Event, ...] = get_args(Event)


def record(number: int, uid: int = 1, state: State = "queued", **values: Any) -> JobRecord:
    return JobRecord(number, uid, state, "command", "true", "/", f"/f{number}", **values)


def test_every_state_is_in_the_table_and_every_job_can_end() -> None:
    assert set(TRANSITIONS) == set(STATES) and set(ENDED) | set(ACTIVE) == set(STATES)
    assert {event for events in TRANSITIONS.values() for event in events} == set(EVENTS)
    reached: set[State] = {"queued"}
    for _ in STATES:
        reached |= {target for state in reached for target in TRANSITIONS[state].values()}
    assert reached == set(STATES)
    for state in ACTIVE:  # one that cannot be cancelled would be for ever
        assert after(state, "cancelled") == "cancelled"


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_no_event_leads_out_of_an_end_and_a_wrong_one_changes_nothing(events: list[Event]) -> None:
    state: State = "queued"
    for event in events:
        over = state in ENDED
        try:
            new = after(state, event)
        except ValueError:
            continue
        assert not over and TRANSITIONS[state][event] == new
        state = new


class Table(RuleBasedStateMachine):
    """A dictionary is the model; opening the file again loses nothing."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self._temporary = tempfile.TemporaryDirectory()
        self._path = Path(self._temporary.name) / "jobs.db"
        self._table = JobTable.open(self._path, fsync=False)
        self._model: dict[int, JobRecord] = {}
        self._highest = 0

    @rule(
        uid=st.sampled_from([1, 2]),
        name=st.none() | st.text(max_size=5),
        resources=st.dictionaries(st.text(max_size=3), st.integers()),
    )
    def add(self, uid: int, name: str | None, resources: dict[str, int]) -> None:
        new = record(0, uid, name=name, resources=resources, created=1.5)
        number = self._table.add(new)
        assert number > self._highest  # never used twice
        self._highest = number
        self._model[number] = dataclasses.replace(new, number=number)

    @precondition(lambda self: self._model)
    @rule(data=st.data(), event=st.sampled_from(EVENTS))
    def happen(self, data: st.DataObject, event: Event) -> None:
        number = data.draw(st.sampled_from(sorted(self._model)))
        old = self._model[number]
        if event in TRANSITIONS[old.state]:
            new = dataclasses.replace(
                old, state=after(old.state, event), outcome={"x": [1]}, pid=3, ended=2.5, exit_code=-1
            )
            self._table.save(new)
            self._model[number] = new

    @precondition(lambda self: self._model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self._model)))
        self._table.remove([number])
        del self._model[number]

    @rule()
    def reopen(self) -> None:
        self._table.close()
        self._table = JobTable.open(self._path, fsync=False)

    @invariant()
    def same(self) -> None:
        assert {job.number: job for job in self._table.active()} == {n: j for n, j in self._model.items() if not j.over}
        for uid in (None, 1):
            ended = [j for n, j in sorted(self._model.items(), reverse=True) if j.over and uid in (None, j.uid)]
            assert self._table.of(uid, 100) == ended and self._table.of(uid, 1) == ended[:1]
        mine = [j for _, j in sorted(self._model.items(), reverse=True) if j.over and j.uid == 1]
        assert self._table.beyond(1, 1, 2) == mine[1:3]

    def teardown(self) -> None:
        self._table.close()
        self._temporary.cleanup()


TestTable = Table.TestCase
_LONG = os.environ.get("MILLPOND_TESTS") == "long"
TestTable.settings = settings(max_examples=50 if _LONG else 5, stateful_step_count=50 if _LONG else 20)


def test_a_table_is_made_for_its_owner_only(tmp_path: Path) -> None:
    table = JobTable.open(tmp_path / "jobs.db")
    table.add(record(0))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    with pytest.raises(BusyError, match="another daemon"):
        JobTable.open(tmp_path / "jobs.db")
    table.close()


@given(st.lists(st.integers(1, 3), max_size=12), st.lists(st.integers(1, 3), max_size=8), st.integers(1, 4))
def test_places_are_given_in_order_and_never_too_many(waiting: list[int], placed: list[int], limit: int) -> None:
    queue = [record(n, uid) for n, uid in enumerate(waiting, 100)]
    running = [record(n, uid, "running") for n, uid in enumerate(placed)]
    found = AtOnce(limit).choose(queue, running)
    assert found == sorted(found, key=lambda job: job.number)
    for uid in (1, 2, 3):
        mine = [job for job in queue if job.uid == uid]
        free = max(0, limit - placed.count(uid))
        assert [job for job in found if job.uid == uid] == mine[:free]  # nobody is overtaken, no place stays free


def test_a_word_means_one_job_or_none() -> None:
    jobs = [record(3, name="train"), record(4, name="train"), record(5, name="test"), record(6)]
    assert [chosen(jobs, word).number for word in ("3", "train", "te", None, "6")] == [3, 4, 5, 6, 6]
    for word in ("t", "7", "x", "", "-1", "\u0663"):
        with pytest.raises(JobError):
            chosen(jobs, word)
    with pytest.raises(JobError, match="no jobs"):
        chosen([], None)
    over = [record(7, state="failed"), record(8, state="lost")]
    assert chosen([*jobs, *over], None).number == 6 and chosen(over, None).number == 8  # rather one that runs


def test_what_a_result_claims_is_believed_as_far_as_it_is_of_its_kind() -> None:
    said = {"state": "failed", "exit_code": 3, "signal": None, "started": 1.5, "ended": 2.5, "reason": "r" * 9999}
    row = row_of({**said, "rusage": {"user_s": 1}, "what": "else"})
    assert row.pop("reason") == "r" * 2000
    assert row == {"exit_code": 3, "started": 1.5, "ended": 2.5, "outcome": {"rusage": {"user_s": 1}}}
    wrong = {"exit_code": 1 << 70, "signal": True, "started": "x", "ended": float("nan"), "reason": 7}
    assert row_of({**wrong, "log": "x" * 100_000}) == {"outcome": {}}
    assert refusal(b'{"message": "no"}') == "no"
    for answer in (b"", b"[]", b"{}", b"7", b"{", b"\xff"):
        assert "does not say why" in refusal(answer)
