"""`diff`: what differs between two revisions, or a revision and the workspace, in DVC's words."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import RevisionError, TargetError
from millpond.daemon.mounts.place import require_mounted
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest, outputs
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Group, Objects, fill
from millpond.daemon.project.outputs import GitTree, Output
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.workspace import Workspace

WORKSPACE = "workspace"
STATES = ("added", "deleted", "modified", "renamed", "not in cache")
# Objects by path relative to the project's root; a folder's path ends with a slash.
Entries = dict[str, ObjectName]


@dataclass(slots=True)
class Side:
    """One of the two things compared: its outputs by path, and what lies at those of them that must be looked into.

    `unknown` are folders whose manifest is nowhere: what is in them can be neither added nor gone.
    """

    outputs: dict[str, Output]
    groups: dict[str, tuple[Group, int | None]] = field(default_factory=dict)
    is_workspace: bool = False
    unknown: set[str] = field(default_factory=set)

    def name(self, path: str) -> ObjectName | None:
        """What is at an output's place, as a whole."""
        if not self.is_workspace:
            return self.outputs[path].name if path in self.outputs else None
        found = self.groups.get(path)
        if found is None:
            return None
        group, index = found
        return group.tree() if index is None else group.name(index)

    def entries(self, path: str, objects: Objects) -> Entries:
        """What is at an output's place and below it."""
        name = self.name(path)
        if name is None:
            return {}
        if not name.is_dir:
            return {path: name}
        found = {f"{path}/": name}
        if self.is_workspace:
            group = self.groups[path][0]
            hexes = zip(group.listing.paths, group.hexes(), strict=True)
            found.update({f"{path}/{inner}": ObjectName(group.algo, digest) for inner, digest in hexes})
            return found
        raw = objects.manifest(name)
        if raw is None:
            self.unknown.add(f"{path}/")
            return found
        rows = manifest.parse(raw, source=str(name), algo=name.algo)
        found.update({f"{path}/{row.relpath}": row.name for row in rows})
        return found


