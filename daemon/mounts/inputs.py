"""Mounts that stand in for data of the workspace while a repro's stages need it.

Such a mount is at the data's own place, where nothing was before: a tracked directory there, a file as a link into a mount below
`.dvc/tmp`. Who needs it holds a lock (flock, shared) on a file of its own below `.dvc/tmp/millpond/inputs`, and so do the commands
that were started meanwhile; only who gets that lock alone takes the mount away. So a repro that was killed leaves mounts behind,
which the next one takes away, but never one that a command still reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xxhash

from millpond.daemon import wirepath
from millpond.daemon.errors import BusyError, ConflictError, MillpondError, NotMountedError
from millpond.daemon.mounts import place
from millpond.daemon.mounts.plan import Planner
from millpond.daemon.mounts.project import Project
from millpond.daemon.mounts.records import MountRecord, StandsIn, leads_into
from millpond.daemon.mounts.verbs import create, mount_values, require_fuse, umount_one
from millpond.daemon.names import ObjectName
from millpond.daemon.project.durable import make_folders
from millpond.daemon.project.paths import printable

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext

# Who takes a mount away is waited for this long.
_WAIT_S = 30.0
_PAUSE_S = 0.05


@dataclass(slots=True, eq=False)
class Held:
    """A mount that is kept: `where` the data is to be, `mountpoint`, and the descriptor whose lock keeps it. `files` and `bytes` that
    it shows; `made`: it was not there before."""

    where: str
    mountpoint: str
    lock: int
    made: bool = False
    files: int = 0
    bytes: int = 0


@dataclass(slots=True)
class InputMounts:
    """The mounts of one repro in a project; `warn` tells a person what stays mounted, and why."""

    context: WorkerContext
    root: str
    warn: Callable[[str], None]
    held: dict[str, Held] = field(default_factory=dict)

    def mount(self, where: str, target: str, name: ObjectName, *, isexec: bool = False) -> Held:
        """Have the object `name` at `where` (absolute), which is called `target` in the project, until `release`. Nothing is there, or
        a mount of that object. Raises ConflictError, MountError, BusyError, ObjectMissingError, RemoteError, CredentialsError."""
        where = place.resolve(where)
        known = self.held.get(where)
        if known is not None:
            return known
        mountpoint = where if name.is_dir else os.path.join(self._folder, _key(where))
        held = Held(where, mountpoint, self._keep(where))
        try:
            if not self._is_there(held, name):
                self._make(held, target, name, isexec=isexec)
        except BaseException:
            os.close(held.lock)
            raise
        self.held[where] = held
        return held

    def adopt(self, where: str) -> Held | None:
        """Keep what is mounted at a place already, for whomever it was; None where nothing of that kind is."""
        where = place.resolve(where)
        known = self.held.get(where)
        record = None if known is not None else self._record_for(where)
        if record is None:
            return known
        held = Held(where, record.mountpoint, self._keep(where), files=record.files, bytes=record.bytes)
        if self._record_for(where) is None:  # it was being taken away
            os.close(held.lock)
            return None
        self.held[where] = held
        return held

    def release(self, where: str) -> None:
        """This repro does not need it any more: it goes, unless others need it. What is in use stays, and is told."""
        held = self.held.pop(place.resolve(where), None)
        if held is None:
            return
        try:
            if _alone(held.lock):
                self._take_away(held.mountpoint)
        finally:
            os.close(held.lock)

    def locks(self, wheres: Iterable[str]) -> list[int]:
        """The descriptors whose locks keep the mounts at these places: who has one open keeps them, too."""
        found = (self.held.get(place.resolve(where)) for where in wheres)
        return [held.lock for held in found if held is not None]

    def release_all(self) -> None:
        """At the end. What cannot be taken away now is by the next repro."""
        for where in list(self.held):
            try:
                self.release(where)
            except MillpondError as error:
                self.warn(f"'{_shown(where)}' stays mounted: {error.message}")

    def sweep(self) -> None:
        """Take away what repros that were killed have left, and nobody uses."""
        for record in self._records():
            stands_in = record.stands_in
            if stands_in is None or stands_in.where in self.held:
                continue
            lock = self._open(stands_in.where)
            try:
                if _alone(lock):
                    self._take_away(record.mountpoint)
            except MillpondError as error:
                self.warn(f"'{_shown(stands_in.where)}', of an earlier repro, stays mounted: {error.message}")
            finally:
                os.close(lock)

    # -- one mount ------------------------------------------------------------------------------------------------

    def _is_there(self, held: Held, name: ObjectName) -> bool:
        """Whether it is mounted already, by somebody else, or by this repro before the daemon went away; what is half there is taken
        away. Raises ConflictError for what is no mount of ours, BusyError for another version that others need."""
        record = self._record_at(held.mountpoint)
        if record is not None:
            whole = record.name == str(name) and (held.where == held.mountpoint or os.path.islink(held.where))
            if whole and self._is_served(held.mountpoint):
                held.files, held.bytes = record.files, record.bytes
                return True
            if not _alone(held.lock):
                shown = _shown(held.where)
                raise BusyError(
                    f"'{shown}' is mounted for another repro, which still needs it", hint="wait for its end"
                )
            umount_one(self.context, record, lazy=True, system=self._system)
            fcntl.flock(held.lock, fcntl.LOCK_SH)
        where = held.where
        if held.mountpoint != where and leads_into(where, held.mountpoint):
            os.unlink(where)  # of a mount that is no more
        for path in dict.fromkeys((where, held.mountpoint)):
            if place.is_marked(path):
                place.taken_away(path)
            if os.path.lexists(path):
                raise ConflictError(
                    f"'{printable(path)}' is in the way of a mount", path=printable(path), hint="look what it is"
                )
        return False

    def _make(self, held: Held, target: str, name: ObjectName, *, isexec: bool) -> None:
        require_fuse(self.context, held.where)
        project = Project.find(self.root)
        plan = Planner(project, self.context.client, self.context.store).plan_object(name, target, isexec=isexec)
        made = place.made(held.mountpoint, target=target, version=str(name))
        stands_in = StandsIn(held.where, tuple(made))
        try:
            if held.where != held.mountpoint:
                stands_in = StandsIn(held.where, (*made, *make_folders(os.path.dirname(held.where))))
            options = {"stands_in": stands_in.to_json(), "isexec": isexec}
            values = mount_values(project, {"options": options}, target)
            values |= {"root": plan.root, "files": plan.files, "bytes": plan.bytes, "name": plan.name}
            create(self.context, held.mountpoint, values)
            if held.where != held.mountpoint:
                inside = os.path.join(held.mountpoint, os.path.basename(target))
                os.symlink(os.path.relpath(inside, os.path.dirname(held.where)), held.where)
        except BaseException:
            with contextlib.suppress(MillpondError, OSError):
                self._take_away(held.mountpoint)
            stands_in.remove(held.mountpoint)
            raise
        held.made, held.files, held.bytes = True, plan.files, plan.bytes

    def _take_away(self, mountpoint: str) -> None:
        """Raises MountBusyError as a MillpondError when a process has something of it open."""
        record = self._record_at(mountpoint)
        if record is not None:
            umount_one(self.context, record, lazy=False, system=self._system)

    def _is_served(self, mountpoint: str) -> bool:
        """Whether a mount answers; one that died is mounted again first."""
        for _ in range(2):
            rows = self.context.client.call("mounts", {})[0]["mounts"]
            states = {wirepath.decode(row["mountpoint"]): row["state"] for row in rows}
            if states.get(mountpoint) in ("mounted", "needs-credentials"):
                return mountpoint in place.shown_objects()
            self.context.client.call("mounts.restore", {})
        return False

    # -- records --------------------------------------------------------------------------------------------------

    def _records(self) -> Iterator[MountRecord]:
        for data in self.context.client.call("mounts.find", {"all": True})[0]["mounts"]:
            record = MountRecord.from_json(data)
            if record.repo == self.root and record.uid == self.context.uid:
                yield record

    def _record_for(self, where: str) -> MountRecord | None:
        return next((each for each in self._records() if each.stands_in and each.stands_in.where == where), None)

    def _record_at(self, mountpoint: str) -> MountRecord | None:
        """Raises ConflictError for a mount that a person has made there."""
        try:
            found, _ = self.context.client.call(
                "mounts.find", {"mountpoint": wirepath.encode(mountpoint), "all": False}
            )
        except NotMountedError:
            return None
        record = MountRecord.from_json(found["mounts"][0])
        if record.stands_in is None:
            shown = printable(mountpoint)
            raise ConflictError(f"'{shown}' is a mount", path=shown, hint=f"end it first: millpond umount {shown}")
        return record

    @property
    def _system(self) -> bool:
        return bool(self.context.client.call("mounts.find", {"all": True})[0]["system"])

    # -- locks ----------------------------------------------------------------------------------------------------

    @property
    def _folder(self) -> str:
        return os.path.join(self.root, ".dvc", "tmp", "millpond", "inputs")

    def _open(self, where: str) -> int:
        os.makedirs(self._folder, exist_ok=True)
        return os.open(os.path.join(self._folder, f"{_key(where)}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _keep(self, where: str) -> int:
        """The lock, shared. Raises BusyError when somebody takes the mount away for very long."""
        lock = self._open(where)
        deadline = time.monotonic() + _WAIT_S
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return lock
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise BusyError(
                            f"'{printable(where)}' is being unmounted by another repro", hint="try again"
                        ) from None
                    self.context.progress(f"waiting until {printable(where)} is unmounted")
                    time.sleep(_PAUSE_S)
        except BaseException:
            os.close(lock)
            raise


def _alone(lock: int) -> bool:
    """Whether nobody else keeps it: then nobody does until it is closed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _shown(where: str) -> str:
    """A path as it is seen from the caller's folder."""
    return printable(os.path.relpath(where))


def _key(where: str) -> str:
    return xxhash.xxh3_128_hexdigest(os.fsencode(where))
