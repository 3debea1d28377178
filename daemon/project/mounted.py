"""What is mounted in a workspace has its names from the version that the mount shows: nothing of it is read to be hashed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from millpond.daemon.errors import MillpondError
from millpond.daemon.mounts import place
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.project.digests import Group, Objects


def object_at(path: str, shown: Mapping[str, ObjectName] | None = None) -> ObjectName | None:
    """The object that an absolute path is by a mount: a directory that is mounted there, or a file that a link leads to. None for
    what lies in a mounted directory, and for what is no mount."""
    shown = place.shown_objects() if shown is None else shown
    path = place.resolve(path)
    if path in shown:
        return shown[path] if shown[path].is_dir else None
    if shown and os.path.islink(path):
        folder = os.path.dirname(os.path.realpath(path))
        name = shown.get(folder)
        return None if name is None or name.is_dir else name
    return None


def fill_in(group: Group, base: str, objects: Objects) -> None:
    """Have the digests of a group's files that lie in mounts, `base` being where its paths begin."""
    if None not in group.digests:
        return
    shown = {path: name for path, name in place.shown_objects().items() if name.algo == group.algo}
    if not shown:
        return
    for index in group.listing.links:
        if group.digests[index] is None and (name := object_at(group.path(index), shown)) is not None:
            group.digests[index] = bytes.fromhex(name.value)
    for mountpoint, name in shown.items():
        if not name.is_dir:
            continue
        within = _relation(base, mountpoint)
        if within is not None:
            _from_manifest(group, within, _manifest(objects, name))


def _relation(base: str, mountpoint: str) -> Callable[[str], str | None] | None:
    """From a path below `base` to one in the mount, None for one that is not in it; None where the two do not meet."""
    if base == mountpoint or base.startswith(f"{mountpoint}/"):
        lead = f"{base[len(mountpoint) + 1 :]}/" if base != mountpoint else ""
        return lambda path: lead + path
    if mountpoint.startswith(f"{base}/"):
        prefix = f"{mountpoint[len(base) + 1 :]}/"
        return lambda path: path[len(prefix) :] if path.startswith(prefix) else None
    return None


def _from_manifest(group: Group, within: Callable[[str], str | None], digests: Mapping[str, bytes]) -> None:
    for index, path in enumerate(group.listing.paths):
        if group.digests[index] is None and (inner := within(path)) is not None:
            group.digests[index] = digests.get(inner)


def _manifest(objects: Objects, name: ObjectName) -> dict[str, bytes]:
    """The files of a tracked directory; none where its manifest is not at hand, or damaged: they are hashed then."""
    try:
        raw = objects.manifest(name)
        rows = [] if raw is None else manifest.parse(raw, source=str(name), algo=name.algo)
    except MillpondError:
        return {}
    return {row.relpath: bytes.fromhex(row.name.value) for row in rows}
