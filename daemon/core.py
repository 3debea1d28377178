"""The daemon: what its services share, and its life from the store's lock to the end."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from millpond.daemon.errors import AccessError, BusyError
from millpond.daemon.jobs import service as jobs_service
from millpond.daemon.jobs import verbs as job_verbs
from millpond.daemon.jobs.system import SystemMode
from millpond.daemon.jobs.zygotes import OwnUserStarter, Zygotes
from millpond.daemon.mounts import service as mounts_service
from millpond.daemon.mounts import sources
from millpond.daemon.names import ObjectName
from millpond.daemon.rpc import locks
from millpond.daemon.rpc.client import PROTOCOL
from millpond.daemon.rpc.methods import Call, Registry
from millpond.daemon.rpc.server import Listener, Server
from millpond.daemon.settings import Settings
from millpond.daemon.store import evict_service, folder_service, gc_service, scrub_service
from millpond.daemon.store import service as store_service
from millpond.daemon.store.store import Store, StoreSettings
from millpond.daemon.version import VERSION

log = logging.getLogger("millpond.daemon")

# Requests under way have this long to end by themselves when the daemon is told to stop; then they are cancelled.
STOP_S = 10.0
# Cancelled ones have this long: a worker's grace (verbs.py), its end after a kill, and some.
CANCEL_S = 15.0
# Open files of the daemon.
MAX_FILES = 65536
# A process that was killed while it synced to a busy disk takes its time.
DYING_S = 10.0
_PF_EXITING = 4
_IDLE_CHECK_S = 1.0
# LMDB forgets the slots of readers that died.
_READER_CHECK_S = 3600.0


class Daemon:
    """The parts that services share. `busy` says what keeps an idle daemon alive, `at_start` what runs once it listens."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        listener: Listener,
        nursery: trio.Nursery,
        system: SystemMode | None,
        zygotes: Zygotes,
    ) -> None:
        self.settings = settings
        self.store = store
        self.listener = listener
        self.nursery = nursery
        self.system = system
        self.zygotes = zygotes
        self.started = time.time()
        self.registry = Registry()
        own = frozenset({0, os.getuid()})
        uids = None if system is not None else own
        path = os.fspath(store.path)
        self.server = Server(self.registry, version=VERSION, trusted_uids=own, uids=uids, store=path)
        self.busy: list[Callable[[], bool]] = []
        self.at_start: list[Callable[[], Awaitable[None]]] = []
        # Told of each manifest that a caller has committed.
        self.on_manifest: list[Callable[[int, ObjectName], None]] = []
        self.stop = trio.Event()
        self.hurry = trio.Event()
        self.locks = locks.register(self.registry)
        store_service.register(self.registry, self)
        self.verbs = job_verbs.register(self.registry, self)
        self.mounts = mounts_service.register(self.registry, self)
        sources.register(self.registry, self)
        folder_service.register(self.registry, self)
        self.jobs = jobs_service.register(self.registry, self)
        gc_service.register(self.registry, self)
        evict_service.register(self.registry, self)
        scrub_service.register(self)
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
        """Take no new requests; let those under way end, cancel what takes longer or when there is a hurry."""
        self.server.stopping = True
        with trio.move_on_after(STOP_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._when_hurried, nursery.cancel_scope)
                await self.server.quiet()
                await self.verbs.quiet()
                nursery.cancel_scope.cancel()
        self.server.cancel_calls()
        with trio.move_on_after(CANCEL_S) as patience:
            await self.server.quiet()
            await self.verbs.quiet()
        if patience.cancelled_caught:
            log.error("%d requests do not end: left behind", len(self.server.calls))

    async def _when_hurried(self, scope: trio.CancelScope) -> None:
        await self.hurry.wait()
        scope.cancel()

    def end(self) -> None:
        """Told to stop: in order the first time, at once the second."""
        (self.hurry if self.stop.is_set() else self.stop).set()

    async def _status(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{} -> {pid, version, protocol, started, store, socket, log, requests, workers, locks, mounts, jobs, rss}.

        Others than the owner see their own requests only, and no locks.
        """
        owner = call.uid in (0, os.getuid())
        return {
            "pid": os.getpid(),
            "version": VERSION,
            "protocol": PROTOCOL,
            "boot_id": self.server.boot_id,
            "started": self.started,
            "mode": "system" if self.system else "user",
            "stopping": self.server.stopping,
            "store": {"path": os.fspath(self.store.path)},
            "socket": os.fspath(self.settings.socket),
            "log": os.fspath(self.settings.log),
            "requests": [
                {"id": c.id, "method": c.method, "uid": c.uid, "pid": c.pid, "seconds": round(c.seconds(), 1)}
                for c in self.server.calls
                if owner or c.uid == call.uid
            ],
            "connections": sum(1 for c in self.server.connections.values() if c.role == "client"),
            "workers": len(self.verbs.workers),
            "zygotes": len(self.zygotes),
            "locks": self.locks.state() if owner else [],
            "mounts": self.mounts.count,
            "jobs": self.jobs.counts,
            "rss": _rss_bytes(),
        }

    async def _stop(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{now?} -> {pid}; the daemon ends when its requests have, or cancels them (now). Then the connection closes."""
        if call.uid not in (0, os.getuid()):
            raise AccessError("only root or the daemon's own user may stop it")
        log.info("stopping, asked by pid %d", call.pid)
        self.stop.set()
        if params.get("now"):
            self.hurry.set()
        return {"pid": os.getpid()}


async def serve(
    settings: Settings, store: Store, system: SystemMode | None, zygotes: Zygotes, ready: Callable[[], None]
) -> None:
    """Listen and serve until told to stop, by request, signal or idleness.

    The order of the end is what others rely on: connections close after the store is closed and the socket is gone, so
    whoever waited for that may start the next daemon.
    """
    listener = Listener(settings.socket, 0o666 if system else 0o600)
    try:
        await listener.listen()
        async with trio.open_nursery() as nursery:
            daemon = Daemon(settings, store, listener, nursery, system, zygotes)
            nursery.start_soon(_signals, daemon)
            if system is None:
                await zygotes.of(os.getuid()).warm()
            nursery.start_soon(daemon.server.accept, listener, nursery)
            ready()
            log.info("pid %d serves '%s' on '%s'", os.getpid(), store.path, settings.socket)
            for step in daemon.at_start:
                nursery.start_soon(step)
            nursery.start_soon(daemon.watch_idle)
            await daemon.stop.wait()
            await daemon.drain()
            zygotes.close()
            await daemon.jobs.close()
            await trio.to_thread.run_sync(store.close)
            listener.close()
            nursery.cancel_scope.cancel()
    finally:
        zygotes.close()
        listener.close()


async def _signals(daemon: Daemon) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for number in received:
            log.info("signal %d: stopping", number)
            daemon.end()


def run(
    settings: Settings,
    system: SystemMode | None,
    zygote: tuple[socket.socket, subprocess.Popen[bytes]] | None,
    ready: Callable[[], None],
) -> None:
    """Open everything, serve, close everything. Raises MillpondError when it cannot start."""
    _raise_file_limit()
    starter = OwnUserStarter(settings.verbs, zygote)
    zygotes = Zygotes(starter, shared=True) if system is None else Zygotes(system.start_zygote)
    try:
        group = system.store_group if system else None
        store = _open_store(StoreSettings(settings.store, fsync=settings.fsync, group=group))
        try:
            trio.run(serve, settings, store, system, zygotes, ready)
        finally:
            store.close()
    finally:
        zygotes.close()
        starter.close()
        log.info("ended")


def _open_store(settings: StoreSettings) -> Store:
    """Open the store; a daemon that was killed may take a moment to let go of it. Raises as Store.open."""
    deadline = time.monotonic() + DYING_S
    while True:
        try:
            return Store.open(settings)
        except BusyError:
            if time.monotonic() > deadline or not _is_dying(settings.path / "lock"):
                raise
            time.sleep(0.02)


def _is_dying(lock: Path) -> bool:
    """Whether the process that a lock file names is gone or on its way out (proc_pid_stat(5): field 9, PF_EXITING)."""
    try:
        pid = int(lock.read_text())
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        pending = Path(f"/proc/{pid}/status").read_text().partition("ShdPnd:")[2].split()[0]
        return bool(int(fields[6]) & _PF_EXITING or int(pending, 16) & 1 << (signal.SIGKILL - 1))
    except (FileNotFoundError, ProcessLookupError):
        return True
    except (OSError, ValueError, IndexError):
        return False


def _raise_file_limit() -> None:
    """Connections, workers' sockets and pidfds of many callers: as many descriptors as the system gives without asking."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
