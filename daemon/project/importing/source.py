"""Sources by url: a file or a folder on this machine, in S3, on a web server, listed and read over the backends of remotes.

A key is the path below the folder (bucket, site) that holds what the url names, so that a url of a file and a url of a folder are
read alike. What lies there is listed once; a file that changes between its listing and its last byte is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast
from urllib.parse import SplitResult, unquote, urlsplit

from millpond.daemon.errors import InvalidFileError, ObjectMissingError, RemoteChangedError, TargetError, UsageError
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data
from millpond.daemon.project import elsewhere, manifest
from millpond.daemon.project.config import Config
from millpond.daemon.project.importing import versions
from millpond.daemon.project.importing.versions import Pin
from millpond.daemon.project.paths import printable
from millpond.daemon.project.walk import Listing, above, stat_fields
from millpond.daemon.remote import remotes
from millpond.daemon.remote.backend import Entry
from millpond.daemon.remote.remotes import Remote
from millpond.daemon.remote.s3base import S3Base
from millpond.daemon.remote.silence import Tell
from millpond.daemon.remote.transfer import Transfer
from millpond.daemon.remote.versioned import Pinned, VersionStore

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
# In an error's details: that there is nothing, and not that it cannot be read.
_ABSENT = {"absent": True}


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


@contextlib.contextmanager
def opened(
    url: str,
    config: Config | None,
    fs_config: Mapping[str, str],
    environ: Mapping[str, str],
    *,
    folder: str,
    jobs: int | None = None,
    rate: float | None = None,
    everything: bool = False,
    pins: Sequence[Pin] = (),
    tell: Tell | None = None,
) -> Iterator[Source]:
    """What a url names, listed; relative paths begin at `folder`, `remote://NAME/...` at a remote of the config. With `everything` also
    what is never tracked: Git's own files, repositories inside. With `pins` it is these versions, whatever is there now. `tell` is told
    where the other side is silent.

    Raises TargetError when nothing is there, RemoteConfigError, RemoteError, CredentialsError.
    """
    scheme = parsed(url).scheme
    if scheme in ("", "file") or len(scheme) == 1:
        path = parsed(url).path if scheme == "file" else url
        yield _local(url, os.path.abspath(os.path.join(folder, os.path.expanduser(path))), everything)
        return
    if scheme == "remote" and ".." in parsed(url).path.split("/"):
        shown = shown_url(url)
        raise UsageError(
            f"'{shown}' leads out of its remote by '..'", hint="name a place in it, or add a remote for that one"
        )
    remote = remotes.of_url(config or Config(), url, fs_config)
    if remote.scheme == "file":
        yield _local(url, remote.url, everything)
        return
    if bool(pins) or versions.are_asked_for(remote, url):
        source = _versions(url, remote, environ, pins, jobs, rate, tell)
        try:
            yield source
        finally:
            source.transfer.__exit__()
        return
    with Connections(environ, jobs, rate, tell) as connections:
        yield listed(url, remote, connections)


def settings(fs_config: Mapping[str, Any] | None) -> dict[str, str]:
    """A dependency's `fs_config` as a remote's section has it."""
    return {str(key): str(value) for key, value in (fs_config or {}).items()}


def is_local(url: str) -> bool:
    """Whether a url is a path of this machine."""
    return parsed(url).scheme in ("", "file") or len(parsed(url).scheme) == 1


def _local(url: str, path: str, everything: bool) -> LocalSource:
    shown = shown_url(url)
    try:
        is_dir = os.path.isdir(path)
        if not is_dir and not os.path.isfile(path):
            os.stat(path)
            raise TargetError(f"'{shown}' is neither a file nor a folder", path=shown)
        whole = is_dir and everything
        found = elsewhere.everything(path) if whole else elsewhere.listing(path, is_dir=is_dir)
        return LocalSource(url, path, is_dir, found)
    except FileNotFoundError as error:
        raise _absent(url) from error
    except OSError as error:
        raise TargetError(f"cannot read '{shown}': {error.strerror}", path=shown) from error


def _query(remote: Remote) -> str:
    """What a url of a web server asks beside its path; elsewhere a `?` is part of a name."""
    return parsed(remote.url).query if remote.scheme in ("http", "https") else ""


class Connections:
    """Connections to the hosts and buckets that urls name, each made once for all that lies there. Used from any number of threads; from one
    where `tell` is given, which is told of those that are silent."""

    def __init__(
        self,
        environ: Mapping[str, str],
        jobs: int | None = None,
        rate: float | None = None,
        tell: Tell | None = None,
    ) -> None:
        self._environ = environ
        self._jobs = jobs
        self._rate = rate
        self._tell = tell
        self._lock = threading.Lock()
        self._made: dict[tuple[str, str, tuple[tuple[str, str], ...]], Transfer] = {}

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *_: object) -> None:
        for transfer in self._made.values():
            transfer.__exit__()

    def at(self, remote: Remote) -> tuple[Transfer, str]:
        """A connection, and the key of the remote's url there ("" for all of it). Raises RemoteConfigError, CredentialsError."""
        parts = parsed(remote.url)
        is_web = remote.scheme in ("http", "https")
        # What follows a `?` or `#` is part of a name where there are no queries; a backend quotes keys itself.
        path = unquote(parts.path) if is_web else remote.url.partition("://")[2][len(parts.netloc) :]
        base = Remote(remote.name, f"{parts.scheme}://{parts.netloc}/", remote.values, _query(remote))
        with self._lock:
            known = (base.url, base.query, tuple(sorted(remote.values.items())))
            if known not in self._made:
                made = remotes.connect(base, self._environ)
                jobs = self._jobs or remote.count("jobs")
                self._made[known] = Transfer(made, jobs=jobs, rate=self._rate, tell=self._tell)
            # With a query the server gets the path as it is.
            return self._made[known], path.removeprefix("/") if base.query else path.strip("/")


