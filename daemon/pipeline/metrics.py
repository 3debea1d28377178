"""`metrics show`, `metrics diff`: numbers in files that dvc.yaml calls metrics, over revisions."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import MillpondError, TargetError
from millpond.daemon.pipeline import compare, snapshot, values
from millpond.daemon.pipeline.places import place
from millpond.daemon.pipeline.snapshot import Snapshot
from millpond.daemon.pipeline.stage import METRICS
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo


@dataclass(slots=True)
class Found:
    """What a revision says: documents by path from the project's root, and what could not be read."""

    documents: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, MillpondError] = field(default_factory=dict)

    def told(self, repo: Repo) -> dict[str, Any]:
        """{path from the caller's folder: {data} or {error: {type, msg}}}."""
        rows: dict[str, Any] = {repo.wire(path): {"data": value} for path, value in self.documents.items()}
        rows |= {
            repo.wire(path): {"error": {"type": error.kind, "msg": error.message}}
            for path, error in self.errors.items()
        }
        return rows

    def failures(self, repo: Repo, label: str) -> list[list[str]]:
        """[label, path, what is wrong] of all that could not be read."""
        return [[label, repo.wire(path), error.message] for path, error in self.errors.items()]


def show(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, recursive, all_branches, all_tags, all_commits} -> {revisions: {name: {path: {data} or {error}}}}.

    The workspace is called "" when it is alone, and left out when the branch that is checked out says the same. Raises
    NotARepoError, UsageError, RevisionError, StoreDamagedError.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    targets = targets_of(repo, params)
    told: dict[str, dict[str, Any]] = {}
    with context.lock(repo.root, "read"):
        for number, each in enumerate(snapshot.several(context, repo, params)):
            context.progress("reading revisions", (number, None))
            found = of(each, targets, recursive=bool(params.get("recursive")))
            if found.documents or found.errors:
                told[each.label] = found.told(repo)
    here = told.get(snapshot.WORKSPACE)
    if len(told) == 1 and here is not None:
        told = {"": here}
    elif here is not None and not any("error" in row for row in here.values()) and told.get(_branch(repo)) == here:
        del told[snapshot.WORKSPACE]
    return {"revisions": told}


def diff(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {a_rev, b_rev, targets, recursive, all} -> {diff: {path: {key: {old, new, diff}}}, revs: [a, b], failed:
    [[revision, path, what]]}. With `all` what did not change is there, too. Raises as `show`."""
    repo = Repo.open(os.getcwd(), os.environ)
    targets = targets_of(repo, params)
    recursive = bool(params.get("recursive"))
    with context.lock(repo.root, "read"):
        old, new = snapshot.pair(context, repo, params)
        before = Found() if old is None else of(old, targets, recursive=recursive)
        after = of(new, targets, recursive=recursive)
    found = compare.changes(before.documents, after.documents, unchanged=bool(params.get("all")))
    failed = before.failures(repo, "HEAD" if old is None else old.label) + after.failures(repo, new.label)
    return {
        "diff": {repo.wire(path): rows for path, rows in found.items()},
        "revs": ["HEAD" if old is None else old.label, new.label],
        "failed": failed,
    }


def targets_of(repo: Repo, params: Mapping[str, Any]) -> list[str]:
    """The targets as paths from the project's root. Raises TargetError for one outside of it."""
    found = []
    for target in map(wirepath.decode, params.get("targets") or []):
        relative = repo.relative(target)
        if relative is None:
            raise TargetError(f"'{printable(target)}' lies outside of the project", path=printable(target))
        found.append(relative)
    return found


def of(revision: Snapshot, targets: list[str], *, recursive: bool) -> Found:
    """The metrics of a revision, or the files that targets name. Raises StoreDamagedError."""
    found = Found()
    if not targets:
        found.errors.update({path: error for path, error in revision.pipelines.failed.items() if _has_stages(path)})
    for path in dict.fromkeys(_paths(revision, targets, recursive=recursive)):
        try:
            raw = revision.read(path)
            shown = printable(revision.pipelines.shown(path))
            if raw is None:
                found.errors[path] = TargetError(f"'{shown}' does not exist", path=shown)
            else:
                found.documents[path] = numbers(values.parse(raw, shown))
        except MillpondError as error:
            found.errors[path] = error
    return found


def _paths(revision: Snapshot, targets: list[str], *, recursive: bool) -> Iterator[str]:
    if not targets:
        for path in declared(revision):
            yield from revision.files(path)
        return
    own = [path for top in declared(revision) for path in revision.files(top)] if recursive else []
    for target in targets:
        below = [path for path in own if path == target or path.startswith(f"{target}/" if target else "")]
        yield from below if recursive and below else revision.files(target)


def declared(revision: Snapshot) -> Iterator[str]:
    """The paths that dvc.yaml files call metrics, from the project's root."""
    for stage in revision.pipelines.stages:
        yield from (out.place for out in stage.outs if out.kind == METRICS and out.place is not None)
    for file, document in revision.pipelines.documents.items():
        for path in document.metrics:
            where = place(revision.pipelines.root, posixpath.dirname(file), str(path))
            if where is not None:
                yield where


def numbers(document: Any) -> Any:
    """Numbers, texts and truth values in nested mappings: what can be compared."""
    if isinstance(document, dict):
        kept = {str(key): numbers(value) for key, value in document.items()}
        return {key: value for key, value in kept.items() if value is not None and value != {}}
    return document if isinstance(document, int | float | str) else None


def _branch(repo: Repo) -> str:
    """The branch checked out, else the commit."""
    if repo.git is None:
        return ""
    head = repo.git.head()
    return next((name for name, commit in repo.git.branches().items() if commit == head), head or "")


def _has_stages(path: str) -> bool:
    return posixpath.basename(path) == "dvc.yaml"
