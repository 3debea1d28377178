"""Requests about eviction, and when it happens by itself: before a feed is refused for the store's limit.

What remotes hold is asked by a worker (project/evict.py); here is what it tells, and what comes of that.
"""

from __future__ import annotations

import contextlib
import logging
import math
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from millpond.daemon import memfd
from millpond.daemon.errors import BusyError, DiskFullError, MillpondError, ProtocolError
from millpond.daemon.rpc.methods import Call, Registry, Reply
from millpond.daemon.store import evict
from millpond.daemon.store.compact import Compaction
from millpond.daemon.store.evict import Eviction, EvictReport, PlanIsOld
from millpond.daemon.store.gc import Part
from millpond.daemon.store.ledger import MANIFEST
from millpond.daemon.store.usage import ROW_BYTES
from millpond.daemon.store.uses import note_used

if TYPE_CHECKING:
    from millpond.daemon.main import Daemon

T = TypeVar("T")
log = logging.getLogger("millpond.store")

# Plans made anew because projects or pins were noted meanwhile.
_TRIES = 3
# For room a segment is rewritten unless it is all but full.
_LIVE_PART = 0.97
# What eviction leaves of the limit when a feed does not fit, and for how long none is tried after one that did not
# help.
_TO_PART = 0.9
_FUTILE_S = 60.0
# Who waits for a check of the store to end.
_MAINTENANCE_S = 10.0
# How often the segments that were read are noted.
_USES_S = 600.0
# A victim as it is sent: the number of a project, a root.
VICTIM = struct.Struct("<I17s")
# Bytes of a record beside its content: header, padding; and of a recipe's entry for it.
_RECORD_BYTES = 128


