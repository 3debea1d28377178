"""The rule of eviction, over everything at once: what goes has been seen on a remote of every project that needs it."""

from __future__ import annotations

import functools
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.store.evicting import held_of, run, shrink
from tests.store.helpers import UID, get, put, sample, settings

from millpond.daemon.store.evict import Eviction
from millpond.daemon.store.gc import Sweep
from millpond.daemon.store.ledger import root_of
from millpond.daemon.store.session import Stored
from millpond.daemon.store.store import Store


@dataclass
class _Project:
    """A project and its remote: `named` its objects by seed, `remote` what is there, `noted` what was noted to be
    there."""

    uid: int
    path: str
    named: dict[int, Stored] = field(default_factory=dict)
    remote: set[int] = field(default_factory=set)
    noted: set[int] = field(default_factory=set)
    # Went from the remote when the store had it no more: nobody can help that.
    lost: set[int] = field(default_factory=set)


@functools.cache
def content_of(seed: int) -> bytes:
    """Two of three are small; some large ones share most of their chunks."""
    return sample(seed, 4000) if seed % 3 else sample(seed % 2, 400_000) + bytes([seed]) * 70_000


class Rule(RuleBasedStateMachine):
    """Users add, push, forget, pin and evict; objects vanish from remotes behind their backs; the daemon is killed, its
    index lost."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="mp-evict-")
        self.path = Path(self.folder) / "s"
        self.store = Store.open(settings(self.path, segment_bytes=300_000))
        self.projects = [_Project(UID + n // 2, f"/home/{n}") for n in range(4)]
        self.owner = 0
        self.adding: tuple[int, _Project, Any, list[int], list[Stored]] | None = None

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    @initialize()
    def begin(self) -> None:
        for each in self.projects:
            self.store.ledger.replace(each.uid, each.path, None, [])

    def note(self, each: _Project) -> None:
        self.store.ledger.replace(each.uid, each.path, None, [root_of(item.name) for item in each.named.values()])

    def here(self, each: _Project, seed: int) -> bool:
        return get(self.store, each.named[seed], each.uid) == content_of(seed)

    @rule(number=st.integers(0, 3), seeds=st.sets(st.integers(0, 9), min_size=1, max_size=4))
    @precondition(lambda self: self.adding is None)
    def begin_to_add(self, number: int, seeds: set[int]) -> None:
        each = self.projects[number]
        self.owner += 1
        self.store.claims.begin(self.owner)
        self.store.claims.puts(self.owner, self.store.mark, self.store.now())
        session = self.store.session(each.uid, self.owner)
        data = [content_of(seed) for seed in sorted(seeds)]
        stored = session.feed(memoryview(b"".join(data)), [(len(part), True, False) for part in data])
        self.adding = self.owner, each, session, sorted(seeds), stored

    @rule()
    @precondition(lambda self: self.adding is not None)
    def end_to_add(self) -> None:
        assert self.adding is not None
        (owner, each, session, seeds, stored), self.adding = self.adding, None
        assert session.commit() == []
        each.named |= dict(zip(seeds, stored, strict=True))
        each.lost -= set(seeds)
        self.note(each)
        self.store.claims.end(owner)

    @rule(number=st.integers(0, 3))
    def push(self, number: int) -> None:
        each = self.projects[number]
        each.remote |= {seed for seed in each.named if self.here(each, seed)}
        each.noted |= each.remote

    @rule(number=st.integers(0, 3), seed=st.integers(0, 9))
    def vanish(self, number: int, seed: int) -> None:
        each = self.projects[number]
        if seed in each.remote:
            each.remote.discard(seed)
            if seed in each.named and not self.here(each, seed):
                each.lost.add(seed)

    @rule(number=st.integers(0, 3), seed=st.integers(0, 9))
    def read_from_the_remote(self, number: int, seed: int) -> None:
        each = self.projects[number]
        if seed in each.remote and seed in each.named:
            put(self.store, [content_of(seed)], each.uid)

    @rule(number=st.integers(0, 3), keep=st.sets(st.integers(0, 9)))
    @precondition(lambda self: self.adding is None)
    def sweep(self, number: int, keep: set[int]) -> None:
        each = self.projects[number]
        each.named = {seed: item for seed, item in each.named.items() if seed in keep}
        self.note(each)
        mine = [one for one in self.projects if one.uid == each.uid]
        roots = [root_of(item.name) for one in mine for item in one.named.values()]
        Sweep(self.store, each.uid, roots, grace_s=-1.0).run(dry=False)

    @rule(
        uid=st.integers(UID, UID + 1),
        part=st.floats(0, 1),
        shared=st.booleans(),
        vanishing=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=2),
    )
    def evict(self, uid: int, part: float, shared: bool, vanishing: set[tuple[int, int]]) -> None:
        mine = {one.path: one for one in self.projects if one.uid == uid}
        noted = {path: held_of([one.named[s] for s in one.noted if s in one.named]) for path, one in mine.items()}
        plan = Eviction(self.store, uid, noted, to=int(part * self.store.stored), shared=shared)
        plan.run(dry=True)
        for number, seed in vanishing:
            self.vanish(number, seed)
        confirmed: dict[str, dict[bytes, int]] = {path: {} for path in mine}
        for victim in plan.victims:
            for path in victim.projects:
                held = held_of([mine[path].named[s] for s in mine[path].remote if s in mine[path].named])
                if victim.root in held:
                    confirmed[path][victim.root] = held[victim.root]
        run(self.store, confirmed, uid, to=int(part * self.store.stored), shared=shared)

    @rule()
    def rewrite(self) -> None:
        shrink(self.store)

    @rule(is_index_lost=st.booleans())
    @precondition(lambda self: self.adding is None)
    def open_again(self, is_index_lost: bool) -> None:
        self.store.close()
        if is_index_lost:
            (self.path / "index" / "data.mdb").unlink()
        self.store = Store.open(settings(self.path, segment_bytes=300_000))

    @invariant()
    def each_object_can_be_read(self) -> None:
        for each in self.projects:
            for seed in each.named:
                assert self.here(each, seed) or seed in each.remote or seed in each.lost, (each.path, seed)

    @invariant()
    def the_store_is_sound(self) -> None:
        assert self.store.fsck().ok


def test_the_rule_holds_whatever_happens() -> None:
    run_state_machine_as_test(
        Rule, settings=hypothesis_settings(max_examples=15, stateful_step_count=20, deadline=None)
    )


@pytest.mark.long
def test_the_rule_holds_at_length() -> None:
    run_state_machine_as_test(
        Rule, settings=hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)
    )
