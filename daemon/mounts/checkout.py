"""`checkout` where mounts are meant: tracked directories mounted in their own place, the rest brought as files.

A directory that is mounted stays mounted: a later `checkout`, with or without --mount, switches it to the version that its
pointer names now.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError
from millpond.daemon.mounts import place
from millpond.daemon.mounts.plan import Planner
from millpond.daemon.mounts.project import Project
from millpond.daemon.mounts.records import MountRecord
from millpond.daemon.mounts.verbs import create, mount_values, require_fuse, umount_one
from millpond.daemon.pipeline.status import status
from millpond.daemon.project import checkout as files
from millpond.daemon.project import running
from millpond.daemon.project.arrivals import Arrivals
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.select import refuse_clashes, select
from millpond.daemon.project.workspace import Workspace

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext

_ASIDE = ".millpond-before-mount"


def checkout(context: WorkerContext, params: dict[str, Any], arrivals: Arrivals | None = None) -> dict[str, Any]:
    """Verb. As project/checkout.py, and {mount}: tracked directories are mounted instead of copied."""
    repo = Repo.open(os.getcwd(), os.environ)
    targets = [wirepath.decode(target) for target in params.get("targets") or []]
    outputs = repo.outputs()
    refuse_clashes(outputs, agreeing=True)
    chosen = select(repo, outputs, targets, recursive=bool(params.get("recursive")))
    folders = [each.output for each in chosen if each.output.is_dir and not each.inner]
    if not params.get("mount"):
        folders = [output for output in folders if _is_mounted(repo, output)]
    if not folders:
        return files.checkout(context, {**params, "mount": False}, arrivals)
    result: dict[str, Any] = {"added": [], "modified": [], "deleted": [], "failed": [], "unchanged": 0}
    meant = {output.path for output in folders}
    rest = [repo.wire(each.output.path) for each in chosen if each.output.path not in meant]
    if rest:
        result = files.checkout(context, {**params, "mount": False, "targets": rest}, arrivals)
    with context.lock(repo.root, "write"):
        for output in folders:
            change = _mount_output(context, repo, output, force=bool(params.get("force")))
            if change is None:
                result["unchanged"] += 1
            else:
                result[change].append(repo.wire(output.path) + "/")
    return result


def _is_mounted(repo: Repo, output: Output) -> bool:
    there = place.mounted_at(repo.path(output.path))
    return there is not None and there.is_ours


def _mount_output(context: WorkerContext, repo: Repo, output: Output, *, force: bool) -> str | None:
    """Mount one output in its place; what that changed: added, modified, or None."""
    where = repo.path(output.path)
    change = "added"
    if _is_mounted(repo, output):
        found, _ = context.client.call("mounts.find", {"mountpoint": wirepath.encode(where), "all": False})
        record = MountRecord.from_json(found["mounts"][0])
        if record.name == str(output.name):
            return None
        running.refuse(repo, writes=[output.path], env=os.environ)
        umount_one(context, record, lazy=False, system=bool(found["system"]))
        change = "modified"
    else:
        running.refuse(repo, writes=[output.path], env=os.environ)
    require_fuse(context, where)
    project = Project.find(repo.root)
    plan = Planner(project, context.client, context.store).plan(output.path, None)
    aside = _set_aside(context, repo, output, force=force)
    try:
        os.makedirs(where, exist_ok=True)
        values = mount_values(project, {}, output.path)
        values |= {"root": plan.root, "files": plan.files, "bytes": plan.bytes, "name": plan.name}
        create(context, where, values)
    except BaseException:
        if aside is not None:
            os.rmdir(where)
            os.rename(aside, where)
        raise
    if aside is not None:
        shutil.rmtree(aside)
        change = "modified"
    return change


def _set_aside(context: WorkerContext, repo: Repo, output: Output, *, force: bool) -> str | None:
    """Move the files that are in the way, if losing them loses nothing. Raises ConflictError."""
    where = repo.path(output.path)
    if not os.path.lexists(where) or (os.path.isdir(where) and not os.listdir(where)):
        return None
    shown = printable(repo.seen(output.path))
    if not force:
        if os.path.isdir(where) and os.listdir(where) == [place.MARKER]:
            return None
        seen = status(context, {"targets": [repo.wire(output.path)]})
        if seen["status"] or not os.path.isdir(where) or os.path.islink(where):
            raise ConflictError(
                f"'{shown}' is not what its pointer says, so it is not replaced by a mount",
                path=shown,
                hint="add or check it out first, or use --force to lose what is there",
            )
        known = set(Workspace(repo, context.store).folder(output.path).listing.paths)
        for folder, _, names in os.walk(where):
            for name in names:
                inner = os.path.relpath(os.path.join(folder, name), where)
                if inner not in known:
                    raise ConflictError(
                        f"'{shown}/{printable(inner)}' is not part of the data, and would be lost",
                        path=shown,
                        hint="move it elsewhere, or use --force to lose it",
                    )
    aside = where + _ASIDE
    if os.path.lexists(aside):
        raise ConflictError(f"'{printable(aside)}' is in the way", path=aside, hint="look what it is, then remove it")
    os.rename(where, aside)
    return aside
