"""A real server on a real socket, run by trio in a thread, for tests that look at it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
import trio.testing

from millpond.daemon.rpc.methods import Call, Registry, Reply
from millpond.daemon.rpc.server import Listener, Server

VERSION = "0.0.test"


@dataclass
class Running:
    """A server in its thread. `on_loop` runs a function there."""

    path: Path
    server: Server
    token: trio.lowlevel.TrioToken
    scope: trio.CancelScope

    def stop(self) -> None:
        """End it as a crash would: every connection closes, whatever runs."""
        with contextlib.suppress(trio.RunFinishedError):
            self.on_loop(self.scope.cancel)

    def on_loop(self, work: Callable[[], Any]) -> Any:
        return trio.from_thread.run_sync(work, trio_token=self.token)

    def quiet(self) -> None:
        """Return once no request is under way."""
        trio.from_thread.run(self.server.quiet, trio_token=self.token)

    def settle(self) -> None:
        """Return once every task of the server waits for something outside."""
        trio.from_thread.run(trio.testing.wait_all_tasks_blocked, trio_token=self.token)


@contextlib.contextmanager
def serving(path: Path, register: Callable[[Registry], None] | None = None) -> Iterator[Running]:
    """Serve a registry with the test methods below (and those of `register`) until the block ends."""
    started = threading.Event()
    box: dict[str, Any] = {}

    async def main() -> None:
        registry = Registry()
        register_test_methods(registry)
        if register is not None:
            register(registry)
        own = frozenset({os.getuid()})
        server = Server(registry, version=VERSION, trusted_uids=own, uids=own)
        listener = Listener(path, 0o600)
        await listener.listen()
        try:
            async with trio.open_nursery() as nursery:
                box["running"] = Running(path, server, trio.lowlevel.current_trio_token(), nursery.cancel_scope)
                nursery.start_soon(server.accept, listener, nursery)
                started.set()
        finally:
            listener.close()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # handed to the test below
            box["error"] = error
        finally:
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(10)
    if "running" not in box:
        thread.join(10)
        raise box["error"]
    running: Running = box["running"]
    try:
        yield running
    finally:
        running.stop()
        thread.join(10)
    if "error" in box:
        raise box["error"]


def register_test_methods(registry: Registry) -> None:
    """Methods that do on demand what handlers do."""

    async def echo(call: Call, params: dict[str, Any]) -> dict[str, Any]:
        return dict(params)

    async def broken(call: Call, params: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError("a bug")

    async def forever(call: Call, params: dict[str, Any]) -> dict[str, Any]:
        call.progress(phase="waiting")
        await trio.sleep_forever()
        return {}

    async def count(call: Call, params: dict[str, Any]) -> dict[str, Any]:
        total = int(params["total"])
        for done in range(total + 1):
            call.progress(phase="counting", files=(done, total))
            await trio.lowlevel.checkpoint()
        return {"total": total}

    async def sizes(call: Call, params: dict[str, Any]) -> dict[str, Any]:
        return {"sizes": [os.fstat(fd).st_size for fd in call.fds]}

    async def memfd(call: Call, params: dict[str, Any]) -> Reply:
        return Reply({}, fds=[memfd_of(str(text).encode()) for text in params["texts"]])

    for handler in (echo, broken, forever, count, sizes, memfd):
        registry.register(f"test.{handler.__name__}", handler)


def memfd_of(data: bytes) -> int:
    """A memory file with this content, read position at the start."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def open_fds() -> set[str]:
    """What this process has open, as `number -> target`; the listing's own descriptor left out."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{number} -> {os.readlink(f'/proc/self/fd/{number}')}")
    return {item for item in found if "/proc/" not in item}


class Raw:
    """A client that says what it likes: lines out, JSON in."""

    def __init__(self, path: Path, *, greet: bool = True) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(os.fspath(path))
        self._rest = b""
        if greet:
            self.say({"id": 0, "method": "hello", "params": {"protocol": [1, 1], "client": "raw"}})
            assert "result" in self.hear()

    def say(self, message: dict[str, Any]) -> None:
        self.sock.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        """The next message. Raises EOFError at the end."""
        while b"\n" not in self._rest:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def hear_answer(self, number: Any) -> dict[str, Any]:
        """The answer of request `number`; what comes before is dropped."""
        while True:
            message = self.hear()
            if "method" not in message and message["id"] == number:
                return message

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
