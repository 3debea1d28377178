"""The daemon's socket: who connects, the greeting, the verbs' way to their workers."""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import pwd
import socket
import struct
import time
from pathlib import Path
from typing import Any

import trio

from millpond.daemon.errors import BusyError, DaemonUnavailableError, ProtocolError
from millpond.daemon.rpc.client import PROTOCOL, PROTOCOL_MIN
from millpond.daemon.rpc.connection import Connection
from millpond.daemon.rpc.methods import Call, Registry
from millpond.daemon.rpc.transport import Transport

log = logging.getLogger("millpond.rpc")

# Connections of one uid at once.
MAX_CONNECTIONS = 256
_UCRED = struct.Struct("3i")


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


class Listener:
    """The listening socket, ours for as long as the lock beside it is held."""

    def __init__(self, path: Path, mode: int) -> None:
        """Bind, in place of a stale socket. Raises BusyError when a live daemon has it."""
        path.parent.mkdir(mode=0o700 if mode == 0o600 else 0o755, parents=True, exist_ok=True)
        self._path = path
        self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise BusyError(
                f"another daemon listens on '{path}'", path=str(path), hint="use it, or: millpond daemon stop"
            ) from error
        path.unlink(missing_ok=True)  # stale: nobody holds its lock
        self.socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._bound = False
        self._mode = mode

    async def listen(self) -> None:
        """Begin to listen; connections that come before `accept` wait."""
        await self.socket.bind(os.fspath(self._path))
        os.chmod(self._path, self._mode)
        self._inode = os.stat(self._path).st_ino
        self._bound = True
        self.socket.listen(128)

    def close(self) -> None:
        """Stop listening; remove the socket if it is still the one bound here."""
        if self._bound:
            try:
                if os.stat(self._path).st_ino == self._inode:
                    self._path.unlink()
            except OSError as error:
                log.info("the socket was gone already: %s", error)
        self.socket.close()
        os.close(self._lock)


class Server:
    """Accepts connections and serves them."""

    def __init__(self, registry: Registry, *, version: str, trusted_uids: frozenset[int]) -> None:
        self.registry = registry
        self.connections: dict[int, Connection] = {}
        self.last_request = time.monotonic()
        self.boot_id = f"{os.getpid()}-{time.time_ns()}"
        self.stopping = False
        self._call_ended = trio.Event()
        self._version = version
        self._trusted = trusted_uids
        self._numbers = itertools.count(1)
        registry.register("hello", self._hello)

    async def accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        """Take connections until cancelled."""
        while True:
            try:
                sock, _ = await listener.socket.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                    raise
                log.error("cannot take a connection: %s", error)
                await trio.sleep(0.1)
                continue
            nursery.start_soon(self._serve_client, sock)

    def connection(self, sock: trio.socket.SocketType, *, uid: int, pid: int, parent: Call | None) -> Connection:
        """A connection object over a connected socket; to a worker when it serves a `parent` call."""
        role = "client" if parent is None else "worker"
        transport = Transport(sock)
        number = next(self._numbers)
        made = Connection(
            transport,
            self.registry,
            id=number,
            role=role,  # type: ignore[arg-type]
            uid=uid,
            pid=pid,
            parent=parent,
        )
        self.connections[number] = made
        made.on_close(lambda: self._forget(number))
        made.call_ended = lambda: self._call_ended.set()
        return made

    @property
    def calls(self) -> list[Call]:
        """Requests of clients under way, but for those that only ask about the daemon."""
        found = [call for connection in self.connections.values() for call in connection.calls.values()]
        return [call for call in found if call.connection.role == "client" and not call.method.startswith("daemon.")]

    async def quiet(self) -> None:
        """Until no client's request is under way."""
        while self.calls:
            self._call_ended = trio.Event()
            await self._call_ended.wait()

    async def _serve_client(self, sock: trio.socket.SocketType) -> None:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _ = _UCRED.unpack(raw)
        if sum(1 for c in self.connections.values() if c.uid == uid and c.role == "client") >= MAX_CONNECTIONS:
            log.warning("uid %d has %d connections; one more is refused", uid, MAX_CONNECTIONS)
            sock.close()
            return
        await self.connection(sock, uid=uid, pid=pid, parent=None).serve()

    def _forget(self, number: int) -> None:
        self.connections.pop(number, None)
        self.last_request = time.monotonic()

    async def _hello(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{protocol: [min, max], client, need, want} -> {protocol, server, capabilities, you, boot_id, trusted}."""
        if self.stopping:
            raise DaemonUnavailableError("the daemon is stopping", hint="run the command again")
        low, high = _protocol_range(params)
        best = min(high, PROTOCOL)
        if best < max(low, PROTOCOL_MIN):
            older = "this program" if high < PROTOCOL_MIN else "the daemon"
            raise ProtocolError(
                f"the daemon speaks protocol {PROTOCOL_MIN} to {PROTOCOL}, this program {low} to {high}",
                hint=f"upgrade {older}; a user's daemon is renewed by `millpond daemon restart`",
            )
        capabilities = self.registry.names("client")
        missing = [name for name in params.get("need") or [] if name not in capabilities]
        if missing:
            raise ProtocolError(f"the daemon cannot: {', '.join(map(str, missing))}", hint="millpond daemon restart")
        call.connection.greeted = True
        return {
            "protocol": best,
            "server": self._version,
            "capabilities": capabilities,
            "you": {"uid": call.uid, "pid": call.pid, "name": user_name(call.uid)},
            "boot_id": self.boot_id,
            "trusted": call.uid in self._trusted,
        }


def _protocol_range(params: dict[str, Any]) -> tuple[int, int]:
    try:
        low, high = params["protocol"]
        return int(low), int(high)
    except (KeyError, TypeError, ValueError):
        raise ProtocolError("hello must name a protocol range: [min, max]") from None
