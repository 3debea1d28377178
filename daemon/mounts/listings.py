"""`listing.*`: trees for workers, made of a manifest in steps between which the worker finds out sizes, or of paths he sends."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from millpond.daemon import memfd
from millpond.daemon.errors import BusyError, MillpondError, MountError
from millpond.daemon.mounts import listing
from millpond.daemon.names import ObjectName
from millpond.daemon.rpc.methods import Call, Registry, Reply
from millpond.daemon.store.folders import FolderReader, Totals
from millpond.daemon.store.service import parse_name

if TYPE_CHECKING:
    from millpond.daemon.main import Daemon

log = logging.getLogger("millpond.mounts")
T = TypeVar("T")

# Manifests waiting for their folders to be made ahead.
_AHEAD = 4
# Trees being made for workers; each may hold 100 MiB.
_BUILDS = 4
# Who does not bring the sizes in this time loses his place to one who waits.
_STALLED_S = 30.0


@dataclass(slots=True)
class _Build:
    """The folders of a manifest being made, for a worker; `path` is what he wants of them."""

    building: listing.Building
    name: ObjectName
    path: bytes
    lock: trio.Lock = field(default_factory=trio.Lock)


class Listings:
    """Makes trees, a few at a time."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._store = daemon.store
        self._threads = trio.CapacityLimiter(4)
        # By connection; whose turn was longest ago comes first.
        self._builds: dict[int, _Build] = {}
        # The next one that ends sets it.
        self._ended = trio.Event()
        self._ahead = trio.Lock()
        self._waiting_ahead = 0

    async def ensure(self, call: Call, params: dict[str, Any]) -> dict[str, Any] | Reply:
        """{name, path} -> {root, files, bytes}, or {unknown} + memfd of names' keys: `listing.sizes` brings their sizes."""
        name, path = parse_name(str(params["name"])), os.fsencode(str(params.get("path") or ""))
        totals = await self._in_thread(lambda: listing.remembered(self._store, call.uid, name))
        if totals is not None:
            return await self._told(totals, path, name)
        owner = call.connection.id
        self._end_build(owner)
        await self._room(call)
        self._end_build(owner)
        build = self._builds[owner] = _Build(listing.Building(self._store, call.uid, name), name, path)
        call.connection.on_close(lambda: self._end_build(owner, build))
        return await self._step(call, build)

    async def foretell(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{} + memfd of names' keys, then as many sizes, u64 -> {}: of objects that the tree which is being made may ask for."""
        build = self._own(call)

        def work() -> None:
            with memfd.mapped(call.take_fd()) as view:
                build.building.foretell(listing.told_in(view))

        await self._locked(build, work)
        return {}

    async def sizes(self, call: Call, params: dict[str, Any]) -> dict[str, Any] | Reply:
        """{} + memfd of the sizes that were asked for, or without: they are foretold -> as `listing.ensure`."""
        return await self._step(call, self._own(call), None)

    def _own(self, call: Call) -> _Build:
        """The tree that is being made for this connection, whose turn it is now. Raises BusyError."""
        owner = call.connection.id
        build = self._builds.get(owner)
        if build is None:
            raise BusyError("other versions are being mounted for the first time", hint="run the command again")
        self._builds[owner] = self._builds.pop(owner)
        return build

    async def _room(self, call: Call) -> None:
        """Wait until one more tree may be made. One whose worker has done nothing for long is given up."""
        since = trio.current_time()
        while len(self._builds) >= _BUILDS:
            call.waiting("other versions that are mounted for the first time", trio.current_time() - since)
            with trio.move_on_after(_STALLED_S):
                await self._ended.wait()
                continue
            stalled = next((owner for owner, build in self._builds.items() if not build.lock.locked()), None)
            if stalled is not None:
                self._end_build(stalled)

    async def _step(self, call: Call, build: _Build, sizes: Sequence[int] | None = ()) -> dict[str, Any] | Reply:
        """`sizes`: where none come with the call."""

        def work() -> Totals | bytes:
            if not call.fds:
                return build.building.step(sizes)
            with memfd.mapped(call.take_fd()) as view:
                return build.building.step(listing.sizes_from(view))

        answer: Totals | bytes | None = None
        build.building.is_wanted = True
        try:
            async with build.lock:
                build.building.is_wanted = False
                answer = await self._in_thread(work)
        finally:
            if not isinstance(answer, bytes):
                self._end_build(call.connection.id, build)
        if isinstance(answer, bytes):
            self._daemon.nursery.start_soon(self._locked, build, build.building.catch_up)
            return Reply({"unknown": len(answer) // listing.KEY_BYTES}, fds=[memfd.from_bytes(answer)])
        return await self._told(answer, build.path, build.name)

    def _end_build(self, owner: int, build: _Build | None = None) -> None:
        """Forget what a connection has begun; `build`: if it is still this."""
        found = self._builds.get(owner)
        if found is not None and (build is None or found is build):
            del self._builds[owner]
            self._ended.set()
            self._ended = trio.Event()
            self._daemon.nursery.start_soon(self._locked, found, found.building.close)

    async def _locked(self, build: _Build, work: Callable[[], None]) -> None:
        async with build.lock:
            await self._in_thread(work)

    async def _told(self, totals: Totals, path: bytes, name: ObjectName) -> dict[str, Any]:
        totals = await self._in_thread(lambda: self._inner(totals, path, name.value))
        return {"root": totals.root.hex(), "files": totals.files, "bytes": totals.bytes}

    async def tree(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{} + memfd of entries -> {root, files, bytes}."""
        fd = call.take_fd()

        def work() -> Totals:
            with memfd.mapped(fd) as view:
                return listing.tree(self._store, call.uid, view)

        totals = await self._in_thread(work)
        return {"root": totals.root.hex(), "files": totals.files, "bytes": totals.bytes}

    def list_ahead(self, uid: int, name: ObjectName) -> None:
        """A manifest was committed: make its folders now, so that its first mount need not wait. One at a time; when many
        come, the later ones are left to their mounts."""
        if self._waiting_ahead < _AHEAD:
            self._waiting_ahead += 1
            self._daemon.nursery.start_soon(self._list_ahead, uid, name)

    async def _list_ahead(self, uid: int, name: ObjectName) -> None:
        def work() -> None:
            if listing.remembered(self._store, uid, name) is None:
                with contextlib.closing(listing.Building(self._store, uid, name)) as building:
                    if isinstance(building.step(), bytes):
                        log.info("folders of %s are left to their first mount: it has objects elsewhere", name)

        try:
            async with self._ahead:
                await self._in_thread(work)
        except MillpondError as error:
            log.info("folders of %s are left to their first mount: %s", name, error)
        finally:
            self._waiting_ahead -= 1

    def _inner(self, totals: Totals, path: bytes, shown: str) -> Totals:
        """The part of a tree below `path`; the counts stay those of the whole when there is no path."""
        if not path:
            return totals
        reader = FolderReader(self._store.reader.index)
        entry = reader.walk_path(totals.root, path)
        if entry is None or entry.child is None:
            kind = "a file" if entry is not None else "not there"
            raise MountError(
                f"'{os.fsdecode(path)}' is {kind} in version {shown}", hint="mount a directory that the version has"
            )
        files, size = _count(reader, entry.child)
        return Totals(entry.child, files, size)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)


def _count(reader: FolderReader, folder: bytes) -> tuple[int, int]:
    """(files, bytes) below a folder."""
    files = size = start = 0
    while True:
        page = reader.list(folder, start, 1000)
        for entry in page:
            if entry.child is not None:
                inner_files, inner_size = _count(reader, entry.child)
                files, size = files + inner_files, size + inner_size
            else:
                files, size = files + 1, size + entry.size
        if len(page) < 1000:
            return files, size
        start += len(page)


def register(registry: Registry, daemon: Daemon) -> None:
    """Add the listings' methods."""
    service = Listings(daemon)
    registry.register("listing.ensure", service.ensure, who="worker")
    registry.register("listing.sizes", service.sizes, who="worker")
    registry.register("listing.foretell", service.foretell, who="worker")
    registry.register("listing.tree", service.tree, who="worker")
    daemon.on_manifest.append(service.list_ahead)
