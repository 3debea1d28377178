"""The blocking client: for the command line and for workers. Standard library only; see trio_client.py for trio."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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


# A result that is in the one memory file beside it, as JSON.
IN_FILE = {"in_file": True}


def from_file(fds: list[int]) -> dict[str, Any]:
    """The result that came in a memory file. Raises ProtocolError."""
    if len(fds) != 1:
        framing.close_all(fds)
        raise ProtocolError("an answer lacks the memory file that holds it")
    from millpond.daemon import memfd  # late: few answers are long

    with memfd.mapped(fds[0]) as view:
        result: dict[str, Any] = json.loads(bytes(view))
    return result


class Client:
    """One connection. Used by one thread; requests may be pipelined with `start` and `wait`.

    An exception that a signal raises in the middle of a frame (Ctrl-C, a worker's SIGTERM) leaves the connection
    unusable: every later use raises DaemonUnavailableError, none ever hangs or sends half a frame's rest.
    """

    def __init__(self, sock: socket.socket, on_notify: Notify | None = None, *, serving: bool = False) -> None:
        self._sock = sock
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._decoder = framing.Decoder(framing.parse_json)
        self._ids = itertools.count(1)
        self._answers: dict[int, tuple[dict[str, Any], list[int]]] = {}
        self._started: set[int] = set()
        self._requests: deque[dict[str, Any]] = deque(maxlen=1)
        self._notes: deque[dict[str, Any]] = deque()
        self._serving = serving
        # Descriptors that came with the request that is served.
        self.request_fds: list[int] = []
        self._broken = False
        self.on_notify = on_notify
        self.server: dict[str, Any] = {}

    @classmethod
    def connect(
        cls,
        path: Path,
        *,
        timeout: float = 10.0,
        name: str = "millpond",
        need: Sequence[str] = (),
        greet: bool = True,
    ) -> Client:
        """Connect and greet. Raises DaemonUnavailableError (nobody answers, or it is stopping), ProtocolError (another
        protocol, or one of the methods in `need` is missing). Without a greeting only `daemon.status` and `daemon.stop`
        are answered, whatever protocol the daemon speaks."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(timeout)
            sock.connect(os.fspath(path))
            client = cls(sock)
            if greet:
                hello = {"protocol": [PROTOCOL_MIN, PROTOCOL], "client": name, "need": list(need)}
                client.server, _ = client.call("hello", hello)
            sock.settimeout(None)
            return client
        except OSError as error:
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
        self._send({"id": number, "method": method, "params": params}, fds)
        self._started.add(number)
        return number

    def wait(self, number: int) -> tuple[dict[str, Any], list[int]]:
        """The answer of a started request. Raises as `call`."""
        if number not in self._started:
            raise ProtocolError(f"request {number} was not started, or its answer was taken")
        while number not in self._answers:
            self._receive()
        self._started.discard(number)
        message, fds = self._answers.pop(number)
        if "error" in message:
            framing.close_all(fds)
            raise from_wire(message["error"])
        result = message.get("result") or {}
        return (from_file(fds), []) if result == IN_FILE else (result, fds)

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Send a notification."""
        self._send({"method": method, "params": params})

    def cancel(self, number: int) -> None:
        """Ask for a started request to be cancelled; its answer still comes."""
        self.notify("$/cancelRequest", {"id": number})

    def serve_one(self) -> dict[str, Any]:
        """Wait for the request of the other side (a worker gets exactly one). Raises DaemonUnavailableError."""
        while not self._requests:
            self._receive()
        return self._requests.popleft()

    def answer(
        self,
        number: Any,
        *,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        """Answer a request of the other side."""
        self._send({"id": number, "error": error} if error is not None else {"id": number, "result": result or {}}, fds)

    def hung_up(self, timeout: float = 0.0) -> bool:
        """Whether the other side closes the connection within `timeout` seconds; what it sends meanwhile is dropped."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | select.POLLRDHUP)
        deadline = time.monotonic() + timeout
        while events := poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            if events[0][1] & (select.POLLRDHUP | select.POLLHUP | select.POLLERR):
                return True
            try:
                self._receive()
            except DaemonUnavailableError:
                return True
        return False

    def close(self) -> None:
        """Close the connection, which cancels what is under way on it."""
        self._broken = True
        self._decoder.close()
        for _, fds in self._answers.values():
            framing.close_all(fds)
        self._answers.clear()
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Around what must not be left half done. Any exception in it means that the connection is lost."""
        if self._broken:
            raise self._gone()
        self._broken = True
        yield
        self._broken = False

    def _send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        data = framing.encode({"jsonrpc": "2.0", **message}, fds)
        try:
            with self._whole():
                framing.send(self._sock, data, fds)
        except (BrokenPipeError, ConnectionResetError):
            # The daemon may have said why before it closed: read that first.
            with contextlib.suppress(OSError):
                while framing.receive(self._sock, self._decoder):
                    pass
            self._sort()
            raise self._gone() from None

    def _receive(self) -> None:
        # Waiting is done out here, where an interruption costs nothing.
        timeout = self._sock.gettimeout()
        if not self._readable.poll(None if timeout is None else timeout * 1000):
            raise TimeoutError("the daemon does not answer in time")
        try:
            with self._whole():
                if not framing.receive(self._sock, self._decoder):
                    raise self._gone()
                self._sort()
        except ConnectionResetError:
            raise self._gone() from None
        while self._notes:
            note = self._notes.popleft()
            if self.on_notify is not None:
                self.on_notify(note["method"], note.get("params") or {})

    def _sort(self) -> None:
        """Put what came where it belongs."""
        while (item := self._decoder.next()) is not None:
            message, fds = item
            number = message.get("id")
            if "method" not in message and number in self._started:
                self._answers[number] = (message, fds)
                continue
            if self._serving and number is not None and "method" in message:
                self.request_fds, fds = fds, []
            framing.close_all(fds)
            if "method" not in message:
                if number is None and "error" in message:
                    raise from_wire(message["error"])
            elif number is None:
                self._notes.append(message)
            elif self._serving:
                self._requests.append(message)
            else:
                error = ProtocolError("this client takes no requests").to_wire()
                framing.send(self._sock, framing.encode({"jsonrpc": "2.0", "id": number, "error": error}))

    @staticmethod
    def _gone() -> DaemonUnavailableError:
        return DaemonUnavailableError(
            "the daemon ended before it answered", hint="see `millpond daemon logs`, then run the command again"
        )
