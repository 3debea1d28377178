"""`fetch`: bring from remotes what is lacking here of the tracked data; `pull`: then bring the workspace to it.

The daemon names what it stores by the bytes it gets, so what a remote has under a wrong name gets into nobody's way: it is reported.
What came in is durable in parts of a few hundred MB: a fetch that was cut goes on there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from millpond.daemon import wirepath
from millpond.daemon.errors import ObjectMissingError, RemoteConfigError
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data
from millpond.daemon.project import export
from millpond.daemon.project.arrivals import Arrivals
from millpond.daemon.project.cacheimport import rows
from millpond.daemon.project.copying import Staged, Staging
from millpond.daemon.project.digests import LEGACY, Objects
from millpond.daemon.project.durable import write_error
from millpond.daemon.project.formers import Formers
from millpond.daemon.project.hashing import digest_of, is_md5
from millpond.daemon.project.importing.fetching import Imports, place_partial
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.portions import put_all
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.runcache import fetch_runs
from millpond.daemon.project.select import Choice
from millpond.daemon.project.sharing import Group, Link, Links, choices, groups, in_parts, partial, waiting
from millpond.daemon.project.targets import expand
from millpond.daemon.remote.download import Part

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext
    from millpond.daemon.project.context import VerbContext


@dataclass(slots=True)
class Fetched:
    """What came in, and what did not: `missing` is neither here nor on its remote, `damaged` has other bytes there than its name says;
    each with a path that it is at. `beyond` were larger than --max-size."""

    objects: int = 0
    bytes: int = 0
    requests: int = 0
    beyond: int = 0
    missing: dict[ObjectName, str] = field(default_factory=dict)
    damaged: dict[ObjectName, str] = field(default_factory=dict)


def fetch(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, recursive, all_branches, all_tags, all_commits, revs, remote, jobs, max_size, types, run_cache} -> {objects, bytes,
    requests, beyond, missing, damaged, remotes, runs}; `runs` are entries of the run cache that came.

    Raises NotARepoError, RemoteConfigError, RemoteError, CredentialsError, TargetError, InvalidFileError, DiskFullError.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    with context.lock(repo.root, "read"):
        return fetch_chosen(context, repo, choices(repo, params), params)


def warm(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets: [TARGET[@REV]], remote, jobs} -> as `fetch`: have what a mount of each would show in the store.

    Raises as `fetch`, and RevisionError.
    """
    from millpond.daemon.mounts.plan import split_target

    repo = Repo.open(os.getcwd(), os.environ)
    with context.lock(repo.root, "read"):
        chosen: dict[Choice, None] = {}
        for text in params.get("targets") or [""]:
            target, rev = split_target(wirepath.decode(text))
            asked = {
                "targets": [wirepath.encode(target)] if target else [],
                "revs": [rev] if rev else [],
                "recursive": True,
            }
            chosen.update(dict.fromkeys(choices(repo, asked)))
        return fetch_chosen(context, repo, list(chosen), params)


