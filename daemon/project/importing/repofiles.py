"""Which files another repository has at a path, and where the bytes of each are: in its Git, or an object of its tracked data."""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from millpond.daemon.errors import (
    CredentialsError,
    InvalidFileError,
    MillpondError,
    ObjectMissingError,
    RemoteConfigError,
    RemoteError,
    StoreDamagedError,
    TargetError,
)
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data, ObjectStore
from millpond.daemon.project import ignore, manifest, outputs
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.gitrepo import TreeFile
from millpond.daemon.project.hashing import Digest, is_md5
from millpond.daemon.project.ignore import DVC_DIR, IGNORE_FILE, FolderRules
from millpond.daemon.project.importing.external import External
from millpond.daemon.project.importing.source import shown_url
from millpond.daemon.project.outputs import GitTree, Output
from millpond.daemon.project.paths import printable
from millpond.daemon.project.sharing import Link, Links
from millpond.daemon.project.stages import STAGES_FILE
from millpond.daemon.remote.download import Part
from millpond.daemon.remote.silence import Tell

_READ_BYTES = 1 << 20
# Links that lead to links.
_MOST_LINKS = 8
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


@contextlib.contextmanager
def opened(
    external: External, path: str, store: ObjectStore, *, jobs: int | None = None, tell: Tell | None = None
) -> Iterator[RepoFiles]:
    """The files at `path` (relative to the repository's root; "." for all). `tell` is told of remotes that are silent.

    Raises TargetError when nothing is there, ObjectMissingError and as RepoFiles.read for a manifest that cannot be had.
    """
    found = _Finding(external, store, jobs, tell).run(path)
    try:
        yield found
    finally:
        found.close()


