"""The messages' schema, for the daemon and the trio client: what does not fit it is refused at the door.

Members that are not named here are ignored, so that a newer side may add some.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from millpond.daemon.errors import ProtocolError
from millpond.daemon.rpc.framing import MAX_FDS

# A request's id, chosen by the side that asks.
RequestId = int | Annotated[str, msgspec.Meta(max_length=128)]


class Message(msgspec.Struct):
    """A request (method and id), a notification (method alone) or an answer (id with result or error)."""

    id: RequestId | None = None
    method: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    params: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    fds: Annotated[int, msgspec.Meta(ge=0, le=MAX_FDS)] = 0


class Hello(msgspec.Struct):
    """The first request of a connection: the protocol versions spoken, and the methods that the client cannot do
    without."""

    protocol: tuple[int, int]
    client: str = ""
    need: Annotated[list[str], msgspec.Meta(max_length=256)] = []


_decoder = msgspec.json.Decoder(Message)


def parse(line: bytes) -> tuple[Message, int]:
    """A message and its number of descriptors. Raises ProtocolError."""
    try:
        message = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the other side sent what is no message: {error}") from error
    return message, message.fds


def parse_hello(params: dict[str, Any]) -> Hello:
    """Raises ProtocolError."""
    try:
        return msgspec.convert(params, Hello)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"hello must name a protocol range, [min, max]: {error}") from error