def pull(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. As `fetch`, and {glob, force, allow_missing} -> also {checkout}: what `checkout` answers, None where data is missing that was
    not allowed to be: then the workspace stays as it is."""
    from millpond.daemon.mounts.checkout import checkout

    repo = Repo.open(os.getcwd(), os.environ)
    if params.get("glob"):  # once: what the patterns match is another thing when the data is here
        wanted = [wirepath.decode(target) for target in params.get("targets") or []]
        found = expand(repo, wanted, pointers=True)
        params = {**params, "glob": False, "targets": [wirepath.encode(name) for name in found]}
    with Arrivals(repo) as arrivals:
        with context.lock(repo.root, "read"):
            arrivals.look()
            result = fetch_chosen(context, repo, choices(repo, params), params, arrivals)
        result["checkout"] = None
        if params.get("allow_missing") or not (result["missing"] or result["damaged"]):
            keys = ("targets", "recursive", "with_deps", "force", "allow_missing")
            result["checkout"] = checkout(context, {key: params.get(key) for key in keys}, arrivals)
            _pull_partial(context, params, result["checkout"])
    return result


def _pull_partial(context: VerbContext, params: dict[str, Any], result: dict[str, Any]) -> None:
    """Bring imports that were never downloaded to their places."""
    repo = Repo.open(os.getcwd(), os.environ)
    with context.lock(repo.root, "write"):
        outputs = partial(repo, params)
        if outputs:
            imports = Imports(context, repo, params.get("jobs"))
            for output in place_partial(context, repo, imports, outputs, force=bool(params.get("force"))):
                is_dir = os.path.isdir(repo.path(output.path))
                result["added"] = sorted([*result["added"], repo.wire(output.path) + ("/" if is_dir else "")])


def fetch_chosen(
    context: VerbContext,
    repo: Repo,
    chosen: Sequence[Choice],
    params: dict[str, Any],
    arrivals: Arrivals | None = None,
) -> dict[str, Any]:
    """Bring what is chosen and lacking into the store, from {remote, jobs, max_size}. Answers and raises as `fetch`."""
    done, used = Fetched(), list[str]()
    objects = Objects(context.store, repo.cache)
    told = waiting(context, "fetch")
    with Links(repo, params.get("remote"), params.get("jobs"), os.environ, versioned=True, tell=told) as links:
        if params.get("remote") is not None:
            links.of(links.remote_of(None))  # one that cannot be used is told of, though nothing may be lacking
        runs = fetch_runs(context, repo, links) if params.get("run_cache") else 0
        lacking = [each for each in chosen if each.output.name and (each.inner or not objects.whole(each.output.name))]
        shared = [each for each in lacking if _is_shared(links, each.output)]
        if shared:
            formers = Formers(repo, context.store)
            pointers = {each.output.path: each.output.pointer for each in shared}
            for group in _by_remote(links, objects, shared, done):
                used.append(group.remote.name)
                link, most = links.of(group.remote), params.get("max_size")
                fetching = _Fetching(context, repo, objects, link, group, done, most, arrivals)
                fetching.run(formers, pointers)
        # What one remote lacks may have come from another.
        came = [
            name for name, size in zip(done.missing, objects.sizes(list(done.missing)), strict=True) if size is not None
        ]
        for name in came:
            del done.missing[name]
    _fetch_imports(context, repo, objects, lacking, done, used, params)
    git = repo.git
    names = [each.output.name for each in chosen if each.output.name is not None]
    context.seen(repo.root, None if git is None else git.git_dir, names)
    if done.objects and export.exports(repo, os.environ):
        export.export_outputs(context, repo, dict.fromkeys(each.output for each in chosen))
    return {
        "objects": done.objects,
        "bytes": done.bytes,
        "requests": done.requests,
        "beyond": done.beyond,
        "missing": rows(done.missing),
        "damaged": rows(done.damaged),
        "remotes": used,
        "runs": runs,
    }


def _is_shared(links: Links, output: Output) -> bool:
    """Whether a remote of the project may have it: not what is imported from a repository, nor from a url where there is no remote."""
    if output.imported is None:
        return True
    if output.imported.is_repo or not output.push:
        return False
    try:
        links.remote_of(output.remote)
    except RemoteConfigError:
        return False
    return True


def _fetch_imports(
    context: VerbContext,
    repo: Repo,
    objects: Objects,
    lacking: Sequence[Choice],
    done: Fetched,
    used: list[str],
    params: dict[str, Any],
) -> None:
    """Bring imports that no remote had from where they are from. What is not there any more is missing if that is allowed, else its
    error comes when all others are here."""
    imports, first = Imports(context, repo, params.get("jobs")), None
    for output in dict.fromkeys(each.output for each in lacking if each.output.imported is not None):
        assert output.name is not None
        if objects.whole(output.name):
            continue
        try:
            found = imports.bring(output)
        except ObjectMissingError as error:
            first = first or error
            done.missing.setdefault(output.name, output.path)
            continue
        done.objects += 1 if found.nfiles is None else found.nfiles + 1
        done.bytes += found.size or 0
    if first is not None and not params.get("allow_missing"):
        raise first
    used += imports.sources
    if imports.sources:
        gone = list(done.missing)
        sizes = dict(zip(gone, objects.sizes(gone), strict=True))
        done.missing = {name: path for name, path in done.missing.items() if sizes[name] is None}


def _by_remote(links: Links, objects: Objects, lacking: Sequence[Choice], done: Fetched) -> list[Group]:
    """Groups of what is lacking in the store. Without any remote configured, what is lacking here is told by name."""
    try:
        return groups(links, objects, lacking, pushing=False)
    except RemoteConfigError as error:
        lacking = [each for each in lacking if not _at_hand(objects, each)]
        if not lacking:
            return []
        output = lacking[0].output
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise RemoteConfigError(
            f"'{output.path}' ({output.name}){more} is not here, and {error.message}", path=output.path, hint=error.hint
        ) from error


def _at_hand(objects: Objects, choice: Choice) -> bool:
    """Whether all of it is here, in DVC's cache perhaps."""
    names = [name for name, _ in export.objects_of(choice.output, objects)]
    return None not in objects.sizes(names)


class _Fetching:
    """One remote's part of a fetch."""

    def __init__(
        self,
        context: VerbContext,
        repo: Repo,
        objects: Objects,
        link: Link,
        group: Group,
        done: Fetched,
        max_size: int | None,
        arrivals: Arrivals | None,
    ) -> None:
        self._context = context
        self._repo = repo
        self._objects = objects
        self._link = link
        self._group = group
        self._done = done
        self._max_size = max_size
        self._arrivals = arrivals
        self._total = 0

    def run(self, formers: Formers, pointers: Mapping[str, str]) -> None:
        """`pointers`: of each output, by its path."""
        group = self._group
        before = self._link.transfer.requests
        lacking = [name for name, entries in group.manifests.items() if entries is None]
        self._manifests(lacking, formers, pointers)
        names = list(group.files)
        todo = [name for name, size in zip(names, self._objects.sizes(names), strict=True) if size is None]
        if self._max_size is not None:
            todo = self._small(todo, self._max_size)
        self._total = self._done.objects + len(todo)
        if self._arrivals is not None and todo:
            self._expect(self._arrivals)
        self._files([name for name in todo if name.algo != LEGACY])
        self._legacy([name for name in todo if name.algo == LEGACY])
        self._link.lacks(group, self._done.missing.keys() | self._done.damaged.keys())
        self._done.requests += self._link.transfer.requests - before

    def _manifests(self, names: Sequence[ObjectName], formers: Formers, pointers: Mapping[str, str]) -> None:
        """Bring manifests that are lacking, then note what they name."""
        for part in in_parts(names, 256):
            raw: dict[ObjectName, bytearray] = {name: bytearray() for name in part}
            for got in self._link.transfer.download(part):
                if got.error is not None:
                    self._done.missing[got.name] = self._group.paths[got.name]
                raw[got.name] += got.data
            for name, data in raw.items():
                if name in self._done.missing:
                    continue
                if not is_md5(data, name.hex):
                    self._done.damaged[name] = self._group.paths[name]
                    continue
                path = self._group.paths[name]
                formers.put(bytes(data), path, pointers[path])
                self._done.objects += 1
                self._done.bytes += len(data)
                self._group.take(name, bytes(data))
        self._context.store.commit()

    def _small(self, names: Sequence[ObjectName], most: int) -> list[ObjectName]:
        """Those that are no larger, and those that are nowhere."""
        sizes = self._link.present(names)
        self._done.beyond += sum(1 for size in sizes.values() if size > most)
        return [name for name in names if sizes.get(name, 0) <= most]

    def _expect(self, arrivals: Arrivals) -> None:
        for name, entries in self._group.manifests.items():
            if entries is not None and self._group.is_whole(name):
                arrivals.expect(self._group.paths[name], name, entries)

    def _files(self, names: Sequence[ObjectName]) -> None:
        def stored(wanted: ObjectName, found: ObjectName, size: int) -> None:
            self._count(wanted, found.hex == wanted.hex, size)

        keep = None if self._arrivals is None else self._arrivals.take
        put_all(self._context.store, self._arriving(names), stored, self._link.transfer.stored, keep)

    def _arriving(self, names: Sequence[ObjectName]) -> Iterator[tuple[ObjectName, Data, bool]]:
        for part in self._link.transfer.download(names):
            if part.error is not None:
                self._absent(part)
            else:
                yield part.name, part.data, part.last

    def _absent(self, part: Part) -> None:
        self._done.missing[part.name] = self._group.path(part.name)
        self._link.known.drop([part.name])

    def _count(self, name: ObjectName, is_right: bool, size: int) -> None:
        done = self._done
        if not is_right:
            done.damaged[name] = self._group.path(name)
            return
        done.objects += 1
        done.bytes += size
        self._context.progress("fetching", (done.objects, self._total), (done.bytes, None))

    def _legacy(self, names: Sequence[ObjectName]) -> None:
        """Objects as DVC 2 names them, text by what it is without CRs: what MD5 names as well goes to the store, the rest to DVC's
        own cache, where such names are."""
        with Staging() as staging:
            staged: Staged | None = None
            size = 0
            try:
                for part in self._link.transfer.download(names):
                    if part.error is not None:
                        self._absent(part)
                        continue
                    if staged is None:
                        path = self._repo.cache.path_of(part.name)
                        assert path is not None
                        os.makedirs(os.path.dirname(path), exist_ok=True)
                        staged, size = staging.open(path), 0
                    staging.write(staged, memoryview(part.data))
                    size += len(part.data)
                    if part.last:
                        self._count(part.name, self._keep(staging, staged, part.name), size)
                        staged = None
            except OSError as error:
                raise write_error(error) from error
            finally:
                if staged is not None:
                    staging.drop(staged)
        self._context.store.commit()
        self._link.transfer.stored()

    def _keep(self, staging: Staging, staged: Staged, name: ObjectName) -> bool:
        """Whether the file is what its name says; then it has its place."""
        path = f"/proc/self/fd/{staged.fd}"
        found = []
        for algo in ("md5", LEGACY):
            with open(path, "rb") as file:
                found.append(digest_of(file, algo))
        if found[1] == name.hex and found[0] != name.hex:
            os.fsync(staged.fd)
            staging.place(staged, mode=0o444)
            return True
        if found[0] == name.hex:
            list(self._context.store.put_files([path]))
        staging.drop(staged)
        return found[0] == name.hex