class _Finding:
    """One look at a repository's tree."""

    def __init__(self, external: External, store: ObjectStore, jobs: int | None, tell: Tell | None) -> None:
        self._external = external
        self._store = store
        self._jobs = jobs
        self._tell = tell
        self._skipped: list[str] = []
        # Manifests are read once.
        self._read: dict[str, dict[str, Item]] = {}
        git, commit, prefix = external.git, external.commit, external.prefix
        cut = len(prefix) + 1 if prefix else 0
        self._files = {file.path[cut:]: file for file in git.files(commit, prefix) if file.mode != 0o160000}
        inside = (f"/{path}".partition(f"/{DVC_DIR}/") for path in self._files)
        self._projects = {folder.lstrip("/") for folder, found, _ in inside if found}
        self._outputs = {
            output.path: output
            for output in outputs.collect(GitTree(git, commit, prefix))
            if output.cache and not output.stale
        }

    def run(self, path: str) -> RepoFiles:
        wanted = posixpath.normpath(path.lstrip("/") or ".")
        wanted = "" if wanted == "." else wanted
        for _ in range(_MOST_LINKS):
            holder = next((out for each in _up(wanted) if (out := self._outputs.get(each)) is not None), None)
            if holder is not None and (holder.path == wanted or holder.is_dir):
                return self._tracked(holder, wanted)
            file = self._files.get(wanted)
            if file is None:
                return self._folder(path, wanted)
            if not file.is_link:
                return self._made(False, {"": self._item(wanted, file)}, None)
            wanted = self._target(wanted, file)
        raise TargetError(f"'{printable(path)}' is a link that leads nowhere", path=printable(path))

    def _made(self, is_dir: bool, items: dict[str, Item], output: Output | None) -> RepoFiles:
        paths = sorted(items, key=manifest.sort_key)
        url = self._external.url
        problem = manifest.problem(paths, ["0" * 32] * len(paths)) if is_dir else None
        if problem is not None:
            raise InvalidFileError(f"'{shown_url(url)}' at {self._external.commit[:10]} {problem}", path=shown_url(url))
        files = [items[path] for path in paths]
        more = self._jobs, self._skipped, self._tell
        return RepoFiles(self._external, self._store, url, is_dir, paths, files, output, *more)

    def _tracked(self, output: Output, wanted: str) -> RepoFiles:
        """A tracked output, or what it has at a path."""
        inner = wanted[len(output.path) + 1 :]
        if output.name is None:
            shown = printable(output.path)
            raise TargetError(f"'{shown}' has no data there: it was never committed", path=shown)
        if not output.is_dir:
            return self._made(False, {"": Item(self._owner(output.path), None, output.name, output)}, output)
        entries = self._entries(output)
        if inner in entries:
            return self._made(False, {"": entries[inner]}, None)
        prefix = f"{inner}/" if inner else ""
        below = {path[len(prefix) :]: item for path, item in entries.items() if path.startswith(prefix)}
        if inner and not below:
            raise self._absent(wanted)
        return self._made(True, below, None if inner else output)

    def _folder(self, path: str, wanted: str) -> RepoFiles:
        """All that a folder has: Git's files, and the tracked data in it, but not what other repositories inside have."""
        prefix = f"{wanted}/" if wanted else ""
        owner = self._owner(wanted)
        items: dict[str, Item] = {}
        # Who asks for what is ruled out by name gets it.
        rules: dict[str, FolderRules | None] = {wanted: self._read_rules(wanted, owner)}
        for each, file in self._files.items():
            if each.startswith(prefix) and self._is_seen(each, owner, rules):
                item = self._item(each, file)
                if item.file is not None and item.file.is_link:
                    self._skipped.append(each)
                else:
                    items[each[len(prefix) :]] = item
        for output in self._outputs.values():
            if not output.path.startswith(prefix) or self._owner(output.path) != owner or output.name is None:
                continue
            below = self._entries(output) if output.is_dir else {"": Item(owner, None, output.name, output)}
            for inner, item in below.items():
                items[posixpath.join(output.path, inner)[len(prefix) :] if inner else output.path[len(prefix) :]] = item
        if not items and wanted and not any(each.startswith(prefix) for each in self._files):
            raise self._absent(path)
        return self._made(True, items, None)

    def _entries(self, output: Output) -> dict[str, Item]:
        """A tracked folder's files by the path in it."""
        if output.path not in self._read:
            self._read[output.path] = self._read_entries(output)
        return self._read[output.path]

    def _read_entries(self, output: Output) -> dict[str, Item]:
        assert output.name is not None
        owner = self._owner(output.path)
        whole = self._made(False, {"": Item(owner, None, output.name, output)}, output)
        try:
            raw = b"".join(bytes(data) for _, data, _ in whole.read([0]))
        finally:
            whole.close()
        if not is_md5(raw, output.name.hex):
            raise StoreDamagedError(f"the manifest of '{printable(output.path)}' ({output.name}) is damaged")
        rows = manifest.parse(raw, source=str(output.name), algo=output.name.algo)
        return {row.relpath: Item(owner, None, row.name, output) for row in rows}

    def _item(self, path: str, file: TreeFile) -> Item:
        """A file of Git, links followed; a link to a folder stays one."""
        owner = self._owner(path)
        for _ in range(_MOST_LINKS):
            if not file.is_link:
                break
            path = self._target(path, file)
            holder = next((out for each in _up(path) if (out := self._outputs.get(each)) is not None), None)
            if holder is not None and holder.is_dir and path != holder.path:
                entry = self._entries(holder).get(path[len(holder.path) + 1 :])
                return entry or Item(owner, file)
            if holder is not None and not holder.is_dir and holder.path == path and holder.name is not None:
                return Item(owner, None, holder.name, holder)
            found = self._files.get(path)
            if found is None:
                break
            file = found
        return Item(owner, file)

    def _target(self, path: str, file: TreeFile) -> str:
        """Where a link leads, as a path of the tree. Raises TargetError for one that leads out of it."""
        text = os.fsdecode(self._external.git.read(file.oid) or b"")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), text))
        if not text or target == ".." or target.startswith(("../", "/")):
            shown = printable(path)
            raise TargetError(f"'{shown}' is a link that leads out of '{shown_url(self._external.url)}'", path=shown)
        return "" if target == "." else target

    def _owner(self, path: str) -> str:
        """The root of the DVC repository that a path belongs to."""
        return next((each for each in _up(path) if each in self._projects), "")

    def _is_seen(self, path: str, owner: str, rules: dict[str, FolderRules | None]) -> bool:
        """Whether a file of Git is data: no file of DVC's own, not ruled out by .dvcignore, not of a repository inside."""
        folder, _, name = path.rpartition("/")
        if name.endswith(".dvc") or name in (STAGES_FILE, IGNORE_FILE) or self._owner(path) != owner:
            return False
        here = self._rules(folder, owner, rules)
        return here is not None and not here.ignores(name, False)

    def _rules(self, folder: str, owner: str, known: dict[str, FolderRules | None]) -> FolderRules | None:
        """The rules in a folder, None if it is ruled out itself."""
        if folder not in known:
            above, _, name = folder.rpartition("/")
            upper = self._rules(above, owner, known) if folder else None
            if folder and (upper is None or upper.ignores(name, True)):
                known[folder] = None
            else:
                known[folder] = self._read_rules(folder, owner)
        return known[folder]

    def _read_rules(self, folder: str, owner: str) -> FolderRules:
        places = [each for each in reversed(list(_up(folder))) if each.startswith(owner)]
        found = [(each, self._files.get(posixpath.join(each, IGNORE_FILE))) for each in places]
        read = [(f"{each}/" if each else "", self._external.git.read(file.oid) or b"") for each, file in found if file]
        return ignore.in_tree(f"{folder}/" if folder else "", read)

    def _absent(self, path: str) -> TargetError:
        shown, url = printable(path), shown_url(self._external.url)
        return TargetError(
            f"'{shown}' is not in '{url}' at {self._external.commit[:10]}",
            path=shown,
            hint=f"see what is there: millpond list {url}",
        )


def _up(path: str) -> Iterable[str]:
    """A path and all folders above it, the nearest first, "" last."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""
