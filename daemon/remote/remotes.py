"""From a name in `.dvc/config` to a backend: `remote://` urls followed, schemes that are not served here refused by name."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from millpond.daemon.errors import RemoteConfigError
from millpond.daemon.remote.backend import Backend
from millpond.daemon.remote.local import LocalBackend
from millpond.daemon.remote.values import Values

if TYPE_CHECKING:
    from millpond.daemon.project.config import Config
    from millpond.daemon.remote.s3 import S3Backend
    from millpond.daemon.remote.s3boto import BotoBackend
    from millpond.daemon.remote.versioned import Catalog

# What DVC has and this has not.
_ELSEWHERE = frozenset(
    [
        "gs",
        "azure",
        "adl",
        "abfs",
        "abfss",
        "gdrive",
        "hdfs",
        "webhdfs",
        "oss",
        "webdav",
        "webdavs",
    ]
)
_DEPTH = 8
# What may be in a bucket's name, and an endpoint: obstore panics at what is no URI.
_BUCKET = re.compile(r"[\w.-]+", re.ASCII)
_ENDPOINT = re.compile(
    r"https?://(?:[^\s@/\\]+@)?(?:[\w.-]+|\[[\da-fA-F:.]+\])(?::\d{1,5})?(?:/[\w.~!$&'()*+,;=:@%/-]*)?", re.ASCII
)
# Settings that are paths, seen from the folder of the file that has them.
_PATHS = ("credentialpath", "configpath", "keyfile")


@dataclass(frozen=True, slots=True)
class Remote:
    """A configured remote: where it is and its settings. `url` is absolute for a directory; `query` is what a url of a web server that
    somebody gave has behind its `?`."""

    name: str
    url: str
    values: Mapping[str, str]
    query: str = ""

    @property
    def scheme(self) -> str:
        """`file` for a directory."""
        found = urlsplit(self.url).scheme
        return "file" if len(found) < 2 else found

    @property
    def versioned(self) -> str | None:
        """The flag that makes it a remote that keeps versions itself: `version_aware` or `worktree`."""
        return next((key for key in ("worktree", "version_aware") if self.flag(key)), None)

    def flag(self, key: str) -> bool:
        return self.values.get(key, "").lower() == "true"

    def count(self, key: str) -> int | None:
        value = self.values.get(key)
        return int(value) if value and value.isdigit() else None


def find(config: Config, name: str | None = None) -> Remote:
    """The remote of that name, or the default one. Raises RemoteConfigError."""
    if name is None:
        name = config.get("core", "remote")
        if name is None:
            if config.remotes:
                names = ", ".join(sorted(config.remotes))
                raise RemoteConfigError(
                    "no remote is the default one",
                    hint=f"choose one of {names}: millpond remote default NAME, or -r NAME",
                )
            raise RemoteConfigError(
                "no remote is configured",
                hint="make one: millpond remote add -d NAME URL (a folder, s3://bucket/path, ...)",
            )
    name = name.lower()
    if name not in config.remotes:
        known = ", ".join(sorted(config.remotes)) or "none"
        raise RemoteConfigError(f"there is no remote '{name}'", hint=f"configured are: {known}")
    url, values = _follow(config, name, 0)
    return Remote(name, url, values)


def of_url(config: Config, url: str, values: Mapping[str, str]) -> Remote:
    """A url that somebody gave, with settings for it; `remote://NAME/path` is below a configured remote, whose settings hold too.
    Raises RemoteConfigError."""
    parts = urlsplit(url)
    if parts.scheme != "remote":
        return Remote(f"{parts.scheme}://{parts.hostname or ''}", url, dict(values))
    base = find(config, parts.netloc)
    return Remote(base.name, posixpath.join(base.url, parts.path.lstrip("/")), {**base.values, **values})


def _follow(config: Config, name: str, depth: int) -> tuple[str, dict[str, str]]:
    values = config.remotes.get(name)
    if values is None or depth > _DEPTH:
        problem = f"there is no remote '{name}'" if values is None else f"remote '{name}' refers to itself"
        raise RemoteConfigError(problem, hint="see the urls: millpond remote list")
    values = _with_paths(config, name, values)
    url = values.get("url", "")
    if not url:
        raise RemoteConfigError(f"remote '{name}' has no url", hint=f"millpond remote modify {name} url ...")
    parts = _split(name, url)
    if parts.scheme == "remote":
        base, inherited = _follow(config, parts.netloc.lower(), depth + 1)
        return posixpath.join(base, parts.path.lstrip("/")), {**inherited, **values}
    if parts.scheme == "file":
        return os.path.normpath(parts.path), dict(values)
    if len(parts.scheme) < 2:
        folder = os.path.dirname(config.origin[f'remote "{name}"', "url"])
        return os.path.normpath(os.path.join(folder, os.path.expanduser(url))), dict(values)
    return url, dict(values)


def _split(name: str, url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise RemoteConfigError(
            f"the url of remote '{name}' is none: {error}", hint=f"millpond remote modify {name} url ..."
        ) from error


def _with_paths(config: Config, name: str, values: Mapping[str, str]) -> dict[str, str]:
    found = dict(values)
    for key in _PATHS:
        value = os.path.expanduser(found.get(key, ""))
        if value:
            found[key] = os.path.join(os.path.dirname(config.origin[f'remote "{name}"', key]), value)
    return found


def connect(remote: Remote, environ: Mapping[str, str], catalog: Catalog | None = None) -> Backend:
    """The backend of a remote; nothing is asked of it yet. One that keeps versions itself is read by `catalog`. Raises RemoteConfigError,
    CredentialsError."""
    kind = remote.versioned
    if kind is not None and catalog is not None:
        from millpond.daemon.remote.versioned import VersionedBackend

        if remote.scheme != "s3":
            raise RemoteConfigError(
                f"remote '{remote.name}' ({remote.scheme}://) is {kind}, which millpond reads on s3:// only",
                hint="use dvc for it",
            )
        return VersionedBackend(_s3(remote, environ), kind, catalog)
    if remote.scheme == "file":
        return LocalBackend(remote.name, remote.url)
    if remote.scheme == "s3":
        return _s3(remote, environ)
    if remote.scheme == "ssh":
        from millpond.daemon.remote.ssh import SSHBackend
        from millpond.daemon.remote.sshsettings import SSHSettings

        return SSHBackend(remote.name, SSHSettings.of(remote.url, Values(remote.name, remote.values), environ))
    if remote.scheme in ("http", "https"):
        from millpond.daemon.remote.http import HttpBackend
        from millpond.daemon.remote.httpsettings import HttpSettings

        settings = HttpSettings.of(remote.url, Values(remote.name, remote.values), environ)
        return HttpBackend(remote.name, settings, remote.query)
    known = f"'{remote.scheme}' is a kind of remote that DVC has and millpond has not"
    raise RemoteConfigError(
        f"remote '{remote.name}': "
        + (known if remote.scheme in _ELSEWHERE else f"'{remote.scheme}' is no kind of remote"),
        hint="millpond knows directories, s3://, ssh:// and, to read from, http(s)://",
    )


def _s3(remote: Remote, environ: Mapping[str, str]) -> S3Backend | BotoBackend:
    from millpond.daemon.remote.s3settings import S3Settings

    parts = urlsplit(remote.url)
    settings = S3Settings.of(Values(remote.name, remote.values), environ)
    if not parts.netloc:
        raise RemoteConfigError(f"remote '{remote.name}' ({remote.url}) names no bucket", hint="write s3://BUCKET/PATH")
    prefix = parts.path.strip("/")
    try:
        settings.resolve()
    except Exception as error:  # botocore's own: a profile that is not there, a file that cannot be read
        raise RemoteConfigError(f"remote '{remote.name}': {error}", hint="see the profile in ~/.aws/config") from error
    if not _BUCKET.fullmatch(parts.netloc):
        raise RemoteConfigError(
            f"remote '{remote.name}': '{parts.netloc}' is no name of a bucket", hint="write s3://BUCKET/PATH"
        )
    if settings.endpoint and not _ENDPOINT.fullmatch(settings.endpoint):
        raise RemoteConfigError(
            f"remote '{remote.name}': its endpoint is no url", hint="write endpointurl = http(s)://HOST[:PORT]"
        )
    if settings.needs_boto:
        from millpond.daemon.remote.s3boto import BotoBackend

        return BotoBackend(remote.name, parts.netloc, prefix, settings)
    from millpond.daemon.remote.s3 import S3Backend

    return S3Backend(remote.name, parts.netloc, prefix, settings)
