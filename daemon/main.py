"""`millpondd`: read the settings, take the store, listen, serve, and end in order."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import trio

from millpond.daemon import log as daemon_log
from millpond.daemon.errors import AccessError, InternalError, MillpondError
from millpond.daemon.jobs import verbs as job_verbs
from millpond.daemon.jobs.system import SystemMode
from millpond.daemon.jobs.zygotes import Zygotes, own_user_starter
from millpond.daemon.mounts import service as mounts_service
from millpond.daemon.rpc import locks
from millpond.daemon.rpc.client import PROTOCOL
from millpond.daemon.rpc.methods import Call, Registry
from millpond.daemon.rpc.server import Listener, Server
from millpond.daemon.settings import Settings, from_env
from millpond.daemon.store import service as store_service
from millpond.daemon.store.store import Store, StoreSettings

log = logging.getLogger("millpond.daemon")

# Requests under way have this long to end when the daemon is told to stop.
STOP_S = 10.0
_IDLE_CHECK_S = 1.0
# LMDB forgets the slots of readers that died.
_READER_CHECK_S = 3600.0


def program_version() -> str:
    """The installed version; `0` from a bare checkout."""
    try:
        return version("millpond")
    except PackageNotFoundError:
        return "0"


class Daemon:
    """The parts that services share."""

    def __init__(self, settings: Settings, store: Store, nursery: trio.Nursery, system: SystemMode | None) -> None:
        self.settings = settings
        self.store = store
        self.nursery = nursery
        self.system = system
        self.started = time.time()
        self.registry = Registry()
        trusted = frozenset({0, os.getuid()})
        self.server = Server(self.registry, version=program_version(), trusted_uids=trusted)
        self.zygotes = Zygotes(system.start_zygote if system else own_user_starter)
        # What keeps an idle daemon alive, beside requests: for instance mounts.
        self.busy: list[Callable[[], bool]] = []
        self.stop = trio.Event()
        self.at_start: list[Callable[[], Awaitable[None]]] = []
        locks.register(self.registry)
        store_service.register(self.registry, self)
        self.verbs = job_verbs.register(self.registry, self)
        self.mounts = mounts_service.register(self.registry, self)
        self.registry.register("daemon.status", self._status)
        self.registry.register("daemon.stop", self._stop)

    async def watch_idle(self) -> None:
        """End after `idle_exit_s` without requests; hourly, free the index of dead readers."""
        limit = self.settings.idle_exit_s
        checked = time.monotonic()
        while True:
            await trio.sleep(min(_IDLE_CHECK_S, limit / 4) if limit else _IDLE_CHECK_S)
            if time.monotonic() - checked > _READER_CHECK_S:
                checked = time.monotonic()
                self.store.reader.index.env.reader_check()
            if not limit or self.server.connections or any(check() for check in self.busy):
                continue
            if time.monotonic() - self.server.last_request > limit:
                log.info("idle for %.0f s: ending", limit)
                self.stop.set()
                return

    async def drain(self) -> None:
        """Take no new requests, let those under way end for STOP_S seconds."""
        self.server.stopping = True
        with trio.move_on_after(STOP_S):
            await self.server.quiet()

    async def _status(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{} -> {pid, version, protocol, started, store, socket, log, requests, workers, mounts, rss}."""
        now = time.monotonic()
        return {
            "pid": os.getpid(),
            "version": program_version(),
            "protocol": PROTOCOL,
            "started": self.started,
            "mode": "system" if self.system else "user",
            "store": {"path": os.fspath(self.store.path)},
            "socket": os.fspath(self.settings.socket),
            "log": os.fspath(self.settings.log),
            "requests": [
                {"id": c.id, "method": c.method, "uid": c.uid, "pid": c.pid, "seconds": round(now - c.started, 1)}
                for c in self.server.calls
            ],
            "workers": len(self.verbs.workers),
            "mounts": self.mounts.count,
            "rss": _rss_bytes(),
        }

    async def _stop(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{} -> {pid}; the daemon ends when its requests have."""
        if call.uid not in (0, os.getuid()):
            raise AccessError("only root or the daemon's own user may stop it")
        self.stop.set()
        return {"pid": os.getpid()}


async def serve(settings: Settings, store: Store, system: SystemMode | None, ready: Callable[[], None]) -> None:
    """Listen and serve until told to stop, by request, signal or idleness."""
    listener = Listener(settings.socket, 0o666 if system else 0o600)
    try:
        async with trio.open_nursery() as nursery:
            daemon = Daemon(settings, store, nursery, system)
            nursery.start_soon(_signals, daemon)
            await listener.listen()
            nursery.start_soon(daemon.server.accept, listener, nursery)
            if system is None:
                nursery.start_soon(daemon.zygotes.of(os.getuid()).warm)
            ready()
            log.info("pid %d serves '%s' on '%s'", os.getpid(), store.path, settings.socket)
            for step in daemon.at_start:
                nursery.start_soon(step)
            nursery.start_soon(daemon.watch_idle)
            await daemon.stop.wait()
            await daemon.drain()
            nursery.cancel_scope.cancel()
        daemon.zygotes.close()
    finally:
        listener.close()


async def _signals(daemon: Daemon) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for number in received:
            log.info("signal %d: stopping", number)
            daemon.stop.set()


def run(settings: Settings, system: SystemMode | None, ready_fd: int) -> None:
    """Open everything, serve, close everything. Raises MillpondError when it cannot start."""
    group = system.store_group if system else None
    store = Store.open(StoreSettings(settings.store, fsync=settings.fsync, group=group))

    def ready() -> None:
        if ready_fd >= 0:
            with contextlib.suppress(OSError):
                os.write(ready_fd, b"\n")
            os.close(ready_fd)

    try:
        trio.run(serve, settings, store, system, ready)
    finally:
        store.close()
        log.info("ended")


def main(argv: list[str] | None = None) -> int:
    """The program. `--ready-fd N`: a line is written there when requests are answered, or the error as JSON."""
    parser = argparse.ArgumentParser(
        prog="millpondd", description="The millpond daemon; commands start it by themselves."
    )
    parser.add_argument("--ready-fd", type=int, default=-1, help="write a newline here once requests are answered")
    options = parser.parse_args(argv)
    # Many threads allocate large buffers: with an arena for each the memory would never be given back.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    try:
        system = SystemMode.from_env(os.environ)
        settings = from_env(os.environ, os.getuid())
        daemon_log.to_file(settings.log)
        run(settings, system, options.ready_fd)
        return 0
    except MillpondError as error:
        return _failed(error, options.ready_fd)
    except Exception as error:
        log.exception("the daemon failed")
        return _failed(InternalError(f"the daemon failed: {error!r}", hint="see its log"), options.ready_fd)


def _failed(error: MillpondError, ready_fd: int) -> int:
    log.error("%s", error)
    print(f"millpondd: {error}", file=sys.stderr)
    if ready_fd >= 0:
        with contextlib.suppress(OSError):
            os.write(ready_fd, json.dumps(error.to_wire()).encode() + b"\n")
    return error.exit_code


def _rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
