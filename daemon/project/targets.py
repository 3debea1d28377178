"""What `add` may track: every target is checked before the first byte is read, so that a refusal changes nothing."""

from __future__ import annotations

import errno
import glob as glob_module
import os
import stat
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from millpond.daemon.errors import InvalidFileError, OverlapError, TargetError, TrackedByGitError, UsageError
from millpond.daemon.mounts.place import require_mounted
from millpond.daemon.project import dvcfile, gitignore
from millpond.daemon.project.dvcfile import DvcFile, Out
from millpond.daemon.project.ignore import DVC_DIR, IGNORE_FILE
from millpond.daemon.project.outputs import LOCK_FILE, Output
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.stages import STAGES_FILE
from millpond.daemon.project.walk import above, kind_of


@dataclass(frozen=True, slots=True)
class Target:
    """Something to add: `path` (relative) is the output, `pointer` its pointer file (relative).

    `old`, `out`: the pointer and its out as they are, None for a new one. `inner`: the part of a tracked folder that is
    added again ("" for all); it may be gone, then it leaves the manifest. `source`: the absolute path that the bytes are
    read from, another one than the output's with --out.
    """

    path: str
    pointer: str
    source: str
    is_dir: bool
    is_link: bool = False
    old: DvcFile | None = None
    out: Out | None = None
    inner: str = ""
    gone: bool = False


