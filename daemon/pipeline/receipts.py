"""What a stage's mounts were asked for while it ran, how long who read waited, and whether all that was asked for came.

The holder of a mount counts. What it counts between the start of a stage's first command and the end of its last is the stage's,
and, where another stage used the same mount meanwhile, the other's as well: it is `shared` then. The kernel asks a mount for what it
has not in its memory, with some read-ahead; so of a mount that was read before, the bytes are `at_least`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from millpond.daemon import wirepath
from millpond.daemon.mounts import place
from millpond.daemon.mounts.records import MountRecord
from millpond.daemon.pipeline.stage import Stage
from millpond.daemon.project.paths import overlap, printable
from millpond.daemon.project.repo import Repo

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext

# A holder that does not say its figures is asked again so often.
_TRIES, _PAUSE_S = 10, 0.5
_SERVED = ("mounted", "needs-credentials")
# What a receipt has of a mount's figures, and how it is called there.
_FIGURES = {
    "opened": "opens",
    "bytes": "read_bytes",
    "remote_bytes": "remote_bytes",
    "remote_requests": "remote_requests",
    "waits": "waits",
    "errors": "errors",
}
_WAITED = ("waited_s", "waited_disk_s", "waited_unpacking_s")
# Of a log this much is looked at for what the kernel says of a read-only file system.
_LOG_BYTES = 64 << 10
_READ_ONLY = ("read-only file system", "errno 30", "erofs")


@dataclass(slots=True)
class _Watched:
    """A mount that a stage uses: where its data is, and its figures when the stage began."""

    where: str
    record: MountRecord
    before: Mapping[str, Any]
    shared: bool = False


@dataclass(slots=True)
class Reads:
    """What came of the mounts of a stage: `rows` for its record; `troubles` where what it asked for did not come, each the end of a
    sentence, with `refused` if a remote wants other credentials."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    refused: bool = False

    @property
    def waited_s(self) -> float:
        """Of all readers together."""
        return round(sum(float(row[key]) for row in self.rows for key in _WAITED), 3)


@dataclass(slots=True)
class Receipts:
    """The mounts that stages under way use."""

    context: WorkerContext
    repo: Repo
    _watched: dict[Stage, list[_Watched]] = field(default_factory=dict)

    def begin(self, stage: Stage) -> None:
        """Its commands are about to start. Raises DaemonUnavailableError."""
        records = dict(self._used(stage)) if self._any_mounted() else {}
        before = self._figures([record.id for record in records.values()])
        watched = [_Watched(where, record, before.get(record.id, {})) for where, record in records.items()]
        for other in (each for found in self._watched.values() for each in found):
            for mine in watched:
                if mine.record.id == other.record.id:
                    mine.shared = other.shared = True
        if watched:
            self._watched[stage] = watched

    def end(self, stage: Stage) -> Reads | None:
        """Its commands have ended; None where it used no mount. Raises DaemonUnavailableError: then it may be asked again."""
        watched = self._watched.get(stage)
        if watched is None:
            return None
        after = self._figures([each.record.id for each in watched])
        found = Reads()
        for each in watched:
            self._settle(found, each, after.get(each.record.id))
        self.forget(stage)
        return found

    def forget(self, stage: Stage) -> None:
        """It came to nothing."""
        self._watched.pop(stage, None)

    def mounted_inputs(self, stage: Stage) -> list[str]:
        """The places of what a stage under way has mounted, as a person sees them."""
        return [self._shown(each.where) for each in self._watched.get(stage, ())]

    def of_a_person(self, stage: Stage) -> list[str]:
        """Those of `mounted_inputs` that a person mounted, and no repro."""
        return [self._shown(each.where) for each in self._watched.get(stage, ()) if each.record.stands_in is None]

    def refused_writes(self, stage: Stage, log: str) -> list[str]:
        """Of its mounted inputs those that its log says something of, or all, when the log says that a file system is read-only."""
        mounted = self.mounted_inputs(stage)
        if not mounted:
            return []
        lines = [line for line in _last_lines(log) if any(word in line.lower() for word in _READ_ONLY)]
        named = [shown for shown in mounted if any(shown in line for line in lines)]
        return named or (mounted if lines else [])

    def _settle(self, found: Reads, each: _Watched, after: Mapping[str, Any] | None) -> None:
        shown = self._shown(each.where)
        if after is None or after["state"] not in _SERVED or after["since"] != each.before.get("since"):
            why = f": {after['error']}" if after is not None and after.get("error") else ""
            found.troubles.append(f"the mount of its input '{shown}' was gone meanwhile{why}")
        if after is None:
            return
        restarted = after["since"] != each.before.get("since")
        base: Mapping[str, Any] = {} if restarted else each.before

        def counted(key: str) -> Any:
            return max(0, round((after.get(key) or 0) - (base.get(key) or 0), 3))

        name = each.record.name
        found.rows.append(
            {
                "path": wirepath.encode(self._place(each.where)),
                "md5": None if name is None else name.partition(":")[2],
                **{told: counted(key) for told, key in _FIGURES.items()},
                **{key: counted(key) for key in _WAITED},
                "at_least": bool(each.before.get("reads")) or restarted,
                "shared": each.shared,
            }
        )
        failed = counted("errors")
        if failed:
            times = "once" if failed == 1 else f"{failed} times"
            found.troubles.append(f"its input '{shown}' could not be read, {times}: {after.get('error')}")
            found.refused = found.refused or after["state"] == "needs-credentials"

    def _figures(self, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """What the holders of mounts say."""
        found: dict[str, Mapping[str, Any]] = {}
        for left in reversed(range(_TRIES)):
            asked = [each for each in ids if each not in found or found[each].get("engine") is None]
            if not asked:
                break
            rows = self.context.client.call("mounts", {"ids": asked})[0]["mounts"]
            found |= {row["id"]: row for row in rows}
            if left and any(row.get("engine") is None and row["state"] in _SERVED for row in rows):
                self.context.progress("waiting for the figures of mounts")
                time.sleep(_PAUSE_S)
            else:
                break
        return found

    def _used(self, stage: Stage) -> Iterator[tuple[str, MountRecord]]:
        """The caller's mounts at, in or around what the stage needs."""
        deps = [place.resolve(self.repo.path(dep.place)) for dep in stage.deps if dep.place is not None]
        for data in self.context.client.call("mounts.find", {"all": True})[0]["mounts"]:
            record = MountRecord.from_json(data)
            where = record.mountpoint if record.stands_in is None else record.stands_in.where
            if any(overlap(dep, where) for dep in deps):
                yield where, record

    def _any_mounted(self) -> bool:
        return any(entry.is_ours for entry in place.mount_table())

    def _place(self, where: str) -> str:
        """From the project's root; absolute for what lies elsewhere."""
        relative = os.path.relpath(where, self.repo.root)
        return where if relative.startswith("../") else relative

    def _shown(self, where: str) -> str:
        relative = self._place(where)
        return printable(relative if relative.startswith("/") else self.repo.seen(relative))


def _last_lines(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
