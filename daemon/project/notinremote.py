"""`data status --not-in-remote`: which entries of the workspace's pointers are not on their remote."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from millpond.daemon.errors import ObjectMissingError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.manifest import ManifestEntry
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.select import Choice
from millpond.daemon.project.sharing import Group, Link, Links, groups, waiting
from millpond.daemon.project.sides import Wanted
from millpond.daemon.remote.places import check


def not_in_remote(
    context: VerbContext, repo: Repo, objects: Objects, wanted: Wanted, params: Mapping[str, Any]
) -> list[str]:
    """Paths from the root, folders with a slash at their end; what is in a folder only with `granular`. Without `refresh` the notes of
    what was seen there last count, and no remote is asked. What has no remote is on none, as DVC has it. Raises RemoteConfigError,
    RemoteError, CredentialsError, StoreDamagedError."""
    granular, remote = bool(params.get("granular")), params.get("remote")
    outs = [
        out for out in repo.outputs() if out.cache and out.push and out.name is not None and wanted.output(out.path)
    ]
    homeless = remote is None and repo.config.get("core", "remote") is None
    found: list[str] = []
    with Links(repo, remote, None, os.environ, versioned=True, tell=waiting(context, "data status")) as links:
        if not homeless:
            links.remote_of(None)
        for out in [out for out in outs if homeless and out.remote is None]:
            outs.remove(out)
            found += [path for path, _ in _entries(out, _read(objects, out), granular)]
        for group in groups(links, objects, [Choice(out) for out in outs], pushing=True):
            link = links.of(group.remote)
            if granular:
                _fill(link, group)
            entries = [
                entry
                for out in outs
                if out.name in group.paths or out.name in group.files
                for entry in _entries(out, group.manifests.get(out.name), granular)
            ]
            there = _there(context, link, group, {name for _, name in entries}, ask=bool(params.get("refresh", True)))
            found += [path for path, name in entries if name not in there]
    return sorted(path for path in found if wanted.entry(path))


def _entries(out: Output, inside: Sequence[ManifestEntry] | None, granular: bool) -> Iterator[tuple[str, ObjectName]]:
    assert out.name is not None
    yield f"{out.path}/" if out.name.is_dir else out.path, out.name
    if granular and inside is not None:
        yield from ((f"{out.path}/{entry.relpath}", entry.name) for entry in inside)


def _read(objects: Objects, out: Output) -> list[ManifestEntry] | None:
    assert out.name is not None
    raw = objects.manifest(out.name) if out.name.is_dir else None
    return None if raw is None else manifest.parse(raw, source=str(out.name), algo=out.name.algo)


def _fill(link: Link, group: Group) -> None:
    """Read on the remote the manifests that are not here."""
    for name in [name for name, entries in group.manifests.items() if entries is None]:
        with contextlib.suppress(ObjectMissingError):
            raw = link.transfer.read(name)
            check(name, raw)
            group.take(name, raw)


def _there(context: VerbContext, link: Link, group: Group, names: set[ObjectName], *, ask: bool) -> set[ObjectName]:
    if ask:

        def tick(done: int, total: int) -> None:
            context.progress("looking at the remote", (done, total))

        there = set(link.present(list(names), tick))
        link.known.add(there, complete=False)
        return there
    complete = link.known.of(list(group.manifests))
    inside = {entry.name for name in complete for entry in group.manifests[name] or ()}
    return link.known.seen(list(names)) | inside
