"""Whether what a step was made from is what another step made, or what a source holds: hashes compared, parts of folders too."""

from __future__ import annotations

import io

from millpond.daemon.names import ObjectName
from millpond.daemon.pipeline.contents import Contents
from millpond.daemon.pipeline.snapshot import Snapshot
from millpond.daemon.project import manifest
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.hashing import digest_of
from millpond.daemon.project.repo import Repo

# SAME: by hash; STALE: another hash; UNKNOWN: nobody can tell, for want of a hash or of a folder's manifest.
SAME, STALE, UNKNOWN = "same", "stale", "unknown"


class Links:
    """Compares at one revision."""

    def __init__(self, repo: Repo, snapshot: Snapshot, contents: Contents, objects: Objects) -> None:
        self._repo = repo
        self._commit = snapshot.commit
        self._contents = contents
        self._objects = objects
        self._files: dict[ObjectName, dict[str, ObjectName] | None] = {}

    def between(self, dep: ObjectName | None, dep_place: str, out: ObjectName | None, out_place: str) -> str:
        """A dependency and the output that it is, lies in or holds, each with its recorded name. Raises
        StoreDamagedError, InvalidFileError (a manifest)."""
        if dep is None or out is None:
            return UNKNOWN
        if len(dep_place) > len(out_place):
            return self._part(out, dep_place[len(out_place) :].strip("/"), dep)
        return self._part(dep, out_place[len(dep_place) :].strip("/"), out)

    def source(self, place: str, name: ObjectName | None) -> tuple[str, bool]:
        """(state, whether Git has it) of a dependency that no step makes. Raises what hashing the workspace raises."""
        git = self._repo.git
        path = "" if git is None else self._repo.git_path(place)
        if self._commit is None:
            tracked = git is not None and git.tracked_below("" if path == "." else path) is not None
            actual = None if name is None else self._contents.at(place, name.algo)
            return _state(name, None if actual is None else actual.name), tracked
        assert git is not None
        raw = git.blob(self._commit, path)
        if raw is not None:
            made = None if name is None else ObjectName(name.algo, digest_of(io.BytesIO(raw), name.algo))
            return _state(name, made), True
        return self._folder(path, name)

    def actual(self, place: str, name: ObjectName | None) -> str:
        """What lies at a place in the workspace, compared with what should: UNKNOWN if nothing does, or at a revision."""
        if self._commit is not None or name is None:
            return UNKNOWN
        found = self._contents.at(place, name.algo)
        return UNKNOWN if found is None else _state(name, found.name)

    def _folder(self, path: str, name: ObjectName | None) -> tuple[str, bool]:
        """A folder of Git at a revision. What is not the same may still be: files may be left out by .dvcignore."""
        git = self._repo.git
        assert git is not None and self._commit is not None
        prefix = "" if path == "." else path
        if name is None:
            return UNKNOWN, next(git.files(self._commit, prefix, sizes=False), None) is not None
        algo = name.algo
        rows = []
        for file in git.files(self._commit, prefix, sizes=False):
            raw = git.read(file.oid)
            if raw is not None:
                inner = file.path[len(prefix) :].lstrip("/")
                rows.append((inner, digest_of(io.BytesIO(raw), algo)))
        made = ObjectName(algo, manifest.manifest_name(manifest.serialise(sorted(rows))).value)
        return SAME if rows and made == name else UNKNOWN, bool(rows)

    def _part(self, whole: ObjectName, inner: str, part: ObjectName) -> str:
        if not inner:
            return _state(part, whole)
        files = self.files(whole)
        if files is None:
            return UNKNOWN
        if inner in files:
            return _state(part, files[inner])
        prefix = f"{inner}/"
        rows = [(path[len(prefix) :], name.value) for path, name in files.items() if path.startswith(prefix)]
        if not rows:
            return STALE
        made = manifest.manifest_name(manifest.serialise(sorted(rows))).value
        return _state(part, ObjectName(whole.algo, made))

    def files(self, name: ObjectName) -> dict[str, ObjectName] | None:
        """The files of a folder; None when its manifest is nowhere at hand."""
        if name not in self._files:
            raw = self._objects.manifest(name) if name.is_dir else None
            rows = None if raw is None else manifest.parse(raw, source=str(name), algo=name.algo)
            self._files[name] = None if rows is None else {row.relpath: row.name for row in rows}
        return self._files[name]


def _state(wanted: ObjectName | None, found: ObjectName | None) -> str:
    if wanted is None or (found is not None and found.algo != wanted.algo and found.value != wanted.value):
        return UNKNOWN
    return SAME if found is not None and found.value == wanted.value else STALE
