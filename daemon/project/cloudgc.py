"""`gc --cloud`: what goes from remotes; `gc --not-in-remote`: what stays here because no remote has it.

What the chosen revisions name stays, under either of DVC's layouts. Manifests go before the files that they name, so who finds one there
finds its files. What is younger than the grace period stays, with what young manifests name: a push may be under way.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import MillpondError
from millpond.daemon.names import DIR_SUFFIX, ObjectName
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.following import Follower
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.roots import ProjectRoots
from millpond.daemon.project.select import Choice
from millpond.daemon.project.sharing import Link, Links, groups, place_of
from millpond.daemon.remote import remotes
from millpond.daemon.remote.collecting import Collection
from millpond.daemon.remote.layout import digest_of
from millpond.daemon.remote.presence import PARENTS, PREFIXES
from millpond.daemon.remote.remotes import Remote
from millpond.daemon.store.ledger import MANIFEST, root_of, unpacked

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext

# Objects of a plan that are named.
_SHOWN = 5
# Temporary files that nobody has touched for so long, in seconds, are left by who was killed: a file waits for its name until the large one
# behind it is written.
_LEFT_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class _Garbage:
    """An object of a remote that nothing in scope names; `modified` in seconds since 1970."""

    key: str
    root: bytes
    size: int
    modified: float


@dataclass(slots=True)
class _Plan:
    """What goes from one remote."""

    link: Link
    kept: list[int] = field(default_factory=lambda: [0, 0])
    young: list[int] = field(default_factory=lambda: [0, 0])
    garbage: list[_Garbage] = field(default_factory=list)
    # Temporary files of pushes that were killed: how many, and their bytes; when it is done, of those that were removed.
    left: list[int] = field(default_factory=lambda: [0, 0])


class CloudSweep:
    """A collection on all remotes in question. Made while the store's lock is held; `plan`, then `remove`."""

    def __init__(self, context: WorkerContext, repo: Repo, links: Links, params: Mapping[str, Any]) -> None:
        """params: {remote, grace_s, skip_failed, dry, left_only}."""
        self._context = context
        self._repo = repo
        self._links = links
        self._params = params
        self._running = contextlib.ExitStack()
        self._collections: dict[str, Collection] = {}
        self._plans: list[_Plan] = []
        self._shared: list[Repo] = []

    def plan(
        self,
        keep: set[bytes],
        outs: Mapping[str, Sequence[Output]],
        scoped: Mapping[str, ProjectRoots],
        others: Iterable[str],
        grace_s: float,
    ) -> None:
        """Find what goes. `keep` and `outs` (by path) are of the projects in scope, `scoped`; `others` are the caller's other projects: where they
        use one of the remotes, or cannot be read, all that they need stays. Raises as Follower.members, and BusyError."""
        used = self._used(outs[self._repo.root])
        held = self._held(used, scoped, others)
        links = [*used, *self._further(used)]
        must = {
            root_of(out.name): out.path
            for found in outs.values()
            for out in found
            # Those with `files` have no manifest of their own: their pointers name all that is in them; imports from repositories
            # are on no remote of this project.
            if out.name is not None and out.name.is_dir and out.cache and not out.files
            if out.imported is None or not out.imported.is_repo
        }
        caches = [
            self._repo,
            *(Repo.open(path, os.environ) for path in scoped if path != self._repo.root),
            *self._shared,
        ]
        places = [Objects(self._context.store, each.cache) for each in caches]
        follower = Follower(self._context, places, links, must, skip=bool(self._params.get("skip_failed")))
        keep = keep | held
        keep |= follower.members(keep)
        for link in used:
            self._plans.append(self._look(link, keep, follower, grace_s))

    def report(self, roots: ProjectRoots) -> list[dict[str, Any]]:
        """[{name, url, kept, young, removed: {objects, bytes}, left: {files, bytes}, directories, oldest, newest, shown: [[name, path]],
        shared: [path]}]; times in seconds since 1970, None where nothing goes; paths in wire form."""
        wanted = {each.root for plan in self._plans for each in plan.garbage}
        paths = roots.paths(wanted) if wanted else {}
        return [self._report(plan, paths) for plan in self._plans]

    def remove(self) -> None:
        """Remove it: manifests, and when they are gone for good, files. Notes of what was there go first. Raises RemoteError, CredentialsError;
        what is left then goes the next time."""
        with self._running:
            for plan in self._plans:
                collection = self._collections[plan.link.remote.name]
                total = len(plan.garbage)
                manifests = [each for each in plan.garbage if each.root[0] == MANIFEST]
                plan.link.known.drop(_name(each.root) for each in plan.garbage)
                done = 0
                for part in (manifests, [each for each in plan.garbage if each.root[0] != MANIFEST]):
                    for count in plan.link.transfer.delete([each.key for each in part], collection.go_on):
                        self._context.progress("removing from the remote", (done + count, total))
                    done += len(part)
                self._sweep(plan, collection)

    def _sweep(self, plan: _Plan, collection: Collection) -> None:
        """Remove what pushes to a directory left there when they were killed long ago."""
        staging = plan.link.transfer.backend.staging
        if staging is None:
            return
        plan.left = [0, 0]
        try:
            folders = (*PARENTS, *PREFIXES)
            for number, folder in enumerate(folders, 1):
                collection.go_on()
                for size in staging.sweep(folder, collection.now - _LEFT_S):
                    _count(plan.left, size)
                self._context.progress("removing what killed pushes left", (number, len(folders)))
        except OSError as error:
            self._context.log(
                "warning", f"what killed pushes left on '{plan.link.remote.name}' cannot be removed: {error}"
            )

    def close(self) -> None:
        """End what is said to be under way."""
        self._running.close()

    def _used(self, outs: Sequence[Output]) -> list[Link]:
        """The remotes that are collected: with -r that one, else the default one and those that outputs name."""
        wanted = [self._links.remote_of(None)]
        if self._params.get("remote") is None:
            wanted += [self._links.remote_of(out.remote) for out in outs if out.remote]
        return [self._links.of(remote) for remote in {place_of(each): each for each in wanted}.values()]

    def _further(self, used: Sequence[Link]) -> Iterator[Link]:
        """Other remotes that may have a manifest, as far as they can be used."""
        for name in sorted(self._repo.config.remotes):
            if name not in {link.remote.name for link in used}:
                with contextlib.suppress(MillpondError):
                    yield self._links.of(self._links.remote_of(name))

    def _held(self, used: Sequence[Link], scoped: Mapping[str, ProjectRoots], others: Iterable[str]) -> set[bytes]:
        """What must stay beside the scope: pins, mounts, other projects."""
        found: set[bytes] = set()
        # Which endpoint is meant may be in each project's environment: one url is taken for one place.
        places = {_url(link.remote) for link in used}
        unread = []
        for path in others:
            self._context.progress("reading projects", note=path)
            try:
                other = Repo.open(path, os.environ)
                if places & {_url(remotes.find(other.config, name)) for name in other.config.remotes}:
                    root = None if other.git is None else other.git.root
                    found |= ProjectRoots(other.root, root, os.environ).everything()
                    self._shared.append(other)
            except (MillpondError, OSError):
                unread.append(wirepath.encode(path))
        answer, fds = self._context.client.call("gc.held", {"projects": unread})
        with memfd.mapped(fds[0]) as view:
            found.update(unpacked(view))
        for path, roots in scoped.items():
            if wirepath.encode(path) in answer["whole"]:
                found |= roots.everything()
        return found

    def _look(self, link: Link, keep: set[bytes], follower: Follower, grace_s: float) -> _Plan:
        plan = _Plan(link)
        now = time.time()
        if not self._params.get("dry"):
            collection = self._running.enter_context(Collection(link.transfer.backend))
            self._collections[link.remote.name] = collection
            now = collection.now
        found: list[_Garbage] = []
        for number, page in enumerate(link.transfer.listings(PREFIXES), 1):
            self._context.progress("listing the remote", (number, len(PREFIXES)))
            for entry in page:
                value = digest_of(entry.key)
                if value is None:
                    continue
                root = root_of(ObjectName("md5", value))
                if root in keep:
                    _count(plan.kept, entry.size)
                else:
                    found.append(_Garbage(entry.key, root, entry.size, entry.modified))
        # What somebody pushes now may name what has been there for long.
        young = {each.root for each in found if each.modified > now - grace_s}
        spared = follower.members(young)
        for each in found:
            if each.root in spared or each.root in young:
                _count(plan.kept, each.size)
                _count(plan.young, each.size)
            elif not self._params.get("left_only"):
                plan.garbage.append(each)
        staging = link.transfer.backend.staging
        if staging is not None:
            with contextlib.suppress(OSError):  # who removes them is told
                for _, size in chain.from_iterable(
                    staging.left(prefix, now - _LEFT_S) for prefix in (*PARENTS, *PREFIXES)
                ):
                    _count(plan.left, size)
        return plan

    def _report(self, plan: _Plan, paths: Mapping[bytes, str]) -> dict[str, Any]:
        garbage = plan.garbage
        manifests = [each for each in garbage if each.root[0] == MANIFEST]
        # What people know by a path first, then the newest.
        known = sorted(garbage, key=lambda each: (each.root not in paths, each.root[0] != MANIFEST, -each.modified))
        shown = [
            [_name(each.root).value, wirepath.encode(paths[each.root]) if each.root in paths else None]
            for each in known[:_SHOWN]
        ]
        return {
            "name": plan.link.remote.name,
            "url": plan.link.transfer.backend.url,
            "kept": {"objects": plan.kept[0], "bytes": plan.kept[1]},
            "young": {"objects": plan.young[0], "bytes": plan.young[1]},
            "removed": {"objects": len(garbage), "bytes": sum(each.size for each in garbage)},
            "left": {"files": plan.left[0], "bytes": plan.left[1]},
            "directories": len(manifests),
            "oldest": min((each.modified for each in garbage), default=None),
            "newest": max((each.modified for each in garbage), default=None),
            "shown": shown,
            "shared": [wirepath.encode(each.root) for each in self._shared],
        }