class EvictionService:
    """Handlers of `gc.evict` and `gc.shrink`, and the keeping of `uses`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._store = daemon.store
        self._threads = trio.CapacityLimiter(2)
        self._stop = threading.Event()

    async def evict(self, call: Call, params: dict[str, Any]) -> Reply:
        """{projects: [{path, count}], to, shared, dry} + memfd of what each project's remotes hold, `count` rows
        (`usage.packed`) of each -> the report (see EvictReport) and `remote_only` + memfd of the victims, VICTIM each:
        with `dry` those that would go."""
        held = _held(params, call.take_fd())
        numbers = {path: number for number, path in enumerate(held)}
        to, shared, dry = int(params["to"]), bool(params.get("shared")), bool(params.get("dry"))

        def progress(what: str, done: int) -> None:
            trio.from_thread.check_cancelled()
            trio.from_thread.run_sync(lambda: call.progress(phase=what, files=(done, None)))

        def work() -> tuple[EvictReport, bytes]:
            gone, freed = Part(), 0
            for left in reversed(range(_TRIES)):
                made = Eviction(self._store, call.uid, held, to=to, shared=shared, progress=progress)
                try:
                    with contextlib.nullcontext() if dry else self._undisturbed():
                        report = made.run(dry=dry)
                except PlanIsOld:
                    gone.objects += made.report.evicted.objects
                    gone.bytes += made.report.evicted.bytes
                    freed += made.report.freed
                    if not left:
                        raise BusyError(
                            "other commands change what projects need all the time, so nothing is evicted",
                            hint="try again later",
                        ) from None
                    continue
                report.evicted.objects += gone.objects
                report.evicted.bytes += gone.bytes
                report.freed += freed
                rows = (VICTIM.pack(numbers[path], each.root) for each in made.victims for path in each.projects)
                return report, b"".join(rows)
            raise AssertionError("one of the tries has returned or raised")

        await self.note_uses()
        report, victims = await self._in_thread(work)
        remote_only = await self._in_thread(lambda: evict.evicted(self._store, call.uid))
        return Reply({**asdict(report), "remote_only": asdict(remote_only)}, fds=[memfd.from_bytes(victims)])

    async def room(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{} -> {bytes, stored}: the store's limit (0: none), and what it has."""
        return {"bytes": self._store.limit or 0, "stored": self._store.stored}

    async def shrink(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{to} -> {stored}: rewrite segments until the store has at most `to` bytes, as far as garbage goes."""
        to = int(params["to"])

        def pace(size: int) -> None:
            trio.from_thread.check_cancelled()
            if self._stop.is_set():
                raise BusyError("the daemon ends", hint="run the command again")

        def work() -> None:
            self._store.seal()
            Compaction(self._store, pace, live_part=_LIVE_PART, to=to).run()

        if self._store.stored > to:
            call.progress(phase="making room")
            await self._in_thread(work)
        return {"stored": self._store.stored}

    async def note_uses(self) -> None:
        """Note which segments were read since this was done last, here and by mounts."""
        used = self._store.reader.take_used() | await self._daemon.mounts.used()
        if used:
            await self._in_thread(lambda: note_used(self._store, used))

    async def keep_uses(self) -> None:
        """Until the daemon ends."""
        while not self._stop.is_set():
            with trio.move_on_after(_USES_S):
                await self._daemon.stop.wait()
                self._stop.set()
            try:
                await self.note_uses()
            except MillpondError as error:
                log.warning("it is not noted which segments are read: %s", error)

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        if not self._store.maintenance.acquire(timeout=_MAINTENANCE_S):
            raise BusyError("the store is being checked, so nothing is evicted", hint="wait for `millpond fsck` to end")
        try:
            yield
        finally:
            self._store.maintenance.release()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)


class Room:
    """Sees to it that feeds fit under the store's limit, by evicting as their callers."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._store = daemon.store
        # Bytes of feeds under way that fit.
        self._flying = 0
        self._locks: dict[int, trio.Lock] = {}
        # Why it was of no use, and until when none is tried, by connection or (sources', which come anew each time) by
        # user.
        self._futile: dict[tuple[str, int], tuple[float, str]] = {}

    @contextlib.asynccontextmanager
    async def for_feed(self, call: Call, size: int, count: int, context: dict[str, Any] | None) -> AsyncIterator[None]:
        """While `count` contents or parts of them, `size` bytes, come in. `context` is that of a source, which is no
        worker. Raises DiskFullError with the reasons why nothing more can be evicted, when they do not fit in the
        end."""
        wanted = size + _RECORD_BYTES * count
        if self._lacks(wanted):
            await self._make(call, wanted, context)
        self._flying += wanted
        try:
            yield
        except DiskFullError as error:
            _, why = self._futile.get(self._key(call), (0.0, ""))
            if "limit" not in error.details or not why:
                raise
            hint = f"{why}; {error.hint}"
            raise DiskFullError(error.message, path=error.path, hint=hint, details=error.details) from error
        finally:
            self._flying -= wanted

    def _lacks(self, wanted: int) -> bool:
        limit = self._store.limit
        return limit is not None and self._store.stored + self._flying + wanted > limit

    async def _make(self, call: Call, wanted: int, context: dict[str, Any] | None) -> None:
        verbs = self._daemon.verbs
        worker = verbs.context_of(call.connection)
        environment = worker if worker is not None else context
        limit = self._store.limit
        if environment is None or limit is None:
            return
        async with self._locks.setdefault(call.uid, trio.Lock()):
            key = self._key(call)
            if not self._lacks(wanted) or time.monotonic() < self._futile.get(key, (0.0, ""))[0]:
                return
            call.progress(phase="evicting what remotes hold, to make room")
            # A verb has the store's lock, and waits for this; a source has none.
            params = {
                "context": environment,
                "to": max(0, min(int(limit * _TO_PART), limit - wanted - self._flying)),
                "lock": worker is None,
            }
            try:
                done = await verbs.run_internal("cache.make-room", call.uid, params, teller=call)
                why = str(done["why"])
            except MillpondError as error:
                why = f"nothing could be evicted: {error.message}"
            self._futile.pop(key, None)
            if self._lacks(wanted):
                log.info("no room was made for uid %d: %s", call.uid, why)
                if worker is None:
                    self._futile[key] = time.monotonic() + _FUTILE_S, why
                    return
                self._futile[key] = math.inf, why
                call.connection.on_close(lambda: self._forget(key))

    def _forget(self, key: tuple[str, int]) -> None:
        self._futile.pop(key, None)

    def _key(self, call: Call) -> tuple[str, int]:
        is_worker = call.connection.parent is not None
        return ("worker", call.connection.id) if is_worker else ("user", call.uid)


def _held(params: dict[str, Any], fd: int) -> dict[str, dict[bytes, int]]:
    """What each project's remotes hold. Raises ProtocolError."""
    held: dict[str, dict[bytes, int]] = {}
    position = 0
    with memfd.mapped(fd) as view:
        for project in params.get("projects") or ():
            end = position + ROW_BYTES * int(project["count"])
            part = bytes(view[position:end])
            if len(part) != end - position:
                raise ProtocolError("fewer objects were sent than were told of")
            rows = (part[start : start + ROW_BYTES] for start in range(0, len(part), ROW_BYTES))
            held[str(project["path"])] = {
                row[:17]: int.from_bytes(row[17:], "little") for row in rows if row[0] != MANIFEST
            }
            position = end
        if position != len(view):
            raise ProtocolError("more objects were sent than were told of")
    return held


def register(registry: Registry, daemon: Daemon) -> EvictionService:
    """Add the methods."""
    service = EvictionService(daemon)
    registry.register("gc.evict", service.evict, who="worker")
    registry.register("gc.room", service.room, who="worker")
    registry.register("gc.shrink", service.shrink, who="worker")
    daemon.at_start.append(service.keep_uses)
    return service
