"""`params diff`: parameters of two revisions side by side.

Which: all of params.yaml beside `.dvc`, all of the files that dvc.yaml lists under `params`, of other files what stages
depend on and what templates of stages use.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

from millpond.daemon.errors import MillpondError
from millpond.daemon.pipeline import compare, metrics, snapshot, template, values
from millpond.daemon.pipeline.metrics import Found
from millpond.daemon.pipeline.places import place
from millpond.daemon.pipeline.resolve import Document
from millpond.daemon.pipeline.snapshot import Snapshot
from millpond.daemon.pipeline.variables import PARAMS_FILE
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo

# Keys that are asked of a file; None for all of it.
Wanted = dict[str, set[str] | None]


def diff(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {a_rev, b_rev, targets, all, deps} -> {diff: {path: {key: {old, new, diff}}}, revs, failed}; see metrics.diff.

    With `deps` only what stages depend on. Raises NotARepoError, RevisionError, TargetError, StoreDamagedError.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    targets = metrics.targets_of(repo, params)
    only_deps = bool(params.get("deps"))
    with context.lock(repo.root, "read"):
        old, new = snapshot.pair(context, repo, params)
        before = Found() if old is None else of(old, targets, only_deps=only_deps)
        after = of(new, targets, only_deps=only_deps)
    found = compare.changes(before.documents, after.documents, unchanged=bool(params.get("all")))
    label = "HEAD" if old is None else old.label
    return {
        "diff": {repo.wire(path): rows for path, rows in found.items()},
        "revs": [label, new.label],
        "failed": before.failures(repo, label) + after.failures(repo, new.label),
    }


def of(revision: Snapshot, targets: list[str], *, only_deps: bool) -> Found:
    """The parameters of a revision. Files that are not there have none. Raises StoreDamagedError."""
    found = Found()
    wanted: Wanted = dict.fromkeys(targets) if targets else _wanted(revision, only_deps=only_deps)
    for path, keys in wanted.items():
        try:
            raw = revision.read(path)
            if raw is None:
                continue
            document = values.parse(raw, printable(revision.pipelines.shown(path)))
        except MillpondError as error:
            found.errors[path] = error
            continue
        if keys is None:
            found.documents[path] = document
        else:
            picked = {key: values.get(document, key) for key in sorted(keys)}
            found.documents[path] = {key: value for key, value in picked.items() if value is not values.ABSENT}
    return found


def _wanted(revision: Snapshot, *, only_deps: bool) -> Wanted:
    found: Wanted = {}
    pipelines = revision.pipelines
    if not only_deps:
        found[PARAMS_FILE] = None
        for file, document in pipelines.documents.items():
            for path in document.params:
                where = place(pipelines.root, posixpath.dirname(file), str(path))
                if where is not None:
                    found[where] = None
    for stage in pipelines.stages:
        for each in stage.params:
            _want(found, each.place, each.keys)
    for file, document in pipelines.documents.items():
        for path, key in used(document, posixpath.dirname(file)):
            _want(found, path, (key,))
    return found


def _want(found: Wanted, path: str, keys: Iterable[str]) -> None:
    keys = set(keys)
    have = found.setdefault(path, set())
    if not keys:
        found[path] = None
    elif have is not None:
        have |= keys


def used(document: Document, folder: str) -> Iterator[tuple[str, str]]:
    """(file, key) of each value of a file of `vars`, or of the default one, that templates of stages stand for."""
    origins = [(path, held) for path, held in document.variables.origins if path in document.variables.files]
    for entry in document.definitions.values():
        for expression in template.expressions({key: value for key, value in entry.items() if key != "vars"}):
            key = expression.replace("[", ".").replace("]", "").replace(" ", "")
            for path, held in origins:
                if values.get(held, key) is not values.ABSENT:
                    yield path, key
