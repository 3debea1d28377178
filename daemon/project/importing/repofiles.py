"""The files that another repository has at a path, and the bytes of each: from its Git, from the store or a cache, or from its remote."""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from millpond.daemon.errors import (
    CredentialsError,
    MillpondError,
    ObjectMissingError,
    RemoteConfigError,
    RemoteError,
    StoreDamagedError,
    TargetError,
)
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data, ObjectStore
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.gitrepo import TreeFile
from millpond.daemon.project.hashing import Digest
from millpond.daemon.project.importing.external import External
from millpond.daemon.project.importing.urls import shown_url
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.paths import printable
from millpond.daemon.project.sharing import Link, Links
from millpond.daemon.remote.download import Part
from millpond.daemon.remote.silence import Tell

_READ_BYTES = 1 << 20
_LFS = b"version https://git-lfs.github.com/spec/v1"


@dataclass(frozen=True, slots=True)
class Item:
    """A file: of Git (`file`), or an object (`name`) of a tracked output; `project` is the root of the repository that it belongs to."""

    project: str
    file: TreeFile | None = None
    name: ObjectName | None = None
    output: Output | None = None


@dataclass(slots=True)
class RepoFiles:
    """The files at a path, as a Source: `paths` below it in a manifest's order, [""] for a file. `names` are those of objects, None for
    Git's files. A size is 0 where it is not known. `output` is the tracked output that the path is, if it is one as a whole. `skipped` are links to
    folders."""

    external: External
    store: ObjectStore
    url: str
    is_dir: bool
    paths: list[str]
    items: list[Item]
    output: Output | None
    jobs: int | None
    skipped: list[str]
    tell: Tell | None
    sizes: list[int] = field(init=False)
    _links: dict[str, Links] = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        names = [item.name for item in self.items if item.name is not None]
        at_hand = iter(self._objects("").sizes(names))
        self.sizes = []
        for item in self.items:
            size = next(at_hand) if item.name is not None else None
            if item.file is not None:
                size = item.file.size
            elif size is None and item.output is not None and item.output.name == item.name:
                size = item.output.size
            self.sizes.append(size or 0)

    @property
    def names(self) -> list[ObjectName | None]:
        return [item.name for item in self.items]

    def token(self) -> dict[str, Any] | None:
        return None

    def close(self) -> None:
        self._stack.close()

    def read(self, indexes: Sequence[int]) -> Iterator[tuple[int, Data, bool]]:
        """The contents of these files, in an order of its own; each checked against its name when its last bytes are given.
        Raises ObjectMissingError, StoreDamagedError, RemoteConfigError, RemoteError, CredentialsError, RevisionError."""
        remote: dict[tuple[str, str | None], list[int]] = {}
        stored: list[tuple[int, ObjectName]] = []
        for project in dict.fromkeys(self.items[index].project for index in indexes):
            mine = [index for index in indexes if self.items[index].project == project]
            named = [(index, name) for index in mine if (name := self.items[index].name) is not None]
            objects = self._objects(project)
            for (index, _), place in zip(named, objects.places([name for _, name in named]), strict=True):
                output = self.items[index].output
                if place is None:
                    remote.setdefault((project, output.remote if output is not None else None), []).append(index)
                elif place.in_store:
                    stored.append((index, place.name))
                else:
                    yield from self._cached(objects, index, place.name)
            for index in mine:
                if (file := self.items[index].file) is not None:
                    yield index, self._blob(file), True
        yield from self._stored(stored)
        for (project, own), rest in remote.items():
            yield from self._remote(project, own, rest)

    def link(self, project: str, own: str | None) -> Link:
        """The remote of a repository's output whose entry says `own`. Raises RemoteConfigError that tells whose it is."""
        if project not in self._links:
            repo = self.external.project(project)
            self._links[project] = self._stack.enter_context(
                Links(repo, None, self.jobs, self.external.environ, versioned=True, tell=self.tell)
            )
        links = self._links[project]
        return links.of(links.remote_of(own))

    def _objects(self, project: str) -> Objects:
        return Objects(self.store, self.external.project(project).cache)

    def _stored(self, wanted: list[tuple[int, ObjectName]]) -> Iterator[tuple[int, Data, bool]]:
        at = 0
        for piece in self.store.fetch(name for _, name in wanted):
            yield wanted[at][0], piece.data, piece.last
            at += piece.last

    def _cached(self, objects: Objects, index: int, name: ObjectName) -> Iterator[tuple[int, Data, bool]]:
        found = objects.cache.open(name)
        if found is None:
            raise ObjectMissingError(
                f"object {name} vanished from the cache of '{shown_url(self.url)}'", hint="try again"
            )
        with os.fdopen(found[0], "rb") as file:
            while data := file.read(_READ_BYTES):
                yield index, data, False
        yield index, b"", True

    def _blob(self, file: TreeFile) -> bytes:
        raw = self.external.git.read(file.oid)
        shown = printable(file.path)
        if raw is None:
            raise ObjectMissingError(f"'{shown}' is not in the clone of '{shown_url(self.url)}'", path=shown)
        if raw.startswith(_LFS):
            raise TargetError(
                f"'{shown}' of '{shown_url(self.url)}' is kept by Git LFS, which is not read here",
                path=shown,
                hint="clone the repository with Git LFS, and add the file from there",
            )
        return raw

    def _remote(self, project: str, own: str | None, indexes: list[int]) -> Iterator[tuple[int, Data, bool]]:
        first = indexes[0]
        try:
            link = self.link(project, own)
        except RemoteConfigError as error:
            raise ObjectMissingError(
                f"{self._what(first)} is neither here nor in a cache of '{shown_url(self.url)}', and there {error.message}",
                path=self._path(first),
                hint="push it there to a remote; or name one that has it: --remote NAME, --remote-config url=...",
            ) from error
        failed: dict[int, MillpondError] = {}
        yield from self._from(link, indexes, failed)
        for other in self._others(project, link) if failed else ():
            again: dict[int, MillpondError] = {}
            yield from self._from(other, list(failed), again)
            failed = {index: failed[index] for index in again}
            if not failed:
                break
        for first_error in failed.values():  # what the first remote said
            raise first_error

    def _others(self, project: str, first: Link) -> Iterator[Link]:
        """The other remotes that are configured there, but where one was asked for by name."""
        repo, settings = self.external.project(project), self.external.settings
        if settings.remote or settings.remote_config:
            return
        for name in sorted(repo.config.remotes):
            if name != first.remote.name:
                with contextlib.suppress(RemoteConfigError, CredentialsError):  # a kind that is not served here
                    yield self.link(project, name)

    def _from(
        self, link: Link, indexes: list[int], failed: dict[int, MillpondError]
    ) -> Iterator[tuple[int, Data, bool]]:
        """The bytes of objects as one remote has them; `failed` gets what it lacks, has damaged, or cannot give. Raises StoreDamagedError,
        RemoteError, CredentialsError where it fails after some bytes of an object were given."""
        if link.remote.versioned:  # it knows paths, seen from its own project's root
            project = self.items[indexes[0]].project
            mine = {item.output for item in (self.items[each] for each in indexes) if item.output is not None}
            self._links[project].catalog.add(
                replace(each, path=posixpath.relpath(each.path, project or ".")) for each in mine
            )
        waiting = deque(indexes)
        begun, digests = False, [Digest("md5")]
        try:
            for part in link.transfer.download([self._name(each) for each in indexes]):
                index = waiting[0]
                if not begun:
                    # What has a name of DVC 2 may lie there under that of its bytes, without having been renamed here.
                    digests = [Digest(algo) for algo in dict.fromkeys(("md5", part.name.algo))]
                for digest in digests:
                    digest.update(part.data)
                problem = self._problem(
                    link, index, part, [digest.hexdigest() for digest in digests] if part.last else []
                )
                if problem is not None and begun:
                    raise problem
                begun = not part.last
                if part.last:
                    waiting.popleft()
                if problem is None:
                    yield index, part.data, part.last
                else:
                    failed[index] = problem
        except (RemoteError, CredentialsError) as error:
            if begun:
                raise
            failed |= dict.fromkeys(waiting, error)

    def _problem(self, link: Link, index: int, part: Part, digests: list[str]) -> MillpondError | None:
        """What is wrong with what came, or did not; `digests` of all of it, once it is there."""
        where = f"remote '{link.remote.name}' of '{shown_url(self.url)}'"
        if part.error is not None:
            return ObjectMissingError(
                f"{self._what(index)} is neither here nor on {where}",
                path=self._path(index),
                hint="push it there from where it still is",
            )
        if digests and part.name.hex not in digests:
            return StoreDamagedError(
                f"{self._what(index)} on {where} is not what its name says",
                path=self._path(index),
                hint="push it again from where it is whole",
            )
        return None

    def _name(self, index: int) -> ObjectName:
        name = self.items[index].name
        assert name is not None
        return name

    def _path(self, index: int) -> str:
        output = self.items[index].output
        base = output.path if output is not None and not self.is_dir else ""
        return printable(posixpath.join(base, self.paths[index]).rstrip("/") or self.url)

    def _what(self, index: int) -> str:
        return f"'{self._path(index)}' ({self._name(index)})"
