"""Records of mounts: what must be known to adopt, restore and undo one, each a small JSON file.

A record is written before the mount is made and removed after it is undone, so a crash in between leaves a record
without a mount (restored or given up later), never a mount without a record.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import BusyError
from millpond.daemon.mounts import place

MAX_MOUNTS = 256
_ID = re.compile(r"[0-9a-f]{12}\Z")


@dataclass(frozen=True, slots=True)
class StandsIn:
    """A mount that stands in for data of the workspace while a repro needs it (inputs.py): at `where` there is nothing else, and
    nothing when the mount is gone. A file's mount lies elsewhere, `where` is a link into it. `made` are the folders above that were
    made for it, the outermost first."""

    where: str
    made: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Paths percent-encoded."""
        return {"where": wirepath.encode(self.where), "made": [wirepath.encode(path) for path in self.made]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StandsIn:
        """What `to_json` gave. Raises KeyError, TypeError."""
        return cls(wirepath.decode(data["where"]), tuple(wirepath.decode(path) for path in data["made"]))

    def remove(self, mountpoint: str) -> None:
        """Nothing is mounted at `mountpoint` any more: take its place away, and what was made for it, if it is empty. Safe twice."""
        if self.where != mountpoint and leads_into(self.where, mountpoint):
            with contextlib.suppress(OSError):
                os.unlink(self.where)
        place.taken_away(mountpoint)
        for folder in reversed(self.made):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


@dataclass(frozen=True, slots=True)
class MountRecord:
    """One mount. Paths are absolute; `root` is the hex id of its root folder, `commit` None for the workspace.

    `pid` and `start` (clock ticks since boot, /proc/PID/stat field 22) tell the holder apart from a later process of the
    same number; `mode` is what the directory underneath had before. `made` is in seconds since the epoch.
    """

    id: str
    uid: int
    mountpoint: str
    repo: str
    target: str
    commit: str | None
    name: str | None
    root: str
    versions: bool
    files: int
    bytes: int
    mode: int
    engine: str
    options: dict[str, Any]
    context: dict[str, Any]
    pid: int = 0
    start: int = 0
    made: float = 0.0

    @property
    def stands_in(self) -> StandsIn | None:
        """For what of the workspace it stands in, if it does."""
        told = self.options.get("stands_in")
        return None if told is None else StandsIn.from_json(told)

    @property
    def isexec(self) -> bool:
        """Whether the single file that it shows can be executed."""
        return bool(self.options.get("isexec"))

    def to_json(self) -> dict[str, Any]:
        """All fields, paths percent-encoded."""
        data = asdict(self)
        for key in ("mountpoint", "repo", "target"):
            data[key] = wirepath.encode(data[key])
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MountRecord:
        """The record of `to_json`; unknown fields of a newer version are left out. Raises KeyError, TypeError."""
        known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        for key in ("mountpoint", "repo", "target"):
            known[key] = wirepath.decode(known[key])
        return cls(**known)


def leads_into(where: str, folder: str) -> bool:
    """Whether there is a link at a path that names something in a folder, be that there or not."""
    try:
        target = os.path.join(os.path.dirname(where), os.readlink(where))
    except OSError:
        return False
    return os.path.dirname(os.path.normpath(target)) == folder


def new_id() -> str:
    """A mount's id: 12 hex digits."""
    return secrets.token_hex(6)


class MountRecords:
    """The folder of records."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self) -> list[MountRecord]:
        """All readable records; one that is damaged is left where it is, under another name."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                found.append(MountRecord.from_json(json.loads(path.read_bytes())))
            except (ValueError, KeyError, TypeError):
                path.rename(path.with_suffix(".damaged"))
        return found

    def save(self, record: MountRecord) -> None:
        """Write durably: temp, fsync, rename, fsync of the folder. Raises BusyError beyond MAX_MOUNTS."""
        path = self._path(record.id)
        if not path.exists() and len(list(self._folder.glob("*.json"))) >= MAX_MOUNTS:
            raise BusyError(f"there are {MAX_MOUNTS} mounts already", hint="unmount one first: millpond umount")
        temp = path.with_suffix(".tmp")
        with open(temp, "w") as file:
            json.dump(record.to_json(), file)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(path)
        self._sync()

    def remove(self, mount_id: str) -> None:
        """Forget a mount. Safe twice."""
        with contextlib.suppress(FileNotFoundError):
            self._path(mount_id).unlink()
        self._sync()

    def _path(self, mount_id: str) -> Path:
        if not _ID.match(mount_id):
            raise ValueError(f"no mount id: {mount_id!r}")
        return self._folder / f"{mount_id}.json"

    def _sync(self) -> None:
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
