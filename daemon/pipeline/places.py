"""Where the paths of stages lead: into the project, elsewhere on this machine, or to a url."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from millpond.daemon.errors import RemoteConfigError
from millpond.daemon.project.config import Config
from millpond.daemon.remote import remotes

# Schemes of urls that are followed; DVC has more of them, and `ds://`.
FOLLOWED = frozenset(["s3", "ssh", "http", "https", "remote"])


class Item(Protocol):
    """A dependency or an output (see Dep)."""

    @property
    def path(self) -> str: ...

    @property
    def place(self) -> str | None: ...

    @property
    def key(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a path leads (see Dep)."""

    path: str
    place: str | None
    key: str


@dataclass(frozen=True, slots=True)
class Places:
    """Of one project: `root` is absolute, `config` knows what `remote://NAME` is."""

    root: str
    config: Config

    def of(self, wdir: str, path: str) -> Spot:
        """Where a path of a stage leads, whose folder is `wdir`."""
        if "://" not in path:
            found = place(self.root, wdir, path)
            assert found is not None
            if path.startswith("/") and not found.startswith("/"):  # as DVC has it: from the stage's folder
                path = posixpath.relpath(found or ".", wdir or ".")
            return Spot(path, found, found)
        if not path.startswith("remote://"):
            return Spot(path, None, _tidy(path))
        try:
            remote = remotes.of_url(self.config, path, {})
        except RemoteConfigError:  # said when it is looked at
            return Spot(path, None, path)
        if remote.scheme == "file":
            there = posixpath.normpath(remote.url)
            return Spot(path, there, there)
        return Spot(path, None, _tidy(remote.url))


def place(root: str, wdir: str, path: str) -> str | None:
    """Where a path of a stage is, from the project's root, absolute for what lies elsewhere on this machine; None for a url."""
    if "://" in path:
        return None
    joined = posixpath.normpath(posixpath.join(root, wdir, path))
    if joined == root:
        return ""
    prefix = posixpath.join(root, "")
    return joined[len(prefix) :] if joined.startswith(prefix) else joined


def shown(item: Item, seen: Callable[[str], str]) -> str:
    """A dependency or output as DVC shows it: from the caller's folder, but for what lies outside of the project."""
    if item.place is None or "://" in item.path or item.path.startswith("/"):
        return item.path
    return item.place if item.place.startswith("/") else seen(item.place)


def is_outside(item: Item) -> bool:
    """Whether it lies outside of the project."""
    return item.place is None or item.place.startswith("/")


def is_followed(item: Item) -> bool:
    """Whether it can be looked at: not a url of a kind that only DVC knows."""
    return item.place is not None or item.path.partition("://")[0] in FOLLOWED


def _tidy(url: str) -> str:
    """A url by which others that lie there, or below it, are known."""
    head, _, rest = url.partition("://")
    netloc, _, path = rest.partition("/")
    path = posixpath.normpath(f"/{path}") if path else "/"
    return f"{head}://{netloc}{path.rstrip('/')}"


def is_root(url: str) -> bool:
    """Whether a url names a whole bucket or server."""
    return not urlsplit(url).path.strip("/")
