"""The daemon's socket: who connects, the greeting, and the bounds of a caller."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import pwd
import secrets
import socket
import stat
import struct
import time
from pathlib import Path
from typing import Any

import trio

from millpond.daemon import wirepath
from millpond.daemon.errors import AccessError, BusyError, DaemonUnavailableError, MillpondError, ProtocolError
from millpond.daemon.rpc import framing
from millpond.daemon.rpc.client import PROTOCOL, PROTOCOL_MIN
from millpond.daemon.rpc.connection import Connection
from millpond.daemon.rpc.messages import parse_hello
from millpond.daemon.rpc.methods import Call, Registry
from millpond.daemon.rpc.transport import Transport

log = logging.getLogger("millpond.rpc")

# Connections of one uid at once, and requests of one uid over all of them.
MAX_CONNECTIONS = 256
MAX_REQUESTS = 64
# Workers of a daemon that was killed end within this time (zygote.py), and hold their lock until then.
LEFTOVER_S = 10.0
_RETRY_S = 0.02
_UCRED = struct.Struct("3i")


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


async def _refuse(sock: trio.socket.SocketType, error: MillpondError) -> None:
    """Say why, as far as it can be said at once, and hang up."""
    with sock, contextlib.suppress(OSError), trio.move_on_after(1):
        await sock.send(framing.encode({"jsonrpc": "2.0", "id": None, "error": error.to_wire()}))


class Listener:
    """The listening socket, ours for as long as the lock beside it is held.

    `SOCKET.lock` is the daemon's own; `SOCKET.work` is shared with its workers, so that a new daemon does not give out a
    project's lock while a worker of a killed one still writes there.
    """

    def __init__(self, path: Path, mode: int) -> None:
        """Take the locks. Raises BusyError when a live daemon has them, AccessError for a place that is not ours."""
        self._path = path
        self._mode = mode
        self._inode = 0
        self._lock = self.work_lock = -1
        try:
            _make_folder(path.parent, 0o700 if mode == 0o600 else 0o755)
            self._lock = _lock_file(path, "lock")
            # A daemon that is being killed holds it for a moment more, but answers nobody.
            deadline = time.monotonic() + LEFTOVER_S
            while not _try_lock(self._lock):
                if _answers(path) or time.monotonic() > deadline:
                    raise BusyError(
                        f"another daemon listens on '{path}'", path=str(path), hint="use it, or: millpond daemon stop"
                    )
                time.sleep(_RETRY_S)
            self.work_lock = _lock_file(path, "work")
            _await_leftovers(self.work_lock)
            _remove_stale(path)
            self.socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except BaseException:
            self._unlock()
            raise

    async def listen(self) -> None:
        """Begin to listen; connections that come before `accept` wait. Raises AccessError."""
        # The mode is set at birth: there is no moment at which others could connect.
        before = os.umask(0o777 & ~self._mode)
        try:
            await self.socket.bind(os.fspath(self._path))
        except OSError as error:
            raise AccessError(f"cannot listen on '{self._path}': {error.strerror}", path=str(self._path)) from error
        finally:
            os.umask(before)
        self._inode = os.stat(self._path).st_ino
        self.socket.listen(128)

    def close(self) -> None:
        """Stop listening; remove the socket if it is still the one bound here. Safe twice."""
        if self._lock < 0:
            return
        try:
            if self._inode and os.stat(self._path).st_ino == self._inode:
                self._path.unlink()
        except OSError as error:
            log.info("the socket was gone already: %s", error)
        self.socket.close()
        self._unlock()

    def _unlock(self) -> None:
        for fd in (self._lock, self.work_lock):
            if fd >= 0:
                os.close(fd)
        self._lock = self.work_lock = -1


def _make_folder(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise AccessError(f"cannot make the socket's folder '{path}': {error.strerror}", path=str(path)) from error


def _lock_file(path: Path, suffix: str) -> int:
    try:
        return os.open(f"{path}.{suffix}", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise AccessError(f"cannot make '{path}.{suffix}': {error.strerror}", path=str(path)) from error


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.settimeout(1.0)
            sock.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def _await_leftovers(fd: int) -> None:
    """Until no worker of an earlier daemon runs; then share the lock, for workers of this one to hold too."""
    deadline = time.monotonic() + LEFTOVER_S
    while not _try_lock(fd):
        if time.monotonic() > deadline:
            raise BusyError("a worker of an earlier daemon still runs", hint="end it (ps -C millpond-worker)")
        time.sleep(_RETRY_S)
    fcntl.flock(fd, fcntl.LOCK_SH)


def _remove_stale(path: Path) -> None:
    """Make room for the socket: a dead one of ours goes, anything else stays and is named."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise AccessError(
            f"'{path}' is in the way: it is no socket of this user", path=str(path), hint="set MILLPOND_SOCKET"
        )
    path.unlink()  # nobody holds its lock


