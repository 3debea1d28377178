"""What a checkout would do: which files to write and remove, what would be lost by it, what is not at hand.

Made for all outputs before anything changes, so that a refusal changes nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from millpond.daemon.errors import TargetError
from millpond.daemon.mounts.place import require_mounted
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.project.copying import below
from millpond.daemon.project.digests import Group, Place, Progress, fill
from millpond.daemon.project.ignore import OWN_FOLDERS
from millpond.daemon.project.repo import printable
from millpond.daemon.project.walk import above
from millpond.daemon.project.workspace import Workspace

ADDED, MODIFIED, DELETED = "added", "modified", "deleted"


@dataclass(frozen=True, slots=True)
class Content:
    """What should be at `path` (relative): `name` None for nothing; `inner`: only this part of a folder ("" for all)."""

    path: str
    name: ObjectName | None
    isexec: bool = False
    inner: str = ""

    @property
    def is_dir(self) -> bool:
        return self.name is not None and self.name.is_dir


@dataclass(slots=True)
class Plan:
    """The work for one content. Paths in it are below `content.path`, "" for the path itself.

    `state`: ADDED, MODIFIED, DELETED or None (nothing to do). `writes`: files to bring. `deletes`: files and links to
    remove. `clear`: folders in the way of a file, to be removed whole. `lost`: what is saved nowhere and would be gone.
    `missing`: contents that are not at hand. `places`: where the others are. `group`: the files that are there now.
    """

    content: Content
    state: str | None = None
    writes: dict[str, ObjectName] = field(default_factory=dict)
    deletes: list[str] = field(default_factory=list)
    clear: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    missing: list[ObjectName] = field(default_factory=list)
    places: dict[ObjectName, Place] = field(default_factory=dict)
    group: Group | None = None
    index: int | None = None

    def full(self, inner: str) -> str:
        """Relative to the repository."""
        return f"{self.content.path}/{inner}" if inner else self.content.path

    def drop_missing(self) -> None:
        """Do without what is not at hand."""
        gone = set(self.missing)
        self.writes = {path: name for path, name in self.writes.items() if name not in gone}
        self.missing = []


class Planner:
    """Makes plans against one view of the workspace."""

    def __init__(self, workspace: Workspace, progress: Progress | None = None) -> None:
        self._workspace = workspace
        self._repo = workspace.repo
        self._progress = progress

    def plans(self, contents: Sequence[Content]) -> list[Plan]:
        """One plan a content, in order. Raises TargetError, NotMountedError, InvalidFileError, FileChangedError."""
        found = [Plan(content) for content in contents]
        self._look(found)
        groups = list({id(plan.group): plan.group for plan in found if plan.group is not None}.values())
        fill(groups, self._workspace.objects.store, keep=False, progress=self._progress)
        for plan in found:
            self._compare(plan)
        self._find(found)
        return found

    def _look(self, plans: list[Plan]) -> None:
        """What is in each content's place."""
        single: dict[str, list[Plan]] = {}
        for plan in plans:
            path = self._repo.path(plan.content.path)
            self._refuse_links(plan.content.path, path)
            algo = plan.content.name.algo if plan.content.name is not None else "md5"
            try:
                mode = os.stat(path).st_mode
            except OSError:
                require_mounted(path)
                if os.path.lexists(path):  # a link to nothing, or a loop
                    plan.deletes.append("")
                    plan.lost.append("")
                continue
            if stat.S_ISDIR(mode) and os.path.islink(path) and not self._inside(path):
                plan.deletes.append("")
                plan.lost.append("")
            elif stat.S_ISDIR(mode):
                plan.group = self._workspace.folder(plan.content.path, algo)
            elif stat.S_ISREG(mode):
                single.setdefault(algo, []).append(plan)
            else:
                plan.deletes.append("")
                plan.lost.append("")
        for algo, several in single.items():
            group = self._workspace.files([plan.content.path for plan in several], algo)
            for index, plan in enumerate(several):
                plan.group, plan.index = group, index

    def _inside(self, path: str) -> bool:
        return f"{os.path.realpath(path)}/".startswith(os.path.join(self._repo.root, ""))

    def _refuse_links(self, relative: str, path: str) -> None:
        """A repository from elsewhere may hold a link out of it, or to where Git runs what it finds, and a pointer to a file behind that."""
        if not self._inside(os.path.dirname(path)):
            shown = printable(self._repo.seen(relative))
            raise TargetError(
                f"'{shown}' lies behind a link that leads out of the project",
                path=shown,
                hint="remove the link; nothing is written through it",
            )
        place = os.path.realpath(path if os.path.isdir(path) else os.path.dirname(path))
        if not OWN_FOLDERS.isdisjoint(place[len(self._repo.root) :].split("/")):
            shown = printable(self._repo.seen(relative))
            raise TargetError(
                f"'{shown}' lies behind a link into a folder of Git's or DVC's own",
                path=shown,
                hint="remove the link; nothing is written through it",
            )

    def _compare(self, plan: Plan) -> None:
        content = plan.content
        if content.is_dir:
            self._compare_folder(plan)
        elif plan.group is None:
            if content.name is not None:
                plan.state, plan.writes = (MODIFIED if plan.deletes else ADDED), {"": content.name}
        elif plan.index is not None:
            self._compare_file(plan)
        else:
            self._give_up_folder(plan)

    def _compare_file(self, plan: Plan) -> None:
        """A file is there, and a file, or nothing, should be."""
        content = plan.content
        assert plan.group is not None and plan.index is not None
        if content.name is None:
            plan.state, plan.deletes = DELETED, [""]
        elif plan.group.name(plan.index) != content.name:
            plan.state, plan.writes = MODIFIED, {"": content.name}
        elif content.isexec and not os.access(self._repo.path(content.path), os.X_OK):
            plan.state = MODIFIED

    def _give_up_folder(self, plan: Plan) -> None:
        """A folder is there, and a file, or nothing, should be."""
        assert plan.group is not None
        plan.deletes = list(plan.group.listing.paths)
        plan.lost += [path for path, _ in plan.group.listing.odd]
        plan.deletes += [path for path, _ in plan.group.listing.odd]
        if plan.content.name is None:
            plan.state = DELETED
            return
        plan.state, plan.writes = MODIFIED, {"": plan.content.name}
        plan.clear = [""]
        plan.lost += self._leftovers(plan, "")

    def _compare_folder(self, plan: Plan) -> None:
        content = plan.content
        assert content.name is not None
        if (
            plan.group is not None
            and plan.index is None
            and not plan.group.listing.odd
            and plan.group.tree() == content.name
        ):
            return
        raw = self._workspace.objects.manifest(content.name)
        if raw is None:
            plan.missing = [content.name]
            return
        entries = manifest.parse(raw, source=str(content.name), algo=content.name.algo)
        scope = [each for each in entries if _within(each.relpath, content.inner)]
        wanted = {each.relpath: each.name for each in scope}
        if plan.group is None:
            plan.state, plan.writes = (MODIFIED if plan.deletes else ADDED), wanted
            return
        if plan.index is not None:  # a file where the folder should be
            plan.state, plan.writes, plan.deletes = MODIFIED, wanted, [""]
            return
        group = plan.group
        have = {path: index for index, path in enumerate(group.listing.paths)}
        for path, name in wanted.items():
            index = have.get(path)
            if index is None or group.name(index) != name:
                plan.writes[path] = name
        known = {each.relpath for each in entries}
        plan.deletes = [path for path in have if path not in known and _within(path, content.inner)]
        self._clear_the_way(plan, have)
        if plan.writes or plan.deletes or plan.clear:
            plan.state = MODIFIED

    def _clear_the_way(self, plan: Plan, have: dict[str, int]) -> None:
        """What is neither file nor folder, and what stands where another kind should be."""
        assert plan.group is not None
        listing = plan.group.listing
        odd = {path for path, _ in listing.odd}
        for path in sorted(odd):
            if _within(path, plan.content.inner) or path in plan.writes:
                plan.deletes.append(path)
                plan.lost.append(path)
        needed = {folder for path in plan.writes for folder in above(path)}
        for path in listing.skipped:
            if path in needed or path in plan.writes:
                plan.deletes.append(path)
                plan.lost.append(path)
        plan.deletes += [path for path in needed if path in have and path not in plan.deletes]
        for path in listing.folders:
            if path in plan.writes:
                plan.clear.append(path)
                plan.lost += self._leftovers(plan, path)

    def _leftovers(self, plan: Plan, folder: str) -> list[str]:
        """What is left in a folder that must go after its listed files are gone: ignored files, links to folders."""
        going = {self._repo.path(plan.full(path)) for path in plan.deletes}
        base = self._repo.path(plan.full(folder))
        top = self._repo.path(plan.content.path)
        if os.path.islink(base):
            return [folder]
        return [os.path.relpath(path, top) for path in below(base)[0] if path not in going]

    def _find(self, plans: list[Plan]) -> None:
        """Where the contents to write are, and whether those to go are saved; one question for all plans."""
        names: dict[ObjectName, None] = {}
        doomed: list[tuple[Plan, str, ObjectName]] = []
        for plan in plans:
            names.update(dict.fromkeys(plan.writes.values()))
            doomed += [(plan, path, name) for path, name in _doomed(plan)]
        names.update(dict.fromkeys(name for _, _, name in doomed))
        places = dict(zip(names, self._workspace.objects.places(list(names)), strict=True))
        for plan, path, name in doomed:
            if places[name] is None:
                plan.lost.append(path)
        for plan in plans:
            for name in dict.fromkeys(plan.writes.values()):
                place = places[name]
                if place is None:
                    plan.missing.append(name)
                else:
                    plan.places[name] = place


def _doomed(plan: Plan) -> Iterable[tuple[str, ObjectName]]:
    """The files whose present content goes."""
    if plan.group is None:
        return
    if plan.index is not None:
        if plan.writes or plan.deletes:
            yield "", plan.group.name(plan.index)
        return
    going = set(plan.deletes) | set(plan.writes)
    for index, path in enumerate(plan.group.listing.paths):
        if path in going:
            yield path, plan.group.name(index)


def _within(path: str, inner: str) -> bool:
    return not inner or path == inner or path.startswith(f"{inner}/")