def listed(url: str, remote: Remote, connections: Connections) -> RemoteSource:
    """What a url names that leads to a remote which is no directory of this machine. Raises as `opened`."""
    transfer, key = connections.at(remote)
    is_folder = not _query(remote) and (not key or remote.url.endswith("/"))
    entry = None if is_folder else transfer.answer(lambda: transfer.backend.head(key))
    if entry is not None:
        return RemoteSource(url, remote.scheme, False, [entry], [""], transfer)
    if remote.scheme in ("http", "https"):
        raise _absent(url)
    [entries] = transfer.listings([key])
    found = _below(url, key, _files(transfer, entries) if remote.scheme == "s3" else entries)
    if not found:
        raise _absent(url)
    paths = sorted(found, key=manifest.sort_key)
    return RemoteSource(url, remote.scheme, True, [found[path] for path in paths], paths, transfer)


def _files(transfer: Transfer, entries: Sequence[Entry]) -> list[Entry]:
    """Of a bucket's listing: without the empty objects `folder/` that some tools make of folders, which a listing may show without
    their slash. Then they hold others, or are not there by that name."""
    folders = {folder for entry in entries for folder in above(entry.key)}
    found = [entry for entry in entries if entry.size or entry.key not in folders]
    empty = [entry for entry in found if not entry.size]
    if not empty:
        return found
    heads = transfer.ask(partial(transfer.backend.head, entry.key) for entry in empty)
    gone = {entry.key for entry, head in zip(empty, heads, strict=True) if head is None}
    return [entry for entry in found if entry.key not in gone]


