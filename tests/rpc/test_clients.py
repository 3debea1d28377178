"""Both clients against a real server: answers, errors, descriptors, cancellation, and the end of the connection."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.rpc.helpers import Running, memfd_of, open_fds, serving

from millpond.daemon.errors import (
    CancelledError,
    DaemonUnavailableError,
    InternalError,
    MillpondError,
    ProtocolError,
)
from millpond.daemon.rpc import framing
from millpond.daemon.rpc.client import Client
from millpond.daemon.rpc.trio_client import TrioClient, open_client


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with serving(tmp_path / "s.sock") as found:
        yield found


def test_pipelined_requests_are_answered_each_with_its_own(running: Running) -> None:
    with Client.connect(running.path, need=["test.echo"]) as client:
        numbers = [client.start("test.echo", {"n": n}) for n in range(20)]
        for n in reversed(range(20)):
            assert client.wait(numbers[n])[0] == {"n": n}
        with pytest.raises(ProtocolError, match="answer was taken"):
            client.wait(numbers[0])


def test_nobody_there_and_a_needed_method_that_is_not_there(running: Running, tmp_path: Path) -> None:
    with pytest.raises(DaemonUnavailableError, match="no daemon answers"):
        Client.connect(tmp_path / "nobody")
    with pytest.raises(ProtocolError, match=r"cannot: time\.travel"):
        Client.connect(running.path, need=["time.travel"])


def test_a_daemon_that_does_not_answer_in_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "s"))
        listener.listen()
        with pytest.raises(DaemonUnavailableError):
            Client.connect(tmp_path / "s", timeout=0.05)


def test_an_interrupted_wait_leaves_the_connection_whole(running: Running) -> None:
    """Ctrl-C while waiting: the request can still be cancelled, its answer awaited, others sent."""
    with Client.connect(running.path) as client:
        number = client.start("test.forever", {})
        main = threading.get_ident()
        seen: list[str] = []

        def note(method: str, params: dict[str, Any]) -> None:
            seen.append(method)
            threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGINT)).start()

        client.on_notify = note
        with pytest.raises(KeyboardInterrupt):
            client.wait(number)
        client.cancel(number)
        with pytest.raises(CancelledError):
            client.wait(number)
        assert client.call("test.echo", {"a": 1})[0] == {"a": 1}
        assert seen == ["$/progress"]


def test_an_interruption_in_the_middle_of_a_frame_ends_the_connection_cleanly() -> None:
    """Half a frame is out: nothing more is ever sent or awaited on this connection."""

    def raise_it(*_: object) -> None:
        raise CancelledError("now")

    before = signal.signal(signal.SIGALRM, raise_it)
    ours, theirs = socket.socketpair()
    main = threading.get_ident()

    def strike() -> None:
        theirs.recv(1, socket.MSG_PEEK)  # the first bytes are out
        signal.pthread_kill(main, signal.SIGALRM)

    try:
        with theirs, Client(ours) as client:
            threading.Thread(target=strike).start()
            with pytest.raises(CancelledError):
                client.start("test.echo", {"x": "y" * (3 << 20)})  # nobody reads: it stops in the middle
            with pytest.raises(DaemonUnavailableError):
                client.notify("$/progress", {})
            with pytest.raises(DaemonUnavailableError):
                client.call("test.echo", {})
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_request_of_the_daemon_to_a_client_that_takes_none_is_answered() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Client(ours) as client:
        number = client.start("a", {})
        theirs.recv(65536)
        theirs.sendall(framing.encode({"id": "q", "method": "b", "params": {}}))
        theirs.sendall(framing.encode({"id": number, "result": {"x": 1}}))
        assert client.wait(number)[0] == {"x": 1}
        assert b"takes no requests" in theirs.recv(65536)


def in_trio(running: Running, work: Callable[[TrioClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_client(running.path, need=["test.echo"]) as client:
            await work(client)

    trio.run(main)


def test_trio_requests_run_side_by_side_with_notifications_and_descriptors(running: Running) -> None:
    before = open_fds()

    async def work(client: TrioClient) -> None:
        found: dict[int, Any] = {}

        async def one(n: int) -> None:
            found[n], _ = await client.call("test.echo", {"n": n})

        async with trio.open_nursery() as nursery:
            for n in range(10):
                nursery.start_soon(one, n)
        assert found == {n: {"n": n} for n in range(10)}
        notes: list[dict[str, Any]] = []
        await client.call("test.count", {"total": 50}, on_notify=lambda method, params: notes.append(params))
        assert notes[-1]["files"] == [50, 50]
        fd = memfd_of(b"12345")
        assert (await client.call("test.sizes", {}, fds=[fd]))[0] == {"sizes": [5]}
        _, got = await client.call("test.memfd", {"texts": ["ab"]})
        assert os.read(got[0], 9) == b"ab"
        framing.close_all([fd, *got])

    in_trio(running, work)
    running.settle()
    assert open_fds() == before


def test_trio_errors_come_as_they_are_and_not_in_groups(running: Running) -> None:
    async def work(client: TrioClient) -> None:
        with pytest.raises(InternalError):
            await client.call("test.broken", {})
        with pytest.raises(ProtocolError):
            await client.call("no.such", {})
        raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        in_trio(running, work)

    async def refused() -> None:
        async with open_client(running.path, need=["time.travel"]):
            pass

    with pytest.raises(ProtocolError, match=r"time\.travel"):
        trio.run(refused)


def test_trio_cancelling_a_call_cancels_the_request(running: Running) -> None:
    async def work(client: TrioClient) -> None:
        with trio.CancelScope() as scope:
            await client.call("test.forever", {}, on_notify=lambda *_: scope.cancel())
        assert scope.cancelled_caught
        assert (await client.call("test.echo", {}))[0] == {}
        await trio.to_thread.run_sync(running.quiet)

    in_trio(running, work)


def test_trio_a_connection_that_ended_says_so_at_once(running: Running) -> None:
    async def work(client: TrioClient) -> None:
        async with trio.open_nursery() as nursery:

            async def lost() -> None:
                with pytest.raises(DaemonUnavailableError):
                    await client.call("test.forever", {}, on_notify=lambda *_: told.set())

            told = trio.Event()
            nursery.start_soon(lost)
            await told.wait()
            await trio.to_thread.run_sync(running.stop)
        with pytest.raises(DaemonUnavailableError):
            await client.call("test.echo", {})

    in_trio(running, work)


def test_errors_keep_their_kind_over_the_wire() -> None:
    for kind in (CancelledError, ProtocolError, DaemonUnavailableError, MillpondError):
        assert kind("x").to_wire()["data"]["kind"] == kind.kind