class Server:
    """Accepts connections and serves them. `uids` may connect, None: all; `trusted_uids` may do what is the owner's. `store` is told
    to who connects: the path of what is served."""

    def __init__(
        self,
        registry: Registry,
        *,
        version: str,
        trusted_uids: frozenset[int],
        uids: frozenset[int] | None = None,
        store: str = "",
    ) -> None:
        self.registry = registry
        self.connections: dict[int, Connection] = {}
        self.last_request = time.monotonic()
        self.boot_id = secrets.token_hex(8)
        self.stopping = False
        self._version = version
        self._store = store
        self._trusted = trusted_uids
        self._uids = uids
        self._numbers = itertools.count(1)
        self._call_ended = trio.Event()
        registry.register("hello", self._hello)

    async def accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        """Take connections until the listener is closed."""
        while True:
            try:
                sock, _ = await listener.socket.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED):
                    raise
                log.error("cannot take a connection: %s", error)
                await trio.sleep(0.1)
                continue
            nursery.start_soon(self._serve_client, sock)

    def connection(self, sock: trio.socket.SocketType, *, uid: int, pid: int, parent: Call | None) -> Connection:
        """A connection object over a connected socket; to a worker when it serves a `parent` call."""
        number = next(self._numbers)
        made = Connection(
            Transport(sock),
            self.registry,
            id=number,
            role="client" if parent is None else "worker",
            uid=uid,
            pid=pid,
            parent=parent,
            admit=self._admit if parent is None else lambda call: None,
        )
        made.call_ended = self._ended
        self.connections[number] = made
        made.on_close(lambda: self._forget(number))
        return made

    @property
    def calls(self) -> list[Call]:
        """Requests of clients under way, but for those that only ask about the daemon."""
        found = [call for connection in self.connections.values() for call in connection.calls.values()]
        return [call for call in found if call.connection.role == "client" and not call.method.startswith("daemon.")]

    async def quiet(self) -> None:
        """Until every request of a client is answered."""
        while any(c.unanswered for c in self.connections.values() if c.role == "client"):
            self._call_ended = trio.Event()
            await self._call_ended.wait()

    def cancel_calls(self) -> None:
        """Cancel all requests of clients, which ends their workers."""
        for connection in self.connections.values():
            if connection.role == "client":
                connection.cancel_calls()

    def _admit(self, call: Call) -> None:
        if call.method.startswith("daemon."):
            return
        if self.stopping:
            raise DaemonUnavailableError(
                "the daemon is stopping", hint="run the command again", details={"stopping": True}
            )
        mine = sum(len(c.calls) for c in self.connections.values() if c.uid == call.uid and c.role == "client")
        if mine >= MAX_REQUESTS and call.method != "hello":
            raise BusyError(f"{MAX_REQUESTS} of your requests are under way already", hint="try again later")

    def _ended(self) -> None:
        self.last_request = time.monotonic()
        self._call_ended.set()

    async def _serve_client(self, sock: trio.socket.SocketType) -> None:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _ = _UCRED.unpack(raw)
        if self._uids is not None and uid not in self._uids:
            log.warning("uid %d is not served: this is another user's daemon", uid)
            sock.close()
            return
        if sum(1 for c in self.connections.values() if c.uid == uid and c.role == "client") >= MAX_CONNECTIONS:
            log.warning("uid %d has %d connections; one more is refused", uid, MAX_CONNECTIONS)
            await _refuse(
                sock, BusyError(f"{MAX_CONNECTIONS} of your connections are open already", hint="try again later")
            )
            return
        await self.connection(sock, uid=uid, pid=pid, parent=None).serve()

    def _forget(self, number: int) -> None:
        self.connections.pop(number, None)
        self._ended()

    async def _hello(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{protocol: [min, max], client, need} -> {protocol, server, capabilities, you, boot_id, store, trusted}."""
        hello = parse_hello(params)
        low, high = hello.protocol
        best = min(high, PROTOCOL)
        if best < max(low, PROTOCOL_MIN):
            older = "this program" if high < PROTOCOL_MIN else "the daemon"
            raise ProtocolError(
                f"the daemon speaks protocol {PROTOCOL_MIN} to {PROTOCOL}, this program {low} to {high}",
                hint=f"upgrade {older}; a user's daemon is renewed by `millpond daemon restart`",
            )
        capabilities = self.registry.names("client")
        missing = [name for name in hello.need if name not in capabilities]
        if missing:
            raise ProtocolError(f"the daemon cannot: {', '.join(missing)}", hint="millpond daemon restart")
        call.connection.greeted = True
        return {
            "protocol": best,
            "server": self._version,
            "capabilities": capabilities,
            "you": {"uid": call.uid, "pid": call.pid, "name": user_name(call.uid)},
            "boot_id": self.boot_id,
            "store": wirepath.encode(self._store),
            "trusted": call.uid in self._trusted,
        }
