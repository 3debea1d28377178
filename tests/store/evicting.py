"""Evicting from a store, for its tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.store.helpers import UID

from millpond.daemon.store.compact import Compaction
from millpond.daemon.store.evict import Eviction, EvictReport
from millpond.daemon.store.ledger import root_of
from millpond.daemon.store.session import Stored
from millpond.daemon.store.store import Store

HOME = "/home/project"


def held_of(items: list[Stored]) -> dict[bytes, int]:
    return {root_of(item.name): item.size for item in items}


def project(store: Store, items: list[Stored], path: str = HOME, uid: int = UID) -> None:
    store.ledger.replace(uid, path, None, [root_of(item.name) for item in items])


def run(store: Store, held: Mapping[str, Mapping[bytes, int]], uid: int = UID, **changes: Any) -> EvictReport:
    values = {"to": 0, "dry": False} | changes
    dry = values.pop("dry")
    return Eviction(store, uid, held, **values).run(dry=dry)


def shrink(store: Store) -> None:
    store.seal()
    Compaction(store, live_part=0.97).run()
