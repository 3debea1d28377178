"""Mounts in the daemon: made for a caller's worker, watched, adopted after a restart, restored when they died.

The holder and the source of a mount outlive the daemon. Each mount has a record (records.py) from before it is made until
it is undone; what the record says is checked against pid and start time before a process is believed to be the holder.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from millpond.daemon import wirepath
from millpond.daemon.errors import (
    AccessError,
    InternalError,
    MillpondError,
    MountError,
    NotMountedError,
    ProtocolError,
    StoreDamagedError,
)
from millpond.daemon.jobs.process import start_ticks
from millpond.daemon.jobs.zygotes import Child
from millpond.daemon.mounts import connections, engines, left, listings
from millpond.daemon.mounts.holders import MOUNT_S, Holders
from millpond.daemon.mounts.mount import Mount, kept_context
from millpond.daemon.mounts.records import MountRecord, MountRecords, new_id
from millpond.daemon.mounts.successors import Successors
from millpond.daemon.rpc.methods import Call, Registry
from millpond.daemon.store.folders import FolderReader, forget_claimed

if TYPE_CHECKING:
    from millpond.daemon.main import Daemon

log = logging.getLogger("millpond.mounts")
T = TypeVar("T")

# A mount that died is restored this often in RESTORE_WINDOW_S before it is left alone.
RESTORE_TRIES = 3
RESTORE_WINDOW_S = 600.0
# A remote that is asked with other credentials must answer in this time.
_CREDENTIALS_S = 60.0
# Of a holder's statistics, where it hands files to the kernel.
_PASSTHROUGH = ("passthrough", "passthrough_files", "passthrough_bytes")
# What it tells of its processes, and of the kernel's read-ahead.
_SERVING = ("serving", "serving_most", "serving_why", "servers_ended", "read_ahead_kb", "read_ahead_why")
# And of what was brought ahead of readers.
_FILLING = ("filling_why", "filling_by_thread", "fillers_killed", "filled_files", "filled_bytes")
# What a holder tells of files that were not here.
_REMOTE = (
    *("errors", "opens", "hit_rate", "waits", "waited_s", "waited_unpacking_s", "waited_disk_s"),
    *("remote_requests", "remote_bytes", "verify", "unverified", "source_starts", "remote_rate", "remote_jobs"),
)
# The state of a mount that is served, and that remotes refuse.
NEEDS_CREDENTIALS = "needs-credentials"


class MountService:
    """All mounts of this daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._store = daemon.store
        self._records = MountRecords(daemon.settings.mounts)
        self._mounts = {record.id: Mount(record) for record in self._records.load()}
        self._threads = trio.CapacityLimiter(4)
        self._holders = Holders(daemon)
        self._successors = Successors(self._holders)
        # Places on which a mount is being made.
        self._making: set[str] = set()

    @property
    def count(self) -> int:
        return len(self._mounts)

    def records(self) -> list[MountRecord]:
        """What is mounted or may be again: each was written down before its mount was made."""
        return [mount.record for mount in self._mounts.values()]

    def busy(self) -> bool:
        """Whether a mount needs this daemon to watch it."""
        return any(mount.state != "dead" for mount in self._mounts.values())

    # -- making ---------------------------------------------------------------------------------------------------

    async def create(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{mountpoint, repo, target, commit, name, root, versions, files, bytes, mode, engine, options, caches, context, id?, far?} + the
        directory, and the source's environment (environs.py), which nobody but the source reads -> {id, pid, engine}. Returns when
        the mount answers."""
        options = params.get("options") or {}
        no_image = engines.why_no_image(
            system=self._daemon.system is not None,
            versions=bool(params.get("versions")),
            xattrs=bool(options.get("xattrs")),
            materialize=bool(options.get("materialize")),
        )
        engines.choose(params.get("engine"), no_image)
        known = self._mounts.get(str(params.get("id") or ""))
        if known is not None and known.record.uid != call.uid:
            raise AccessError("this mount is another user's")
        record = self._record(call, params, known)
        if record.mountpoint in self._making:
            raise MountError(f"another command is mounting on '{record.mountpoint}'", path=record.mountpoint)
        self._making.add(record.mountpoint)
        try:
            return await self._make(call, params, record, known)
        finally:
            self._making.discard(record.mountpoint)

    async def _make(
        self, call: Call, params: dict[str, Any], record: MountRecord, known: Mount | None
    ) -> dict[str, Any]:
        """The only one that is made on its place at this time."""
        clash = next(
            (m for m in self._mounts.values() if m.record.mountpoint == record.mountpoint and m is not known), None
        )
        if clash is not None:
            if clash.state == "mounted":
                raise MountError(f"'{record.mountpoint}' is a mount of version {clash.record.commit} already")
            await self._forget(clash)
        mount = known or Mount(record)
        mount.record = record
        self._mounts[record.id] = mount
        await self._in_thread(lambda: self._records.save(record))
        try:
            if len(call.fds) != 2:
                raise ProtocolError(f"mounts.create takes two descriptors, {len(call.fds)} came")
            child, engine = await self._holders.start(record, *call.fds, far=bool(params.get("far")))
        except BaseException:
            if known is None:
                with trio.CancelScope(shield=True):
                    await self._forget(mount)
            raise
        mount.record = dataclasses.replace(record, pid=child.pid, start=start_ticks(child.pid), made=time.time())
        mount.child, mount.state, mount.error, mount.ended = child, "mounted", None, trio.Event()
        await self._in_thread(lambda: self._records.save(mount.record))
        self._daemon.nursery.start_soon(self._watch, mount, child)
        return {"id": record.id, "pid": child.pid, "engine": engine}

    def _record(self, call: Call, params: dict[str, Any], known: Mount | None) -> MountRecord:
        names = [f.name for f in dataclasses.fields(MountRecord)]
        values = {name: params[name] for name in names if name in params}
        values |= {
            "id": known.record.id if known else new_id(),
            "uid": call.uid,
            "engine": params.get("engine") or engines.AUTO,
            "pid": 0,
            "start": 0,
        }
        values["context"] = kept_context(params.get("context") or {})
        values["options"] = {**(params.get("options") or {}), "caches": params.get("caches") or []}
        try:
            record = MountRecord.from_json(values)
        except (TypeError, KeyError) as error:
            raise ProtocolError(f"mounts.create lacks something: {error}") from error
        return dataclasses.replace(record, mode=known.record.mode) if known else record

    # -- watching -------------------------------------------------------------------------------------------------

    async def adopt(self) -> None:
        """At start: find the holders that outlived the last daemon, restore the mounts whose holder did not."""
        for mount in list(self._mounts.values()):
            record = mount.record
            if record.pid and start_ticks(record.pid) == record.start:
                child = Child(record.pid, os.pidfd_open(record.pid), _no_kill)
                mount.child, mount.state = child, "mounted"
                log.info("adopted mount %s on '%s', pid %d", record.id, record.mountpoint, record.pid)
                self._daemon.nursery.start_soon(self._watch, mount, child)
            else:
                self._daemon.nursery.start_soon(self._restore_dead, mount)

    async def _watch(self, mount: Mount, child: Child) -> None:
        """Until the holder ends; then, unless that was wanted, mount again."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._successors.attend, mount)
            await child.wait()
            nursery.cancel_scope.cancel()
        child.close()
        mount.refused = ""
        mount.ended.set()
        if mount.child is child:
            mount.child = None
            if mount.ending or mount.record.id not in self._mounts:
                await self._abort_image(mount.record)
                return
            mount.state, mount.error = "dead", "its process ended"
            log.error("mount %s on '%s' is gone (pid %d)", mount.record.id, mount.record.mountpoint, mount.record.pid)
            await self._restore_dead(mount)

    async def _restore_dead(self, mount: Mount) -> None:
        await self._abort(mount)
        await self._restore_quietly(mount)

    async def _abort(self, mount: Mount) -> None:
        """The holder has ended: see that who waits for it gets an error. A connection that nobody answers may be left
        (fusefs/filling/)."""
        record, system = mount.record, self._daemon.system
        try:
            async with mount.mending:
                if mount.child is not None or record.id not in self._mounts:
                    return
                if system is not None:
                    await system.abort(record.uid, record.mountpoint, record.id)
                else:
                    await self._abort_image(record)
                    await self._in_thread(lambda: connections.abort(record.mountpoint, record.id))
        except (OSError, MountError) as error:
            # Then it had no filler, and its connection ended with its holder.
            log.info("mount %s is not aborted: %s", record.id, error)

    async def _abort_image(self, record: MountRecord) -> None:
        """What killed processes of an image have left, also when it was detached before: who has a file of it open may wait."""
        if record.engine == engines.EROFS:
            try:
                await self._in_thread(lambda: left.abort(record.id))
            except OSError as error:
                log.info("what is left of mount %s is not aborted: %s", record.id, error)

    async def _restore_quietly(self, mount: Mount) -> None:
        now = time.monotonic()
        mount.restored = [when for when in mount.restored if now - when < RESTORE_WINDOW_S]
        if len(mount.restored) >= RESTORE_TRIES:
            mount.error = f"it died {RESTORE_TRIES} times in {RESTORE_WINDOW_S / 60:.0f} minutes"
            log.error("mount %s is not restored: %s", mount.record.id, mount.error)
            return
        mount.restored.append(now)
        try:
            async with mount.mending:
                # A request may have been first.
                if not mount.ending and mount.child is None and mount.record.id in self._mounts:
                    await self._restore(mount)
        except MillpondError as error:
            log.error("mount %s on '%s' cannot be restored: %s", mount.record.id, mount.record.mountpoint, error)

    async def _restore(self, mount: Mount) -> None:
        """Run the caller's worker that clears the place and mounts again. Raises its error."""
        record = mount.record
        mount.state = "restoring"
        context = {**record.context, "cwd": "/"}
        params = {"record": record.to_json(), "system": self._daemon.system is not None, "context": context}
        try:
            await self._daemon.verbs.run_internal("remount", record.uid, params)
            log.info("mount %s on '%s' is restored", record.id, record.mountpoint)
        except MillpondError as error:
            mount.error = str(error)
            raise
        finally:
            if mount.state == "restoring":
                mount.state = "dead"

    # -- asking and ending ----------------------------------------------------------------------------------------

    async def show(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{ids?} -> {mounts: [...]} of the caller (root sees all), or those of them that are named."""
        found = []
        for mount in self._of(call):
            if mount.record.id not in (params.get("ids") or (mount.record.id,)):
                continue
            record = mount.record
            state = await self._holders.ask(mount)
            stats = state.get("stats") or {}
            await self._heard(mount, stats)
            refused = str(stats.get("needs_credentials") or "")
            found.append(
                {
                    **{
                        name: getattr(record, name)
                        for name in ("id", "uid", "commit", "versions", "files", "bytes", "name")
                    },
                    "mountpoint": wirepath.encode(record.mountpoint),
                    "target": wirepath.encode(record.target),
                    "diff": record.options.get("diff"),
                    "stands_in": (record.options.get("stands_in") or {}).get("where"),
                    "state": NEEDS_CREDENTIALS if refused and mount.state == "mounted" else mount.state,
                    "engine": state.get("engine"),
                    "engine_why": state.get("engine_why"),
                    "pid": record.pid if mount.child else None,
                    "since": record.made,
                    "reads": stats.get("reads", 0),
                    "read_bytes": stats.get("read_bytes", 0),
                    **{key: stats[key] for key in (*_PASSTHROUGH, *_SERVING, *_FILLING, *_REMOTE) if key in stats},
                    "rss": state.get("rss"),
                    "error": mount.error or refused or stats.get("damaged") or stats.get("last_error") or None,
                }
            )
        return {"mounts": found}

    async def restore(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{} -> {restored: [mountpoint], failed: [{mountpoint, error}]} of the caller's dead mounts."""
        restored, failed = [], []
        for mount in self._of(call):
            if mount.state == "mounted":
                continue
            where = wirepath.encode(mount.record.mountpoint)
            try:
                # The daemon may be at it already, for instance because this request has started it.
                async with mount.mending:
                    if mount.state == "dead":
                        await self._restore(mount)
                restored.append(where)
            except MillpondError as error:
                failed.append({"mountpoint": where, "error": str(error)})
        return {"restored": restored, "failed": failed}

    async def find(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{mountpoint | null, all} -> {mounts: [record], system, fill} for the caller's worker. Raises NotMountedError."""
        where = wirepath.decode(params["mountpoint"]) if params.get("mountpoint") else None
        found = [mount.record for mount in self._of(call) if params.get("all") or mount.record.mountpoint == where]
        if not found and not params.get("all"):
            raise NotMountedError(f"'{where}' is not a mount of yours", path=where, hint="see `millpond mounts`")
        system = self._daemon.system is not None
        fill = self._daemon.settings.fill != 0
        return {"mounts": [record.to_json() for record in found], "system": system, "fill": fill}

    def refused(self, uid: int) -> list[tuple[str, str, str]]:
        """Id, project and wanted object of this user's mounts that need other credentials."""
        return [
            (each.record.id, wirepath.encode(each.record.repo), each.wanted)
            for each in self._mounts.values()
            if each.refused and each.record.uid == uid
        ]

    async def credentials(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{id} + an environment (environs.py), which only the mount's source reads -> {} when its remotes answer to that. Raises
        CredentialsError, RemoteError, RemoteConfigError, MountError."""
        mount = self._mine(call, params)
        environ = call.take_fd()
        try:
            await self._holders.control(mount, {"op": "credentials"}, [environ], _CREDENTIALS_S)
        finally:
            os.close(environ)
        return {}

    async def tree(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{root} -> {there}: whether the index has this folder (hex)."""
        reader = FolderReader(self._store.reader.index)
        try:
            await self._in_thread(lambda: reader.count(bytes.fromhex(str(params["root"]))))
        except (StoreDamagedError, ValueError):
            return {"there": False}
        return {"there": True}

    async def ending(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{id, ending} -> {}: the caller's worker is about to unmount (or could not): its end is wanted."""
        mount = self._mine(call, params)
        mount.ending = bool(params.get("ending", True))
        if mount.ending and mount.state == "mounted":
            await self._heard(mount, (await self._holders.ask(mount, "ending")).get("stats") or {})
        with trio.move_on_after(MOUNT_S):  # a worker that mounts it again at this moment has done
            async with mount.mending:
                pass
            if mount.ending and mount.child is None:
                await self._abort(mount)
        return {}

    async def detach(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{id, name, lazy} + the parent folder -> {errno | null}: unmount in system mode, where only the spawner may."""
        self._mine(call, params)
        if self._daemon.system is None:
            raise ProtocolError("mounts.detach is for system mode")
        directory = call.take_fd()
        try:
            name, lazy = wirepath.decode(str(params["name"])), bool(params.get("lazy"))
            return {"errno": await self._daemon.system.umount(call.uid, directory, name, lazy)}
        finally:
            os.close(directory)

    async def removed(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{id} -> {} when the unmounted mount's holder has ended and its record is gone."""
        mount = self._mine(call, params)
        mount.ending = True
        if mount.child is not None and not params.get("lazy"):
            with trio.move_on_after(5):
                await mount.ended.wait()
        await self._forget(mount)
        return {}

    async def _forget(self, mount: Mount) -> None:
        self._mounts.pop(mount.record.id, None)
        await self._in_thread(lambda: self._records.remove(mount.record.id))

    async def used(self) -> set[int]:
        """Numbers of the store's segments that mounts have read since they were asked last; of those that say so in
        time."""
        found: set[int] = set()

        async def one(mount: Mount) -> None:
            answer = await self._holders.ask(mount, "used")
            found.update(number for number in answer.get("segments") or () if isinstance(number, int))

        async with trio.open_nursery() as nursery:
            for mount in list(self._mounts.values()):
                nursery.start_soon(one, mount)
        return found

    async def _heard(self, mount: Mount, stats: dict[str, Any]) -> None:
        """Where readers met what is not as it should be, sizes may have been claimed that are wrong: who mounts again asks for them
        again."""
        wrong = int(stats.get("wrong") or 0)
        if wrong > mount.wrong:
            count = await self._in_thread(lambda: forget_claimed(self._store, mount.record.uid))
            log.info("mount %s met what is damaged: %d listings are made anew", mount.record.id, count)
        mount.wrong = wrong

    def _of(self, call: Call) -> list[Mount]:
        return [mount for mount in self._mounts.values() if call.uid in (mount.record.uid, 0)]

    def _mine(self, call: Call, params: dict[str, Any]) -> Mount:
        mount = self._mounts.get(str(params["id"]))
        if mount is None or call.uid not in (mount.record.uid, 0):
            raise NotMountedError("there is no such mount of yours", hint="see `millpond mounts`")
        return mount

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)


async def _no_kill(pid: int, number: int) -> None:
    raise InternalError("an adopted process is only ended by an unmount")


def register(registry: Registry, daemon: Daemon) -> MountService:
    """Add the mounts' methods."""
    service = MountService(daemon)
    listings.register(registry, daemon)
    registry.register("mounts.create", service.create, who="worker")
    registry.register("mounts.find", service.find, who="worker")
    registry.register("mounts.credentials", service.credentials, who="worker")
    registry.register("mounts.tree", service.tree, who="worker")
    registry.register("mounts.ending", service.ending, who="worker")
    registry.register("mounts.detach", service.detach, who="worker")
    registry.register("mounts.removed", service.removed, who="worker")
    registry.register("mounts", service.show, who="both")
    registry.register("mounts.restore", service.restore, who="both")
    daemon.busy.append(service.busy)
    daemon.at_start.append(service.adopt)
    return service
