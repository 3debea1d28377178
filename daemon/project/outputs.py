"""Every tracked output of a project, in the workspace or at a revision: from `.dvc` files and from `dvc.lock`."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from millpond.daemon.errors import InvalidFileError, RevisionError, UsageError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import dvcfile, yamlio
from millpond.daemon.project.dvcfile import DvcFile
from millpond.daemon.project.fileversions import FileVersions, of_output
from millpond.daemon.project.gitrepo import GitRepo
from millpond.daemon.project.ignore import OWN_FOLDERS, FolderRules, IgnoreRules
from millpond.daemon.project.imported import Imported
from millpond.daemon.project.paths import printable
from millpond.daemon.project.stages import STAGES_FILE, Stage, Stages, outs_of

LOCK_FILE = "dvc.lock"
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True, slots=True)
class Output:
    """One tracked output. `path` and `pointer` are relative to the project's root, with `/`; `name` None before its first
    commit; `cache` False when the data is Git's; `stage` for an out of dvc.lock, `stale` when dvc.yaml does not have it
    any more: data that can be had, but no part of the workspace; `remote` the only one that it goes to and comes from, `push` False
    when it goes to none; `files` where they are on remotes that keep versions themselves; `imported` where an import comes from."""

    path: str
    pointer: str
    name: ObjectName | None
    size: int | None
    nfiles: int | None
    isexec: bool
    cache: bool = True
    stage: str | None = None
    stale: bool = False
    remote: str | None = None
    push: bool = True
    files: tuple[FileVersions, ...] = ()
    imported: Imported | None = None

    @property
    def is_dir(self) -> bool:
        return self.name is not None and self.name.is_dir


class Tree(Protocol):
    """Where pointer files are looked for."""

    def pointer_files(self) -> Iterator[tuple[str, bytes]]:
        """(path relative to the project's root, content) of each `.dvc` file, `dvc.lock` and `dvc.yaml`."""
        ...

    def content(self, path: str) -> bytes | None:
        """Any small file by its path from the project's root; None where it is not. Raises InvalidFileError, RevisionError."""
        ...


class WorkTree:
    """The workspace: ignored folders are left out, tracked directories are not walked.

    `tracked` says which outputs (relative paths) the files name that were given out so far; without it they are parsed.
    """

    def __init__(self, root: str, rules: IgnoreRules, tracked: Callable[[], Collection[str]] | None = None) -> None:
        self._root = root
        self._rules = rules
        self._tracked = tracked

    def pointer_files(self) -> Iterator[tuple[str, bytes]]:
        # No recursion: folders may lie deeper in each other than Python has frames.
        pending: list[tuple[str, FolderRules, frozenset[str]]] = [("", self._rules.top, frozenset())]
        while pending:
            folder, rules, outs = pending.pop()
            own, folders = self._folder(folder, rules)
            yield from own
            if folders and self._tracked is not None:
                outs = frozenset(self._tracked())
            elif folders:
                stages = dict(own).get(posixpath.join(folder, STAGES_FILE))
                outs |= {output.path for path, content in own for output in outputs_of(path, content, stages)}
            entered = ((path, rules.enter(name)) for path, name in folders if path not in outs)
            pending.extend(reversed([(path, inner, outs) for path, inner in entered if inner is not None]))

    def content(self, path: str) -> bytes | None:
        try:
            with open(os.path.join(self._root, path), "rb") as file:
                return yamlio.read(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InvalidFileError(
                f"cannot read '{printable(path)}': {error.strerror}", path=printable(path)
            ) from error

    def _folder(self, folder: str, rules: FolderRules) -> tuple[list[tuple[str, bytes]], list[tuple[str, str]]]:
        """The pointers of one folder, and the folders in it that are not ignored, as (path, name)."""
        own, folders = [], []
        try:
            entries = sorted(os.scandir(os.path.join(self._root, folder)), key=lambda entry: entry.name)
        except OSError:
            return [], []
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                if not rules.ignores(entry.name, True):
                    folders.append((path, entry.name))
            elif is_pointer(entry.name) and not rules.ignores(entry.name, False):
                with open(entry.path, "rb") as file:
                    own.append((path, yamlio.read(file)))
        return own, folders


class GitTree:
    """A commit, the project's root being `prefix` in its tree."""

    def __init__(self, repo: GitRepo, commit: str, prefix: str = "") -> None:
        self._repo = repo
        self._commit = commit
        self._prefix = prefix

    def pointer_files(self) -> Iterator[tuple[str, bytes]]:
        for file in self._repo.files(self._commit, self._prefix, sizes=False):
            if is_pointer(posixpath.basename(file.path)) and not file.is_link:
                path = file.path[len(self._prefix) + 1 :] if self._prefix else file.path
                if path.startswith(".dvc/"):
                    continue
                content = self._repo.read(file.oid)
                if content is None:
                    problem = f"'{printable(path)}' at {self._commit[:10]} is not in this clone"
                    raise RevisionError(problem, hint="a partial clone lacks it: git fetch --refetch --no-filter")
                yield path, content

    def content(self, path: str) -> bytes | None:
        return self._repo.blob(self._commit, f"{self._prefix}/{path}" if self._prefix else path)


def is_pointer(name: str) -> bool:
    """Whether a file's name is that of a pointer, a lock file, or the file of stages that belongs to one."""
    return (name.endswith(dvcfile.SUFFIX) and name != dvcfile.SUFFIX) or name in (LOCK_FILE, STAGES_FILE)


def collect(tree: Tree) -> list[Output]:
    """All outputs, in the order of their pointers. Raises InvalidFileError."""
    return collect_from(dict(tree.pointer_files()))


def place_of(pointer: str, wdir: str, path: str) -> str | None:
    """Where the output that `pointer` calls `path` lies; None for what is nowhere in the project."""
    return _inside(posixpath.join(posixpath.dirname(pointer), wdir, path))


def collect_from(files: Mapping[str, bytes]) -> list[Output]:
    """`collect`, of what `pointer_files` gave. Raises InvalidFileError."""
    found: list[Output] = []
    for path, content in files.items():
        stages = files.get(posixpath.join(posixpath.dirname(path), STAGES_FILE))
        found += outputs_of(path, content, stages)
    return found


def outputs_of(path: str, content: bytes, stages: bytes | None) -> list[Output]:
    """The outputs that one pointer or lock file names; `stages`: the dvc.yaml beside it. Raises InvalidFileError."""
    name = posixpath.basename(path)
    if name == STAGES_FILE:
        return []
    text = yamlio.decode(content, path)
    if name == LOCK_FILE:
        file = posixpath.join(posixpath.dirname(path), STAGES_FILE)
        return list(_lock_outputs(path, text, Stages() if stages is None else Stages.parse(stages, file)))
    return pointer_outputs(dvcfile.parse(text, path), path)


def pointer_outputs(pointer: DvcFile, path: str) -> list[Output]:
    """The outputs of a parsed pointer at `path` (relative to the project's root)."""
    folder = posixpath.normpath(posixpath.join(posixpath.dirname(path), pointer.wdir))
    imported = Imported.of(pointer.deps, len(pointer.outs), pointer.frozen) if pointer.deps else None
    found = []
    for out in pointer.outs:
        where = _inside(posixpath.join(folder, out.path))
        if where is not None:
            output = Output(where, path, out.name, out.size, out.nfiles, out.isexec, out.cache, imported=imported)
            found.append(_sharing(output, out.extra) if out.extra else output)
    return found


def stage_outputs(file: str, name: str, stage: dict[str, Any], lock: str, locked: str) -> list[Output]:
    """The outputs of the entry of stage `name` in the dvc.yaml `file`, as its dvc.lock (`locked`: its text) has them; those
    that it has not, too. Raises UsageError where a template makes a path, InvalidFileError."""
    written = list(outs_of(stage))
    if any("${" in path for path in (str(stage.get("wdir") or "."), *(path for path, _ in written))):
        raise UsageError(f"paths of outputs of stage '{name}' are made by a template", hint=f"edit '{file}' by hand")
    known = Stages({name: Stage.of(stage)})
    found = {out.path: out for out in _lock_outputs(lock, locked, known) if out.stage == name and not out.stale}
    folder = posixpath.join(posixpath.dirname(file), str(stage.get("wdir") or "."))
    for path, options in written:
        cached = options.get("cache") is not False
        where = _inside(posixpath.join(folder, path))
        if where is not None and where not in found:
            found[where] = Output(where, lock, None, None, None, False, cached, name)
    return list(found.values())


def _lock_outputs(path: str, text: str, known: Stages) -> Iterator[Output]:
    document = yamlio.load(text, path)
    if document is None:
        return
    stages = document.get("stages", {} if "schema" in document else document) if isinstance(document, dict) else None
    if not isinstance(stages, dict):
        raise yamlio.invalid(path, "it is not a lock file", 1, 1)
    for stage, entry in stages.items():
        outs = entry.get("outs") if isinstance(entry, dict) else None
        for out in outs or []:
            output = _lock_output(path, str(stage), out, known.get(str(stage)))
            if output is not None:
                yield output


def _lock_output(path: str, stage: str, out: Any, known: Stage | None) -> Output | None:
    if not isinstance(out, dict) or not isinstance(out.get("path"), str):
        raise yamlio.invalid(path, f"an out of stage '{stage}' has no path", 1, 1)
    value = out.get("md5")
    name = dvcfile.name_of_files(out["files"]) if value is None and isinstance(out.get("files"), list) else None
    if value is not None:
        if not _MD5.fullmatch(str(value)):
            raise yamlio.invalid(path, f"an out of stage '{stage}' has an MD5 that is none: {value}", 1, 1)
        name = ObjectName("md5" if out.get("hash") == "md5" else "md5-dos2unix", str(value))
    wdir = "." if known is None else known.wdir
    where = None if wdir is None else _inside(posixpath.join(posixpath.dirname(path), wdir, out["path"]))
    if where is None:
        return None
    cache = None if known is None else known.caches(out["path"])
    isexec, stale = bool(out.get("isexec")), cache is None
    output = Output(where, path, name, out.get("size"), out.get("nfiles"), isexec, cache is not False, stage, stale)
    output = replace(output, files=of_output(out, name, output.size))
    return output if known is None else _sharing(output, known.options(out["path"]))


def _sharing(output: Output, options: Mapping[str, Any]) -> Output:
    """With what its pointer's or stage's entry says of remotes."""
    remote, push = options.get("remote"), options.get("push") is not False
    files = output.files or of_output(options, output.name, output.size)
    return replace(output, remote=str(remote) if remote else None, push=push, files=files)


def _inside(path: str) -> str | None:
    """The normal form of a path below the root; None for outputs elsewhere (URLs, absolute paths, `..`), and for those where no data is:
    a hook of Git's that a hostile pointer brings would be run."""
    if "://" in path or path.startswith("/"):
        return None
    path = posixpath.normpath(path)
    parts = path.split("/")
    return None if parts[0] in ("..", ".") or not OWN_FOLDERS.isdisjoint(parts) else path
