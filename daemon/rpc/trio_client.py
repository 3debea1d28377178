"""The client for trio programs: requests side by side on one connection, cancelled with their scope."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from millpond.daemon.errors import DaemonUnavailableError, MillpondError, ProtocolError, from_wire
from millpond.daemon.rpc import framing
from millpond.daemon.rpc.client import IN_FILE, PROTOCOL, PROTOCOL_MIN, Notify, from_file
from millpond.daemon.rpc.messages import Message
from millpond.daemon.rpc.transport import Transport


class TrioClient:
    """One connection; made by `open_client`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._ids = itertools.count(1)
        self._waiting: dict[Any, _Waiter] = {}
        self._end: MillpondError | None = None
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
            await self._send(message, fds)
            await waiter.done.wait()
            answer, waiter.answer = waiter.answer, None
        except trio.Cancelled:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self._cancel(number)
            raise
        finally:
            del self._waiting[number]
            if waiter.answer is not None:  # cancelled when the answer was there already
                framing.close_all(waiter.answer[1])
        if answer is None:
            raise self._end or _gone()
        found, received = answer
        if found.error is not None:
            framing.close_all(received)
            raise from_wire(found.error)
        result = found.result or {}
        return (from_file(received), []) if result == IN_FILE else (result, received)

    async def _send(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        if self._end is not None:
            raise self._end
        data = framing.encode(message, fds)
        try:
            await self._transport.send(data, fds)
        except (OSError, trio.ClosedResourceError) as error:
            raise _gone() from error

    async def _cancel(self, number: int) -> None:
        note = {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": number}}
        try:
            await self._send(note, ())
        except MillpondError:
            return  # the connection is gone, and the request with it

    async def _read(self) -> None:
        """Hand out answers and notifications until the other side hangs up; never raises for what it does."""
        try:
            while (item := await self._transport.receive()) is not None:
                self._hear(*item)
            self._end = _gone()
        except ProtocolError as error:
            self._end = error
        except OSError:
            self._end = _gone()
        finally:
            self._end = self._end or _gone()
            for waiter in self._waiting.values():
                waiter.done.set()

    def _hear(self, message: Message, fds: list[int]) -> None:
        number = message.id if message.method is None else (message.params or {}).get("id")
        waiter = self._waiting.get(number) if isinstance(number, int) else None
        if message.method is None and waiter is not None:
            waiter.answer = (message, fds)
            waiter.done.set()
            return
        framing.close_all(fds)
        if message.method is None and message.id is None and message.error is not None:
            raise ProtocolError(from_wire(message.error).message)
        if message.method is not None and waiter is not None and waiter.on_notify is not None:
            waiter.on_notify(message.method, message.params or {})


class _Waiter:
    def __init__(self, on_notify: Notify | None) -> None:
        self.on_notify = on_notify
        self.done = trio.Event()
        self.answer: tuple[Message, list[int]] | None = None


def _gone() -> DaemonUnavailableError:
    return DaemonUnavailableError("the daemon ended before it answered", hint="see `millpond daemon logs`")


@asynccontextmanager
async def open_client(path: Path, *, name: str = "trio", need: Sequence[str] = ()) -> AsyncIterator[TrioClient]:
    """Connect and greet; the connection is closed at the end. Raises DaemonUnavailableError, ProtocolError."""
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    transport = Transport(sock)
    client = TrioClient(transport)
    try:
        try:
            await sock.connect(os.fspath(path))
        except OSError as error:
            raise DaemonUnavailableError(f"no daemon answers on '{path}'", path=str(path)) from error
        failed: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client._read)
            # A nursery would wrap what is raised in its block into a group; callers want the error itself.
            try:
                hello = {"protocol": [PROTOCOL_MIN, PROTOCOL], "client": name, "need": list(need)}
                client.server, _ = await client.call("hello", hello)
                yield client
            except Exception as error:
                failed = error
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed
    finally:
        transport.close()
