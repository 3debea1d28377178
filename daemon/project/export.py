"""Exporting objects from the store into DVC's own cache, so that real DVC finds them: for `dvc push`, `dvc checkout`.

DVC takes a read-only file in its cache for whole, without hashing it. So a file gets its name there when its bytes are on
disk, and a manifest when all that it names has got its name and that is on disk too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import UsageError
from millpond.daemon.names import ObjectName
from millpond.daemon.pipeline.upstream import with_needed
from millpond.daemon.project import manifest, outputs
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.copying import Staged, Staging
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.durable import sync_file_system, write_error
from millpond.daemon.project.hooks import dvc_hooks
from millpond.daemon.project.outkinds import OutKinds
from millpond.daemon.project.outputs import GitTree, Output, Tree, WorkTree
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.select import Choice, select
from millpond.daemon.project.targets import expand

SETTING = "MILLPOND_EXPORT"
WHEN = ("auto", "always", "never")
# Files that are complete and wait for one sync: each is an open descriptor.
_BATCH = 256
# As DVC has it: nobody changes an object.
_MODE = 0o444


@dataclass(slots=True)
class Exported:
    """What was brought into DVC's cache: objects and bytes; `missing` are those that nobody has, with a path of each."""

    objects: int = 0
    bytes: int = 0
    missing: dict[ObjectName, str] = field(default_factory=dict)


def export(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, recursive, revs, all_branches, all_tags, all_commits} -> {objects, bytes, missing, cache}.

    Without revisions it is the workspace's pointers that say which objects. Raises NotARepoError, RevisionError,
    TargetError, InvalidFileError, DiskFullError, StoreDamagedError.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    with context.lock(repo.root, "read"):
        done = export_outputs(context, repo, chosen(repo, params))
    return {
        "objects": done.objects,
        "bytes": done.bytes,
        "missing": [wirepath.encode(path) for path in done.missing.values()],
        "cache": wirepath.encode(repo.cache.folder),
    }


def chosen(repo: Repo, params: dict[str, Any]) -> list[Output]:
    """The outputs that {targets, recursive, revs, all_branches, all_tags, all_commits} mean, each once. Raises RevisionError,
    TargetError, UsageError, InvalidFileError."""
    return list(dict.fromkeys(choice.output for choice in choices(repo, params)))


def choices(repo: Repo, params: dict[str, Any]) -> list[Choice]:
    """As `chosen`, with the paths inside outputs that targets name; targets may be patterns (`glob`). With `types` only metrics, plots;
    with `with_deps` also what is needed to make them."""
    targets = [wirepath.decode(target) for target in params.get("targets") or []]
    if params.get("glob"):
        targets = expand(repo, targets, pointers=True)
    found: dict[Choice, None] = {}
    for tree in _trees(repo, params):
        files = dict(tree.pointer_files())
        version = outputs.collect_from(files)
        if isinstance(tree, WorkTree):
            version = [output for output in version if not output.stale]
        meant = select(repo, version, targets, recursive=bool(params.get("recursive")))
        if params.get("with_deps") and targets:
            meant = with_needed(repo, files, tree.content, version, meant)
        if params.get("types"):
            kinds = OutKinds(files, params["types"])
            meant = [choice for choice in meant if kinds.has(choice.output)]
        found.update(dict.fromkeys(meant))
    return list(found)


def export_after(context: VerbContext, repo: Repo, changed: Iterable[str], environ: Mapping[str, str]) -> None:
    """After a command that stored data: export the outputs at `changed` (relative paths) if DVC is used here too.

    Raises UsageError for a setting that is none, and as `export`.
    """
    if exports(repo, environ):
        places = set(changed)
        export_outputs(context, repo, [output for output in repo.outputs() if output.path in places])


def exports(repo: Repo, environ: Mapping[str, str]) -> bool:
    """Whether what is stored goes into DVC's cache too. Raises UsageError for a setting that is none."""
    when = environ.get(SETTING) or "auto"
    if when not in WHEN:
        raise UsageError(f"{SETTING}={when} is none of {', '.join(WHEN)}")
    return when == "always" or (when == "auto" and dvc_is_used(repo))


