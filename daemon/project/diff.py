"""`diff`: what differs between two revisions, or a revision and the workspace, in DVC's words."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import RevisionError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import sides
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.sides import WORKSPACE, Entries, Side, Wanted
from millpond.daemon.project.workspace import Workspace

STATES = ("added", "deleted", "modified", "renamed", "not in cache")


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
        old = sides.side_of(context, workspace, a_rev)
        new = sides.side_of(context, workspace, b_rev or WORKSPACE)
        wanted = Wanted(repo, targets, (old, new))
        changes = _Changes(workspace.objects, wanted)
        for path in sorted(old.outputs.keys() | new.outputs.keys()):
            changes.compare(path, old, new, with_missing=not b_rev)
    return {"diff": changes.result()}


class _Changes:
    """Gathers what differs."""

    def __init__(self, objects: Objects, wanted: Wanted) -> None:
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
        name = old.name(path)
        whole = not with_missing or name is None or self._objects.whole(name)
        if whole and name == new.name(path):
            return
        before, after = self._of(old, path), self._of(new, path)
        if not whole:
            self._missing |= self._objects.missing(before)
        unknown = f"{path}/" in old.unknown | new.unknown
        for change in sides.compare(path, before, after, unknown=unknown):
            if change.kind == sides.ADDED and change.new is not None:
                self._added[change.new_path] = change.new
            elif change.kind == sides.DELETED and change.old is not None:
                self._deleted[change.old_path] = change.old
            elif change.kind == sides.MODIFIED and change.old is not None and change.new is not None:
                self._modified[change.old_path] = (change.old, change.new)

    def _of(self, side: Side, path: str) -> Entries:
        return {entry: name for entry, name in side.entries(path, self._objects).items() if self._wanted.entry(entry)}

    def result(self) -> dict[str, list[dict[str, Any]]]:
        """DVC's JSON; {} when there is nothing."""
        renamed = sides.renames(self._deleted, self._added)
        modified = [
            {"path": wirepath.encode(path), "hash": {"old": old.value, "new": new.value}}
            for path, (old, new) in sorted(self._modified.items())
        ]
        moved = [
            {"path": {"old": wirepath.encode(old), "new": wirepath.encode(new)}, "hash": name.value}
            for old, new, name in sorted(renamed)
        ]
        lists = (_rows(self._added), _rows(self._deleted), modified, moved, _rows(self._missing))
        return dict(zip(STATES, lists, strict=True)) if any(lists) else {}


def _rows(entries: Entries) -> list[dict[str, Any]]:
    return [{"path": wirepath.encode(path), "hash": name.value} for path, name in sorted(entries.items())]