def _versions(
    url: str,
    remote: Remote,
    environ: Mapping[str, str],
    pins: Sequence[Pin],
    jobs: int | None,
    rate: float | None,
    tell: Tell | None,
) -> RemoteSource:
    """Versions of objects in a bucket: those that are pinned, or that the url names, else the latest."""
    where, version = versions.split(remote.url)
    top, _, key = where.rstrip("/").rpartition("/")
    backend = remotes.connect(Remote(remote.name, top, remote.values), environ)
    assert isinstance(backend, S3Base)
    pinned = Pinned(cast(VersionStore, backend))
    transfer = Transfer(pinned, jobs=jobs or remote.count("jobs"), rate=rate, tell=tell)
    try:
        pins = pins or ([Pin("", version)] if version is not None else [])
        pinned.versions = {posixpath.join(key, pin.relpath).rstrip("/"): pin.version for pin in pins}
        is_dir, paths = bool(pins) and bool(pins[0].relpath), [pin.relpath for pin in pins]
        entry = None if is_dir else transfer.answer(lambda: pinned.head(key))
        if is_dir:
            problem = manifest.problem(paths, ["0" * 32] * len(paths))
            if problem is not None:
                raise InvalidFileError(f"'{shown_url(url)}' {problem}", path=shown_url(url))
            entries = list(_pinned_entries(transfer, key, pins))
        elif entry is not None:
            paths, entries = [""], [entry]
        else:
            found = {} if pins else _below(url, key, *transfer.listings([key]))
            is_dir, paths = True, sorted(found, key=manifest.sort_key)
            entries = [found[path] for path in paths]
        if not entries:
            raise _absent(url)
        versions.refuse_unversioned(entries, shown_url(url))
        pinned.versions = {each.key: str(each.version) for each in entries}
        return RemoteSource(url, remote.scheme, is_dir, entries, paths, transfer, True)
    except BaseException:
        transfer.__exit__()
        raise


def _pinned_entries(transfer: Transfer, key: str, pins: Sequence[Pin]) -> Iterator[Entry]:
    """What is there of a folder's recorded files: asked for only where their sizes were not recorded."""
    unknown = [pin for pin in pins if pin.size is None]
    heads = transfer.ask([partial(transfer.backend.head, posixpath.join(key, pin.relpath)) for pin in unknown])
    asked = dict(zip(unknown, heads, strict=True))
    for pin in pins:
        found, place = asked.get(pin), posixpath.join(key, pin.relpath)
        if pin.size is None and found is None:
            raise ObjectMissingError(f"version {pin.version} of '{place}' is not there any more", path=place)
        yield found or Entry(place, pin.size or 0, pin.etag, pin.version)


def _below(url: str, key: str, entries: Sequence[Entry]) -> dict[str, Entry]:
    """What a listing has below a key, by the path below it. Raises InvalidFileError for paths that no folder could have."""
    prefix = f"{key}/" if key else ""
    found = {each.key[len(prefix) :]: each for each in entries if each.key.startswith(prefix)}
    found = {path: each for path, each in found.items() if path and not path.endswith("/")}
    problem = manifest.problem(list(found), ["0" * 32] * len(found))
    if problem is not None:
        raise InvalidFileError(f"'{shown_url(url)}' {problem}", path=shown_url(url), hint="rename it there")
    return found


def _tag(kind: str, entry: Entry) -> str | None:
    """An entry's etag as DVC records it: S3's without quotes, a web server's as it was sent."""
    if entry.etag is None:
        return None
    return entry.etag if kind in ("http", "https") else entry.etag.strip('"')


def _absent(url: str) -> TargetError:
    shown = shown_url(url)
    return TargetError(
        f"there is nothing at '{shown}'", path=shown, hint="see the url, and who may read there", details=_ABSENT
    )


def parsed(url: str) -> SplitResult:
    """The parts of a url. Raises TargetError for what is none."""
    try:
        return urlsplit(url)
    except ValueError as error:
        raise TargetError(f"'{printable(url)}' is no url: {error}", path=printable(url)) from error


def warnings(found: Source) -> list[str]:
    """What is to be told of a source that was read: links to folders are not among its files."""
    return [f"'{printable(path)}' is a link to a folder and was left out" for path in found.skipped]


def shown_url(url: str) -> str:
    """A url for messages: without a password, and without a web server's query, which may be a signature."""
    parts = parsed(url)
    if parts.query and parts.scheme in ("http", "https"):
        url = f"{url.partition('?')[0]}?..."
    if parts.password is None:
        return printable(url)
    return printable(url.replace(f":{parts.password}@", "@", 1))


def basename(url: str) -> str:
    """What a url's data is called. Raises TargetError for one that names nothing."""
    name = posixpath.basename(posixpath.normpath(parsed(url).path))
    if name in ("", ".", ".."):
        shown = shown_url(url)
        raise TargetError(f"'{shown}' has no name to give to its data", path=shown, hint="say where it goes: OUT")
    return name