class OutputIndex:
    """Outputs by their places: thousands of targets ask."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._by_path = {output.path: output for output in outputs}
        self._places = sorted(
            ((place, output) for output in outputs for place in (output.path, output.pointer)), key=lambda item: item[0]
        )

    def holder(self, path: str) -> Output | None:
        """The output that `path` is or lies in."""
        return next((self._by_path[each] for each in (path, *above(path)) if each in self._by_path), None)

    def below(self, path: str) -> Output | None:
        """An output that lies in `path`, or whose pointer does."""
        at = bisect_left(self._places, f"{path}/", key=lambda item: item[0])
        if at < len(self._places) and self._places[at][0].startswith(f"{path}/"):
            return self._places[at][1]
        return None


def expand(repo: Repo, patterns: Sequence[str], *, pointers: bool = False) -> list[str]:
    """The paths that the patterns of --glob match, sorted; of DVC's own files only `.dvc` ones, with `pointers`: data that is not here
    is found by them. Raises TargetError when one has none."""
    found: dict[str, None] = {}
    for pattern in patterns:
        # As typed: relative to the caller's folder, `**` for any depth.
        names = sorted(glob_module.glob(pattern, root_dir=repo.cwd, recursive=True))
        names = [name for name in names if not _is_dvc_file(name) or (pointers and name.endswith(dvcfile.SUFFIX))]
        if not names:
            raise TargetError(f"--glob '{printable(pattern)}' has no matches", path=printable(pattern))
        found.update(dict.fromkeys(names))
    return list(found)


def resolve(repo: Repo, names: Sequence[str], outputs: Sequence[Output]) -> list[Target]:
    """Each target once, checked. Raises TargetError, OverlapError, TrackedByGitError, InvalidFileError."""
    index = OutputIndex(outputs)
    found: dict[tuple[str, str], Target] = {}
    for name in names:
        target = _resolve(repo, name, index)
        found.setdefault((target.path, target.inner), target)
    targets = list(found.values())
    _refuse_nested(repo, targets)
    return targets


def resolve_out(repo: Repo, name: str, out: str, outputs: Sequence[Output], *, force: bool) -> Target:
    """The target of `add NAME --out OUT`: NAME may lie anywhere, OUT inside. An OUT that is a folder gets NAME in it."""
    source = os.path.abspath(os.path.join(repo.cwd, name))
    mode = _mode(repo, name, source)
    if os.path.isdir(os.path.join(repo.cwd, out)) or out.endswith("/"):
        out = os.path.join(out, os.path.basename(source))
    relative = _inside(repo, out)
    _refuse_links_above(repo, out, relative)
    _refuse_dvc_file(out, relative)
    _refuse_ignored(repo, out, relative, stat.S_ISDIR(mode))
    path = repo.path(relative)
    if os.path.lexists(path) and not os.path.samefile(path, source) and not force:
        raise TargetError(
            f"the file '{printable(out)}' already exists locally",
            path=printable(out),
            hint="to override it, add --force",
        )
    if path == source or f"{path}/".startswith(f"{source}/"):
        raise UsageError(f"--out '{printable(out)}' is the target itself or lies in it")
    target = _placed(repo, out, relative, OutputIndex(outputs), stat.S_ISDIR(mode))
    if target.inner:
        raise OverlapError(
            f"'{printable(out)}' lies in '{printable(target.path)}', which is tracked", path=printable(out)
        )
    return Target(target.path, target.pointer, source, stat.S_ISDIR(mode), False, target.old, target.out)


def check_place(repo: Repo, name: str, outputs: Sequence[Output], *, is_dir: bool) -> str:
    """The relative path of a place, `name`, where an output may be put that is none yet. Raises as `resolve`."""
    relative = _inside(repo, name, hint="name a place in the project")
    _refuse_links_above(repo, name, relative)
    _refuse_dvc_file(name, relative)
    _refuse_ignored(repo, name, relative, is_dir)
    index, shown = OutputIndex(outputs), printable(name)
    holder = index.holder(relative)
    if holder is not None:
        raise OverlapError(f"'{shown}' is, or lies in, '{printable(holder.path)}', which is tracked", path=shown)
    _refuse_new(repo, name, relative, f"{relative}{dvcfile.SUFFIX}", index)
    _refuse_tracked_by_git(repo, name, relative)
    return relative


def _resolve(repo: Repo, name: str, index: OutputIndex) -> Target:
    relative = _inside(repo, name)
    _refuse_links_above(repo, name, relative)
    _refuse_dvc_file(name, relative)
    path = repo.path(relative)
    try:
        mode = _mode(repo, name, path)
    except TargetError:
        # A part of a tracked folder that was removed: adding it takes it out of the manifest.
        if not os.path.lexists(path):
            holder = index.holder(relative)
            if holder is not None and holder.is_dir and holder.path != relative:
                return _placed(repo, name, relative, index, False, gone=True)
        raise
    is_dir = stat.S_ISDIR(mode)
    if is_dir and os.path.islink(path):
        raise TargetError(
            f"'{printable(name)}' is a link to a folder, which cannot be tracked",
            path=printable(name),
            hint="add the folder that it points to",
        )
    _refuse_ignored(repo, name, relative, is_dir)
    if not os.access(path, os.R_OK | (os.X_OK if is_dir else 0)):
        raise TargetError(f"cannot read '{printable(name)}': permission denied", path=printable(name))
    return _placed(repo, name, relative, index, is_dir, is_link=os.path.islink(path))


def _placed(
    repo: Repo,
    name: str,
    relative: str,
    index: OutputIndex,
    is_dir: bool,
    *,
    is_link: bool = False,
    gone: bool = False,
) -> Target:
    """The target with its pointer, which is that of the output it is or lies in, or a new one."""
    path = repo.path(relative)
    holder = index.holder(relative)
    if holder is not None and holder.stage is not None:
        raise OverlapError(
            f"cannot update '{printable(name)}': it is an output of stage '{holder.stage}' of '{holder.pointer}'",
            path=printable(name),
            hint="run the pipeline instead",
        )
    if holder is None:
        pointer = f"{relative}{dvcfile.SUFFIX}"
        _refuse_new(repo, name, relative, pointer, index)
        old, out, inner, tracked = _pointer_there(repo, pointer), None, "", relative
        if old is not None and old.outs:
            raise OverlapError(
                f"'{printable(repo.seen(pointer))}' exists and points to '{printable(old.outs[0].path)}'",
                path=printable(pointer),
                hint="rename it, or remove it if it is not needed",
            )
        old = None
    else:
        pointer, tracked = holder.pointer, holder.path
        inner = relative[len(tracked) + 1 :]
        old = dvcfile.read(repo.path(pointer))
        out = _out_of(old, holder)
    _refuse_tracked_by_git(repo, name, relative)
    source = path
    return Target(tracked, pointer, source, is_dir, is_link, old, out, inner, gone)


def _refuse_tracked_by_git(repo: Repo, name: str, relative: str) -> None:
    there = None if repo.git is None else repo.git.tracked_below(repo.git_path(relative))
    if there is not None:
        shown = printable(name)
        raise TrackedByGitError(
            f"'{shown}' is already tracked by Git",
            path=shown,
            hint=f"to track it here: git rm -r --cached '{shown}' && git commit -m \"stop tracking {shown}\"",
        )


def _out_of(pointer: DvcFile, output: Output) -> Out:
    folder = os.path.normpath(os.path.join(os.path.dirname(output.pointer), pointer.wdir))
    for out in pointer.outs:
        if os.path.normpath(os.path.join(folder, out.path)) == output.path:
            return out
    raise InvalidFileError(f"'{pointer.path}' changed while it was read", path=pointer.path, hint="try again")


def _pointer_there(repo: Repo, pointer: str) -> DvcFile | None:
    try:
        return dvcfile.read(repo.path(pointer))
    except FileNotFoundError:
        return None
    except OSError as error:
        shown = printable(repo.seen(pointer))
        raise InvalidFileError(f"cannot read '{shown}': {error.strerror}", path=shown) from error


def _refuse_new(repo: Repo, name: str, relative: str, pointer: str, index: OutputIndex) -> None:
    shown = printable(name)
    if len(os.fsencode(os.path.basename(pointer))) > 255:
        raise TargetError(
            f"the name of '{shown}' is too long for a pointer file beside it", path=shown, hint="rename it"
        )
    try:
        relative.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TargetError(
            f"the name of '{shown}' is not UTF-8, which a pointer file must be",
            path=shown,
            hint="rename it, or add the folder that holds it",
        ) from error
    inside = index.below(relative)
    if inside is not None:
        tracked, file = printable(repo.seen(inside.path)), printable(repo.seen(inside.pointer))
        raise OverlapError(
            f"cannot add '{shown}', because it overlaps with '{tracked}', which is tracked by '{file}'",
            path=shown,
            hint=f"to include it, remove '{file}' first",
        )
    if repo.git is not None and repo.git.is_ignored(repo.git_path(pointer)):
        file = printable(repo.seen(pointer))
        raise TargetError(f"the pointer '{file}' would be ignored by Git", path=shown, hint="change your .gitignore")
    gitignore.check(repo, relative)


def _refuse_nested(repo: Repo, targets: Sequence[Target]) -> None:
    whole = {target.path for target in targets if not target.inner}
    for target in targets:
        full = f"{target.path}/{target.inner}" if target.inner else target.path
        for other in above(full):
            if other in whole:
                shown = printable(repo.seen(full))
                raise OverlapError(
                    f"'{shown}' lies in '{printable(repo.seen(other))}', which is to be added as well", path=shown
                )


def _inside(
    repo: Repo, name: str, hint: str = "use --out to put a copy into the project, or add it where it belongs"
) -> str:
    relative = repo.relative(name)
    shown = printable(name)
    if relative is None:
        raise TargetError(
            f"'{shown}' is outside of the project '{printable(repo.root)}'",
            path=shown,
            hint=hint,
        )
    if not relative:
        raise TargetError(f"'{shown}' is the project itself", path=shown, hint="add a folder of it")
    return relative


def _mode(repo: Repo, name: str, path: str) -> int:
    """The type of what is there, links followed. Raises TargetError."""
    shown = printable(name)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise TargetError(f"'{shown}' is a link that leads back to itself", path=shown) from error
        if os.path.islink(path):
            raise TargetError(f"'{shown}' is a link to nothing", path=shown) from error
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            require_mounted(os.path.dirname(path))
            raise TargetError(f"'{shown}' does not exist", path=shown) from error
        raise TargetError(f"cannot read '{shown}': {error.strerror}", path=shown) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = kind_of(mode) or "of an unknown kind"
        raise TargetError(f"'{shown}' is {kind}", path=shown, hint="only files and folders can be tracked")
    return mode


def _refuse_links_above(repo: Repo, name: str, relative: str) -> None:
    parts = relative.split("/")
    for end in range(1, len(parts)):
        upper = "/".join(parts[:end])
        if os.path.islink(repo.path(upper)):
            shown = printable(name)
            raise TargetError(
                f"'{shown}' lies behind the link '{printable(repo.seen(upper))}'",
                path=shown,
                hint="add it by the path that has no link in it",
            )


def _is_dvc_file(path: str) -> bool:
    name = os.path.basename(path.rstrip("/"))
    return name.endswith(dvcfile.SUFFIX) or name in (STAGES_FILE, LOCK_FILE, IGNORE_FILE)


def _refuse_dvc_file(name: str, relative: str) -> None:
    if _is_dvc_file(relative) or DVC_DIR in relative.split("/"):
        shown = printable(name)
        raise TargetError(f"'{shown}' is a file of DVC's own and cannot be tracked", path=shown)


def _refuse_ignored(repo: Repo, name: str, relative: str, is_dir: bool) -> None:
    reason = repo.rules.explain(relative, is_dir)
    if reason is not None:
        shown = printable(name)
        raise TargetError(f"'{shown}' is ignored by {printable(reason)}", path=shown, hint="see .dvcignore")
