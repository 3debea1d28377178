"""In what surroundings a stage ran: code, machine, user, GPUs, and those environment variables that are known to be harmless."""

from __future__ import annotations

import hashlib
import os
import posixpath
import pwd
import time
from collections.abc import Collection, Mapping
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import MillpondError
from millpond.daemon.pipeline.gpus import gpus
from millpond.daemon.pipeline.lock import LOCK_FILE
from millpond.daemon.project.repo import Repo

# Variables that change what a command computes, and never hold a secret. No others are recorded.
VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TF_DETERMINISTIC_OPS", "TF_CUDNN_DETERMINISTIC"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "PYTHONHASHSEED"),
    *("CONDA_DEFAULT_ENV", "CONDA_PREFIX", "VIRTUAL_ENV", "PYTHONPATH", "SHELL", "LANG", "LC_ALL", "TZ"),
    *("SLURM_JOB_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE"),
)  # fmt: skip
# Characters of a variable, changed files that are told.
_MOST_TEXT, _MOST_FILES = 1000, 100
# Looking at the code again may take this part of the time.
_SHARE = 0.02


def machine(environ: Mapping[str, str]) -> dict[str, Any]:
    """{host: {name, system, machine, cpus}, user: {uid, name}, gpus: [{model, uuid, memory, driver}], env, job}. `job`: the number of
    the job that this is done in."""
    system = os.uname()
    job = environ.get("MILLPOND_JOB", "")
    return {
        "host": {
            "name": system.nodename,
            "system": f"{system.sysname} {system.release}",
            "machine": system.machine,
            "cpus": len(os.sched_getaffinity(0)),
        },
        "user": user(os.geteuid()),
        "gpus": gpus(),
        "env": {name: wirepath.encode(environ[name][:_MOST_TEXT]) for name in VARIABLES if name in environ},
        "job": int(job) if job.isascii() and job.isdigit() else None,
    }


def user(uid: int) -> dict[str, Any]:
    """{uid, name}; a uid that nobody has a name for is its own."""
    try:
        return {"uid": uid, "name": pwd.getpwuid(uid).pw_name}
    except KeyError:
        return {"uid": uid, "name": str(uid)}


class Code:
    """The revision of the code, and what differs from it. Looked at again when that is cheap beside the time that has passed,
    so that stages of a second in a repository of a million files do not wait for it."""

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self._told: dict[str, Any] | None = None
        self._next = 0.0

    def now(self, outputs: Collection[str]) -> dict[str, Any] | None:
        """{rev, dirty, diff, changed, seen}; None without Git.

        `changed`: the first files of Git that differ from `rev`, [path from Git's root, blob id or None for a file that is gone]; `diff`:
        the SHA-256 of all of them; `seen`: when it was looked at (seconds since 1970). What stages write themselves is no
        change: `outputs` (paths from the project's root), dvc.lock and .gitignore. None for all of these where
        Git cannot tell.
        """
        if self._repo.git is None:
            return None
        begun = time.monotonic()
        if self._told is None or begun >= self._next:
            self._told = self._look(outputs)
            ended = time.monotonic()
            self._next = ended + (ended - begun) / _SHARE
        return self._told

    def _look(self, outputs: Collection[str]) -> dict[str, Any]:
        git = self._repo.git
        assert git is not None
        told: dict[str, Any] = {"rev": git.head(), "seen": round(time.time(), 3)}
        try:
            found = git.dirty()
        except MillpondError:
            return {**told, "dirty": None, "diff": None, "changed": None}
        base = self._repo.git_path("")
        prefix = "" if base == "." else f"{base}/"
        rows = []
        for path, oid in sorted(found.items()):
            own = path.removeprefix(prefix) if path.startswith(prefix) else None
            if posixpath.basename(path) not in (LOCK_FILE, ".gitignore") and not _inside(own, outputs):
                rows.append([wirepath.encode(path), oid])
        text = "".join(f"{oid or '-'} {path}\n" for path, oid in rows)
        diff = hashlib.sha256(text.encode()).hexdigest() if rows else None
        return {**told, "dirty": bool(rows), "diff": diff, "changed": rows[:_MOST_FILES]}


def _inside(path: str | None, places: Collection[str]) -> bool:
    """Whether a path is one of the places, or lies in one."""
    while path:
        if path in places:
            return True
        path = path.rpartition("/")[0]
    return False