def dvc_is_used(repo: Repo) -> bool:
    """Whether real DVC works in this project, too: its cache holds objects, or its hooks are installed."""
    return repo.cache.is_used or (repo.git is not None and bool(dvc_hooks(repo.git)))


def export_outputs(context: VerbContext, repo: Repo, outs: Iterable[Output]) -> Exported:
    """Bring all objects of these outputs into DVC's cache that it lacks."""
    objects, done = Objects(context.store, repo.cache), Exported()
    names: dict[ObjectName, str] = {}
    for output in outs:
        if output.name is not None and output.cache:
            for name, path in objects_of(output, objects):
                names.setdefault(name, path)
    lacking = [name for name in names if repo.cache.path_of(name) is not None and repo.cache.size(name) is None]
    sizes = dict(zip(lacking, context.store.sizes(lacking), strict=True))
    done.missing = {name: names[name] for name, size in sizes.items() if size is None}
    wanted = {name: size for name, size in sizes.items() if size is not None}
    try:
        for manifests in (False, True):
            _bring(context, repo, {name: size for name, size in wanted.items() if name.is_dir is manifests}, done)
    except OSError as error:
        raise write_error(error) from error
    return done


def objects_of(output: Output, objects: Objects) -> Iterator[tuple[ObjectName, str]]:
    """(object, a path that it is at) of an output and all below it."""
    name = output.name
    assert name is not None
    raw = objects.manifest(name) if name.is_dir else None
    if raw is not None:
        for entry in manifest.parse(raw, source=str(name), algo=name.algo):
            yield entry.name, f"{output.path}/{entry.relpath}"
    yield name, output.path


def _trees(repo: Repo, params: dict[str, Any]) -> Iterator[Tree]:
    """The versions that are asked for; the workspace where none is."""
    revs = [wirepath.decode(rev) for rev in params.get("revs") or []]
    commits: dict[str, None] = {}
    git = repo.git
    if revs or params.get("all_branches") or params.get("all_tags") or params.get("all_commits"):
        if git is None:
            raise UsageError("this project is not in a Git repository, so it has no revisions")
        commits.update(dict.fromkeys(git.resolve(rev) for rev in revs))
        if params.get("all_commits"):
            commits.update(dict.fromkeys(git.history()))
        if params.get("all_branches"):
            commits.update(dict.fromkeys(git.branches().values()))
        if params.get("all_tags"):
            commits.update(dict.fromkeys(git.tags().values()))
    if not commits:
        yield WorkTree(repo.root, repo.rules)
        return
    assert git is not None
    prefix = repo.git_path("")
    for commit in commits:
        yield GitTree(git, commit, "" if prefix == "." else prefix)


def _bring(context: VerbContext, repo: Repo, wanted: dict[ObjectName, int], done: Exported) -> None:
    total = sum(wanted.values())
    with Staging() as staging:
        ready: list[Staged] = []
        current: Staged | None = None
        try:
            for piece in context.store.fetch(wanted):
                if current is None:
                    path = repo.cache.path_of(piece.name)
                    assert path is not None
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    current = staging.open(path)
                view = memoryview(piece.data)
                done.bytes += len(view)
                staging.write(current, view)
                if piece.last:
                    ready.append(current)
                    current = None
                    done.objects += 1
                    context.progress("exporting", (done.objects, None), (done.bytes, total))
                if len(ready) >= _BATCH:
                    _place(staging, ready)
            _place(staging, ready)
        finally:
            for staged in [*ready, *([current] if current is not None else [])]:
                staging.drop(staged)


def _place(staging: Staging, ready: list[Staged]) -> None:
    """Name files whose bytes are on disk; what was named before is on disk too then."""
    if ready:
        sync_file_system(ready[0].fd)
        while ready:
            staging.place(ready.pop(), mode=_MODE)
