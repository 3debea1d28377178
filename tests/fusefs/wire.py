"""The kernel's side of FUSE for tests of the direct engine's session: a socket pair in place of /dev/fuse, whose messages keep
their bounds as the device's do."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio
from tests.fusefs.helpers import UID

from millpond.daemon.store.folders import Totals
from millpond.daemon.store.reader import StoreReader
from millpond.fusefs.engines import protocol
from millpond.fusefs.engines.answers import Answers
from millpond.fusefs.engines.passthrough import Passthrough
from millpond.fusefs.engines.protocol import IN_HEADER, OUT_HEADER, Op
from millpond.fusefs.engines.readahead import ReadAhead
from millpond.fusefs.engines.session import Session
from millpond.fusefs.filesystem import Filesystem
from millpond.fusefs.reader import ChunkCache
from millpond.fusefs.sources import Sources

T = TypeVar("T")
# What a kernel of today offers.
ALL_FLAGS = 0x73FFFFFB
_WAIT_S = 20.0


@dataclass(slots=True)
class Kernel:
    """Asks a session. `filesystem` is what it serves."""

    sock: trio.socket.SocketType
    filesystem: Filesystem
    session: Session
    unique: int = 2
    answers: dict[int, tuple[int, bytes]] = field(default_factory=dict)

    async def send(self, op: int, inode: int = 0, body: bytes = b"", *, pid: int = 0) -> int:
        """Send a request; its number."""
        self.unique += 2
        head = IN_HEADER.pack(IN_HEADER.size + len(body), op, self.unique, inode, 0, 0, pid, 0, 0)
        await self.sock.send(head + body)
        return self.unique

    async def answer(self, unique: int) -> tuple[int, bytes]:
        """(errno, body) of the answer to a request."""
        with trio.fail_after(_WAIT_S):
            while unique not in self.answers:
                message = await self.sock.recv(2 << 20)
                length, error, number = OUT_HEADER.unpack_from(message)
                assert length == len(message) and -4096 < error <= 0, "the kernel would refuse this answer"
                assert number not in self.answers, "answered twice"
                self.answers[number] = (-error, message[OUT_HEADER.size :])
        return self.answers[unique]

    async def ask(self, op: int, inode: int = 0, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request and wait for its answer."""
        return await self.answer(await self.send(op, inode, body))

    async def begin(self, major: int = 7, minor: int = 40, flags: int = ALL_FLAGS) -> tuple[int, bytes]:
        return await self.ask(Op.INIT, body=protocol.INIT_IN.pack(major, minor, 131072, flags))

    async def lookup(self, parent: int, name: bytes) -> int:
        """The inode of an entry, 0 when there is none."""
        error, body = await self.ask(Op.LOOKUP, parent, name + b"\0")
        assert not error
        return int(protocol.ENTRY_OUT.unpack(body)[0])

    async def read(self, inode: int, offset: int, size: int) -> tuple[int, bytes]:
        return await self.ask(Op.READ, inode, read_body(offset, size))

    async def interrupt(self, unique: int) -> None:
        await self.send(Op.INTERRUPT, body=protocol.INTERRUPT_IN.pack(unique))


def read_body(offset: int, size: int) -> bytes:
    """Of READ, READDIR, READDIRPLUS."""
    return protocol.READ_IN.pack(0, offset, size, 0, 0, 0, 0)


def entries_plus(body: bytes) -> Iterator[tuple[int, bytes]]:
    """(inode, name) of a READDIRPLUS's answer."""
    at = 0
    while at < len(body):
        inode = protocol.ENTRY_OUT.unpack_from(body, at)[0]
        at += protocol.ENTRY_OUT.size
        _, _, length, _ = protocol.DIRENT.unpack_from(body, at)
        at += protocol.DIRENT.size
        yield inode, body[at : at + length]
        at += (length + 7) & ~7


def serve(
    store: Path,
    totals: Totals,
    work: Callable[[Kernel], Awaitable[T]],
    *,
    source: Sources | None = None,
    on_open: Callable[[int], None] | None = None,
    materialize: int = 0,
) -> T:
    """Run `work` as the kernel of a session that serves a tree; the session must end when the kernel hangs up. `materialize` as the
    option of a mount."""

    async def main() -> T:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        theirs.setblocking(False)
        reader = StoreReader.open(store)
        try:
            with theirs, trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    filesystem = Filesystem(
                        reader,
                        ChunkCache(reader, nursery),
                        source,
                        root=totals.root,
                        uid=UID,
                        totals=(totals.files, totals.bytes),
                    )
                    passthrough = None
                    if materialize:
                        device, folder = theirs.fileno(), store / "tmp"
                        passthrough = Passthrough(
                            device, filesystem, reader, nursery, folder=folder, budget=materialize
                        )
                    make = partial(Answers, filesystem, ahead=ReadAhead(0), on_open=on_open, passthrough=passthrough)
                    session = Session(
                        filesystem, theirs.fileno(), nursery, lambda channel, later: make(channel=channel, later=later)
                    )

                    async def run() -> None:
                        await session.run()
                        filesystem.ended()

                    nursery.start_soon(run)
                    with trio.socket.from_stdlib_socket(ours) as asking:
                        return await work(Kernel(asking, filesystem, session))
        finally:
            reader.close()

    with contextlib.ExitStack() as stack:
        if source is not None:
            stack.callback(source.close)
        return trio.run(main)
