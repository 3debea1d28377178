"""What `push`, `fetch` and `status -c` have in common: which objects of which outputs belong on which remote, and what it holds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.errors import RemoteConfigError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import export, manifest
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.manifest import ManifestEntry
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.select import Choice
from millpond.daemon.project.statcache import user_folder
from millpond.daemon.remote import remotes
from millpond.daemon.remote.known import Known
from millpond.daemon.remote.pace import rate
from millpond.daemon.remote.partial import Partials
from millpond.daemon.remote.remotes import Remote
from millpond.daemon.remote.silence import Tell
from millpond.daemon.remote.transfer import Transfer
from millpond.daemon.remote.versioned import Catalog, no_objects


@dataclass(slots=True)
class Link:
    """A remote in use, and what was noted about it."""

    remote: Remote
    transfer: Transfer
    known: Known

    def present(
        self, names: Sequence[ObjectName], tick: Callable[[int, int], None] | None = None
    ) -> dict[ObjectName, int]:
        """Which of these the remote holds, with their sizes, asked of it now."""
        there = self.transfer.present(names, tick)
        self.known.drop(name for name in names if name not in there)
        return there

    def lacks(self, group: Group, names: Collection[ObjectName]) -> None:
        """These are not there, or not whole: no note is believed any more if a manifest that was noted as complete names one of them."""
        naming = [
            name for name, entries in group.manifests.items() if any(each.name in names for each in entries or ())
        ]
        if self.known.of(naming):
            self.known.clear()


class Links:
    """The remotes that a verb uses, each connected once; `default` is the one of -r, or of the config."""

    def __init__(
        self,
        repo: Repo,
        default: str | None,
        jobs: int | None,
        environ: Mapping[str, str],
        *,
        versioned: bool = False,
        tell: Tell | None = None,
    ) -> None:
        """With `versioned` remotes that keep versions themselves will do, too; `catalog` is to know the outputs then. `tell` is told of remotes
        that are silent, see `waiting`."""
        self.catalog = Catalog()
        self._versioned = versioned
        self._repo = repo
        self._default = default
        self._jobs = jobs
        self._environ = environ
        self._tell = tell
        self._links: dict[str, Link] = {}
        self._checked: set[str] = set()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def remote_of(self, own: str | None) -> Remote:
        """The remote for an output whose entry says `own`. Raises RemoteConfigError."""
        # As DVC has it, -r does not move what belongs elsewhere.
        remote = remotes.find(self._repo.config, own or self._default)
        if remote.scheme == "file":
            self._check_folder(remote)
        if remote.versioned and not self._versioned:
            raise no_objects(remote.name, remote.versioned)
        return remote

    def of(self, remote: Remote) -> Link:
        """A connection to it."""
        if remote.name not in self._links:
            backend = remotes.connect(remote, self._environ, self.catalog)
            jobs = self._jobs or remote.count("jobs")
            partials = Partials(os.path.join(user_folder(self._environ), "partial"), "fetch")
            made = Transfer(backend, jobs=jobs, rate=rate(self._environ), partials=partials, tell=self._tell)
            transfer = self._stack.enter_context(made)
            known = Known(place_of(remote), self._environ)
            self._stack.callback(known.close)
            self._links[remote.name] = Link(remote, transfer, known)
        return self._links[remote.name]

    def _check_folder(self, remote: Remote) -> None:
        """Once for each remote: a directory where pushing would change data, or what keeps it, is refused."""
        place, root = os.path.realpath(remote.url), os.path.realpath(self._repo.root)
        if place in self._checked:
            return
        own = {self._repo.cache.folder: "this project's own cache", self._repo.dvc_dir: "the folder .dvc itself"}
        own[os.path.join(root, ".git")] = "Git's own folder"
        if place == root:
            raise _misplaced(remote, "is the repository itself")
        if place.startswith(f"{root}/"):
            own |= {os.path.join(root, each.path): f"the tracked '{each.path}'" for each in self._repo.outputs()}
        for folder, what in own.items():
            folder = os.path.realpath(folder)
            if place == folder or place.startswith(f"{folder}/"):
                raise _misplaced(remote, f"{'is' if place == folder else 'lies in'} {what}")
        self._checked.add(place)


def waiting(context: VerbContext, doing: str) -> Tell:
    """Tells who asked for a verb for which remote it waits, and what for."""
    return lambda who, since_s: context.waiting(f"{who} ({doing})", since_s)


def _misplaced(remote: Remote, where: str) -> RemoteConfigError:
    return RemoteConfigError(
        f"remote '{remote.name}' {where} ('{remote.url}')",
        hint=f"give it another url: millpond remote modify {remote.name} url ...",
    )


def place_of(remote: Remote) -> str:
    """What two remotes have in common that are one place."""
    if remote.scheme == "file":
        return os.path.realpath(remote.url)
    return f"{remote.url.rstrip('/')}\0{remote.values.get('endpointurl', '').rstrip('/')}"


@dataclass(slots=True)
class Group:
    """Objects of one remote: files each with a path that it is at, manifests with their entries (None: not at hand)."""

    remote: Remote
    files: dict[ObjectName, str] = field(default_factory=dict)
    manifests: dict[ObjectName, list[ManifestEntry] | None] = field(default_factory=dict)
    paths: dict[ObjectName, str] = field(default_factory=dict)
    # Of a manifest only what lies in these paths is meant ("" for all of it).
    inner: dict[ObjectName, list[str]] = field(default_factory=dict)

    def is_whole(self, name: ObjectName) -> bool:
        """Whether all of a manifest is meant."""
        return "" in self.inner[name]

    def path(self, name: ObjectName) -> str:
        return self.files.get(name) or self.paths[name]

    def take(self, name: ObjectName, raw: bytes | None) -> None:
        """Note what a manifest names, as far as it is meant."""
        path = self.paths[name]
        if raw is None:
            self.manifests.setdefault(name, None)
            return
        entries = list(manifest.parse(raw, source=str(name), algo=name.algo))
        if not self.is_whole(name):
            wanted = self.inner[name]
            entries = [
                each
                for each in entries
                if any(each.relpath == one or each.relpath.startswith(f"{one}/") for one in wanted)
            ]
        self.manifests[name] = entries
        for entry in entries:
            self.files.setdefault(entry.name, f"{path}/{entry.relpath}")


def choices(repo: Repo, params: dict[str, Any]) -> list[Choice]:
    """What {targets, recursive, glob, revs, all_branches, all_tags, all_commits} mean, each once; what is not DVC's, or was never
    committed, is left out. Raises RevisionError, TargetError, UsageError, InvalidFileError."""
    found = export.choices(repo, params)
    return [each for each in found if each.output.name is not None and each.output.cache]


def partial(repo: Repo, params: dict[str, Any]) -> list[Output]:
    """The imports in the workspace among `params`' targets that have no name yet. Raises as `choices`."""
    wanted = {key: params.get(key) for key in ("targets", "recursive", "glob")}
    found = dict.fromkeys(each.output for each in export.choices(repo, wanted))
    return [each for each in found if each.name is None and each.imported is not None and each.cache]


def is_pushed(output: Output) -> bool:
    """Whether an output goes to a remote at all: not what belongs to another repository."""
    return output.push and (output.imported is None or not output.imported.is_repo)


def groups(links: Links, objects: Objects, chosen: Iterable[Choice], *, pushing: bool) -> list[Group]:
    """The objects of outputs by remote; those of other repositories are on none of this one's. Raises RemoteConfigError,
    StoreDamagedError."""
    found: dict[str, Group] = {}
    for choice in chosen:
        output = choice.output
        assert output.name is not None
        if not (is_pushed(output) if pushing else output.imported is None or not output.imported.is_repo):
            continue
        remote = links.remote_of(output.remote)
        if remote.versioned:
            links.catalog.add([output])
        group = found.setdefault(remote.name, Group(remote))
        if not output.name.is_dir:
            group.files.setdefault(output.name, output.path)
            continue
        group.paths.setdefault(output.name, output.path)
        group.inner.setdefault(output.name, []).append(choice.inner)
    for group in found.values():
        for name in group.paths:
            group.take(name, objects.manifest(name))
    return list(found.values())


def in_parts(names: Sequence[ObjectName], size: int) -> Iterator[Sequence[ObjectName]]:
    return (names[start : start + size] for start in range(0, len(names), size))
