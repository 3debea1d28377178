"""How collections and pushes on one remote find out about each other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from millpond.daemon.errors import BusyError, RemoteError
from millpond.daemon.remote import collecting
from millpond.daemon.remote.collecting import FOLDER, Collection, marks, settled
from millpond.daemon.remote.local import LocalBackend
from millpond.daemon.remote.transfer import Transfer


@pytest.fixture
def transfer(tmp_path: Path) -> Iterator[Transfer]:
    (tmp_path / "remote").mkdir()
    with Transfer(LocalBackend("r", str(tmp_path / "remote"))) as made:
        yield made


def test_each_collection_changes_what_a_push_sees(transfer: Transfer) -> None:
    seen = [marks(transfer)]
    for _ in range(2):
        with Collection(transfer.backend):
            seen.append(marks(transfer))
        seen.append(marks(transfer))
    assert len({found.seen for found in seen if found is not None}) == 5
    assert [len(found.running) for found in seen if found is not None] == [0, 1, 0, 1, 0]


def test_there_is_one_at_a_time(transfer: Transfer) -> None:
    with Collection(transfer.backend):
        with pytest.raises(BusyError, match="process"), Collection(transfer.backend):
            raise AssertionError
        found = marks(transfer)
        assert found is not None and len(found.running) == 1, "the refused one left nothing"
    with Collection(transfer.backend) as second:
        assert abs(second.now - time.time()) < 5


def test_one_that_died_is_in_nobodys_way_for_long(transfer: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "DEAD_S", 0.7)
    transfer.backend.put(f"{FOLDER}/dead", b"\xff")
    told: list[str] = []
    found = settled(transfer, told.append)
    assert found is not None and len(found.running) == 1 and "somewhere" in told[0]
    with Collection(transfer.backend):
        now = marks(transfer)
        assert now is not None and len(now.running) == 1, "the dead one's sign is gone"


def test_a_silent_collection_removes_nothing(transfer: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_SAY_S", 0.05)
    with Collection(transfer.backend) as collection:
        collection.go_on()
        before = marks(transfer)
        deadline = time.monotonic() + 10
        while marks(transfer) == before:
            assert time.monotonic() < deadline, "it goes on saying so"
            time.sleep(0.01)
        monkeypatch.setattr(collecting, "_SILENT_S", -1.0)
        time.sleep(0.2)
        monkeypatch.setattr(collecting, "_SILENT_S", 0.1)
        for _ in range(2):
            with pytest.raises(RemoteError, match="stopped"):
                collection.go_on()
            time.sleep(0.1)
