"""What urls name, once it was found: a file or a folder on this machine, or behind the backend of a remote; how it is recorded as a
dependency. A file that changes between its listing and its last byte is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from millpond.daemon.errors import RemoteChangedError, TargetError
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data
from millpond.daemon.project.importing import versions
from millpond.daemon.project.paths import printable
from millpond.daemon.project.walk import Listing, stat_fields
from millpond.daemon.remote.backend import Entry
from millpond.daemon.remote.transfer import Transfer

# Which key of a dependency names the content without its bytes being read; of all others (ssh, local) it is their MD5.
_TOKENS = {
    "s3": "etag",
    "gs": "etag",
    "azure": "etag",
    "oss": "etag",
    "webdav": "etag",
    "webdavs": "etag",
    "http": "checksum",
    "https": "checksum",
}
_READ_BYTES = 1 << 20


class Source(Protocol):
    """What a url names, listed. `paths` of its files below it, in a manifest's order; [""] for a file. `sizes` in bytes; `skipped` are
    links to folders, which are left out."""

    url: str
    is_dir: bool
    paths: list[str]
    sizes: list[int]
    skipped: list[str]

    def read(self, indexes: Sequence[int]) -> Iterator[tuple[int, Data, bool]]:
        """The contents of these files, one after the other: index in `paths`, bytes, whether they end it. Raises RemoteChangedError,
        ObjectMissingError, RemoteError; TargetError for a file of this machine."""
        ...

    def token(self) -> dict[str, Any] | None:
        """What names the content now, as a dependency's entry has it; None where only its bytes can tell."""
        ...


@dataclass(slots=True)
class LocalSource:
    """A file or folder of this machine. `path` is absolute."""

    url: str
    path: str
    is_dir: bool
    listing: Listing
    paths: list[str] = field(init=False)
    sizes: list[int] = field(init=False)
    skipped: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.skipped = self.listing.skipped
        self.paths = self.listing.paths if self.is_dir else [""]
        self.sizes = list(self.listing.sizes)

    @property
    def base(self) -> str:
        """The folder that the listing's paths are in."""
        return self.path if self.is_dir else os.path.dirname(self.path)

    @property
    def isexec(self) -> bool:
        return not self.is_dir and bool(os.stat(self.path).st_mode & 0o111)

    def read(self, indexes: Sequence[int]) -> Iterator[tuple[int, Data, bool]]:
        for index in indexes:
            path = f"{self.base}/{self.listing.paths[index]}"
            try:
                with open(path, "rb", buffering=0) as file:
                    before, done = os.fstat(file.fileno()), 0
                    if before.st_size != self.sizes[index]:
                        raise self._changed(path)
                    while data := file.read(_READ_BYTES):
                        done += len(data)
                        yield index, data, False
                    after = os.fstat(file.fileno())
            except OSError as error:
                raise TargetError(f"cannot read '{printable(path)}': {error.strerror}", path=printable(path)) from error
            if stat_fields(before) != stat_fields(after) or done != self.sizes[index]:
                raise self._changed(path)
            yield index, b"", True

    def _changed(self, path: str) -> RemoteChangedError:
        shown = printable(path)
        return RemoteChangedError(f"'{shown}' changed while it was read", path=shown, hint="try again")

    def token(self) -> dict[str, Any] | None:
        return None


@dataclass(slots=True)
class RemoteSource:
    """What lies behind a backend. `kind` is its scheme, `entries` go with `paths`."""

    url: str
    kind: str
    is_dir: bool
    entries: list[Entry]
    paths: list[str]
    transfer: Transfer
    # The entries are of versions, and these are what is recorded.
    versioned: bool = False
    sizes: list[int] = field(init=False)
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sizes = [entry.size for entry in self.entries]

    def read(self, indexes: Sequence[int]) -> Iterator[tuple[int, Data, bool]]:
        for at, data, last in self.transfer.contents([self.entries[index] for index in indexes]):
            yield indexes[at], data, last

    def token(self) -> dict[str, Any] | None:
        key = _TOKENS.get(self.kind)
        if key is None:
            return None
        if self.versioned:
            return versions.token(self.paths, self.entries, is_dir=self.is_dir)
        tags = [_tag(self.kind, entry) for entry in self.entries]
        if not self.is_dir:
            return {**({key: tags[0]} if tags[0] else {}), "size": self.sizes[0]}
        if None in tags:
            return None
        rows = [{key: tag, "relpath": path} for tag, path in zip(tags, self.paths, strict=True)]
        raw = json.dumps(rows, sort_keys=True).encode()
        value = hashlib.md5(raw, usedforsecurity=False).hexdigest()
        return {"md5": f"{value}.dir", "size": sum(self.sizes), "nfiles": len(self.paths)}


def dependency(source: Source, url: str, name: ObjectName | None, fs_config: Mapping[str, Any]) -> dict[str, Any]:
    """A pointer's entry for what was found at a url, as DVC writes it; `name` of its content, for what only its bytes tell."""
    token = source.token()
    if token is None and name is not None:
        token = {"md5": name.value, "size": sum(source.sizes)}
        if source.is_dir:
            token["nfiles"] = len(source.paths)
        elif isinstance(source, LocalSource) and source.isexec:
            token["isexec"] = True
    token = dict(token or {})
    files = {"files": token.pop("files")} if "files" in token else {}  # at the end, as DVC has it
    return {**token, "hash": "md5", "path": url, **({"fs_config": dict(fs_config)} if fs_config else {}), **files}


def same(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether two entries tell of the same content."""
    if "files" in found or found.get("version_id"):
        return versions.same(recorded, found)
    keys = ("md5", "etag", "checksum")
    known = [key for key in keys if recorded.get(key)]
    return bool(known) and all(recorded[key] == found.get(key) for key in known)


def settings(fs_config: Mapping[str, Any] | None) -> dict[str, str]:
    """A dependency's `fs_config` as a remote's section has it."""
    return {str(key): str(value) for key, value in (fs_config or {}).items()}


def _tag(kind: str, entry: Entry) -> str | None:
    """An entry's etag as DVC records it: S3's without quotes, a web server's as it was sent."""
    if entry.etag is None:
        return None
    return entry.etag if kind in ("http", "https") else entry.etag.strip('"')


def warnings(found: Source) -> list[str]:
    """What is to be told of a source that was read: links to folders are not among its files."""
    return [f"'{printable(path)}' is a link to a folder and was left out" for path in found.skipped]
