"""Frames over a trio socket: bounded, one sender at a time, descriptors closed when they are not taken."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

import trio

from millpond.daemon.rpc import framing
from millpond.daemon.rpc.messages import Message, parse


class Transport:
    """A connected AF_UNIX stream socket under trio."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._decoder = framing.Decoder(parse)
        self._sending = trio.Lock()
        self._closed = False

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send one frame whole; a sender that is cancelled in the middle breaks the connection. Raises OSError."""
        async with self._sending:
            sent = 0
            try:
                sent = await self._sock.sendmsg([data], framing.ancillary(fds))
                while sent < len(data):
                    sent += await self._sock.send(memoryview(data)[sent:])
            except trio.Cancelled:
                if sent:  # half a frame is out: nothing sensible can follow it
                    with contextlib.suppress(OSError):
                        self._sock.shutdown(socket.SHUT_RDWR)
                raise

    async def receive(self) -> tuple[Message, list[int]] | None:
        """The next message with its descriptors, None at the end. Raises ProtocolError."""
        while (item := self._decoder.next()) is None:
            try:
                data, control, flags, _ = await self._sock.recvmsg(
                    framing.RECEIVE_BYTES, framing.ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except (ConnectionResetError, trio.ClosedResourceError):
                return None
            fds = framing.taken_in(data, control, flags)
            if fds is None:
                return None
            self._decoder.feed(data, fds)
        return item

    def close(self) -> None:
        """Close the socket and what was received with it. Safe twice."""
        if not self._closed:
            self._closed = True
            self._decoder.close()
            self._sock.close()
