"""`mount`, `umount` and their kin in the caller's worker: plans, places, and the unmounting itself."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from millpond.daemon import environs, wirepath
from millpond.daemon.errors import (
    BusyError,
    CredentialsError,
    MillpondError,
    MountBusyError,
    MountError,
    ObjectMissingError,
    RemoteError,
    RevisionError,
)
from millpond.daemon.mounts import busy, filling, place
from millpond.daemon.mounts.differences import DiffPlanner
from millpond.daemon.mounts.plan import Plan, Planner
from millpond.daemon.mounts.project import Project
from millpond.daemon.mounts.records import MountRecord
from millpond.daemon.mounts.revival import login
from millpond.daemon.names import ObjectName
from millpond.daemon.project import running
from millpond.daemon.project.destroy import destroy as project_destroy
from millpond.daemon.project.doctor import doctor as project_doctor
from millpond.daemon.project.importing.fetching import bring_lacking
from millpond.daemon.project.repo import Repo, find_root
from millpond.daemon.rpc import framing

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext

_UMOUNT_S = 20.0
# How often a mount that only a filler of ours holds is tried again, and the pauses between.
_TRIES, _PAUSE_S = 20, 0.025


def mount(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """{target | null, rev | null, versions, engine, options, mountpoint} -> the mount, once it answers. With
    `options.diff`, two revisions, what differs between them."""
    mountpoint = place.resolve(wirepath.decode(params["mountpoint"]))
    project = Project.find(os.getcwd())
    place.check(mountpoint)
    _check_outside(project, mountpoint)
    require_fuse(context, mountpoint)
    target = project.relative(wirepath.decode(params["target"])) if params.get("target") else ""
    values = mount_values(project, params, target)
    if not params.get("versions"):
        context.progress("looking at the version")
        diff = values["options"].get("diff")
        try:
            plan = _plan(context, project, target, params.get("rev"), diff)
        except ObjectMissingError:
            # What is imported is on no remote of this project: it comes from where it is from.
            if diff or not bring_lacking(context, params.get("target"), params.get("rev")):
                raise
            plan = _plan(context, project, target, params.get("rev"), diff)
        name = [] if plan.name is None else [ObjectName(*plan.name.split(":", 1))]
        context.seen(project.root, None if project.git is None else project.git.git_dir, name)
        values |= {
            "root": plan.root,
            "files": plan.files,
            "bytes": plan.bytes,
            "commit": plan.commit,
            "name": plan.name,
            "far": plan.is_far,
        }
    made = create(context, mountpoint, values)
    return {
        "id": made["id"],
        "mountpoint": wirepath.encode(mountpoint),
        "commit": values["commit"],
        "target": wirepath.encode(target),
        "files": values["files"],
        "bytes": values["bytes"],
        "engine": made["engine"],
        "versions": values["versions"],
        "diff": values["options"].get("diff"),
    }


def create(context: WorkerContext, mountpoint: str, values: dict[str, Any]) -> dict[str, Any]:
    """Prepare the place and let the daemon mount on it."""
    target = wirepath.decode(values["target"]) or "the whole revision"
    version = "all versions" if values["versions"] else values["commit"] or "as the workspace's pointers name it"
    with place.prepared(mountpoint, target=target, version=version) as mode:
        values = {**values, "mountpoint": wirepath.encode(mountpoint), "mode": mode}
        fds = [os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
        try:
            fds.append(environs.to_file(os.environ))
            result, _ = context.client.call("mounts.create", values, fds=fds)
        finally:
            framing.close_all(fds)
    return result


def umount(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """{mountpoint | null, all, lazy} -> {unmounted: [mountpoint], emptied}: those of them in whose place a workspace has its data. Raises
    MountBusyError, or without `lazy` BusyError for what a running stage reads, after the others are done."""
    lazy = bool(params.get("lazy"))
    wanted = place.resolve(wirepath.decode(params["mountpoint"])) if params.get("mountpoint") else None
    query = {"mountpoint": wirepath.encode(wanted) if wanted else None, "all": bool(params.get("all"))}
    found, _ = context.client.call("mounts.find", query)
    done: list[str] = []
    emptied: list[str] = []
    failed: MillpondError | None = None
    for data in found["mounts"]:
        record = MountRecord.from_json(data)
        try:
            if not lazy:
                _refuse_read(record)
            umount_one(context, record, lazy=lazy, system=bool(found["system"]))
            done.append(wirepath.encode(record.mountpoint))
            if record.target and record.mountpoint == os.path.join(record.repo, record.target):
                emptied.append(done[-1])
        except (MountBusyError, MountError, BusyError) as error:
            failed = error
    if failed is not None:
        failed.details["unmounted"] = done
        raise failed
    return {"unmounted": done, "emptied": emptied}


def _refuse_read(record: MountRecord) -> None:
    """Raise BusyError where a running stage reads the mount, though it may have nothing of it open in this moment."""
    try:
        repo = Repo.open(record.repo, os.environ)
    except MillpondError:  # it is no project any more
        return
    running.refuse(repo, writes=[record.mountpoint.removeprefix(os.path.join(repo.root, ""))], env=os.environ)


def remount(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """{record, system} -> {}: clear the place of a mount that died and mount it again."""
    record = MountRecord.from_json(params["record"])
    there = place.mounted_at(record.mountpoint)
    if there is not None:
        if not place.is_of(there, record.id):
            raise MountError(
                f"'{record.mountpoint}' is now a mount of something else ({there.source})",
                path=record.mountpoint,
                hint=f"unmount that to have this one again, or give this one up: millpond umount {record.mountpoint}",
            )
        error = _detach(context, record, lazy=True, system=bool(params.get("system")))
        if error:
            raise MountError(f"the dead mount on '{record.mountpoint}' cannot be removed: {os.strerror(error)}")
    place.check(record.mountpoint)
    values = record.to_json()
    project = Project.find(record.repo)
    if not record.versions:
        # The index may have been made anew since: make sure that the tree is there.
        try:
            plan = _plan_again(context, project, record)
            values |= {"root": plan.root, "files": plan.files, "bytes": plan.bytes}
        except (CredentialsError, RemoteError):
            # Sizes are asked of a remote, which may not let this environment in. The tree of before is as good, if it is there.
            if not context.client.call("mounts.tree", {"root": record.root})[0]["there"]:
                raise
    values["context"] = params["record"]["context"]
    values["caches"] = _caches(project)
    create(context, record.mountpoint, values)
    return {}


def _plan(context: WorkerContext, project: Project, target: str, rev: str | None, diff: Sequence[str] | None) -> Plan:
    """The tree of a version, or of a difference."""
    if diff:
        return DiffPlanner(project, context.client, context.store).plan_diff(target, *diff)
    return Planner(project, context.client, context.store).plan(target, rev)


def _plan_again(context: WorkerContext, project: Project, record: MountRecord) -> Plan:
    """The tree of a mount that is to be made again: what it showed, though the workspace's pointers may name something else now."""
    if record.commit is None and record.name is not None:
        planner = Planner(project, context.client, context.store)
        return planner.plan_object(ObjectName(*record.name.split(":", 1)), record.target, isexec=record.isexec)
    return _plan(context, project, record.target, record.commit, record.options.get("diff"))


