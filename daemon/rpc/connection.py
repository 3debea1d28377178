"""One connection of the daemon, to a client or to a worker: requests in, answers out, and both end together.

A connection's requests run side by side in its nursery; when the other side hangs up they are cancelled. What belongs to
the connection (locks, sessions) is undone by callbacks, in reverse order, once no request of it runs any more.

Bounds: MAX_IN_FLIGHT requests at work (one more is refused by BusyError); MAX_TASKS answers under way, of which refusals
are a part: beyond that the other side, which does not read its answers, is read no further.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import trio

from millpond.daemon.errors import (
    BusyError,
    CancelledError,
    InternalError,
    MillpondError,
    ProtocolError,
    TargetError,
    from_system,
)
from millpond.daemon.rpc import framing
from millpond.daemon.rpc.messages import Message
from millpond.daemon.rpc.methods import Call, Params, Registry, Reply, Role
from millpond.daemon.rpc.notes import Notes
from millpond.daemon.rpc.transport import Transport

log = logging.getLogger("millpond.rpc")

MAX_IN_FLIGHT = 64
MAX_TASKS = 2 * MAX_IN_FLIGHT
# A client that connects must greet within this time.
GREET_S = 10.0
# The last word to a side that breaks the protocol.
_LAST_WORD_S = 1.0
# What a worker may have told to the person behind it.
_RELAYED = frozenset({"$/progress", "$/waiting", "$/log"})
# Not worth a line in the log: the last three come from what mounts read lazily, many times a second.
_QUIET = frozenset({"hello", "daemon.status", "store.begin", "store.feed", "store.commit"})
_UNGREETED = frozenset({"hello", "daemon.status", "daemon.stop"})


class Connection:
    """See the module. `parent` is the client's call that a worker serves; `admit` may refuse a call by raising."""

    def __init__(
        self,
        transport: Transport,
        registry: Registry,
        *,
        id: int,
        role: Role,
        uid: int,
        pid: int,
        parent: Call | None = None,
        admit: Callable[[Call], None] = lambda call: None,
    ) -> None:
        self.id = id
        self.role: Role = role
        self.uid = uid
        self.pid = pid
        self.parent = parent
        self.greeted = role == "worker"
        self.notes = Notes(self._notify)
        self.calls: dict[Any, Call] = {}
        # Requests whose answer is not sent yet.
        self.unanswered = 0
        # Told after each call that was answered.
        self.call_ended: Callable[[], None] = lambda: None
        self._transport = transport
        self._registry = registry
        self._admit = admit
        self._on_close: list[Callable[[], None]] = []
        self._scopes: dict[Any, trio.CancelScope] = {}
        self._numbers = itertools.count(1)
        self._tasks = trio.Semaphore(MAX_TASKS)
        self._answer: Message | None = None
        # What came with the answer, for whoever takes it.
        self.answer_fds: list[int] = []
        self._answered = trio.Event()
        # Why we hung up on the other side, if we did.
        self.refused: ProtocolError | None = None
        self._opened = trio.current_time()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Run `callback` when the connection ends, however it ends."""
        self._on_close.append(callback)

    def cancel_calls(self) -> None:
        """Cancel what is under way; answers still go out."""
        for scope in self._scopes.values():
            scope.cancel()

    async def serve(self) -> None:
        """Read and answer until the other side hangs up. Never raises for what the other side does."""
        try:
            async with trio.open_nursery() as nursery:
                self.notes.start = lambda: nursery.start_soon(self.notes.run)
                await self._read(nursery)
                nursery.cancel_scope.cancel()
        except* OSError as group:
            log.info("connection %d broke: %s", self.id, group.exceptions[0])
        except* Exception:
            log.exception("connection %d failed", self.id)
        finally:
            self._answered.set()
            framing.close_all(self.answer_fds)
            self._transport.close()
            for callback in reversed(self._on_close):
                try:
                    callback()
                except Exception:
                    log.exception("connection %d: its end was not clean", self.id)

    async def request(self, method: str, params: dict[str, Any], fds: Sequence[int] = ()) -> Message | None:
        """Send the one request that the other side (a worker) gets, with descriptors; its answer, None when it is gone."""
        try:
            await self._send({"id": 1, "method": method, "params": params}, list(fds))
        except OSError as error:
            log.info("connection %d broke: %s", self.id, error)
            return None
        await self._answered.wait()
        return self._answer

    async def _next(self) -> tuple[Message, list[int]] | None:
        """The next message; a client that does not greet in time is taken for gone."""
        if not self.greeted:
            with trio.move_on_at(self._opened + GREET_S):
                return await self._transport.receive()
        if self.greeted:  # maybe while this waited
            return await self._transport.receive()
        log.info("connection %d of uid %d does not greet: closed", self.id, self.uid)
        return None

    async def _read(self, nursery: trio.Nursery) -> None:
        try:
            while (item := await self._next()) is not None:
                message, fds = item
                if message.method is None or message.id is None:
                    self._hear(message, fds)
                    continue
                call = self._call(message.id, message.method, fds)
                try:
                    await self._tasks.acquire()
                except BaseException:
                    call.close()
                    raise
                self.unanswered += 1
                nursery.start_soon(self._serve_call, call, Params(message.params or {}))
        except ProtocolError as error:
            self.refused = error
            log.warning("connection %d of uid %d: %s", self.id, self.uid, error)
            with trio.move_on_after(_LAST_WORD_S):
                await self._send({"id": None, "error": error.to_wire()})

    def _call(self, number: Any, method: str, fds: list[int]) -> Call:
        base = self.parent.id if self.parent else str(self.id)
        return Call(self, number, method, self.uid, self.pid, f"{base}.{next(self._numbers)}", fds)

    def _hear(self, message: Message, fds: list[int]) -> None:
        """A notification, or the answer to the one request that was sent."""
        params = message.params or {}
        if message.method is None and message.id == 1 and self.parent is not None and self._answer is None:
            self._answer, self.answer_fds = message, fds
            self._answered.set()
            return
        framing.close_all(fds)
        if message.method == "$/cancelRequest":
            number = params.get("id")
            if isinstance(number, int | str) and number in self._scopes:
                self._scopes[number].cancel()
        elif message.method == "$/trace" and self.parent is not None:
            extra = {"request": self.parent.id, "uid": self.uid}
            log.error("the worker failed: %s", str(params.get("text"))[-16_000:], extra=extra)
        elif message.method in _RELAYED and self.parent is not None:
            self.parent.notify(message.method, params)

    async def _serve_call(self, call: Call, params: Params) -> None:
        fds: list[int] = []
        try:
            answer: dict[str, Any] = {"id": call.number}
            try:
                reply = await self._outcome(call, params)
                fds = list(reply.fds)
                answer["result"] = reply.result
            except MillpondError as error:
                answer["error"] = error.to_wire()
            self._record(call, answer)
            await self.notes.flush(call.number)
            await self._send(answer, fds)
        finally:
            framing.close_all(fds)
            self._tasks.release()
            self.unanswered -= 1
            self.call_ended()

    async def _outcome(self, call: Call, params: Params) -> Reply:
        """What the handler answers; any other exception than MillpondError becomes one."""
        entered = False
        try:
            with trio.CancelScope() as scope:
                self._enter(call, scope)
                entered = True
                reply = await self._registry.find(call.method, self.role)(call, params)
                return reply if isinstance(reply, Reply) else Reply(reply)
        except MillpondError:
            raise
        except Exception as error:
            known = _only_known(error)
            if known is not None:
                raise known from error
            log.exception("%s failed", call.method, extra={"request": call.id, "uid": call.uid})
            if isinstance(error, OSError) and not isinstance(told := from_system(error, call.method), TargetError):
                raise told from error  # the machine's limits or disks, not a mistake of ours
            raise InternalError(
                f"internal error in {call.method}: {error!r}",
                hint=f"please report it with the log of request {call.id}: millpond daemon logs",
            ) from error
        finally:
            if entered:
                del self._scopes[call.number], self.calls[call.number]
            call.close()
        raise CancelledError(f"{call.method} was cancelled")

    def _enter(self, call: Call, scope: trio.CancelScope) -> None:
        # What asks about or ends the daemon works across protocols: that is how one of another version is renewed.
        if not self.greeted and call.method not in _UNGREETED:
            raise ProtocolError("the first request of a connection is hello")
        if call.number in self._scopes:
            raise ProtocolError("a request's id must not be in use")
        if len(self.calls) >= MAX_IN_FLIGHT:
            raise BusyError(f"{MAX_IN_FLIGHT} requests are under way on this connection already")
        self._admit(call)
        self._scopes[call.number] = scope
        self.calls[call.number] = call

    def _record(self, call: Call, answer: dict[str, Any]) -> None:
        """A line of the log for each request of a person."""
        if self.role == "client" and call.method not in _QUIET:
            outcome = answer["error"]["data"]["kind"] if "error" in answer else "ok"
            extra = {"request": call.id, "uid": call.uid, "pid": call.pid, "outcome": outcome}
            log.info("%s", call.method, extra={**extra, "seconds": call.seconds()})

    async def _notify(self, method: str, params: dict[str, Any]) -> None:
        await self._send({"method": method, "params": params})

    async def _send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        try:
            data = framing.encode({"jsonrpc": "2.0", **message}, fds or ())
        except ProtocolError as error:
            data, fds = framing.encode({"jsonrpc": "2.0", "id": message.get("id"), "error": error.to_wire()}), None
        await self._transport.send(data, fds or ())


def _only_known(error: BaseException) -> MillpondError | None:
    """The one MillpondError that a nursery wrapped into groups, None when there is anything else in them."""
    if isinstance(error, MillpondError):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [_only_known(inner) for inner in error.exceptions]
        return found[0] if all(found) else None
    return None
