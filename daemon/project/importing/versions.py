"""Versions of objects in a bucket, as imports name them: in a url (`?versionId=`), in a dependency's `version_id`, in its `files`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from millpond.daemon.errors import InvalidFileError, RemoteConfigError, UsageError
from millpond.daemon.remote.backend import Entry
from millpond.daemon.remote.remotes import Remote
from millpond.daemon.remote.versioned import NO_VERSION

# At the end of a url only: any other `?` is part of a name there.
_IN_URL = re.compile(r"\?versionId=([^?&#/]+)$")
FLAG = "version_aware"


class Pin(NamedTuple):
    """A version of a file: `relpath` below what the url names, "" for that itself; `size` in bytes where it is known."""

    relpath: str
    version: str
    etag: str | None = None
    size: int | None = None


def split(url: str) -> tuple[str, str | None]:
    """A url without the version that it names, and that."""
    found = _IN_URL.search(url)
    return (url, None) if found is None else (url[: found.start()], found[1])


def recorded(entry: Mapping[str, Any]) -> list[Pin]:
    """The versions that a dependency's entry names; none where it names none. Raises InvalidFileError."""
    if entry.get("version_id"):
        return [_pin("", entry)]
    return [_pin(str(file.get("relpath")), file) for file in entry.get("files") or ()]


def _pin(relpath: str, said: Mapping[str, Any]) -> Pin:
    version, size, etag = said.get("version_id"), said.get("size"), said.get("etag")
    if not version:
        raise InvalidFileError(
            f"'{relpath}' of an import has no version_id", path=relpath, hint="import it anew, with -f"
        )
    return Pin(relpath, str(version), None if etag is None else str(etag), size if isinstance(size, int) else None)


def are_asked_for(remote: Remote, url: str) -> bool:
    """Whether versions count for a url: its settings say so, or it names one. Raises UsageError where there are none."""
    aware = remote.flag(FLAG)
    if aware and remote.scheme != "s3":
        raise UsageError(f"{remote.scheme}:// has no versions of objects", hint="leave --version-aware out")
    return aware or (remote.scheme == "s3" and split(url)[1] is not None)


def token(paths: Sequence[str], entries: Sequence[Entry], *, is_dir: bool) -> dict[str, Any]:
    """What a dependency says of versions, in DVC's order."""
    rows: list[dict[str, Any]] = [
        {"etag": (each.etag or "").strip('"'), "size": each.size, "version_id": each.version} for each in entries
    ]
    if not is_dir:
        return rows[0]
    return {"files": [{"relpath": path, **row} for path, row in zip(paths, rows, strict=True)]}


def same(before: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether two entries tell of the same versions; a folder's files are compared by their ETags, as in DVC."""
    if "files" in found:
        return _tags(before) == _tags(found)
    return bool(before.get("version_id")) and before["version_id"] == found.get("version_id")


def _tags(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    return sorted((str(file.get("relpath")), str(file.get("etag"))) for file in entry.get("files") or ())


def refuse_unversioned(entries: Sequence[Entry], shown: str) -> None:
    """Raise RemoteConfigError for what has no versions, and so could not be had again when it has changed."""
    if any(each.version in NO_VERSION for each in entries):
        raise RemoteConfigError(
            f"the bucket of '{shown}' keeps no versions",
            path=shown,
            hint="leave --version-aware out, or turn its versioning on",
        )
