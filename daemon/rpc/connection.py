"""One connection of the daemon, to a client or to a worker: requests in, answers out, and both end together.

A connection's requests run side by side in its nursery; when the other side hangs up they are cancelled. What belongs to
the connection (locks, sessions) is undone by callbacks, in reverse order.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import trio

from millpond.daemon.errors import BusyError, CancelledError, InternalError, MillpondError, ProtocolError
from millpond.daemon.rpc import framing
from millpond.daemon.rpc.methods import Call, Registry, Reply, Role
from millpond.daemon.rpc.transport import Transport

log = logging.getLogger("millpond.rpc")

# Requests under way on one connection.
MAX_IN_FLIGHT = 64
# Notifications waiting for a client that does not read; more are dropped.
MAX_NOTES = 64


class Connection:
    """See the module. `parent` is the client's call that a worker serves."""

    def __init__(
        self, transport: Transport, registry: Registry, *, id: int, role: Role, uid: int, pid: int, parent: Call | None
    ) -> None:
        self.id = id
        self.role: Role = role
        self.uid = uid
        self.pid = pid
        self.parent = parent
        self.greeted = role == "worker"
        self._transport = transport
        self._registry = registry
        self._on_close: list[Callable[[], None]] = []
        self._scopes: dict[Any, trio.CancelScope] = {}
        self._notes, self._notes_out = trio.open_memory_channel[dict[str, Any]](MAX_NOTES)
        self._answer: dict[str, Any] | None = None
        self._answered = trio.Event()
        self.calls: dict[str, Call] = {}
        # Told after each call that ended.
        self.call_ended: Callable[[], None] = lambda: None

    def on_close(self, callback: Callable[[], None]) -> None:
        """Run `callback` when the connection ends, however it ends."""
        self._on_close.append(callback)

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Send a notification when the other side reads; drop it when it does not."""
        try:
            self._notes.send_nowait({"jsonrpc": "2.0", "method": method, "params": params})
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def serve(self) -> None:
        """Read and answer until the other side hangs up. Never raises for what the other side does."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_notes)
                try:
                    while (item := await self._transport.receive()) is not None:
                        self._take(nursery, *item)
                except ProtocolError as error:
                    log.warning("connection %d: %s", self.id, error)
                    await self._send({"id": None, "error": error.to_wire()})
                nursery.cancel_scope.cancel()
        except* OSError as group:
            log.info("connection %d broke: %s", self.id, group.exceptions[0])
        finally:
            self._answered.set()
            self._transport.close()
            for callback in reversed(self._on_close):
                callback()

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
        """Send the one request that the other side (a worker) gets; its answer message, None when it is gone."""
        await self._send({"id": 1, "method": method, "params": params})
        await self._answered.wait()
        return self._answer

    async def _send_notes(self) -> None:
        async for note in self._notes_out:
            await self._transport.send(framing.encode(note))

    def _take(self, nursery: trio.Nursery, message: dict[str, Any], fds: list[int]) -> None:
        method, params = message.get("method"), message.get("params") or {}
        if isinstance(method, str) and "id" in message:
            call = Call(self, message["id"], method, self.uid, self.pid, f"{self.id}-{message['id']}", fds)
            nursery.start_soon(self._answer_call, call, params)
            return
        for fd in fds:
            os.close(fd)
        if method == "$/cancelRequest":
            scope = self._scopes.get(params.get("id"))
            if scope is not None:
                scope.cancel()
        elif isinstance(method, str) and self.parent is not None:
            self.parent.notify(method, params)
        elif method is None and message.get("id") == 1:
            self._answer = message
            self._answered.set()

    async def _answer_call(self, call: Call, params: dict[str, Any]) -> None:
        message: dict[str, Any] = {"id": call.number}
        fds: list[int] = []
        with trio.CancelScope() as scope:
            try:
                self._begin(call, scope)
                reply = await self._registry.find(call.method, self.role)(call, params)
                message["result"] = reply.result if isinstance(reply, Reply) else reply
                fds = list(reply.fds) if isinstance(reply, Reply) else []
            except MillpondError as error:
                message["error"] = error.to_wire()
            except Exception as error:
                log.exception("request %s (%s) failed", call.id, call.method, extra={"request": call.id})
                hint = "please report it with the log: millpond daemon logs"
                message["error"] = InternalError(f"internal error in {call.method}: {error!r}", hint=hint).to_wire()
            finally:
                self._scopes.pop(call.number, None)
                self.calls.pop(call.id, None)
                call.close()
                self.call_ended()
        if scope.cancelled_caught:
            message["error"] = CancelledError(f"{call.method} was cancelled").to_wire()
        try:
            await self._send(message, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _begin(self, call: Call, scope: trio.CancelScope) -> None:
        if not self.greeted and call.method != "hello":
            raise ProtocolError("the first request of a connection is hello")
        if len(self.calls) >= MAX_IN_FLIGHT:
            raise BusyError(f"{MAX_IN_FLIGHT} requests are under way on this connection already")
        if call.number in self._scopes or not isinstance(call.number, int | str):
            raise ProtocolError("a request's id must be a number or text that is not in use")
        self._scopes[call.number] = scope
        self.calls[call.id] = call

    async def _send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        try:
            data = framing.encode({"jsonrpc": "2.0", **message}, fds or ())
        except ProtocolError as error:
            data, fds = framing.encode({"jsonrpc": "2.0", "id": message.get("id"), "error": error.to_wire()}), None
        await self._transport.send(data, fds or ())
