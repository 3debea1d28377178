"""Recorded data that is not in the workspace and can be had: what stages look at as if it were there.

It has the names that pointers and dvc.lock record. Nothing of it is read for that but manifests, and sizes where a record has none.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from millpond.daemon.errors import MillpondError, ObjectMissingError
from millpond.daemon.mounts import place as places
from millpond.daemon.mounts.project import Project
from millpond.daemon.names import ObjectName
from millpond.daemon.pipeline.graph import OutIndex
from millpond.daemon.pipeline.lock import Locked, locked
from millpond.daemon.pipeline.pipelines import Pipelines
from millpond.daemon.pipeline.stage import Stage, StageOut
from millpond.daemon.project import manifest, mounted
from millpond.daemon.project.manifest import ManifestEntry
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo

if TYPE_CHECKING:
    from millpond.daemon.pipeline.contents import Contents


@dataclass(frozen=True, slots=True, eq=False)
class AbsentOut:
    """An output that is absent: whose it is, where, what is recorded of it, and whether it is `here`: in the store, or in DVC's
    cache; else a remote has it, as far as that could be asked."""

    stage: Stage
    out: StageOut
    place: str
    name: ObjectName
    known: Locked
    here: bool


@dataclass(slots=True)
class Absent:
    """The absent data of one project. `look` for what some stages need and make; then `standing`."""

    contents: Contents
    loaded: Pipelines
    # Why the remotes could not be asked, if they could not.
    unasked: MillpondError | None = None
    # Which of the stages need an output, by its place.
    users: dict[str, set[Stage]] = field(default_factory=dict)
    _outs: dict[str, AbsentOut] = field(default_factory=dict)
    _places: list[str] = field(default_factory=list)
    _names: set[ObjectName] = field(default_factory=set)
    _known: dict[str, Locked | None] = field(default_factory=dict)
    _rows: dict[ObjectName, list[ManifestEntry]] = field(default_factory=dict)
    _made_project: Project | None = None

    @property
    def repo(self) -> Repo:
        return self.contents.repo

    def look(self, stages: Iterable[Stage]) -> None:
        """Find what the stages need or make that is absent. Raises InvalidFileError, OverlapError, StoreDamagedError."""
        index = OutIndex(self.loaded.stages, self.repo.seen)
        wanted: dict[StageOut, Stage] = {}
        for stage in stages:
            wanted.update((out, stage) for out in stage.outs)
            for dep in stage.deps:
                if dep.place is not None:
                    for maker, out in index.touching(dep.place):
                        wanted[out] = maker
                        self.users.setdefault(out.place or "", set()).add(stage)
        found = [each for out, stage in wanted.items() if (each := self._recorded(stage, out)) is not None]
        self._take(found)

    def standing(self, place: str) -> Locked | None:
        """What an absent place would be: an output, a path in one, or a folder that holds some and nothing else. None for what is
        not absent. Raises StoreDamagedError, RemoteError and others when a manifest cannot be had."""
        around = self._around(place)
        if around is None:
            inside = self.below(place)
            return self.merged(place, [], 0, inside) if inside and not os.path.lexists(self.repo.path(place)) else None
        if not self._stands(around):
            return None
        if place not in self._known:
            self._known[place] = self._whole(around) if around.place == place else self._inside(around, place)
        return self._known[place]

    def below(self, place: str) -> list[AbsentOut]:
        """What is absent in a folder."""
        prefix = f"{place}/" if place else ""
        found = []
        for each in self._places[bisect_left(self._places, prefix) :]:
            if not each.startswith(prefix):
                break
            if is_missing(self.repo.path(each)):
                found.append(self._outs[each])
        return found

    def touched(self, stage: Stage) -> list[AbsentOut]:
        """What a stage needs and must be brought, or mounted, before its commands run."""
        found: dict[AbsentOut, None] = {}
        for dep in stage.deps:
            if dep.place is not None and not dep.place.startswith("/"):
                around = self._around(dep.place)
                if around is not None and is_missing(self.repo.path(around.place)):
                    found[around] = None
                found.update(dict.fromkeys(self.below(dep.place)))
        return list(found)

    def to_be_had(self, name: ObjectName) -> bool:
        """Whether it is the content of something that is absent."""
        return name in self._names

    def size(self, absent: AbsentOut) -> int:
        """Bytes in all. Raises as `standing`."""
        return self._whole(absent).size or 0

    def merged(self, place: str, rows: Iterable[tuple[str, str]], size: int, inside: Iterable[AbsentOut]) -> Locked:
        """A folder with what is there in it (path, digest in hex; bytes in all) and what is absent in it."""
        start = len(place) + 1 if place else 0
        rows = list(rows)
        for absent in inside:
            relative = absent.place[start:]
            if absent.name.is_dir:
                rows += [(f"{relative}/{row.relpath}", row.name.value) for row in self._manifest(absent.name)]
            else:
                rows.append((relative, absent.name.value))
            size += self.size(absent)
        rows.sort(key=lambda row: manifest.sort_key(row[0]))
        return Locked(manifest.manifest_name(manifest.serialise(rows)), size, len(rows))

    # -- finding --------------------------------------------------------------------------------------------------

    def _recorded(self, stage: Stage, out: StageOut) -> tuple[Stage, StageOut, Locked] | None:
        """What is recorded of an output that is not there. Names of DVC 2 are not those that dvc.lock would have."""
        if not out.cache or out.place is None or out.place.startswith("/") or out.place in self._outs:
            return None
        if stage.pointer is not None:
            outs = {each.path: Locked(each.name, each.size, each.nfiles, each.isexec) for each in stage.pointer.outs}
        else:
            outs = locked(self.loaded.lock_of(stage).get(stage.name), "outs")
        known = outs.get(out.path)
        if known is None or known.name is None or known.name.algo != "md5":
            return None
        return (stage, out, known) if is_missing(self.repo.path(out.place)) else None

    def _take(self, found: Sequence[tuple[Stage, StageOut, Locked]]) -> None:
        names = {known.name for _, _, known in found if known.name is not None}
        self.contents.look_for(names)
        here = {name for name in names if self.contents.at_hand(name)}
        there = self._on_remotes(sorted(names - here, key=str))
        for stage, out, known in found:
            assert out.place is not None and known.name is not None
            if known.name in here or known.name in there:
                self._outs[out.place] = AbsentOut(stage, out, out.place, known.name, known, known.name in here)
                self._names.add(known.name)
        self._places = sorted(self._outs)

    def _on_remotes(self, names: Sequence[ObjectName]) -> set[ObjectName]:
        """What remotes have of some objects; all of it where they do not answer: who needs one of them will see."""
        try:
            sizes = self._project.remote_sizes(names, "recorded data") if names else []
        except ObjectMissingError:  # no remote can be asked at all
            return set()
        except MillpondError as error:
            self.unasked = error
            return set(names)
        return {name for name, size in zip(names, sizes, strict=True) if size is not None}

    # -- looking --------------------------------------------------------------------------------------------------

    def _stands(self, absent: AbsentOut) -> bool:
        """Whether it is still absent, or mounted as it was recorded: then nothing of it needs to be hashed."""
        path = self.repo.path(absent.place)
        return is_missing(path) or mounted.object_at(path) == absent.name

    def _around(self, place: str) -> AbsentOut | None:
        while place:
            if place in self._outs:
                return self._outs[place]
            place = place.rpartition("/")[0]
        return None

    def _inside(self, around: AbsentOut, place: str) -> Locked | None:
        if not around.name.is_dir:
            return None
        inner = place[len(around.place) + 1 :]
        rows = self._manifest(around.name)
        for row in rows:
            if row.relpath == inner:
                return Locked(row.name, sum(self._sizes([row.name], place)))
        inside_rows = [row for row in rows if row.relpath.startswith(f"{inner}/")]
        if not inside_rows:
            return None
        text = manifest.serialise((row.relpath[len(inner) + 1 :], row.name.value) for row in inside_rows)
        total = sum(self._sizes([row.name for row in inside_rows], place))
        return Locked(manifest.manifest_name(text), total, len(inside_rows))

    def _whole(self, absent: AbsentOut) -> Locked:
        known = absent.known
        if not absent.name.is_dir:
            size = known.size if known.size is not None else sum(self._sizes([absent.name], absent.place))
            return Locked(absent.name, size, None, known.isexec)
        if known.size is not None and known.nfiles is not None:
            return Locked(absent.name, known.size, known.nfiles)
        names = [row.name for row in self._manifest(absent.name)]
        return Locked(absent.name, sum(self._sizes(names, absent.place)), len(names))

    def _sizes(self, names: Sequence[ObjectName], what: str) -> Iterator[int]:
        """Raises ObjectMissingError for what is nowhere."""
        found = self.contents.workspace.objects.sizes(names)
        lacking = [name for name, size in zip(names, found, strict=True) if size is None]
        told = dict(zip(lacking, self._project.remote_sizes(lacking, what), strict=True)) if lacking else {}
        for name, here in zip(names, found, strict=True):
            size = told.get(name) if here is None else here
            if size is None:
                shown = printable(self.repo.seen(what))
                raise ObjectMissingError(f"'{name}' of '{shown}' is neither here nor on a remote", path=shown)
            yield size

    def _manifest(self, name: ObjectName) -> list[ManifestEntry]:
        if name not in self._rows:
            raw = self.contents.workspace.objects.manifest(name)
            if raw is None:
                raw = self._project.remote_manifest(name, str(name))
            self._rows[name] = manifest.parse(raw, source=str(name), algo=name.algo)
        return self._rows[name]

    @property
    def _project(self) -> Project:
        if self._made_project is None:
            self._made_project = Project(self.repo.root)
        return self._made_project


def is_missing(path: str) -> bool:
    """Whether nothing is at a path, or only what is left of a mount."""
    if not os.path.exists(path):
        return not os.path.islink(path) or "/.dvc/tmp/millpond/inputs/" in os.path.realpath(path)
    return places.is_marked(path)
