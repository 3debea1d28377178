"""Finding what urls name: a file or a folder on this machine, in S3, on a web server, listed over the backends of remotes.

A key is the path below the folder (bucket, site) that holds what the url names, so that a url of a file and a url of a folder are
read alike. What lies there is listed once.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import cast
from urllib.parse import unquote

from millpond.daemon.errors import InvalidFileError, ObjectMissingError, TargetError, UsageError
from millpond.daemon.project import elsewhere, manifest
from millpond.daemon.project.config import Config
from millpond.daemon.project.importing import versions
from millpond.daemon.project.importing.source import LocalSource, RemoteSource, Source
from millpond.daemon.project.importing.urls import parsed, shown_url
from millpond.daemon.project.importing.versions import Pin
from millpond.daemon.project.walk import above
from millpond.daemon.remote import remotes
from millpond.daemon.remote.backend import Entry
from millpond.daemon.remote.remotes import Remote
from millpond.daemon.remote.s3base import S3Base
from millpond.daemon.remote.silence import Tell
from millpond.daemon.remote.transfer import Transfer
from millpond.daemon.remote.versioned import Pinned, VersionStore

# In an error's details: that there is nothing, and not that it cannot be read.
_ABSENT = {"absent": True}


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


def _absent(url: str) -> TargetError:
    shown = shown_url(url)
    return TargetError(
        f"there is nothing at '{shown}'", path=shown, hint="see the url, and who may read there", details=_ABSENT
    )
