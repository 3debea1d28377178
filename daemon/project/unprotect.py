"""`unprotect`: files that share their bytes with DVC's cache (links), or may not be written, become the workspace's own."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import TargetError
from millpond.daemon.mounts.place import require_mounted
from millpond.daemon.project import running
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.copying import replace_link
from millpond.daemon.project.durable import write_error
from millpond.daemon.project.ignore import DVC_DIR, OWN_FOLDERS
from millpond.daemon.project.repo import Repo, printable

# Not data, and what a cache's objects share is meant to be shared.


def unprotect(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets} -> {files}: how many files were changed. Targets are files and folders, tracked or not.

    A link becomes a copy of what it leads to, complete before it has the link's name. Raises TargetError (one that does not
    exist: nothing was changed then), DiskFullError, FileChangedError, NotMountedError.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    targets = [wirepath.decode(target) for target in params.get("targets") or []]
    paths = [os.path.join(repo.cwd, target) for target in targets]
    with context.lock(repo.root, "write"):
        for target, path in zip(targets, paths, strict=True):
            shown = printable(target)
            require_mounted(path)
            if not os.path.exists(path):
                raise TargetError(f"cannot unprotect '{shown}': it does not exist", path=shown)
            if repo.relative(target) == DVC_DIR or (repo.relative(target) or "").startswith(f"{DVC_DIR}/"):
                raise TargetError(f"cannot unprotect '{shown}': it is DVC's own", path=shown)
            if os.path.islink(path) and os.path.isdir(path):
                raise TargetError(f"cannot unprotect '{shown}': it is a link to a folder", path=shown)
        inside = [place for target in targets if (place := repo.relative(target)) is not None]
        running.refuse(repo, writes=inside, env=os.environ)
        return {"files": make_own(context, paths)}


def make_own(context: VerbContext, paths: Iterable[str]) -> int:
    """Have files and all files in folders (absolute paths) share nothing, and be writable; how many were changed.

    Links that lead nowhere, or to a folder, are left alone. Raises DiskFullError, InvalidFileError, FileChangedError.
    """
    umask = os.umask(0o022)  # it can only be read by setting it
    os.umask(umask)
    mode, done = 0o666 & ~umask, 0
    try:
        for path in paths:
            for file in _files(path):
                done += _make_own(file, mode)
                context.progress("unprotecting", (done, None))
    except OSError as error:
        raise write_error(error, hint="make room and run the command again; nothing is lost") from error
    return done


def _make_own(path: str, mode: int) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode):
        return False
    mode |= found.st_mode & 0o111
    if stat.S_ISLNK(os.lstat(path).st_mode) or found.st_nlink > 1:
        replace_link(path, mode=mode)
        return True
    if not found.st_mode & stat.S_IWUSR:
        os.chmod(path, mode)
        return True
    return False


def _files(top: str) -> Iterator[str]:
    """The file at `top`, or all files and links in the folder, at any depth; nothing for what is not there."""
    try:
        is_dir = stat.S_ISDIR(os.lstat(top).st_mode)  # not isdir(): it takes any error for a no
    except (FileNotFoundError, NotADirectoryError):
        return
    if not is_dir:
        yield top
        return
    waiting = [top]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    yield entry.path
                elif entry.name not in OWN_FOLDERS:
                    waiting.append(entry.path)
