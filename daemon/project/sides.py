"""Two sides of a comparison: what tracked data is at a commit, or in the workspace."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from millpond.daemon.errors import TargetError
from millpond.daemon.mounts.place import require_mounted
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest, outputs
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Group, Objects, fill
from millpond.daemon.project.outputs import GitTree, Output
from millpond.daemon.project.paths import overlap
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.workspace import Workspace

WORKSPACE = "workspace"
ADDED, DELETED, MODIFIED, UNCHANGED, UNKNOWN = "added", "deleted", "modified", "unchanged", "unknown"
# Objects by path relative to the project's root; a folder's path ends with a slash.
Entries = dict[str, ObjectName]


class Change(NamedTuple):
    """What became of one entry. The paths differ where a file became a folder; `old` or `new` is None where it is not."""

    kind: str
    old_path: str
    new_path: str
    old: ObjectName | None
    new: ObjectName | None


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

    def top(self, path: str) -> Entries:
        """What is at an output's place, without what is below it."""
        name = self.name(path)
        return {} if name is None else {f"{path}/" if name.is_dir else path: name}


def compare(path: str, before: Entries, after: Entries, *, unknown: bool, unchanged: bool = False) -> Iterator[Change]:
    """What became of the entries at and below an output's place, with `unchanged` also of those that are the same; nobody
    knows what became of those below if `unknown`."""
    if not unchanged and not unknown:
        before, after = _without(before, after), _without(after, before)
    old, new = ({entry.rstrip("/"): entry for entry in side} for side in (before, after))
    for key in sorted(old.keys() | new.keys()):
        old_path, new_path = old.get(key), new.get(key)
        was = None if old_path is None else before[old_path]
        now = None if new_path is None else after[new_path]
        if unknown and key != path:
            kind = UNKNOWN
        elif was is None or now is None:
            kind = ADDED if was is None else DELETED
        else:
            kind = UNCHANGED if was == now else MODIFIED
        yield Change(kind, old_path or new_path or key, new_path or old_path or key, was, now)


def _without(entries: Entries, same: Entries) -> Entries:
    return {path: name for path, name in entries.items() if same.get(path) != name}


def renames(deleted: Entries, added: Entries) -> list[tuple[str, str, ObjectName]]:
    """(old, new, object), taken out of both: each addition with the first deletion of its object, in the order of paths."""
    gone: dict[ObjectName, deque[str]] = {}
    for path in sorted(deleted, key=_parts):
        gone.setdefault(deleted[path], deque()).append(path)
    found = []
    for path in sorted(added, key=_parts):
        if same := gone.get(added[path]):
            found.append((same.popleft(), path, added[path]))
    for old, new, _ in found:
        del deleted[old], added[new]
    return found


def side_of(context: VerbContext, workspace: Workspace, revision: str) -> Side:
    """The side that a revision names, or WORKSPACE. Raises RevisionError, InvalidFileError, TargetError, NotMountedError."""
    repo = workspace.repo
    if revision == WORKSPACE:
        return workspace_side(context, workspace)
    assert repo.git is not None
    prefix = repo.git_path("")
    tree = GitTree(repo.git, repo.git.resolve(revision), "" if prefix == "." else prefix)
    return Side(by_path(output for output in outputs.collect(tree) if not output.stale))


def by_path(found: Iterable[Output]) -> dict[str, Output]:
    """Outputs that are data, by path."""
    return {output.path: output for output in found if output.cache or output.name is not None}


def workspace_side(context: VerbContext, workspace: Workspace) -> Side:
    """The workspace's outputs, with the digests of what lies there."""
    side = Side(by_path(workspace.repo.outputs()), is_workspace=True)
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


class Wanted:
    """Which paths the targets leave in."""

    def __init__(self, repo: Repo, targets: list[str], sides: tuple[Side, Side], *, anything: bool = False) -> None:
        """With `anything` a target may also be a path that is in neither. Raises TargetError without."""
        self._prefixes: set[str] = set()
        for target in targets:
            relative = repo.relative(target)
            known = relative is not None and (anything or self._known(relative, sides))
            found = {relative} if known else set()
            for side in sides:
                found |= {output.path for output in side.outputs.values() if output.pointer == relative}
            if not found:
                shown = printable(target)
                raise TargetError(f"'{shown}' is tracked in neither of the two", path=shown)
            self._prefixes.update(path for path in found if path is not None)
        self._all = not targets

    @staticmethod
    def _known(relative: str, sides: tuple[Side, Side]) -> bool:
        return any(overlap(path, relative) for side in sides for path in side.outputs)

    def output(self, path: str) -> bool:
        """Whether anything at or below an output's place is wanted."""
        return self._all or any(overlap(path, each) for each in self._prefixes)

    def entry(self, path: str) -> bool:
        """Whether an entry is wanted: it is a target, or lies below one."""
        path = path.removesuffix("/")
        return self._all or any(not each or path == each or path.startswith(f"{each}/") for each in self._prefixes)


def _parts(path: str) -> list[str]:
    return path.rstrip("/").split("/")
