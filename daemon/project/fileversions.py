"""What a pointer says of the files of an output on remotes that keep versions themselves (`version_aware`, `worktree`).

    cloud: {REMOTE: {etag, version_id}}           of a file
    files: [{relpath, md5, size, cloud}, ...]     of a directory, in place of its `md5`

There each file lies under its own path below the remote's url, and each content of it is a version of that object. A `version_id` without a
remote's name is of older DVC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest


class Version(NamedTuple):
    """One content on a remote (None: on whichever the output is)."""

    remote: str | None
    version: str
    etag: str | None


class FileVersions(NamedTuple):
    """A file of an output: `relpath` is "" for an output that is a file, `size` in bytes; where its content is, nowhere perhaps."""

    relpath: str
    name: ObjectName
    size: int | None
    versions: tuple[Version, ...]


def of_output(entry: Mapping[str, Any], name: ObjectName | None, size: int | None) -> tuple[FileVersions, ...]:
    """What an out's entry says, `name` being its object, of `size` bytes; () for one that says nothing. What is malformed is left out, a
    directory as a whole."""
    files = entry.get("files")
    if isinstance(files, list):
        try:
            found = tuple(
                FileVersions(
                    str(file["relpath"]),
                    ObjectName("md5", str(file["md5"])),
                    _number(file.get("size")),
                    _versions(file),
                )
                for file in files
            )
        except (KeyError, TypeError):
            return ()
        odd = manifest.problem([each.relpath for each in found], [each.name.value for each in found])
        return found if odd is None else ()
    versions = _versions(entry)
    return (FileVersions("", name, size, versions),) if versions and name is not None else ()


def manifest_of(files: tuple[FileVersions, ...]) -> bytes:
    """The manifest that the files of a directory make."""
    rows = sorted(((each.relpath, each.name.value) for each in files), key=lambda row: manifest.sort_key(row[0]))
    return manifest.serialise(rows)


def _versions(entry: Mapping[str, Any]) -> tuple[Version, ...]:
    cloud = entry.get("cloud")
    by_remote: dict[Any, Any] = dict(cloud) if isinstance(cloud, dict) else {}
    if not by_remote and entry.get("version_id"):
        by_remote = {entry.get("remote"): entry}
    return tuple(
        Version(
            None if remote is None else str(remote).lower(),
            str(said["version_id"]),
            str(said["etag"]) if said.get("etag") else None,
        )
        for remote, said in by_remote.items()
        if isinstance(said, dict) and said.get("version_id")
    )


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None