def not_in_remote(
    context: VerbContext, repo: Repo, links: Links, keep: set[bytes], outs: Mapping[str, Sequence[Output]]
) -> set[bytes]:
    """Those of `keep` that no remote of theirs has, asked now; an object of another size there counts as not there. A manifest that it has
    is kept no more, but those of its files that it has not are. `outs` by project: what others name remotes of their own for stays. Raises
    RemoteConfigError, RemoteError, CredentialsError."""
    objects = Objects(context.store, repo.cache)
    named_here = [out for path, found in outs.items() for out in found if path == repo.root or out.remote is None]
    chosen = [Choice(out) for out in dict.fromkeys(named_here) if out.name is not None and out.cache]
    pushed: set[bytes] = set()
    named: set[bytes] = set()
    for group in groups(links, objects, chosen, pushing=False):
        names = [*group.manifests, *group.files]

        def tick(done: int, total: int) -> None:
            context.progress("looking at the remote", (done, total))

        link = links.of(group.remote)
        there = link.present(names, tick)
        link.transfer.sync_found(there)
        named.update(root_of(name) for name in names)
        for name, size in zip(names, objects.sizes(names), strict=True):
            if name in there and (size is None or there[name] == size):
                pushed.add(root_of(name))
    return (keep | named) - pushed


def _url(remote: Remote) -> str:
    return place_of(remote).partition("\0")[0]


def _name(root: bytes) -> ObjectName:
    return ObjectName("md5", root[1:].hex() + (DIR_SUFFIX if root[0] == MANIFEST else ""))


def _count(part: list[int], size: int) -> None:
    part[0] += 1
    part[1] += size
