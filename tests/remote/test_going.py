"""What went of an upload is told while it goes on: of large objects piece by piece, of small ones now and then."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.helpers import context
from tests.remote.shared import Team, s3_if_long
from tests.remote.test_staging import contents, going

from millpond.daemon.errors import RemoteError
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data
from millpond.daemon.remote import staging, upload
from millpond.daemon.remote.backend import Sent
from millpond.daemon.remote.flow import RANGE_BYTES
from millpond.daemon.remote.local import LocalBackend
from millpond.daemon.remote.transfer import Transfer
from millpond.daemon.remote.upload import Upload
from millpond.daemon.rpc.autostart import connect_or_start
from millpond.daemon.settings import from_env

PIECE = 1 << 20


def large(pieces: int) -> Upload:
    return Upload(ObjectName("md5", "a" * 32), pieces * PIECE, (bytes(PIECE) for _ in range(pieces)))


@pytest.mark.parametrize("slow", [False, True])
def test_a_large_object_is_told_of_while_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    if slow:
        monkeypatch.setattr(staging, "_SLOW_S", -1.0)
        monkeypatch.setattr(upload, "_TOLD_S", 0.001)
    objects = contents(40)
    total = sum(map(len, objects.values()))
    told: list[tuple[int, int]] = []
    landed: list[Upload] = []

    class Slowly(LocalBackend):
        def put_stream(self, key: str, pieces: Iterable[Data], size: int, sent: Sent | None = None) -> None:
            def waiting() -> Iterator[Data]:
                for piece in pieces:
                    threading.Event().wait(0.01)
                    yield piece

            super().put_stream(key, waiting(), size, sent)

    def created(sent: Sequence[Upload]) -> None:
        landed.extend(sent)

    with Transfer(Slowly("r", str(tmp_path))) as transfer:
        transfer.upload(
            [*going(objects), large(50)], created=created, went=lambda size: told.append((size, len(landed)))
        )
    sizes = [size for size, _ in told]
    assert sizes == sorted(set(sizes)) and sizes[-1] == total + 50 * PIECE
    assert sum(count < len(objects) + 1 and size > total for size, count in told) >= 10, "while it went"
    assert len(landed) == len(objects) + 1


def test_small_ones_are_told_of_before_they_have_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = {name: data for name, data in contents(300).items() if len(data) < RANGE_BYTES}
    monkeypatch.setattr("millpond.daemon.remote.landing.STAGED_FILES", 100)
    told: list[tuple[int, int]] = []
    landed: list[Upload] = []
    with Transfer(LocalBackend("r", str(tmp_path))) as transfer:
        transfer.upload(going(objects), created=landed.extend, went=lambda size: told.append((size, len(landed))))
    # How often depends on how fast this machine is just now.
    assert len(told) > 1 and told[0][1] == 0 and told[-1][0] == sum(map(len, objects.values()))


def test_what_fails_is_not_told_as_gone(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(3 * PIECE)
        raise RemoteError("the source failed")

    told: list[int] = []
    with Transfer(LocalBackend("r", str(tmp_path))) as transfer, pytest.raises(RemoteError, match="the source failed"):
        transfer.upload(
            [Upload(ObjectName("md5", "a" * 32), 9 * PIECE, pieces())], created=lambda sent: None, went=told.append
        )
    assert told == [3 * PIECE]


@s3_if_long
def test_a_push_shows_its_way_through_one_large_object(team: Team) -> None:
    ann = team.begin()
    ann.run("push", "-q")
    size = 70 << 20
    (ann.repo / "data/large").write_bytes(random.Random(1).randbytes(size))
    ann.run("add", "-q", "data")
    env = ann.env | {"MILLPOND_RATE": "30M"}
    shown: list[tuple[int, int]] = []

    def note(method: str, params: dict[str, Any]) -> None:
        if method == "$/progress" and params["phase"] == "pushing":
            (files, _), (done, total) = params["files"], params["bytes"]
            assert done <= total
            shown.append((files, done))

    with connect_or_start(from_env(env, os.getuid()), env) as client:
        answer, _ = client.call("push", {"context": context(str(ann.repo), env=env)}, on_notify=note)
    assert answer["objects"] == 2
    assert len({done for files, done in shown if not files and 0 < done < size}) >= 2, shown
