"""`push`: bring to remotes what they lack of the tracked data.

Files go up before the manifest that names them, and a manifest only when all of them are there: who finds it finds everything. So a
push that is cut at any point leaves whole objects that the next one need not bring again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.errors import RemoteError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.project.cacheimport import rows
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects, Place
from millpond.daemon.project.outgoing import uploads
from millpond.daemon.project.pushversions import PushingVersions, Versions, refuse_revisions
from millpond.daemon.project.recordversions import record
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.runcache import push_runs
from millpond.daemon.project.select import Choice
from millpond.daemon.project.sharing import Group, Link, Links, choices, groups, is_pushed, waiting
from millpond.daemon.remote.collecting import Marks, marks, settled
from millpond.daemon.remote.remotes import Remote
from millpond.daemon.remote.upload import Upload
from millpond.daemon.remote.versioned import no_objects

# Earlier manifests that are asked for to learn what is there.
_EARLIER = 8
# Times that a push looks again because garbage was collected meanwhile.
_ROUNDS = 5


@dataclass(slots=True)
class Pushed:
    """What went up; `missing`: objects that are neither here nor there, with a path of each; `there` were on the remote already."""

    objects: int = 0
    bytes: int = 0
    there: int = 0
    requests: int = 0
    missing: dict[ObjectName, str] = field(default_factory=dict)

    def add(self, other: Versions) -> None:
        self.objects += other.objects
        self.bytes += other.bytes
        self.there += other.there
        self.missing |= other.missing


def push(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, recursive, glob, all_branches, all_tags, all_commits, remote, jobs, run_cache} -> {objects, bytes, there, requests, missing,
    remotes, pointers}; `pointers` are files that were told versions.

    Raises NotARepoError, RemoteConfigError, RemoteError, CredentialsError, TargetError, InvalidFileError, StoreDamagedError.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    done, objects = Pushed(), Objects(context.store, repo.cache)
    versions: list[Versions] = []
    told: list[str] = []
    linked = Links(
        repo, params.get("remote"), params.get("jobs"), os.environ, versioned=True, tell=waiting(context, "push")
    )
    try:
        with context.lock(repo.root, "read"), linked as links:
            kind = links.remote_of(None).versioned
            if kind is not None:
                refuse_revisions(params, kind, links.remote_of(None).name)
                if params.get("run_cache"):
                    raise no_objects(links.remote_of(None).name, kind)
            plain, versioned = _parted(links, choices(repo, params))
            found = groups(links, objects, plain, pushing=True)
            for group in found:
                link = links.of(group.remote)
                try:
                    _Pushing(context, objects, link, group, done).run()
                except RemoteError:
                    link.transfer.backend.refuse_writing()  # that matters more than that it cannot be asked
                    raise
            for remote, chosen in versioned:
                refuse_revisions(params, str(remote.versioned), remote.name)
                pushing = PushingVersions(context, objects, links.of(remote), chosen)
                versions.append(pushing.done)
                pushing.run()
                done.requests += links.of(remote).transfer.requests
            # As DVC counts them.
            done.objects += push_runs(context, repo, links) if params.get("run_cache") else 0
    finally:
        if any(each.found for each in versions):
            with context.lock(repo.root, "write"):
                for each in versions:
                    told += record(repo, objects, each.found)
    for each in versions:
        done.add(each)
    return {
        "objects": done.objects,
        "bytes": done.bytes,
        "there": done.there,
        "requests": done.requests,
        "missing": rows(done.missing),
        "remotes": [group.remote.name for group in found] + [each.remote for each in versions],
        "pointers": [repo.wire(path) for path in told],
    }


def _parted(links: Links, chosen: Sequence[Choice]) -> tuple[list[Choice], list[tuple[Remote, list[Choice]]]]:
    """What goes to remotes of objects; and what goes to each that keeps versions itself. Raises RemoteConfigError."""
    plain: list[Choice] = []
    versioned: dict[str, tuple[Remote, list[Choice]]] = {}
    for choice in chosen:
        if is_pushed(choice.output):
            remote = links.remote_of(choice.output.remote)
            mine = plain if remote.versioned is None else versioned.setdefault(remote.name, (remote, []))[1]
            mine.append(choice)
    return plain, list(versioned.values())


class _Pushing:
    """One remote's part of a push."""

    def __init__(self, context: VerbContext, objects: Objects, link: Link, group: Group, done: Pushed) -> None:
        self._context = context
        self._objects = objects
        self._link = link
        self._group = group
        self._done = done
        # What is on the remote for certain.
        self._there: set[ObjectName] = set()
        # Manifests that are complete there, to be noted.
        self._whole: set[ObjectName] = set()
        # Where those that the remote was asked for are at hand.
        self._places: dict[ObjectName, Place | None] = {}
        self._total = 0, 0

    def run(self) -> None:
        """Push; and again what a collection on the remote may have removed meanwhile. Raises RemoteError when collections do not end."""
        link, before = self._link, self._settled()
        for number in range(_ROUNDS):
            if self._once(before, first=number == 0):
                break
            self._context.log("info", f"garbage was collected on remote '{link.remote.name}' meanwhile: looking again")
            link.known.drop(self._group.manifests)
            before = self._settled()
        else:
            raise RemoteError(
                f"garbage was collected on remote '{link.remote.name}' again and again during this push",
                hint="push again when nobody collects there",
            )
        link.known.add(self._whole, complete=True)
        inside = {entry.name for entries in self._group.manifests.values() for entry in entries or ()}
        link.known.add(
            (name for name in self._group.files if name in self._there and name not in inside), complete=False
        )
        self._done.requests += link.transfer.requests

    def _settled(self) -> Marks | None:
        return settled(self._link.transfer, lambda why: self._context.progress("pushing", note=why))

    def _once(self, before: Marks | None, *, first: bool) -> bool:
        """Look, and send what is not there; False where what was seen there may have been removed since `before`."""
        group, done, sent = self._group, self._done, self._done.objects
        self._look()
        done.there += len(self._there) if first else 0
        files = [name for name in group.files if name not in self._there]
        # Of a folder in parts no manifest goes up: it would name what is perhaps not there.
        manifests = [name for name in group.manifests if name not in self._there and group.is_whole(name)]
        places = {name: self._places[name] for name in files}
        done.missing |= {name: group.files[name] for name, place in places.items() if place is None}
        todo = [(name, place) for name, place in places.items() if place is not None]
        self._total = done.objects + len(todo) + len(manifests), done.bytes + sum(place.size for _, place in todo)
        self._send(todo)
        if manifests and self._collected(before):
            return False
        self._send_manifests(manifests)
        return done.objects == sent or not self._collected(before)

    def _collected(self, before: Marks | None) -> bool:
        return before is not None and marks(self._link.transfer) != before

    def _look(self) -> None:
        """Ask what is there: first for the manifests, which prove what they name when it was seen there before."""
        link, group = self._link, self._group
        self._there.clear()
        self._whole.clear()
        manifests = [name for name in group.manifests if group.is_whole(name)]
        seen = link.known.of(manifests)
        asked = self._manifests_there(list(seen))
        for name in seen:
            entries = group.manifests[name]
            if name in asked and entries is not None:
                self._there.add(name)
                self._there.update(entry.name for entry in entries)
        self._look_at_earlier({entry.name for entries in group.manifests.values() for entry in entries or ()})
        # Single files are asked for each time, as manifests are.
        rest = [name for name in group.files if name not in self._there]
        self._places = dict(zip(rest, self._objects.places(rest), strict=True))

        def tick(done: int, total: int) -> None:
            self._context.progress("looking at the remote", (done, total))

        for name, size in link.present(rest, tick).items():
            place = self._places[name]
            if (
                place is None or place.size == size
            ):  # one of another length was cut by somebody's tool: it is written again
                self._there.add(name)
        others = [name for name in manifests if name not in self._there]
        for name in self._manifests_there(others):
            entries = group.manifests[name]
            if entries is None or all(entry.name in self._there for entry in entries):
                self._there.add(name)
        self._whole.update(name for name in others if name in self._there and group.manifests[name] is not None)
        # What was noted was there for good by then.
        link.transfer.sync_found(name for name in (*rest, *others) if name in self._there)

    def _manifests_there(self, names: Sequence[ObjectName]) -> set[ObjectName]:
        """Those that the remote has, as long as here: a cut one is written again."""
        there = self._link.present(names)
        sizes = dict(zip(names, self._objects.sizes(names), strict=True))
        return {name for name in there if sizes[name] in (None, there[name])}

    def _look_at_earlier(self, inside: set[ObjectName]) -> None:
        """Have earlier versions that are complete there prove those of `inside`, what manifests name, that they name as well."""
        link = self._link
        lacking = inside & (self._group.files.keys() - self._there)
        if not lacking:
            return
        earlier = [name for name in link.known.latest(_EARLIER) if name not in self._group.manifests]
        for name in link.present(earlier) if earlier else ():
            raw = self._objects.manifest(name)
            if raw is not None and lacking:
                named = {entry.name for entry in manifest.parse(raw, source=str(name), algo=name.algo)} & lacking
                self._there |= named
                lacking -= named

    def _send(self, todo: Sequence[tuple[ObjectName, Place]]) -> None:
        before, gone = self._done.bytes, 0

        def went(size: int) -> None:
            """What is under way counts among the bytes, not yet among the objects."""
            nonlocal gone
            gone = size
            self._context.progress("pushing", (self._done.objects, self._total[0]), (before + gone, self._total[1]))

        def created(sent: Sequence[Upload]) -> None:
            self._done.objects += len(sent)
            self._done.bytes += sum(each.size for each in sent)
            self._there.update(each.name for each in sent)
            went(gone)

        sending = uploads(self._objects, [(name, place, None) for name, place in todo])
        self._link.transfer.upload(sending, created=created, went=went)

    def _send_manifests(self, manifests: Sequence[ObjectName]) -> None:
        """Those whose files are all there now."""
        group, done = self._group, self._done
        uploads, whole = [], []
        for name in manifests:
            entries = group.manifests[name]
            raw = None if entries is None else self._objects.manifest(name)
            if raw is None:
                done.missing[name] = group.paths[name]
            elif entries is not None and all(entry.name in self._there for entry in entries):
                uploads.append(Upload(name, len(raw), [raw]))
                whole.append(name)

        def created(sent: Sequence[Upload]) -> None:
            done.objects += len(sent)
            done.bytes += sum(each.size for each in sent)
            self._there.update(each.name for each in sent)
            self._whole.update(each.name for each in sent)

        self._link.transfer.upload(uploads, created=created)
