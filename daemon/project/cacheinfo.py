"""`cache info`: which projects keep what in the store, and what of it is nowhere else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import MillpondError
from millpond.daemon.names import DIR_SUFFIX, ObjectName
from millpond.daemon.project.evict import what_may_go
from millpond.daemon.project.repo import Repo
from millpond.daemon.store.ledger import MANIFEST
from millpond.daemon.store.usage import ROW_BYTES

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext


def cache_info(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {} -> {projects: [{path, seen, roots, objects, bytes, alone, only}], eviction}, paths in wire form.

    `eviction` says what might be evicted and what not (project/evict.py), by what remotes were seen to hold within a
    day or say now. `only`: {objects, bytes} that lie in the store and not in the project's DVC cache; None when the
    project cannot be opened, so that nobody knows. Works anywhere. Raises StoreDamagedError.
    """
    rows, _ = context.client.call("gc.projects", {})
    used, _ = context.client.call("gc.usage", {})
    uses = {use["path"]: use for use in used["projects"]}
    projects = []
    for number, row in enumerate(rows["projects"]):
        context.progress("looking at projects", (number, len(rows["projects"])))
        use = uses.get(row["path"]) or {"objects": 0, "bytes": 0, "alone": 0}
        shown = {key: row[key] for key in ("path", "seen", "roots")}
        projects.append({**shown, **use, "only": _only(context, row["path"])})
    return {"projects": projects, "eviction": what_may_go(context)}


def _only(context: WorkerContext, path: str) -> dict[str, int] | None:
    try:
        cache = Repo.open(wirepath.decode(path), os.environ).cache
    except (MillpondError, OSError):
        return None
    _, fds = context.client.call("gc.objects", {"path": path})
    objects = size = 0
    with memfd.mapped(fds[0]) as view:
        for start in range(0, len(view), ROW_BYTES):
            row = bytes(view[start : start + ROW_BYTES])
            name = ObjectName("md5", row[1:17].hex() + (DIR_SUFFIX if row[0] == MANIFEST else ""))
            if cache.size(name) is None:
                objects += 1
                size += int.from_bytes(row[17:], "little")
    return {"objects": objects, "bytes": size}
