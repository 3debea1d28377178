"""The verbs about jobs: what of them needs the caller's rights. The job itself runs in a shim (shim.py)."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import AccessError, JobError, MillpondError, UsageError, from_system
from millpond.daemon.jobs.commands import shell_command
from millpond.daemon.jobs.jobfolder import JobFolder
from millpond.daemon.jobs.process import boot_id, session_members, start_ticks
from millpond.daemon.jobs.record import checked_name
from millpond.daemon.jobs.worker import WorkerContext
from millpond.daemon.project.paths import printable

# What a lost job's verb has to end what it ran; then it is killed.
LOST_GRACE_S = 5.0
# A shim that was told to kill at once has this long; one that does not, since it is stopped itself, is killed.
KILL_S = 10.0
# More than are ever kept.
MAX_ROWS = 1000
# Verbs that give something to their client, or serve another process.
_NOT_JOBS = frozenset({"mount", "umount", "tree", "remount", "merge-driver", "root"})


def run(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {argv or verb + params, title?, name?, terminal: [rows, columns] or null, limits?, nice?, cpus?, grace_s?, log_bytes?,
    resources?, wait_s?} -> {job}: a job in this folder and environment, written down and about to begin.

    One word of `argv` is a line for the shell; several are a program and its arguments. Raises UsageError, DiskFullError.
    """
    name = checked_name(params.get("name"))
    spec: dict[str, Any] = {
        **{key: params.get(key) for key in ("terminal", "limits", "nice", "cpus", "grace_s", "log_bytes", "wait_s")},
        **_what(params),
        "cwd": wirepath.encode(os.getcwd()),
        "umask": _umask(),
    }
    try:
        folder = JobFolder.create(os.environ, spec, os.environ)
    except OSError as error:
        raise from_system(error, "making the job's folder") from error
    try:
        row = {
            "kind": spec["kind"],
            "title": printable(str(params.get("title") or _title(spec))),
            "cwd": spec["cwd"],
            "folder": wirepath.encode(folder.path),
            "name": name,
            "resources": params.get("resources") or {},
        }
        answer, _ = context.client.call("jobs.submit", row)
    except MillpondError:
        folder.remove()
        raise
    try:
        _forget(context, answer["expired"])
    except MillpondError as error:  # tried again with the next job
        context.log("warning", str(error))
    return {"job": answer["job"]}


