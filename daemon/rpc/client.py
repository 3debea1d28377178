"""The blocking client: for the command line and for workers. Standard library only; see trio_client.py for trio."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from millpond.daemon.errors import DaemonUnavailableError, ProtocolError, from_wire
from millpond.daemon.rpc import framing

PROTOCOL = 1
PROTOCOL_MIN = 1
# Requests that may be under way at once on one connection.
MAX_STARTED = 64
# Called with (method, params) of each notification.
Notify = Callable[[str, dict[str, Any]], None]


class Client:
    """One connection. Used by one thread; requests may be pipelined with `start` and `wait`."""

    def __init__(self, sock: socket.socket, on_notify: Notify | None = None) -> None:
        self._sock = sock
        self._decoder = framing.Decoder()
        self._ids = itertools.count(1)
        self._answers: dict[int, tuple[dict[str, Any], list[int]]] = {}
        self._started: set[int] = set()
        self._requests: list[dict[str, Any]] = []
        self.on_notify = on_notify
        self.server: dict[str, Any] = {}

    @classmethod
    def connect(cls, path: Path, *, timeout: float = 10.0, name: str = "millpond") -> Client:
        """Connect and greet. Raises DaemonUnavailableError (nobody answers), ProtocolError (another protocol)."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(timeout)
            sock.connect(os.fspath(path))
            client = cls(sock)
            client.server, _ = client.call("hello", {"protocol": [PROTOCOL_MIN, PROTOCOL], "client": name})
            sock.settimeout(None)
            return client
        except (OSError, EOFError) as error:
            sock.close()
            raise DaemonUnavailableError(
                f"no daemon answers on '{path}'", path=str(path), hint="start it: millpond daemon start"
            ) from error
        except BaseException:
            sock.close()
            raise

    def call(
        self, method: str, params: dict[str, Any], *, fds: Sequence[int] = (), on_notify: Notify | None = None
    ) -> tuple[dict[str, Any], list[int]]:
        """Send a request and wait for its answer: (result, descriptors).

        Raises the error that the daemon answered with, DaemonUnavailableError when the connection ends.
        """
        before, self.on_notify = self.on_notify, on_notify or self.on_notify
        try:
            return self.wait(self.start(method, params, fds))
        finally:
            self.on_notify = before

    def start(self, method: str, params: dict[str, Any], fds: Sequence[int] = ()) -> int:
        """Send a request; its number, for `wait`."""
        if len(self._started) >= MAX_STARTED:
            raise ProtocolError(f"more than {MAX_STARTED} requests are under way on one connection")
        number = next(self._ids)
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        self._send(framing.encode(message, fds), fds)
        self._started.add(number)
        return number

    def wait(self, number: int) -> tuple[dict[str, Any], list[int]]:
        """The answer of a started request. Raises as `call`."""
        while number not in self._answers:
            self._receive()
        self._started.discard(number)
        message, fds = self._answers.pop(number)
        if "error" in message:
            for fd in fds:
                os.close(fd)
            raise from_wire(message["error"])
        return message.get("result") or {}, fds

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Send a notification."""
        self._send(framing.encode({"jsonrpc": "2.0", "method": method, "params": params}))

    def cancel(self, number: int) -> None:
        """Ask for a started request to be cancelled; its answer still comes."""
        self.notify("$/cancelRequest", {"id": number})

    def serve_one(self) -> dict[str, Any]:
        """Wait for a request of the other side (a worker gets exactly one). Raises DaemonUnavailableError."""
        while not self._requests:
            self._receive()
        return self._requests.pop(0)

    def answer(self, number: Any, *, result: dict[str, Any] | None = None, error: dict[str, Any] | None = None) -> None:
        """Answer a request of the other side."""
        body = {"error": error} if error is not None else {"result": result or {}}
        self._send(framing.encode({"jsonrpc": "2.0", "id": number, **body}))

    def hung_up(self) -> bool:
        """Whether the other side has closed the connection."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the connection, which cancels what is under way on it."""
        self._decoder.close()
        for _, fds in self._answers.values():
            for fd in fds:
                os.close(fd)
        self._answers.clear()
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        try:
            framing.send(self._sock, data, fds)
        except (BrokenPipeError, ConnectionResetError):
            # The daemon may have said why before it closed: read that first.
            with contextlib.suppress(OSError):
                while framing.receive(self._sock, self._decoder):
                    pass
            self._drain()
            raise self._gone() from None

    def _receive(self) -> None:
        try:
            more = framing.receive(self._sock, self._decoder)
        except ConnectionResetError:
            more = False
        if not more:
            raise self._gone()
        self._drain()

    def _drain(self) -> None:
        while (item := self._decoder.next()) is not None:
            message, fds = item
            if "method" not in message:
                if message.get("id") is None and "error" in message:
                    raise from_wire(message["error"])
                self._answers[message["id"]] = (message, fds)
                continue
            for fd in fds:
                os.close(fd)
            if "id" in message:
                self._requests.append(message)
            elif self.on_notify is not None:
                self.on_notify(message["method"], message.get("params") or {})

    @staticmethod
    def _gone() -> DaemonUnavailableError:
        return DaemonUnavailableError(
            "the daemon ended before it answered", hint="see `millpond daemon logs`, then run the command again"
        )
