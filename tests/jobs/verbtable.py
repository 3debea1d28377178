"""Verbs for tests, run by real workers of a real daemon (MILLPOND_VERBS)."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from millpond.daemon.errors import CancelledError, MillpondError, TargetError
from millpond.daemon.jobs.jobverbs import VERBS as JOB_VERBS
from millpond.daemon.jobs.runner import CommandRunner, Sink, Task
from millpond.daemon.jobs.worker import WorkerContext


def init(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Says what surrounds the worker."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "pid": os.getpid(),
        "uid": context.uid,
        "cwd": os.fsencode(os.getcwd()).hex(),
        "env": {os.fsencode(key).hex(): os.fsencode(value).hex() for key, value in os.environ.items()},
        "umask": umask,
        "environ": Path("/proc/self/environ").read_bytes().hex(),
        "fds": sorted(_open_files()),
        "path": sys.path,
        "params": params,
    }


def _open_files() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            if int(name) > 2:
                yield os.readlink(f"/proc/self/fd/{name}")


def add(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Takes a lock, marks a file while it has it, and waits there for another file to appear."""
    with context.lock(params["project"], params.get("mode", "write")):
        _mark(params["mark"], os.getpid())
        try:
            context.progress("holding", files=(1, 2))
            while not Path(params["until"]).exists():
                time.sleep(0.005)
        except CancelledError:
            # A slow clean-up: the lock must be held to its end.
            time.sleep(params.get("cleanup_s", 0))
            raise
        finally:
            Path(params["mark"]).unlink()
    return {}


def checkout(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Ends badly in the way that is asked for."""
    how = params["how"]
    if how == "typed":
        raise TargetError("cannot read 'a\udcff'", path="a\udcff", hint="try", details={"n": 1})
    if how == "bug":
        raise ZeroDivisionError("a bug")
    if how == "exit":
        sys.exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "1000"])
        _mark(params["mark"], child.pid)
        time.sleep(1000)
    if how in ("long", "too long"):
        return {"text": "x" * ((8 if how == "long" else 65) << 20)}
    raise ValueError(how)


def status(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Stores a file and tells a lot."""
    for number in range(params.get("lines", 0)):
        context.log("info", f"line {number}")
    for number in range(1001):
        context.progress("counting", files=(number, 1000))
    puts = list(context.store.put_files(params.get("paths", [])))
    context.store.commit()
    return {"names": [str(put.name) for put in puts]}


def _mark(path: str, pid: int) -> None:
    """Whole as soon as it is there."""
    Path(f"{path}.new").write_text(str(pid))
    os.rename(f"{path}.new", path)


def root(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Nothing at all."""
    return {}


def fsck(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """The store's own check."""
    return context.client.call("store.fsck", params)[0]


def steps(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """A long verb as a job: what it does outside of locks is done once, whatever becomes of the daemon."""
    names = []
    for step in range(params["steps"]):
        context.log("info", f"step {step}")
        while not Path(f"{params['go']}{step}").exists():
            time.sleep(0.005)
        with context.lock(params["project"], "write"):
            _mark(f"{params['mark']}{step}", os.getpid())
            while not Path(f"{params['in']}{step}").exists():
                time.sleep(0.005)
            names.append(context.again(lambda: _put(context, params["paths"])))
    return {"names": names}


def stages(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Two commands side by side, for ever; one has started another."""
    runner = CommandRunner(Sink(1, 2))
    for number in range(2):
        command = f"sleep 1000 & echo $! > {params['mark']}{number}; wait"
        log = f"{params['folder']}/log{number}"
        runner.start(Task(str(number), command, params["folder"], dict(os.environ), log, label=f"{number}: "))
    Path(params["mark"]).write_text(f"{os.getpid()}\n")
    try:
        runner.wait()
    finally:
        runner.stop()
    return {}


def _put(context: WorkerContext, paths: list[str]) -> list[str]:
    puts = list(context.store.put_files(paths))
    context.store.commit()
    return [str(put.name) for put in puts]


def fetch(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Stores files and reads them back, twice: each one's MD5. First it breaks off midway, and asks for them into a memory file of its own."""
    names = [put.name for put in context.store.put_files(params["paths"])]
    context.store.commit()
    refusals = []
    for seals in (0, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW):
        fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        try:
            context.client.call("store.fetch", {"names": [str(names[0])]}, fds=[fd])
        except MillpondError as error:
            refusals.append(str(error))
        os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    broken_off = context.store.fetch(names * 2)
    assert isinstance(broken_off, Generator)
    for _ in range(params["after"]):
        next(broken_off)
    broken_off.close()
    digests, digest = [], hashlib.md5()
    for piece in context.store.fetch(names * 2):
        digest.update(piece.data)
        if piece.last:
            digests.append(f"md5:{digest.hexdigest()}")
            digest = hashlib.md5()
    return {
        "names": list(map(str, names)),
        "digests": digests,
        "refusals": refusals,
        "left open": len(os.listdir("/proc/self/fd")) - before,
    }


VERBS: dict[str, Callable[[WorkerContext, dict[str, Any]], dict[str, Any]]] = {
    "init": init,
    "add": add,
    "checkout": checkout,
    "status": status,
    "root": root,
    "fsck": fsck,
    "steps": steps,
    "stages": stages,
    "fetch": fetch,
    **JOB_VERBS,
}