def diff(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {a_rev, b_rev, targets} -> {diff: {state: [{path, hash}]}}: DVC's JSON, {} when nothing differs.

    Without `b_rev` the workspace is compared, and "not in cache" lists what `a_rev` names and nobody has. `path` is
    {old, new} for a rename, `hash` is for a modification. Raises NotARepoError, RevisionError, InvalidFileError,
    TargetError, NotMountedError.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    a_rev, b_rev = params.get("a_rev") or "HEAD", params.get("b_rev")
    targets = [wirepath.decode(target) for target in params.get("targets") or []]
    if repo.git is None:
        raise RevisionError("this project is not in a Git repository, so it has no revisions to compare")
    if repo.git.has_no_commits:
        return {"diff": {}}
    with context.lock(repo.root, "read"):
        workspace = Workspace(repo, context.store)
        old = _side(context, workspace, a_rev)
        new = _side(context, workspace, b_rev or WORKSPACE)
        wanted = _Wanted(repo, targets, (old, new))
        changes = _Changes(workspace.objects, wanted)
        for path in sorted(old.outputs.keys() | new.outputs.keys()):
            changes.compare(path, old, new, with_missing=not b_rev)
    return {"diff": changes.result()}


def _side(context: VerbContext, workspace: Workspace, revision: str) -> Side:
    repo = workspace.repo
    if revision == WORKSPACE:
        return _workspace(context, workspace)
    assert repo.git is not None
    prefix = repo.git_path("")
    tree = GitTree(repo.git, repo.git.resolve(revision), "" if prefix == "." else prefix)
    return Side(_by_path(output for output in outputs.collect(tree) if not output.stale))


def _by_path(found: Iterable[Output]) -> dict[str, Output]:
    return {output.path: output for output in found if output.cache or output.name is not None}


def _workspace(context: VerbContext, workspace: Workspace) -> Side:
    """The workspace's outputs, with the digests of what lies there."""
    side = Side(_by_path(workspace.repo.outputs()), is_workspace=True)
    single: dict[str, list[str]] = {}
    for path, output in side.outputs.items():
        place = workspace.repo.path(path)
        algo = output.name.algo if output.name is not None else "md5"
        if os.path.isdir(place):
            side.groups[path] = (workspace.folder(path, algo), None)
        elif os.path.isfile(place):
            single.setdefault(algo, []).append(path)
        else:
            require_mounted(place)
    for algo, paths in single.items():
        group = workspace.files(paths, algo)
        side.groups.update({path: (group, index) for index, path in enumerate(paths)})
    groups = list({id(group): group for group, _ in side.groups.values()}.values())

    def progress(files: int, all_files: int, done: int, total: int) -> None:
        context.progress("hashing", (files, all_files), (done, total))

    fill(groups, context.store, keep=False, progress=progress)
    for path, (group, index) in side.groups.items():
        if index is None:
            workspace.keep_folder(path, group, group.tree().value)
    for group in groups:
        if all(each is not group or index is not None for each, index in side.groups.values()):
            workspace.keep_files(group)
    workspace.save()
    return side


class _Wanted:
    """Which paths the targets leave in."""

    def __init__(self, repo: Repo, targets: list[str], sides: tuple[Side, Side]) -> None:
        self._prefixes: set[str] = set()
        for target in targets:
            relative = repo.relative(target)
            found = {relative} if relative is not None and self._known(relative, sides) else set()
            for side in sides:
                found |= {output.path for output in side.outputs.values() if output.pointer == relative}
            if not found:
                shown = printable(target)
                raise TargetError(f"'{shown}' is tracked in neither of the two", path=shown)
            self._prefixes.update(path for path in found if path is not None)
        self._all = not targets

    @staticmethod
    def _known(relative: str, sides: tuple[Side, Side]) -> bool:
        return any(
            path == relative or path.startswith(f"{relative}/") or relative.startswith(f"{path}/") or not relative
            for side in sides
            for path in side.outputs
        )

    def output(self, path: str) -> bool:
        """Whether anything at or below an output's place is wanted."""
        return self._all or any(
            not each or path == each or path.startswith(f"{each}/") or each.startswith(f"{path}/")
            for each in self._prefixes
        )

    def entry(self, path: str) -> bool:
        """Whether an entry is wanted: it is a target, or lies below one."""
        path = path.removesuffix("/")
        return self._all or any(not each or path == each or path.startswith(f"{each}/") for each in self._prefixes)


class _Changes:
    """Gathers what differs."""

    def __init__(self, objects: Objects, wanted: _Wanted) -> None:
        self._objects = objects
        self._wanted = wanted
        self._added: Entries = {}
        self._deleted: Entries = {}
        self._modified: dict[str, tuple[ObjectName, ObjectName]] = {}
        self._missing: Entries = {}

    def compare(self, path: str, old: Side, new: Side, *, with_missing: bool) -> None:
        """Take in one output's place."""
        if not self._wanted.output(path):
            return
        same = old.name(path) == new.name(path)
        name = old.name(path)
        if same and not (with_missing and name is not None and not self._whole(name)):
            return
        before, after = self._of(old, path), self._of(new, path)
        if with_missing:
            paths, names = list(before), list(before.values())
            sizes = self._objects.sizes(names)
            self._missing.update(
                {entry: each for entry, each, size in zip(paths, names, sizes, strict=True) if size is None}
            )
        unknown = tuple(folder for folder in (f"{path}/",) if folder in old.unknown | new.unknown)
        if path in before and f"{path}/" in after or path in after and f"{path}/" in before:
            # A file in one, a folder in the other: DVC shows what it was.
            was, now = (path, f"{path}/") if path in before else (f"{path}/", path)
            self._modified[was] = (before.pop(was), after.pop(now))
        for entry in before.keys() | after.keys():
            if unknown and entry not in unknown and entry.startswith(unknown):
                continue
            if entry not in before:
                self._added[entry] = after[entry]
            elif entry not in after:
                self._deleted[entry] = before[entry]
            elif before[entry] != after[entry]:
                self._modified[entry] = (before[entry], after[entry])

    def _of(self, side: Side, path: str) -> Entries:
        return {entry: name for entry, name in side.entries(path, self._objects).items() if self._wanted.entry(entry)}

    def _whole(self, name: ObjectName) -> bool:
        if name.is_dir:
            return self._objects.store.complete(name)
        return self._objects.sizes([name])[0] is not None

    def result(self) -> dict[str, list[dict[str, Any]]]:
        """DVC's JSON; {} when there is nothing."""
        renamed = list(self._renames())
        for before, after, _ in renamed:
            del self._deleted[before], self._added[after]
        modified = [
            {"path": _wire(path), "hash": {"old": old.value, "new": new.value}}
            for path, (old, new) in sorted(self._modified.items())
        ]
        moved = [
            {"path": {"old": _wire(old), "new": _wire(new)}, "hash": name.value} for old, new, name in sorted(renamed)
        ]
        lists = (_rows(self._added), _rows(self._deleted), modified, moved, _rows(self._missing))
        return dict(zip(STATES, lists, strict=True)) if any(lists) else {}

    def _renames(self) -> Iterator[tuple[str, str, ObjectName]]:
        """(old, new, object): each addition with the first deletion of the same object, both in the order of paths."""
        gone: dict[ObjectName, deque[str]] = {}
        for path in sorted(self._deleted, key=_parts):
            gone.setdefault(self._deleted[path], deque()).append(path)
        for path in sorted(self._added, key=_parts):
            if same := gone.get(self._added[path]):
                yield same.popleft(), path, self._added[path]


def _parts(path: str) -> list[str]:
    return path.rstrip("/").split("/")


def _wire(path: str) -> str:
    return wirepath.encode(path)


def _rows(entries: Entries) -> list[dict[str, Any]]:
    return [{"path": _wire(path), "hash": name.value} for path, name in sorted(entries.items())]
