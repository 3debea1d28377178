"""Frames and their descriptors over a real socket pair, cut at any byte."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.rpc.helpers import memfd_of, open_fds

from millpond.daemon.errors import ProtocolError
from millpond.daemon.rpc import framing

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FRAMES = st.lists(
    st.tuples(st.dictionaries(st.text(max_size=4).filter(lambda key: key != "fds"), JSON), st.integers(0, 3)),
    max_size=8,
)


def decode(sock: socket.socket, decoder: framing.Decoder[dict[str, Any]]) -> list[tuple[dict[str, Any], list[int]]]:
    """All messages until the end of the stream."""
    found = []
    while framing.receive(sock, decoder):
        while (item := decoder.next()) is not None:
            found.append(item)
    return found


@settings(max_examples=150, deadline=None)
@given(frames=FRAMES, cuts=st.lists(st.integers(1, 40), max_size=30))
def test_frames_and_descriptors_arrive_in_order_however_they_are_cut(
    frames: list[tuple[dict[str, Any], int]], cuts: list[int]
) -> None:
    before = open_fds()
    ours, theirs = socket.socketpair()
    decoder = framing.Decoder(framing.parse_json)
    serial = 0
    with ours, theirs:
        pieces = iter(cuts)
        for message, count in frames:
            fds = [memfd_of(b"x" * (serial + n)) for n in range(count)]
            serial += count
            data = framing.encode(message, fds)
            first = next(pieces, len(data))
            sent = ours.sendmsg([data[:first]], framing.ancillary(fds))
            while sent < len(data):
                sent += ours.send(data[sent : sent + next(pieces, len(data))])
            for fd in fds:
                os.close(fd)
        ours.close()
        got = decode(theirs, decoder)
    assert [message for message, _ in got] == [message for message, _ in frames]
    assert [len(fds) for _, fds in got] == [count for _, count in frames]
    sizes = [os.fstat(fd).st_size for _, fds in got for fd in fds]
    assert sizes == list(range(serial))
    for _, fds in got:
        for fd in fds:
            os.close(fd)
    decoder.close()
    assert open_fds() == before


def test_the_bytes_of_a_frame() -> None:
    message = {"jsonrpc": "2.0", "id": 7, "method": "store.feed", "params": {"session": 1}}
    assert framing.encode(message, [3]) == (
        b'{"jsonrpc":"2.0","id":7,"method":"store.feed","params":{"session":1},"fds":1}\n'
    )


def test_a_frame_over_the_bound_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="over the bound"):
        framing.encode({"text": "x" * framing.MAX_FRAME})
    with pytest.raises(ProtocolError, match="over the bound"):
        framing.encode({}, range(framing.MAX_FDS + 1))


def test_an_endless_line_is_refused_before_it_fills_memory() -> None:
    decoder = framing.Decoder(framing.parse_json)
    piece = b"x" * (64 << 10)
    with pytest.raises(ProtocolError, match="frame of more than"):
        for _ in range(2 * framing.MAX_FRAME // len(piece)):
            decoder.feed(piece, [])


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"1", b'"x"', b"\xff", b'{"fds":-1}', b'{"fds":254}', b'{"fds":"1"}', b"[" * 100_000],
)
def test_what_is_no_message_is_a_protocol_error(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        framing.Decoder(framing.parse_json).feed(line + b"\n", [])


def test_a_message_that_names_descriptors_that_did_not_come_is_refused() -> None:
    decoder = framing.Decoder(framing.parse_json)
    fd = memfd_of(b"")
    decoder.feed(b'{"fds":2}\n', [fd])
    with pytest.raises(ProtocolError, match="names 2 descriptors"):
        decoder.next()
    decoder.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_descriptors_that_no_message_names_are_bounded_and_closed() -> None:
    before = open_fds()
    decoder = framing.Decoder(framing.parse_json)
    with pytest.raises(ProtocolError, match="more descriptors"):
        while True:
            decoder.feed(b"", [memfd_of(b"") for _ in range(100)])
    decoder.close()
    assert open_fds() == before
