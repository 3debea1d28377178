"""The listings' service: a few trees at a time, and who does not go on with his loses it to one who waits."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from tests.fusefs.helpers import UID, open_store

from millpond.daemon import memfd
from millpond.daemon.errors import BusyError, ProtocolError
from millpond.daemon.mounts import listing, listings
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.rpc.connection import Connection
from millpond.daemon.rpc.methods import Call, Registry, Reply
from millpond.daemon.rpc.transport import Transport
from millpond.daemon.store.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = open_store(tmp_path_factory.mktemp("listings") / "store")
    yield opened
    opened.close()


def put_manifest(store: Store, what: str) -> ObjectName:
    """A manifest of one file that the store has not."""
    text = manifest.serialise([(f"{what}.txt", hashlib.md5(what.encode()).hexdigest())])
    session = store.session(UID)
    stored = session.feed(memoryview(text), [(len(text), True, True)])
    session.commit()
    return stored[0].name


class Workers:
    """Connections of workers to the service, over sockets that nobody reads."""

    def __init__(self, service: listings.Listings, nursery: trio.Nursery) -> None:
        self.service = service
        self._nursery = nursery
        self._numbers = itertools.count(1)
        self.sockets = ExitStack()

    def connect(self) -> tuple[Connection, trio.socket.SocketType]:
        ours, theirs = trio.socket.socketpair()
        made = Connection(Transport(ours), Registry(), id=next(self._numbers), role="worker", uid=UID, pid=1)
        self.sockets.enter_context(theirs)
        self._nursery.start_soon(made.serve)
        return made, theirs

    async def ask(self, connection: Connection, method: str, params: dict[str, Any], fds: list[int]) -> Any:
        call = Call(connection, 1, f"listing.{method}", UID, 1, "test", fds)
        try:
            answer = await getattr(self.service, method)(call, params)
        finally:
            call.close()
        if isinstance(answer, Reply):
            with memfd.mapped(answer.fds[0]) as view:
                assert len(view) == answer.result["unknown"] * listing.KEY_BYTES
            return answer.result
        return answer

    async def begin(self, connection: Connection, name: ObjectName) -> Any:
        return await self.ask(connection, "ensure", {"name": str(name)}, [])

    async def bring(self, connection: Connection, *sizes: int) -> Any:
        data = b"".join(size.to_bytes(8, "little") for size in sizes)
        return await self.ask(connection, "sizes", {}, [memfd.from_bytes(data)])


@asynccontextmanager
async def workers(store: Store) -> AsyncIterator[Workers]:
    async with trio.open_nursery() as nursery:
        daemon: Any = SimpleNamespace(store=store, nursery=nursery)
        made = Workers(listings.Listings(daemon), nursery)
        with made.sockets:
            yield made
        nursery.cancel_scope.cancel()


def run(store: Store, scenario: Callable[[Workers], Any]) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with workers(store) as made:
                await scenario(made)

    trio.run(main)


def test_sizes_are_asked_for_and_the_tree_is_remembered(store: Store) -> None:
    name = put_manifest(store, "asked")

    async def scenario(workers: Workers) -> None:
        connection, _ = workers.connect()
        assert await workers.begin(connection, name) == {"unknown": 1}
        made = await workers.bring(connection, 7)
        assert (made["files"], made["bytes"]) == (1, 7)
        assert await workers.begin(connection, name) == made
        with pytest.raises(BusyError):
            await workers.bring(connection, 7)

    run(store, scenario)


def test_sizes_that_are_foretold_need_not_be_brought(store: Store) -> None:
    name = put_manifest(store, "foretold")
    key = ObjectName("md5", hashlib.md5(b"foretold").hexdigest()).key()

    async def scenario(workers: Workers) -> None:
        connection, _ = workers.connect()
        with pytest.raises(BusyError):
            await workers.ask(connection, "foretell", {}, [memfd.from_bytes(b"")])
        assert await workers.begin(connection, name) == {"unknown": 1}
        with pytest.raises(ProtocolError):
            await workers.ask(connection, "foretell", {}, [memfd.from_bytes(key)])
        assert await workers.ask(connection, "sizes", {}, []) == {"unknown": 1}
        told = key + (9).to_bytes(8, "little")
        assert await workers.ask(connection, "foretell", {}, [memfd.from_bytes(told)]) == {}
        assert (await workers.ask(connection, "sizes", {}, []))["bytes"] == 9

    run(store, scenario)


def test_a_wrong_answer_ends_the_tree(store: Store) -> None:
    name = put_manifest(store, "wrong")

    async def scenario(workers: Workers) -> None:
        connection, _ = workers.connect()
        await workers.begin(connection, name)
        with pytest.raises(ProtocolError):
            await workers.bring(connection, 1, 2)
        with pytest.raises(BusyError):
            await workers.bring(connection, 1)
        assert await workers.begin(connection, name) == {"unknown": 1}
        assert (await workers.bring(connection, 1))["bytes"] == 1

    run(store, scenario)


def test_who_is_too_many_waits_until_one_ends(store: Store) -> None:
    names = [put_manifest(store, f"many {number}") for number in range(listings._BUILDS + 2)]

    async def scenario(workers: Workers) -> None:
        made = [workers.connect() for _ in names]
        for (connection, _), name in zip(made[:-2], names[:-2], strict=True):
            await workers.begin(connection, name)
        done: list[int] = []

        async def late(at: int) -> None:
            await workers.begin(made[at][0], names[at])
            done.append(at)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(late, -2)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.start_soon(late, -1)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not done
            # One is done, one hangs up.
            await workers.bring(made[0][0], 1)
            made[1][1].close()
        assert sorted(done) == [-2, -1]
        for connection, _ in (*made[2:-2], made[-1]):
            assert (await workers.bring(connection, 3))["bytes"] == 3

    run(store, scenario)


def test_who_brings_no_sizes_loses_his_place(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "_STALLED_S", 0.05)
    names = [put_manifest(store, f"stalled {number}") for number in range(listings._BUILDS + 1)]

    async def scenario(workers: Workers) -> None:
        made = [workers.connect()[0] for _ in names]
        for connection, name in zip(made, names, strict=True):
            assert await workers.begin(connection, name) == {"unknown": 1}
        with pytest.raises(BusyError, match="other versions"):
            await workers.bring(made[0], 1)
        for connection in made[1:]:
            assert (await workers.bring(connection, 2))["bytes"] == 2

    run(store, scenario)


def test_a_tree_is_made_ahead_only_of_what_is_here(store: Store, tmp_path: Path) -> None:
    names = [put_manifest(store, "ahead"), put_manifest(store, "not here")]
    session = store.session(UID)
    session.feed(memoryview(b"ahead"), [(5, True, False)])
    session.commit()

    async def scenario(workers: Workers) -> None:
        for name in names:
            workers.service.list_ahead(UID, name)
        await trio.testing.wait_all_tasks_blocked(0.05)
        async with workers.service._ahead:  # it is given in the order of asking
            pass

    run(store, scenario)
    assert [listing.remembered(store, UID, name) is not None for name in names] == [True, False]
