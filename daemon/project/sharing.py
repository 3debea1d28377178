"""What `push`, `fetch` and `status -c` have in common: which objects of which outputs belong on which remote, and what it holds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.errors import RemoteConfigError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import export, manifest
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.manifest import ManifestEntry
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.select import Choice
from millpond.daemon.remote import remotes
from millpond.daemon.remote.known import Known
from millpond.daemon.remote.remotes import Remote
from millpond.daemon.remote.transfer import Transfer

# A bound for what is moved, in bytes a second, for those who share a line.
RATE_SETTING = "MILLPOND_RATE"


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
        # A manifest is noted by who has seen that all it names is there too.
        self.known.add(((name, size) for name, size in there.items() if not name.is_dir), "seen")
        return there


class Links:
    """The remotes that a verb uses, each connected once; `default` is the one of -r, or of the config."""

    def __init__(self, repo: Repo, default: str | None, jobs: int | None, environ: Mapping[str, str]) -> None:
        self._repo = repo
        self._default = default
        self._jobs = jobs
        self._environ = environ
        self._links: dict[str, Link] = {}
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
        if remote.flag("worktree") or remote.flag("version_aware"):
            key = "worktree" if remote.flag("worktree") else "version_aware"
            raise RemoteConfigError(
                f"remote '{remote.name}' is {key}, which this version does not have", hint="use dvc for this remote"
            )
        return remote

    def of(self, remote: Remote) -> Link:
        """A connection to it."""
        if remote.name not in self._links:
            backend = remotes.connect(remote, self._environ)
            jobs = self._jobs or remote.count("jobs")
            transfer = self._stack.enter_context(Transfer(backend, jobs=jobs, rate=rate(self._environ)))
            known = Known(remote, self._environ)
            self._stack.callback(known.close)
            self._links[remote.name] = Link(remote, transfer, known)
        return self._links[remote.name]

    def _check_folder(self, remote: Remote) -> None:
        own = {
            self._repo.cache.folder: "this project's own cache",
            self._repo.root: "the repository itself",
            self._repo.dvc_dir: "the folder .dvc itself",
        }
        for folder, what in own.items():
            if os.path.realpath(remote.url) == os.path.realpath(folder):
                raise RemoteConfigError(
                    f"remote '{remote.name}' is {what} ('{remote.url}')",
                    hint=f"give it another url: millpond remote modify {remote.name} url ...",
                )


def rate(environ: Mapping[str, str]) -> float | None:
    """The bound of the environment, such as `20M`: bytes a second. Raises RemoteConfigError."""
    text = environ.get(RATE_SETTING, "").strip()
    if not text:
        return None
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1].upper())
    try:
        value = float(text[:-1] if factor else text) * (factor or 1)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise RemoteConfigError(f"{RATE_SETTING}={text} is no number of bytes a second", hint="write it as 20M")
    return value


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


def groups(links: Links, objects: Objects, chosen: Iterable[Choice], *, pushing: bool) -> list[Group]:
    """The objects of outputs by remote. Raises RemoteConfigError, StoreDamagedError."""
    found: dict[str, Group] = {}
    for choice in chosen:
        output = choice.output
        assert output.name is not None
        if pushing and not output.push:
            continue
        remote = links.remote_of(output.remote)
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