def cancel(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {jobs: [word], now, wait} -> {jobs: [row]} of jobs that were told to end, and with `wait` have ended.

    Raises JobError for one that has ended already; the others are cancelled all the same.
    """
    told, refused = [], []
    for word in params["jobs"]:
        job = context.client.call("jobs.find", {"job": word, "exact": True})[0]["job"]
        if job["ended"] is not None:
            refused.append(f"job {job['number']} has {_ENDED[job['state']]} already")
            continue
        job = context.client.call("jobs.cancelling", {"job": job["number"]})[0]["job"]
        if job["ended"] is None:
            _end(job, now=bool(params.get("now")))
        told.append(job)
    if params.get("wait", True):
        told = [context.client.call("jobs.wait", {"job": j["number"], "until": "ended"})[0]["job"] for j in told]
    if refused:
        raise JobError("; ".join(refused), hint="see `millpond jobs --all`")
    return {"jobs": told}


def remove(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {jobs: [word], keep: number or null} -> {removed: [number]}: ended jobs with their logs, those named, or all but the
    newest `keep`. Raises JobError."""
    if params.get("keep") is not None:
        rows = [row for row in context.client.call("jobs", {"limit": MAX_ROWS})[0]["jobs"] if row["ended"] is not None]
        rows = rows[int(params["keep"]) :]
    else:
        rows = [context.client.call("jobs.find", {"job": word, "exact": True})[0]["job"] for word in params["jobs"]]
        for row in rows:
            if row["ended"] is None:
                raise JobError(f"job {row['number']} has not ended", hint=f"millpond cancel {row['number']}")
    _forget(context, rows)
    return {"removed": [row["number"] for row in rows]}


def settle(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb of the daemon's own. {folder, peek, over} -> {begun, alive, result, ended: [process]}: what became of a job whose shim is
    gone (or is not, as its own user sees).

    Without a result, what it ran is ended first: its commands were killed with it, others are told, then killed. `over`: it will
    not be begun again. `peek`: only look.
    """
    folder = JobFolder(wirepath.decode(params["folder"]))
    begun = folder.begun()
    alive = begun is not None and begun["boot"] == boot_id() and start_ticks(begun["pid"]) == begun["start"]
    result = folder.result()
    found: dict[str, Any] = {"begun": begun is not None, "alive": alive, "result": result, "ended": []}
    if result is not None:
        found["alive"] = False
    if params.get("peek") or found["alive"]:
        return found
    if begun is not None or params.get("over"):
        folder.discard_environment()
    if begun is None or result is not None:
        return found
    left = _marked(int(begun["pid"]), folder.id)
    found["ended"] = [f"{name} (pid {pid})" for pid, name in sorted(left.items())]
    number = signal.SIGTERM
    deadline = time.monotonic() + (LOST_GRACE_S if folder.spec()["kind"] == "verb" else 0.0)
    while left:
        if number == signal.SIGTERM and time.monotonic() >= deadline:
            number, deadline = signal.SIGKILL, time.monotonic() + LOST_GRACE_S
        elif time.monotonic() >= deadline:
            break  # the kernel holds them
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        time.sleep(0.02)
        left = _marked(int(begun["pid"]), folder.id)
    return found


_ENDED = {"succeeded": "succeeded", "failed": "failed", "cancelled": "been cancelled", "lost": "been lost"}


def _what(params: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a spec that says what runs."""
    if params.get("verb"):
        verb = str(params["verb"])
        if verb in _NOT_JOBS or verb.startswith("job."):
            raise UsageError(f"`{verb}` cannot run as a job")
        return {"kind": "verb", "verb": verb, "params": dict(params.get("params") or {})}
    words = [wirepath.decode(word) for word in params.get("argv") or []]
    if not words or not words[0]:
        raise UsageError("a job needs a command", hint="millpond job run -- COMMAND")
    argv = shell_command(words[0], os.environ) if len(words) == 1 else words
    shown = words[0] if len(words) == 1 else shlex.join(words)
    return {"kind": "command", "argv": [wirepath.encode(word) for word in argv], "shown": wirepath.encode(shown)}


def _title(spec: Mapping[str, Any]) -> str:
    return str(spec["verb"]) if spec["kind"] == "verb" else wirepath.decode(spec["shown"])


def _forget(context: WorkerContext, rows: list[dict[str, Any]]) -> None:
    """Remove folders, then have the daemon remove the rows: a crash between leaves rows, which may be removed again."""
    for row in rows:
        try:
            JobFolder(wirepath.decode(row["folder"])).remove()
        except OSError as error:
            raise from_system(error, f"removing the files of job {row['number']}") from error
    if rows:
        context.client.call("jobs.forget", {"numbers": [row["number"] for row in rows]})


def _end(job: Mapping[str, Any], *, now: bool) -> None:
    """Tell a job's shim, and no other process that has its number by now, to end the job. Raises AccessError."""
    try:
        pidfd = os.pidfd_open(job["pid"])
    except ProcessLookupError:
        return
    try:
        if start_ticks(job["pid"]) != job["start"]:
            return
        signal.pidfd_send_signal(pidfd, signal.SIGUSR1 if now else signal.SIGTERM)
        if now and not select.select([pidfd], [], [], KILL_S)[0]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise AccessError(f"job {job['number']} runs as another user") from error
    finally:
        os.close(pidfd)


def _marked(leader: int, mark: str) -> dict[int, str]:
    """What still runs of a job: in its session, and with its mark in its environment."""
    wanted = f"MILLPOND_JOB_ID={mark}".encode()
    found = {}
    for pid, name in session_members(leader).items():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if wanted in file.read().split(b"\0"):
                found[pid] = name
    return found


def _umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


VERBS: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    "job.run": run,
    "job.cancel": cancel,
    "job.remove": remove,
    "job.settle": settle,
}
