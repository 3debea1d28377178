"""`data status`: the last commit, the pointers and the workspace compared, in DVC's words."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.project import sides
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.notinremote import not_in_remote
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.sides import Change, Entries, Side, Wanted
from millpond.daemon.project.workspace import Workspace

# The order in which states are shown.
_STATES = (sides.MODIFIED, "renamed", sides.ADDED, sides.DELETED, sides.UNKNOWN)
Found = dict[str, list[Any]]


def data_status(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, granular, untracked, unchanged, not_in_remote, remote, refresh} -> {not_in_cache, not_in_remote, committed,
    uncommitted, untracked, unchanged, git}.

    DVC's JSON, paths relative to the project's root, but `untracked` from the caller's folder. `committed` and `uncommitted`:
    {state: [path, or {old, new} of a rename]}; `git`: {is_empty, is_dirty}; `unchanged` and `not_in_remote` are empty unless asked for. Raises
    NotARepoError, InvalidFileError, TargetError, NotMountedError; for `not_in_remote` also RemoteConfigError, RemoteError,
    CredentialsError.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    targets = [wirepath.decode(target) for target in params.get("targets") or []]
    granular = bool(params.get("granular"))
    with context.lock(repo.root, "read"):
        workspace = Workspace(repo, context.store)
        actual = sides.workspace_side(context, workspace)
        recorded = Side(actual.outputs)
        committed_once = repo.git is not None and not repo.git.has_no_commits
        head = sides.side_of(context, workspace, "HEAD") if committed_once else Side({})
        wanted = Wanted(repo, targets, (head, recorded), anything=True)
        compared = _Comparison(workspace.objects, wanted, granular, unchanged=bool(params.get("unchanged")))
        uncommitted, unchanged = compared.of(recorded, actual)
        missing = compared.missing
        committed: Found = {}
        if repo.git is not None:
            committed, same = compared.of(head, recorded)
            unchanged &= same
        absent: list[str] = []
        if params.get("not_in_remote"):
            absent = not_in_remote(context, repo, workspace.objects, wanted, params)
        git = _git(repo, "all" if params.get("untracked") else "no")
    return {
        "not_in_cache": [wirepath.encode(path) for path in sorted(missing)],
        "not_in_remote": [wirepath.encode(path) for path in absent],
        "committed": committed,
        "uncommitted": uncommitted,
        "untracked": [repo.wire(path) for path in git.pop("untracked") if wanted.entry(path)],
        "unchanged": [wirepath.encode(path) for path in sorted(unchanged)],
        "git": git,
    }


class _Comparison:
    """Compares sides; `missing` are the objects of the first one of the latest comparison that are nowhere at hand."""

    def __init__(self, objects: Objects, wanted: Wanted, granular: bool, *, unchanged: bool) -> None:
        self._objects = objects
        self._wanted = wanted
        self._granular = granular
        self._unchanged = unchanged
        self.missing: Entries = {}

    def of(self, old: Side, new: Side) -> tuple[Found, set[str]]:
        """(paths by state, unchanged paths if they are wanted)."""
        by_kind: dict[str, list[Change]] = {}
        self.missing = {}
        for path in sorted(old.outputs.keys() | new.outputs.keys()):
            if self._wanted.output(path):
                for change in self._changes(path, old, new):
                    by_kind.setdefault(change.kind, []).append(change)
        added = {change.new_path: change.new for change in by_kind.get(sides.ADDED, []) if change.new is not None}
        deleted = {change.old_path: change.old for change in by_kind.get(sides.DELETED, []) if change.old is not None}
        moved = [
            {"old": wirepath.encode(before), "new": wirepath.encode(after)}
            for before, after, _ in sides.renames(deleted, added)
        ]
        lists: Found = {
            sides.MODIFIED: [wirepath.encode(change.new_path) for change in by_kind.get(sides.MODIFIED, [])],
            "renamed": moved,
            sides.ADDED: [wirepath.encode(path) for path in added],
            sides.DELETED: [wirepath.encode(path) for path in deleted],
            sides.UNKNOWN: [wirepath.encode(each.new_path) for each in by_kind.get(sides.UNKNOWN, []) if each.new],
        }
        unchanged = {change.new_path for change in by_kind.get(sides.UNCHANGED, []) if self._unchanged}
        return {state: lists[state] for state in _STATES if lists[state]}, unchanged

    def _changes(self, path: str, old: Side, new: Side) -> list[Change]:
        name = old.name(path)
        whole = name is not None and self._objects.whole(name)
        if whole and name == new.name(path) and not self._unchanged:
            return []
        if self._granular:
            before, after = old.entries(path, self._objects), new.entries(path, self._objects)
        else:
            before, after = old.top(path), new.top(path)
        unknown = f"{path}/" in old.unknown | new.unknown
        before, after = self._chosen(before), self._chosen(after)
        if not whole:
            # A file's object counts for itself, a manifest's too; what it names is looked at when it is shown.
            self.missing |= self._objects.missing(before)
        return list(sides.compare(path, before, after, unknown=unknown, unchanged=self._unchanged))

    def _chosen(self, entries: Entries) -> Entries:
        return {path: name for path, name in entries.items() if self._wanted.entry(path)}


def _git(repo: Repo, untracked: str) -> dict[str, Any]:
    """What Git says: {is_empty, is_dirty, untracked: [path relative to the project's root]}."""
    if repo.git is None:
        return {"is_empty": False, "is_dirty": False, "untracked": []}
    changed, others = repo.git.changes(untracked)
    prefix = repo.git_path("")
    prefix = "" if prefix == "." else f"{prefix}/"
    inside = [path.removeprefix(prefix) for path in others if path.startswith(prefix)]
    return {"is_empty": repo.git.has_no_commits, "is_dirty": bool(changed or others), "untracked": inside}
