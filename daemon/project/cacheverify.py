"""`cache verify`: every byte of what a version consists of is read and compared with its name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from millpond.daemon.errors import MillpondError, ObjectMissingError, StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import export
from millpond.daemon.project.cacheimport import rows
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects, Place
from millpond.daemon.project.repo import Repo

# Objects asked for at once; of these each is asked for alone where one cannot be read.
_AT_ONCE = 500


def verify(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, recursive, revs, all_branches, all_tags, all_commits} -> {objects, bytes, damaged, missing}; the last
    two are of [name, path], every path of an object.

    Objects are read from the store, else from DVC's cache. Raises NotARepoError, RevisionError, TargetError, InvalidFileError.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    with context.lock(repo.root, "read"):
        verifying = _Verifying(context, repo)
        for output in export.chosen(repo, params):
            if output.name is None or not output.cache:
                continue
            try:
                for name, path in export.objects_of(output, verifying.objects):
                    verifying.names.setdefault(name, {})[path] = None
            except StoreDamagedError:
                verifying.names.setdefault(output.name, {})[output.path] = None
        return verifying.run()


class _Verifying:
    """One look at many objects."""

    def __init__(self, context: VerbContext, repo: Repo) -> None:
        self._context = context
        self._repo = repo
        self.objects = Objects(context.store, repo.cache)
        # Object -> the paths that it is at.
        self.names: dict[ObjectName, dict[str, None]] = {}
        self._done = self._bytes = self._total = 0
        self._damaged: list[ObjectName] = []

    def run(self) -> dict[str, Any]:
        found = dict(zip(self.names, self.objects.places(list(self.names)), strict=True))
        places = {name: place for name, place in found.items() if place is not None}
        self._total = sum(place.size for place in places.values())
        stored = {place.name: name for name, place in places.items() if place.in_store}
        order = list(stored)
        for start in range(0, len(order), _AT_ONCE):
            self._stored(order[start : start + _AT_ONCE], stored)
        for name, place in places.items():
            if not place.in_store:
                self._in_cache(name, place)
        missing = [name for name, place in found.items() if place is None]
        return {
            "objects": self._done,
            "bytes": self._bytes,
            "damaged": [row for name in self._damaged for row in self._rows(name)],
            "missing": [row for name in missing for row in self._rows(name)],
        }

    def _rows(self, name: ObjectName) -> list[list[str]]:
        return [row for path in self.names[name] for row in rows({name: path})]

    def _stored(self, group: Sequence[ObjectName], stored: dict[ObjectName, ObjectName]) -> None:
        """Read a group from the store; `stored` gives what pointers call each."""
        read: set[ObjectName] = set()
        try:
            digest = hashlib.md5(usedforsecurity=False)
            for piece in self._context.store.fetch(group):
                digest.update(piece.data)
                self._tell(len(piece.data))
                if piece.last:
                    read.add(piece.name)
                    self._judge(stored[piece.name], digest.hexdigest() == piece.name.hex)
                    digest = hashlib.md5(usedforsecurity=False)
        except (StoreDamagedError, ObjectMissingError):
            left = [name for name in group if name not in read]
            if len(left) == 1 and len(group) == 1:
                self._judge(stored[left[0]], False)
                return
            for name in left:
                self._stored([name], stored)

    def _in_cache(self, name: ObjectName, place: Place) -> None:
        try:
            opened = self._repo.cache.open(place.name)
            if opened is not None:
                os.close(opened[0])
            self._judge(name, opened is not None)
        except MillpondError:
            self._judge(name, False)
        self._tell(place.size)

    def _judge(self, name: ObjectName, sound: bool) -> None:
        self._done += 1
        if not sound:
            self._damaged.append(name)

    def _tell(self, size: int) -> None:
        self._bytes += size
        self._context.progress("verifying", (self._done, len(self.names)), (self._bytes, self._total))
