"""The client for trio programs: requests side by side on one connection, cancelled with their scope."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from millpond.daemon.errors import DaemonUnavailableError, from_wire
from millpond.daemon.rpc import framing
from millpond.daemon.rpc.client import PROTOCOL, PROTOCOL_MIN, Notify
from millpond.daemon.rpc.transport import Transport


class TrioClient:
    """One connection; made by `open_client`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._ids = itertools.count(1)
        self._waiting: dict[int, _Waiter] = {}
        self.server: dict[str, Any] = {}

    async def call(
        self, method: str, params: dict[str, Any], *, fds: Sequence[int] = (), on_notify: Notify | None = None
    ) -> tuple[dict[str, Any], list[int]]:
        """Send a request and wait for its answer: (result, descriptors).

        Cancelling it sends `$/cancelRequest`. Raises the error that the daemon answered with, DaemonUnavailableError.
        """
        number = next(self._ids)
        waiter = self._waiting[number] = _Waiter(on_notify)
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        try:
            await self._transport.send(framing.encode(message, fds), fds)
            await waiter.done.wait()
        except trio.Cancelled:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1), contextlib.suppress(Exception):
                note = {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": number}}
                await self._transport.send(framing.encode(note))
            raise
        finally:
            del self._waiting[number]
        if waiter.answer is None:
            raise DaemonUnavailableError("the daemon ended before it answered")
        answer, received = waiter.answer
        if "error" in answer:
            raise from_wire(answer["error"])
        return answer.get("result") or {}, received

    async def _read(self) -> None:
        try:
            while (item := await self._transport.receive()) is not None:
                message, fds = item
                waiter = self._waiting.get(int(message.get("id") or (message.get("params") or {}).get("id") or 0))
                if "method" in message:
                    if waiter is not None and waiter.on_notify is not None:
                        waiter.on_notify(message["method"], message.get("params") or {})
                elif waiter is not None:
                    waiter.answer = (message, fds)
                    waiter.done.set()
                    continue
                for fd in fds:
                    os.close(fd)
        finally:
            for waiter in self._waiting.values():
                waiter.done.set()


class _Waiter:
    def __init__(self, on_notify: Notify | None) -> None:
        self.on_notify = on_notify
        self.done = trio.Event()
        self.answer: tuple[dict[str, Any], list[int]] | None = None


@asynccontextmanager
async def open_client(path: Path, *, name: str = "trio") -> AsyncIterator[TrioClient]:
    """Connect and greet; the connection is closed at the end. Raises DaemonUnavailableError, ProtocolError."""
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(os.fspath(path))
    except OSError as error:
        sock.close()
        raise DaemonUnavailableError(f"no daemon answers on '{path}'", path=str(path)) from error
    transport = Transport(sock)
    client = TrioClient(transport)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client._read)
            hello = {"protocol": [PROTOCOL_MIN, PROTOCOL], "client": name}
            client.server, _ = await client.call("hello", hello)
            yield client
            nursery.cancel_scope.cancel()
    finally:
        transport.close()
