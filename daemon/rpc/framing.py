"""Frames: one JSON object a line over a Unix stream socket, with descriptors beside.

A frame that carries descriptors says how many in its member `fds`; they are sent with the frame's first byte. Linux never
merges the bytes of two messages with ancillary data in one recvmsg, so the k-th descriptor received belongs to the
first frame that still lacks one.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from millpond.daemon.errors import ProtocolError

T = TypeVar("T")

# Bytes of one frame.
MAX_FRAME = 4 << 20
# Descriptors of one frame: Linux takes 253 (SCM_MAX_FD).
MAX_FDS = 253
RECEIVE_BYTES = 256 << 10
ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_FDS * 4)


def encode(message: dict[str, Any], fds: Sequence[int] = ()) -> bytes:
    """The frame of a message. Raises ProtocolError beyond the bounds.

    Text that is not Unicode (a message that shows an undecodable file name) is sent with its bytes as `\\xNN`.
    """
    if fds:
        message = {**message, "fds": len(fds)}
    text = json.dumps(message, separators=(",", ":"))
    if "\\ud" in text:  # an escaped surrogate: half of a pair, or alone
        text = json.dumps(readable(message), separators=(",", ":"))
    if len(text) >= MAX_FRAME or len(fds) > MAX_FDS:
        raise ProtocolError(f"a message of {len(text)} bytes and {len(fds)} descriptors is over the bound")
    return text.encode() + b"\n"


def readable(value: Any) -> Any:
    """The same JSON value with lone surrogates in its texts replaced, as strict readers demand."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") if _odd(value) else value
    if isinstance(value, dict):
        return {readable(key): readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [readable(item) for item in value]
    return value


def _odd(text: str) -> bool:
    return any("\udc80" <= char <= "\udcff" for char in text)


class Decoder(Generic[T]):
    """Bytes and descriptors in, whole messages out. Descriptors not handed out are closed by `close`.

    `parse` makes a message and its number of descriptors of a line, or raises ProtocolError.
    """

    def __init__(self, parse: Callable[[bytes], tuple[T, int]]) -> None:
        self._parse = parse
        self._buffer = bytearray()
        self._fds: deque[int] = deque()
        self._messages: deque[tuple[T, int]] = deque()

    def feed(self, data: bytes, fds: Sequence[int]) -> None:
        """Take in what one recvmsg gave. Raises ProtocolError for what is no frame."""
        self._fds.extend(fds)
        if len(self._fds) > 4 * MAX_FDS:
            raise ProtocolError("the other side sends more descriptors than its messages name")
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        if max(map(len, lines), default=0) > MAX_FRAME or len(rest) > MAX_FRAME:
            raise ProtocolError(f"the other side sent a frame of more than {MAX_FRAME} bytes")
        for line in lines:
            self._messages.append(self._parse(bytes(line)))

    def next(self) -> tuple[T, list[int]] | None:
        """The next whole message with its descriptors (now the taker's), or None. Raises ProtocolError."""
        if not self._messages:
            return None
        message, count = self._messages.popleft()
        if count > len(self._fds):
            raise ProtocolError(f"a message names {count} descriptors, but {len(self._fds)} came")
        return message, [self._fds.popleft() for _ in range(count)]

    def close(self) -> None:
        close_all(self._fds)
        self._fds.clear()


def parse_json(line: bytes) -> tuple[dict[str, Any], int]:
    """A message as a plain dict, for the standard library's side. Raises ProtocolError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the other side sent a line that is not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError("the other side sent JSON that is not an object")
    count = message.pop("fds", 0)
    if type(count) is not int or not 0 <= count <= MAX_FDS:
        raise ProtocolError("the other side named an impossible number of descriptors")
    return message, count


def ancillary(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """The control message that carries `fds`."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []


def received_fds(control: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """Descriptors of a recvmsg's control messages."""
    found = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def taken_in(data: bytes, control: Sequence[tuple[int, int, bytes]], flags: int) -> list[int] | None:
    """The descriptors of a recvmsg, None at the end of the stream. Raises ProtocolError when some were lost."""
    fds = received_fds(control)
    if data and not flags & socket.MSG_CTRUNC:
        return fds
    close_all(fds)
    if data:
        raise ProtocolError("descriptors were lost on the way", hint="raise the limit of open files: ulimit -n")
    return None


def close_all(fds: Sequence[int] | deque[int]) -> None:
    for fd in fds:
        os.close(fd)


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send a frame on a blocking socket; the descriptors go with its first byte."""
    sent = sock.sendmsg([data], ancillary(fds))
    if sent < len(data):
        sock.sendall(memoryview(data)[sent:])


def receive(sock: socket.socket, decoder: Decoder[T]) -> bool:
    """Wait for bytes on a blocking socket and feed them; False at the end of the stream."""
    data, control, flags, _ = sock.recvmsg(RECEIVE_BYTES, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    fds = taken_in(data, control, flags)
    if fds is None:
        return False
    decoder.feed(data, fds)
    return True
