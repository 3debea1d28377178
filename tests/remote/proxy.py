"""A proxy between client and server that spoils what passes, as networks do. A thread for each connection; one HTTP exchange at a time."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ETAG = re.compile(rb"\r\netag: *[^\r]*", re.IGNORECASE)
# What a fault gets: the request's head, the answer; it gives what is passed on, None to break the connection.
Fault = Callable[[bytes, bytes], bytes | None]


@dataclass(slots=True)
class Proxy:
    """`fault` for each exchange whose head it is asked about; `count` of all; `seen` the requests' first lines."""

    port: int = 0
    fault: Fault | None = None
    delay_s: float = 0.0
    count: int = 0
    passed: int = 0
    seen: list[bytes] = field(default_factory=list)
    # Exchanges that stand still wait for this; how many do.
    stalled: threading.Event = field(default_factory=threading.Event)
    waiting: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def answer(status: bytes, body: bytes) -> bytes:
    """A whole answer of the server's."""
    return b"HTTP/1.1 %s\r\ncontent-type: application/xml\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )


def slow_down(_: bytes, __: bytes) -> bytes:
    return answer(b"503 Slow Down", b"<Error><Code>SlowDown</Code></Error>")


def denied(_: bytes, __: bytes) -> bytes:
    return answer(b"403 Forbidden", b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>")


def broken(_: bytes, __: bytes) -> None:
    return None


def stall(made: Proxy, seconds: float = 300.0) -> None:
    """Nothing, until `stalled` is set; then the end of the connection."""
    made.waiting += 1
    made.stalled.wait(seconds)
    made.waiting -= 1


def truncated(_: bytes, given: bytes) -> bytes | None:
    """Half of the body, then the end of the connection."""
    head, _, body = given.partition(b"\r\n\r\n")
    return None if not body else b"CUT" + head + b"\r\n\r\n" + body[: len(body) // 2]


def wrong(_: bytes, given: bytes) -> bytes:
    """Another byte in the middle."""
    head, _, body = given.partition(b"\r\n\r\n")
    middle = len(body) // 2
    return given if not body else head + b"\r\n\r\n" + body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def changed(_: bytes, given: bytes) -> bytes:
    """As if it were another version of the object."""
    return _ETAG.sub(b'\r\nETag: "0123456789abcdef0123456789abcdef"', given, count=1)


@contextlib.contextmanager
def proxy(endpoint: str) -> Iterator[Proxy]:
    """Between whoever connects and the server at `endpoint`."""
    host, _, port = endpoint.removeprefix("http://").partition(":")
    listener = socket.create_server(("127.0.0.1", 0))
    made = Proxy(listener.getsockname()[1])
    threading.Thread(target=_accept, args=(listener, made, (host, int(port))), daemon=True).start()
    try:
        yield made
    finally:
        made.stalled.set()
        listener.close()


def _accept(listener: socket.socket, made: Proxy, server: tuple[str, int]) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_serve, args=(client, made, server), daemon=True).start()


def _serve(client: socket.socket, made: Proxy, server: tuple[str, int]) -> None:
    with client, contextlib.suppress(OSError, ConnectionError), socket.create_connection(server) as upstream:
        while request := _message(client, request=True):
            upstream.sendall(request)
            method = request.split(b" ", 1)[0]
            given = _message(upstream, request=False, method=method)
            if not given:
                return
            if made.delay_s:
                time.sleep(made.delay_s)
            made.count += 1
            made.seen.append(request.split(b"\r\n", 1)[0])
            made.passed += len(given)
            passed = given if made.fault is None else made.fault(request, given)
            if passed is None:
                return
            if passed.startswith(b"CUT"):
                client.sendall(passed[3:])
                return
            if method == b"HEAD":
                passed = passed.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            client.sendall(passed)


def _message(sock: socket.socket, *, request: bool, method: bytes = b"") -> bytes:
    """A whole request or answer; empty when the other side hung up."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    if request and b"expect: 100-continue" in head.lower():
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = re.sub(rb"\r\nexpect: *100-continue", b"", head, flags=re.IGNORECASE)
    found = _LENGTH.search(head)
    wanted = 0 if method == b"HEAD" or found is None else int(found[1])
    while len(body) < wanted:
        part = sock.recv(1 << 20)
        if not part:
            break
        body += part
    return head + b"\r\n\r\n" + body
