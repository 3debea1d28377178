"""Requests about garbage: projects, pins, sweeps, and the rewriting of segments behind them."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import AccessError, BusyError, MillpondError, ProtocolError
from millpond.daemon.names import ObjectName
from millpond.daemon.rpc.methods import Call, Registry, Reply
from millpond.daemon.store import ledger
from millpond.daemon.store.compact import Compaction
from millpond.daemon.store.folders import FolderReader
from millpond.daemon.store.gc import Sweep
from millpond.daemon.store.ledger import Pin
from millpond.daemon.store.service import parse_name
from millpond.daemon.store.usage import ROW_BYTES, packed, usage

if TYPE_CHECKING:
    from millpond.daemon.main import Daemon

T = TypeVar("T")
log = logging.getLogger("millpond.store")

# Bytes a second that rewriting copies.
_RATE = 64 << 20
_NAMED_BY_MD5 = ("md5", "md5-dos2unix")
# Notes of projects that wait to be written.
_MAX_NOTES = 64
_MAX_NAMES = 4096
_PAGE = 1000


class Stopping(Exception):
    """The daemon ends: the rest is left to the next round."""


class GarbageService:
    """Handlers of `gc.*`, `projects.*` and `pins.*` over one daemon's store."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._store = daemon.store
        self._threads = trio.CapacityLimiter(2)
        self._stop = threading.Event()
        self._compacting = False
        self._notes = 0

    def busy(self) -> bool:
        return self._compacting

    async def seen(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{path, git, names} -> {} at once: a verb works in a project with these objects; noted in the background."""
        path, git = str(params["path"]), _text(params.get("git"))
        names = params.get("names")
        if not isinstance(names, list) or len(names) > _MAX_NAMES:
            raise ProtocolError(f"'names' must be a list of at most {_MAX_NAMES} object names")
        roots = [ledger.root_of(name) for name in map(parse_name, names) if name.algo in _NAMED_BY_MD5]

        claims, owner = self._store.claims, call.connection.id

        async def write() -> None:
            try:
                await self._in_thread(lambda: self._store.ledger.seen(call.uid, path, git, roots))
            except MillpondError as error:
                log.warning("project %s is not noted: %s", path, error)
            finally:
                self._notes -= 1
                claims.end(owner)

        # What the verb found here stays until it is known for what.
        claims.hold(owner)
        self._notes += 1
        if self._notes > _MAX_NOTES:
            await write()
        else:
            self._daemon.nursery.start_soon(write)
        return {}

    async def projects(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{} -> {projects: [{path, git, seen, read, roots}], rebuilt} of the caller."""
        found = await self._in_thread(lambda: self._store.ledger.projects(call.uid))
        return {"projects": [asdict(project) for project in found], "rebuilt": self._store.ledger.rebuilt()}

    async def usage(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{} -> {projects: [{path, objects, bytes, alone}]} of the caller."""
        found = await self._in_thread(lambda: usage(self._store, call.uid))
        return {"projects": [asdict(each) for each in found]}

    async def objects(self, call: Call, params: dict[str, Any]) -> Reply:
        """{path} -> {} + memfd of the objects that a project of the caller's keeps, as rows (`usage.packed`)."""
        path = str(params["path"])
        data = await self._in_thread(lambda: packed(self._store, call.uid, path))
        if len(data) > memfd.MAX_BYTES:
            raise BusyError(f"a project keeps {len(data) // ROW_BYTES} objects, more than can be told of")
        return Reply({}, fds=[memfd.from_bytes(data)])

    async def roots(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{path, git} + memfd of all roots -> {}: a project was read as a whole."""
        path, git = str(params["path"]), _text(params.get("git"))
        found = _received(call)
        await self._in_thread(lambda: self._store.ledger.replace(call.uid, path, git, found))
        return {}

    async def forget(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{path} -> {}. Raises TargetError."""
        path = str(params["path"])
        await self._in_thread(lambda: self._store.ledger.forget(call.uid, path))
        return {}

    async def sweep(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{scoped, grace_s, dry, only} + memfd of the roots that projects in scope keep -> the report. Of the caller's other
        projects everything is kept, and of those whose revisions are all mounted. `only`: how many roots at the memfd's end
        are those that may go, and no others."""
        uid, dry = call.uid, bool(params.get("dry"))
        received, count = _received(call), params.get("only")
        if count is not None and not (isinstance(count, int) and 0 <= count <= len(received)):
            raise ProtocolError(f"'only' is a number of the {len(received)} roots that were sent")
        only = None if count is None else received[len(received) - count :]
        keep = set(received[: len(received) - (count or 0)])
        scoped = [str(path) for path in params.get("scoped") or ()]
        shown = [mount for mount in self._daemon.mounts.records() if mount.uid == uid]

        def progress(what: str, done: int) -> None:
            trio.from_thread.check_cancelled()
            trio.from_thread.run_sync(lambda: call.progress(phase=what, files=(done, None)))

        def work() -> dict[str, Any]:
            book = self._store.ledger
            whole = {wirepath.encode(mount.repo) for mount in shown if mount.versions}
            former = {}
            for project in book.projects(uid):
                roots = book.roots(uid, project.path)
                if project.path in scoped and project.path not in whole:
                    former[project.path] = roots
                else:
                    keep.update(roots)
            for pin in book.pins(uid):
                keep.update(bytes.fromhex(root) for root in pin.roots)
            objects = [name for mount in shown if mount.root for name in self._tree(bytes.fromhex(mount.root))]
            grace = float(params.get("grace_s") or 0)
            made = Sweep(
                self._store, uid, keep, objects=objects, former=former, only=only, grace_s=grace, progress=progress
            )
            return asdict(made.run(dry=dry))

        report = await self._in_thread(work)
        if not dry:
            self._daemon.nursery.start_soon(self.compact)
        return report

    async def held(self, call: Call, params: dict[str, Any]) -> Reply:
        """{projects} -> {whole: [path]} + memfd of roots: what the caller's pins and mounts show, and what `projects` were last known to
        need. `whole` are projects all versions of which are mounted."""
        uid, asked = call.uid, [str(path) for path in params.get("projects") or ()]
        shown = [mount for mount in self._daemon.mounts.records() if mount.uid == uid]

        def work() -> bytes:
            book = self._store.ledger
            found = {root for path in asked for root in book.roots(uid, path)}
            found.update(bytes.fromhex(root) for pin in book.pins(uid) for root in pin.roots)
            for mount in shown:
                if mount.root:
                    names = self._tree(bytes.fromhex(mount.root))
                    found.update(ledger.root_of(name) for name in names if name.algo in _NAMED_BY_MD5)
            return b"".join(found)

        data = await self._in_thread(work)
        if len(data) > memfd.MAX_BYTES:
            raise BusyError("pins and mounts hold more objects than can be told of", hint="end some mounts first")
        whole = sorted({wirepath.encode(mount.repo) for mount in shown if mount.versions})
        return Reply({"whole": whole}, fds=[memfd.from_bytes(data)])

    async def compact(self) -> None:
        """Rewrite segments, one round at a time."""
        if self._compacting:
            return
        self._compacting = True

        def work() -> None:
            self._store.seal()
            Compaction(self._store, self._pace).run()

        try:
            await trio.to_thread.run_sync(work, limiter=self._threads)
        except Stopping:
            log.info("rewriting of segments is left to the next round")
        except MillpondError as error:
            log.warning("segments are not rewritten: %s", error)
        finally:
            self._compacting = False

    async def stop_with_daemon(self) -> None:
        """Have rewriting end when the daemon does."""
        await self._daemon.stop.wait()
        self._stop.set()

    def _pace(self, size: int) -> None:
        if self._stop.wait(size / _RATE):
            raise Stopping

    def _tree(self, root: bytes) -> Iterator[ObjectName]:
        """All objects of a mounted tree. Raises StoreDamagedError when it is not in the index any more."""
        reader = FolderReader(self._store.reader.index)
        todo, seen = [root], {root}
        while todo:
            folder, start = todo.pop(), 0
            while page := reader.list(folder, start, _PAGE):
                start += len(page)
                for entry in page:
                    if entry.child is not None:
                        if entry.child not in seen:
                            seen.add(entry.child)
                            todo.append(entry.child)
                        continue
                    found = reader.inode(entry.inode)
                    if found is not None and found.name is not None:
                        yield found.name

    async def pin(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{project, target, commit, names} -> {id}; the same version twice is one pin."""
        names = params.get("names")
        if not isinstance(names, list) or len(names) > 100_000:
            raise ProtocolError("a pin has at most 100000 objects")
        roots = [ledger.root_of(parse_name(str(name))).hex() for name in names]
        project, target, commit = str(params["project"]), str(params["target"]), _text(params.get("commit"))

        def work() -> str:
            for old in self._store.ledger.pins(call.uid):
                if (old.project, old.target, old.commit, old.roots) == (project, target, commit, roots):
                    return old.id
            made = Pin(secrets.token_hex(6), project, target, commit, time.time(), roots)
            self._store.ledger.pin(call.uid, made)
            return made.id

        return {"id": await self._in_thread(work)}

    async def unpin(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{id} -> {}."""
        pin_id = str(params["id"])
        await self._in_thread(lambda: self._store.ledger.unpin(call.uid, pin_id))
        return {}

    async def pins(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{} -> {pins: [{id, project, target, commit, made, roots}]} of the caller; `roots` is how many."""
        found = await self._in_thread(lambda: self._store.ledger.pins(call.uid))
        return {"pins": [{**asdict(pin), "roots": len(pin.roots)} for pin in found]}

    async def limit(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{bytes?} -> {bytes, stored}: the store's size limit, after setting it where it is given (0: none). Only root and the
        daemon's own user may set it."""
        wanted = params.get("bytes")
        if wanted is not None:
            if call.uid not in (0, os.getuid()):
                raise AccessError("the store is everybody's: only root or the daemon's own user may limit it")
            if not isinstance(wanted, int) or not 0 <= wanted < 1 << 63:
                raise ProtocolError("a limit is a number of bytes")
            await self._in_thread(lambda: self._store.set_limit(wanted or None))
        return {"bytes": self._store.limit, "stored": self._store.stored}

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _received(call: Call) -> list[bytes]:
    with memfd.mapped(call.take_fd()) as view:
        return ledger.unpacked(view)


def register(registry: Registry, daemon: Daemon) -> GarbageService:
    """Add the methods."""
    service = GarbageService(daemon)
    registry.register("projects.seen", service.seen, who="worker")
    registry.register("projects.forget", service.forget, who="worker")
    registry.register("gc.projects", service.projects, who="worker")
    registry.register("gc.usage", service.usage, who="worker")
    registry.register("gc.objects", service.objects, who="worker")
    registry.register("gc.roots", service.roots, who="worker")
    registry.register("gc.sweep", service.sweep, who="worker")
    registry.register("gc.held", service.held, who="worker")
    registry.register("pins.add", service.pin, who="worker")
    registry.register("pins.remove", service.unpin, who="worker")
    registry.register("pins.list", service.pins, who="worker")
    registry.register("pins", service.pins)
    registry.register("projects", service.projects)
    registry.register("store.limit", service.limit)
    daemon.busy.append(service.busy)
    daemon.at_start.append(service.stop_with_daemon)
    return service
