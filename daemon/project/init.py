"""`init`: a new DVC repository, as DVC makes it."""

from __future__ import annotations

import errno
import os
import shutil
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError, DiskFullError, TargetError
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.durable import write_all
from millpond.daemon.project.gitrepo import GitRepo
from millpond.daemon.project.ignore import DVC_DIR, IGNORE_FILE
from millpond.daemon.project.repo import printable

_GITIGNORE = "/config.local\n/tmp\n/cache\n"
_NO_SCM = "[core]\n    no_scm = True\n"
_IGNORE = (
    "# Add patterns of files dvc should ignore, which could improve\n"
    "# the performance. Learn more at\n"
    "# https://dvc.org/doc/user-guide/dvcignore\n"
)


def init(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {no_scm, subdir, force} -> {root, files}: the repository made in the caller's folder, and its files.

    Raises TargetError (no Git repository here and neither no_scm nor subdir given, or Git ignores `.dvc`) and
    ConflictError (there is a `.dvc` and `force` is not set); nothing was changed then.
    """
    root = os.path.realpath(os.getcwd())
    no_scm = bool(params.get("no_scm"))
    with context.lock(root, "write"):
        git = None if no_scm else _git(root, bool(params.get("subdir")))
        dvc_dir = os.path.join(root, DVC_DIR)
        if os.path.lexists(dvc_dir) and not params.get("force"):
            raise ConflictError(
                f"'{printable(os.path.relpath(dvc_dir))}' exists",
                path=printable(dvc_dir),
                hint="use --force to replace it",
            )
        try:
            files = _write(root, dvc_dir, no_scm)
            if git is not None:
                git.stage([os.path.relpath(os.path.join(root, file), git.root or root) for file in files])
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(f"no room left in '{printable(root)}'", path=printable(root)) from error
            raise TargetError(f"cannot write to '{printable(root)}': {error.strerror}", path=printable(root)) from error
    return {"root": wirepath.encode(root), "files": [wirepath.encode(file) for file in files]}


def _git(root: str, subdir: bool) -> GitRepo:
    git = GitRepo.discover(root)
    if git is None or git.root is None or (git.root != root and not subdir):
        raise TargetError(
            f"'{printable(root)}' is not the root of a Git repository",
            path=printable(root),
            hint="use --no-scm to do without Git, or --subdir in a folder below a Git repository",
        )
    dvc_dir = os.path.relpath(os.path.join(root, DVC_DIR), git.root)
    if git.is_ignored(dvc_dir) or git.is_ignored(f"{dvc_dir}/"):
        raise TargetError(
            f"'{printable(dvc_dir)}' is ignored by Git",
            path=printable(dvc_dir),
            hint="make sure that it is tracked, for example by adding '!.dvc' to .gitignore",
        )
    return git


def _write(root: str, dvc_dir: str, no_scm: bool) -> list[str]:
    """The files of a new repository; what they replace goes first, but for DVC's cache."""
    if os.path.isdir(dvc_dir) and not os.path.islink(dvc_dir):
        for name in os.listdir(dvc_dir):
            path = os.path.join(dvc_dir, name)
            if name == "cache":  # data, perhaps the only copy
                continue
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
    elif os.path.lexists(dvc_dir):
        os.unlink(dvc_dir)
    os.makedirs(os.path.join(dvc_dir, "tmp"), exist_ok=True)
    files = {os.path.join(DVC_DIR, "config"): _NO_SCM if no_scm else ""}
    if not no_scm:
        files[os.path.join(DVC_DIR, ".gitignore")] = _GITIGNORE
    if not os.path.exists(os.path.join(root, IGNORE_FILE)):
        files[IGNORE_FILE] = _IGNORE
    write_all({os.path.join(root, file): text for file, text in files.items()})
    return sorted({*files, *([IGNORE_FILE] if os.path.exists(os.path.join(root, IGNORE_FILE)) else [])})
