"""`mount --diff A B`: what differs between two revisions, as a tree: added/, deleted/, modified/before/, modified/after/.

The tree is made of names and sizes alone; contents are read from it as from any mount. A file whose object, mode or kind
(file, link) is another counts as modified; one that was moved is deleted and added.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from millpond.daemon.errors import ObjectMissingError, TargetError
from millpond.daemon.mounts.listing import WireEntry
from millpond.daemon.mounts.plan import Plan, Planner
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest, outputs
from millpond.daemon.project.outputs import GitTree, Output


@dataclass(frozen=True, slots=True)
class _File:
    """What is at a path: an object, or a link's target. `size` None until it is looked up."""

    name: str | None
    executable: bool
    link: bytes | None = None
    size: int | None = None

    def is_as(self, other: _File) -> bool:
        return (self.name, self.executable, self.link) == (other.name, other.executable, other.link)


class DiffPlanner(Planner):
    """Makes the tree of a difference."""

    def plan_diff(self, target: str, before: str, after: str) -> Plan:
        """What differs below `target` (relative to the project's root; empty: all of it). `Plan.commit` is that of `after`.
        Raises RevisionError, TargetError (nothing differs, or there is no such target), ObjectMissingError."""
        commits = [self._git().resolve(rev) for rev in (before, after)]
        old, new = (dict(self._files(commit, target)) for commit in commits)
        if target and not old and not new:
            raise TargetError(f"'{target}' is at neither of the two revisions", path=target)
        found = dict(_sorted_out(old, new))
        if not found:
            shown = f" in '{target}'" if target else ""
            raise TargetError(
                f"nothing differs{shown} between {commits[0][:12]} and {commits[1][:12]}", path=target or None
            )
        return self._build(list(self._entries(found)), commits[1], target)

    def _files(self, commit: str, target: str) -> Iterator[tuple[str, _File]]:
        """All files at or below a target: Git's, and those of tracked data."""
        outs = [out for out in outputs.collect(GitTree(self._git(), commit, self._project.prefix)) if out.cache]
        outs = [out for out in outs if out.name is not None]
        target = target.removesuffix(".dvc") if any(f"{out.path}.dvc" == target for out in outs) else target
        tracked = {out.path for out in outs}
        for entry in self._git_entries(commit, ""):
            path = os.fsdecode(entry.path)
            if _is_in(path, target) and not any(_is_in(path, out) for out in tracked):
                size = entry.size if entry.target is None else 0
                yield path, _File(entry.name, entry.executable, entry.target, size)
        for out in outs:
            if _is_in(out.path, target) or _is_in(target, out.path):
                yield from ((path, file) for path, file in self._tracked_files(out) if _is_in(path, target))

    def _tracked_files(self, out: Output) -> Iterator[tuple[str, _File]]:
        name = out.name
        assert name is not None
        if not name.is_dir:
            yield out.path, _File(str(name), out.isexec)
            return
        raw = self._store.read(name) if self._store.sizes([name])[0] is not None else self._project.read(name)
        if raw is None:
            raise _missing([out.path])
        for row in manifest.parse(raw, source=str(name), algo=name.algo):
            yield f"{out.path}/{row.relpath}", _File(str(row.name), False)

    def _entries(self, found: dict[str, _File]) -> Iterator[WireEntry]:
        """The tree's entries, with the sizes of what is in the store or a cache."""
        unknown = [path for path, file in found.items() if file.size is None]
        names = [ObjectName(*str(found[path].name).split(":", 1)) for path in unknown]
        sizes = dict(zip(unknown, self._store.sizes(names), strict=True))
        for path, name in zip(unknown, names, strict=True):
            if sizes[path] is None:
                sizes[path] = self._project.size(name)
        lost = [path for path, size in sizes.items() if size is None]
        if lost:
            raise _missing(lost)
        for path, file in found.items():
            size = file.size if file.size is not None else sizes[path] or 0
            name_of = None if file.link is not None else file.name
            yield WireEntry(os.fsencode(path), file.executable, size, name_of, file.link, None)


def _sorted_out(old: dict[str, _File], new: dict[str, _File]) -> Iterator[tuple[str, _File]]:
    """Where each file goes that differs."""
    for path, file in new.items():
        before = old.get(path)
        if before is None:
            yield f"added/{path}", file
        elif not file.is_as(before):
            yield f"modified/before/{path}", before
            yield f"modified/after/{path}", file
    for path in old.keys() - new.keys():
        yield f"deleted/{path}", old[path]


def _is_in(path: str, folder: str) -> bool:
    """Whether a path is a folder, or lies in it; everything lies in the one without a name."""
    return not folder or path == folder or path.startswith(f"{folder}/")


def _missing(paths: Iterable[str]) -> ObjectMissingError:
    shown = sorted(paths)
    more = f" and {len(shown) - 1} more" if len(shown) > 1 else ""
    return ObjectMissingError(
        f"'{shown[0]}'{more} differs, and is neither in the store nor in the project's cache",
        path=shown[0],
        hint="fetch it first: millpond fetch",
    )
