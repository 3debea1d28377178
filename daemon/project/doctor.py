"""`doctor`: does everything that a project needs work here? Looks only; never touches a mount, never repairs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import MillpondError, NotARepoError
from millpond.daemon.md5.kernels import Kernels
from millpond.daemon.mounts import engines, kernel
from millpond.daemon.names import ObjectName
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.copying import can_clone
from millpond.daemon.project.hooks import dvc_hooks
from millpond.daemon.project.repo import Repo, printable

# name, ok, detail, hint
Check = tuple[str, bool, str, str]
_EMPTY = ObjectName("md5", "d41d8cd98f00b204e9800998ecf8427e")


def doctor(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {} -> {checks: [{name, ok, detail, hint}]}; works outside a repository as well."""
    checks = [_store(context), _fuse(), _fusermount(), _engine(), *_kernel(), _hashing()]
    try:
        repo = Repo.open(os.getcwd(), os.environ)
    except NotARepoError as error:
        # None at all is no fault; one that Git keeps the caller out of is.
        checks.append(("repository", not error.details.get("refused"), error.message, error.hint or ""))
    except MillpondError as error:
        checks.append(("repository", False, error.message, error.hint or "correct the file"))
    else:
        checks.append(("repository", True, printable(repo.root), ""))
        each: list[Callable[[Repo], Check]] = [_git, _rules, _pointers, _writable, _stat_cache, _cloning, _beside_dvc]
        checks += [check(repo) for check in each]
    return {
        "checks": [
            {"name": name, "ok": ok, "detail": wirepath.encode(detail), "hint": wirepath.encode(hint)}
            for name, ok, detail, hint in checks
        ]
    }


def _store(context: VerbContext) -> Check:
    try:
        context.store.sizes([_EMPTY])
    except MillpondError as error:
        return "store", False, error.message, error.hint or "see `millpond daemon logs`"
    return "store", True, "answers", ""


def _fuse() -> Check:
    if not os.path.exists("/dev/fuse"):
        return "fuse", False, "/dev/fuse is missing", "load the fuse module; in a container: --device /dev/fuse"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "fuse", False, "/dev/fuse may not be opened", "ask for read and write permission on /dev/fuse"
    return "fuse", True, "/dev/fuse is there", ""


def _fusermount() -> Check:
    path = shutil.which("fusermount3")
    if path is None and os.geteuid() == 0:
        return "fusermount3", True, "not in PATH; root mounts without it", ""
    if path is None:
        return "fusermount3", False, "fusermount3 is not in PATH", "install the package fuse3"
    return "fusermount3", True, path, ""


def _engine() -> Check:
    choice = engines.choose(None)
    return "engine", True, f"{choice.engine}: {choice.why}", ""


def _kernel() -> list[Check]:
    """What mounts go without where it is not to be had: never a failure."""
    passthrough, read_ahead, image = kernel.why_no_passthrough(), kernel.why_no_read_ahead(), kernel.why_no_image()
    return [
        (
            "passthrough",
            True,
            f"not here: {passthrough}" if passthrough else "large files, with mount --materialize",
            "",
        ),
        ("erofs", True, f"not here: {image}" if image else "the kernel reads an image, with mount --engine erofs", ""),
        ("read-ahead", True, f"the kernel's own: {read_ahead}" if read_ahead else "set for each mount", ""),
    ]


def _hashing() -> Check:
    """Never a failure: without kernels it takes longer."""
    kernels = Kernels.of_here()
    if kernels is None:
        return (
            "hashing",
            True,
            "file by file; several large ones at once with llvmlite: pip install 'millpond[simd]'",
            "",
        )
    if not kernels.are_usable():
        return "hashing", True, "file by file: this system runs no code that is made as it is needed", ""
    return "hashing", True, "several large files at once", ""


def _git(repo: Repo) -> Check:
    if repo.config.flag("core", "no_scm"):
        return "git", True, "not used (core.no_scm)", ""
    if repo.git is None:
        return "git", False, "this is no Git repository", "run `git init`, or set core.no_scm"
    return "git", True, printable(repo.git.root or ""), ""


def _rules(repo: Repo) -> Check:
    try:
        repo.rules.is_ignored("x", False)
    except MillpondError as error:
        return "ignore rules", False, error.message, error.hint or "correct the line"
    return "ignore rules", True, "can be read", ""


def _pointers(repo: Repo) -> Check:
    try:
        outputs = repo.outputs()
    except MillpondError as error:
        return "pointers", False, error.message, error.hint or "correct the file"
    return "pointers", True, f"{len(outputs)} tracked output{'' if len(outputs) == 1 else 's'}", ""


def _writable(repo: Repo) -> Check:
    try:
        with tempfile.TemporaryFile(dir=repo.temporary):
            return "workspace", True, "can be written", ""
    except OSError as error:
        return (
            "workspace",
            False,
            f"cannot write below '{printable(repo.dvc_dir)}': {error.strerror}",
            "check its permissions",
        )


def _stat_cache(repo: Repo) -> Check:
    folder = repo.stat_cache.folder
    above = folder
    while not os.path.exists(above):
        above = os.path.dirname(above)
    if not os.access(above, os.W_OK | os.X_OK):
        hint = "every command reads all data again until it can be written; set XDG_CACHE_HOME"
        return "stat cache", False, f"cannot write to '{printable(folder)}'", hint
    return "stat cache", True, printable(folder), ""


def _cloning(repo: Repo) -> Check:
    try:
        works = can_clone(repo.temporary)
    except OSError as error:
        return "clones", True, f"not tried: {error.strerror}", ""
    return "clones", True, "files are cloned (reflink)" if works else "files are copied: no reflinks here", ""


def _beside_dvc(repo: Repo) -> Check:
    """Real DVC in use beside us does not see what only our store has."""
    used = []
    if next(repo.cache.names(), None) is not None:
        used.append("its cache holds objects")
    if repo.git is not None:
        used += [f"its {name} hook is installed" for name in dvc_hooks(repo.git)]
    if not used:
        return "beside dvc", True, "DVC itself was not used here", ""
    hint = "to DVC data added by millpond is 'not in cache': use millpond's status, checkout and add in this project"
    if any("hook" in each for each in used):
        hint += "; `millpond install` replaces the hooks"
    return "beside dvc", True, f"DVC itself was used here: {', '.join(used)}", hint