def tree(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """{target, rev} -> {root, files, bytes, commit}: for a versions mount's source, which asks as the caller."""
    project = Project.find(os.getcwd())
    target = wirepath.decode(params.get("target") or "")
    plan = Planner(project, context.client, context.store).plan(target, str(params["rev"]))
    return asdict(plan)


def require_fuse(context: WorkerContext, mountpoint: str) -> None:
    """Raise MountError when the caller cannot mount here; in system mode it is not he who mounts."""
    if context.client.call("mounts.find", {"all": True})[0]["system"]:
        return
    if not os.path.exists("/dev/fuse"):
        raise MountError("there is no /dev/fuse on this machine", path=mountpoint, hint="load it: modprobe fuse")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountError(
            "you may not use /dev/fuse", path="/dev/fuse", hint="ask the admin to make it readable: mode 0666"
        )
    if os.getuid() != 0 and shutil.which("fusermount3") is None:
        raise MountError("fusermount3 is not installed", path=mountpoint, hint="install it: apt-get install fuse3")


def mount_values(project: Project, params: dict[str, Any], target: str) -> dict[str, Any]:
    """What `mounts.create` takes, but for the tree."""
    return {
        "repo": wirepath.encode(project.root),
        "target": wirepath.encode(target),
        "versions": bool(params.get("versions")),
        "engine": params.get("engine"),
        "options": _pinned(project, params.get("options") or {}),
        "caches": _caches(project),
        "context": {"env": environs.to_wire(os.environ)},
        "commit": None,
        "name": None,
        "root": "",
        "files": 0,
        "bytes": 0,
    }


def _pinned(project: Project, options: dict[str, Any]) -> dict[str, Any]:
    """The options with revisions as commits: a mount stays what it was when branches move."""
    if not options.get("diff"):
        return options
    if project.git is None:
        raise RevisionError("this project is not in a Git repository, so it has no revisions to compare")
    return {**options, "diff": [project.git.resolve(str(rev)) for rev in options["diff"]]}


def destroy(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """As project/destroy.py. Raises MountBusyError while something of the project is mounted: the mount may read DVC's cache."""
    root = find_root(os.getcwd())
    found, _ = context.client.call("mounts.find", {"all": True})
    for each in found["mounts"]:
        record = MountRecord.from_json(each)
        if record.repo == root:
            raise MountBusyError(
                f"data of this project is mounted on '{record.mountpoint}'",
                path=record.mountpoint,
                hint=f"end that first: millpond umount {record.mountpoint}",
            )
    return project_destroy(context, params)


def doctor(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """As project/doctor.py, with what the daemon's settings have mounts go without."""
    report = project_doctor(context, params)
    found, _ = context.client.call("mounts.find", {"all": True})
    why = filling.why_not(fill=bool(found["fill"]), system=bool(found["system"]))
    detail = f"off: {why}" if why else "on: small files are brought ahead of who reads many"
    check = {"name": "page cache", "ok": True, "detail": wirepath.encode(detail), "hint": ""}
    at = 1 + max(number for number, each in enumerate(report["checks"]) if each["name"] == "read-ahead")
    return {"checks": [*report["checks"][:at], check, *report["checks"][at:]]}


def _caches(project: Project) -> list[str]:
    return [wirepath.encode(cache.folder) for cache in project.caches]


def _check_outside(project: Project, mountpoint: str) -> None:
    """A mount inside tracked data would become part of it."""
    if not mountpoint.startswith(project.root + "/"):
        return
    if mountpoint.startswith((project.dvc_dir + "/", os.path.join(project.root, ".git") + "/")):
        raise MountError(
            f"'{mountpoint}' is inside of the repository's own files", path=mountpoint, hint="choose another"
        )
    from millpond.daemon.project import outputs
    from millpond.daemon.project.ignore import IgnoreRules

    for output in outputs.collect(outputs.WorkTree(project.root, IgnoreRules(project.root))):
        where = os.path.join(project.root, output.path)
        if mountpoint == where or mountpoint.startswith(where + "/"):
            raise MountError(
                f"mountpoint '{mountpoint}' is inside of the tracked '{output.path}'",
                path=mountpoint,
                hint="choose another directory; `millpond checkout --mount` mounts tracked data in its place",
            )


def umount_one(context: WorkerContext, record: MountRecord, *, lazy: bool, system: bool) -> None:
    """Unmount, undo the place, forget the record. Raises MountBusyError, MountError."""
    # Looked at afterwards: one that died may be made again, or taken away, until the daemon knows that its end is wanted.
    context.client.call("mounts.ending", {"id": record.id})
    there = place.mounted_at(record.mountpoint)
    taken = there is not None and not place.is_of(there, record.id)
    if there is not None and not taken:
        error = _detach(context, record, lazy=lazy, system=system)
        tries = _TRIES
        while error == errno.EBUSY and not lazy and not system and tries and busy.is_only_ours(record.mountpoint):
            tries -= 1
            time.sleep(_PAUSE_S)
            error = _detach(context, record, lazy=lazy, system=system)
        if error:
            context.client.call("mounts.ending", {"id": record.id, "ending": False})
            raise _refused(record, error)
    if taken:
        context.log("warning", f"'{record.mountpoint}' is now a mount of something else, which is left as it is")
    elif record.stands_in is None:
        place.released(record.mountpoint, record.mode)
    else:
        record.stands_in.remove(record.mountpoint)
    context.client.call("mounts.removed", {"id": record.id, "lazy": lazy})


def _detach(context: WorkerContext, record: MountRecord, *, lazy: bool, system: bool) -> int:
    """Unmount; 0, or the errno."""
    if system:
        # A descriptor of the mount itself would keep it busy.
        parent, name = os.path.split(record.mountpoint)
        directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            asked = {"id": record.id, "name": wirepath.encode(name), "lazy": lazy}
            status, _ = context.client.call("mounts.detach", asked, fds=[directory])
        finally:
            os.close(directory)
        return int(status.get("errno") or 0)
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", record.mountpoint]
    if os.getuid() == 0:
        command = ["umount", *(["-l"] if lazy else []), "--", record.mountpoint]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_UMOUNT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MountError(f"cannot run {command[0]}: {error}", path=record.mountpoint) from error
    if done.returncode == 0:
        return 0
    return errno.EBUSY if "busy" in done.stderr.lower() else errno.EPERM


def _refused(record: MountRecord, error: int) -> MountError | MountBusyError:
    if error != errno.EBUSY:
        return MountError(f"cannot unmount '{record.mountpoint}': {os.strerror(error)}", path=record.mountpoint)
    users = busy.who_holds(record.mountpoint)
    shown = ", ".join(f"{user.command} (pid {user.pid}, {user.user}: {user.what})" for user in users[:5])
    return MountBusyError(
        f"'{record.mountpoint}' is in use by {shown or 'a process that you may not see'}",
        path=record.mountpoint,
        hint="end these, or detach it now and let it end by itself: umount --lazy",
        details={"holders": [asdict(user) for user in users]},
    )


VERBS: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    "mount": mount,
    "umount": umount,
    "remount": remount,
    "destroy": destroy,
    "doctor": doctor,
    "tree": tree,
    "remote.login": login,
}
