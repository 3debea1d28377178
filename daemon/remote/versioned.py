"""Remotes that keep versions themselves: each file under its own path, each of its contents a version of that object.

To be read such a remote is made to look like any other: an object is asked for under the place that its name has elsewhere, and a catalogue, made from
pointers, tells which version of which path that is. A directory's manifest is made from its pointer. What comes is checked against the ETag
and size that the pointer says, and, as everything is, against its MD5. So another version never stands in for the one that was asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from posixpath import join
from typing import TYPE_CHECKING, NoReturn, Protocol

from millpond.daemon.errors import RemoteChangedError, RemoteConfigError
from millpond.daemon.objects import Data
from millpond.daemon.project.fileversions import manifest_of
from millpond.daemon.remote.backend import Entry, Got, ReadOnly, Sent
from millpond.daemon.remote.layout import digest_of

if TYPE_CHECKING:
    from millpond.daemon.project.outputs import Output


# What S3 says of the version of an object in a bucket that keeps none.
NO_VERSION = (None, "null")


class VersionStore(Protocol):
    """A backend that knows versions; raises as Backend."""

    name: str
    url: str

    def head(self, key: str) -> Entry | None: ...

    def head_version(self, key: str, version: str) -> Entry | None: ...

    def get_version(self, key: str, version: str, start: int = 0, size: int | None = None) -> Got: ...

    def put_version(self, key: str, pieces: Iterable[Data], size: int, sent: Sent | None = None) -> Entry: ...

    def list_latest(self, prefix: str) -> Iterator[Entry]: ...

    def keeps_versions(self) -> bool | None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Located:
    """Where a content is on one remote, and what its pointer says of it."""

    key: str
    version: str
    etag: str | None
    size: int | None


@dataclass(slots=True)
class Catalog:
    """Where the contents of outputs are, by remote (None: any) and digest; manifests by digest with `.dir`."""

    files: dict[str | None, dict[str, Located]] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)

    def add(self, outputs: Iterable[Output]) -> None:
        """Note what pointers say."""
        for output in outputs:
            for file in output.files:
                for each in file.versions:
                    key = join(output.path, file.relpath) if file.relpath else output.path
                    found = Located(key, each.version, each.etag, file.size)
                    self.files.setdefault(each.remote, {}).setdefault(file.name.value, found)
            if output.files and output.name is not None and output.name.is_dir:
                self.manifests.setdefault(output.name.value, manifest_of(output.files))

    def find(self, remote: str, digest: str) -> Located | None:
        """Where the content of a digest is on a remote."""
        for name in (remote, None):
            found = self.files.get(name, {}).get(digest)
            if found is not None:
                return found
        return None


class VersionedBackend(ReadOnly):
    """See Backend; what is read has an object's key, what is written a file's path, and nothing can be listed or removed. `kind` is the flag
    that makes the remote one; `written` has what was made at each path, until it is taken from there."""

    # There are no listings by digest.
    near = True
    many = 1
    singly = True

    def __init__(self, inner: VersionStore, kind: str, catalog: Catalog) -> None:
        self.name = inner.name
        self.url = inner.url
        self._inner = inner
        self._kind = kind
        self._catalog = catalog
        self.written: dict[str, Entry] = {}

    def here(self, key: str, version: str | None = None) -> Entry | None:
        """What is at a path: a version, or the latest one; None where there is none. Of a bucket that keeps none, nothing counts."""
        found = self._inner.head(key) if version is None else self._inner.head_version(key, version)
        return found if found is not None and found.version not in NO_VERSION else None

    def refuse_unversioned(self) -> None:
        """Raise RemoteConfigError where the bucket keeps no versions, as far as it tells."""
        if self._inner.keeps_versions() is False:
            raise self._unversioned()

    def put(self, key: str, data: Data, *, create: bool = False) -> bool:
        self.put_stream(key, [data], len(data))
        return True

    def put_stream(self, key: str, pieces: Iterable[Data], size: int, sent: Sent | None = None) -> None:
        made = self._inner.put_version(key, pieces, size, sent)
        if made.version in NO_VERSION:
            raise self._unversioned()
        self.written[key] = made

    def _unversioned(self) -> RemoteConfigError:
        return RemoteConfigError(
            f"remote '{self.name}' ({self.url}) is {self._kind}, and its bucket keeps no versions: what is overwritten there would be lost",
            path=self.url,
            hint=f"turn versioning of the bucket on, or take the flag away: millpond remote modify -u {self.name} {self._kind}",
        )

    def head(self, key: str) -> Entry | None:
        digest = digest_of(key) or ""
        made = self._catalog.manifests.get(digest)
        if made is not None:
            return _made(key, made)
        where = self._catalog.find(self.name, digest)
        found = None if where is None else self._inner.head_version(where.key, where.version)
        return None if where is None or found is None else self._checked(key, where, found)

    def get(self, key: str, start: int = 0, size: int | None = None, *, etag: str | None = None) -> Got:
        digest = digest_of(key) or ""
        made = self._catalog.manifests.get(digest)
        if made is not None:
            return Got(made[start : None if size is None else start + size], _made(key, made))
        where = self._catalog.find(self.name, digest)
        if where is None:
            raise self.absent(key)
        got = self._inner.get_version(where.key, where.version, start, size)
        entry = self._checked(key, where, got.entry)
        if etag is not None and entry.etag != etag:
            raise self.changed(key)
        return Got(got.data, entry)

    def list(self, prefix: str) -> Iterator[Entry]:
        raise RemoteConfigError(
            f"remote '{self.name}' is {self._kind}: it holds paths, not objects that could be listed"
        )

    def close(self) -> None:
        self._inner.close()

    def _refuse(self) -> NoReturn:
        raise no_objects(self.name, self._kind)

    def _checked(self, key: str, where: Located, found: Entry) -> Entry:
        """The entry of the object, if it is what the pointer says."""
        differs = found.size != where.size if where.size is not None else False
        if where.etag is not None and found.etag is not None and found.etag.strip('"') != where.etag.strip('"'):
            differs = True
        if differs:
            raise RemoteChangedError(
                f"version {where.version} of '{where.key}' on remote '{self.name}' is not what its pointer says (ETag {where.etag}, "
                f"{where.size} bytes)",
                path=where.key,
                hint="see who changed the .dvc file, or the bucket",
            )
        return Entry(key, found.size, found.etag, where.version, found.modified)


class Pinned(ReadOnly):
    """See Backend; to read from, and of the keys in `versions` those versions instead of the latest."""

    near = False
    many = 1

    def __init__(self, inner: VersionStore) -> None:
        self.name = inner.name
        self.url = inner.url
        self.versions: dict[str, str] = {}
        self._inner = inner

    def head(self, key: str) -> Entry | None:
        version = self.versions.get(key)
        return self._inner.head(key) if version is None else self._inner.head_version(key, version)

    def get(self, key: str, start: int = 0, size: int | None = None, *, etag: str | None = None) -> Got:
        got = self._inner.get_version(key, self.versions[key], start, size)
        if etag is not None and (got.entry.etag or "").strip('"') != etag.strip('"'):
            raise self.changed(key)
        return got

    def list(self, prefix: str) -> Iterator[Entry]:
        """The latest version of each object."""
        return self._inner.list_latest(prefix)

    def close(self) -> None:
        self._inner.close()

    def _refuse(self) -> NoReturn:
        raise RemoteConfigError(f"'{self.url}' is read only")


def no_objects(name: str, kind: str) -> RemoteConfigError:
    """Why this cannot be done there."""
    return RemoteConfigError(
        f"remote '{name}' is {kind}: it holds files at their paths and their versions, not objects by name, so only push, fetch, status and "
        "what reads data can use it",
        hint="choose another remote with -r",
    )


def _made(key: str, data: bytes) -> Entry:
    return Entry(key, len(data), hashlib.md5(data, usedforsecurity=False).hexdigest())
