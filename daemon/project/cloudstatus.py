"""`status -c`: what is here and not on the remote, there and not here, or in neither place."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import ObjectMissingError
from millpond.daemon.names import ObjectName
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.sharing import Group, Link, Links, choices, groups, waiting
from millpond.daemon.remote.places import check

# DVC's words: of the cache, seen from the remote.
NEW, DELETED, MISSING = "new", "deleted", "missing"


def cloud_status(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, recursive, all_branches, all_tags, all_commits, remote, jobs} -> {status: {path: new | deleted | missing},
    remotes}; paths from the project's root, in wire form.

    The remote is asked, notes about it do not count. Raises as `push`.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    found: dict[str, str] = {}
    told = waiting(context, "status -c")
    linked = Links(repo, params.get("remote"), params.get("jobs"), os.environ, versioned=True, tell=told)
    with context.lock(repo.root, "read"), linked as links:
        default = links.remote_of(None)
        objects = Objects(context.store, repo.cache)
        made = groups(links, objects, choices(repo, params), pushing=True)
        for group in made:
            found |= _compare(context, objects, links.of(group.remote), group)
    status = {wirepath.encode(path): state for path, state in found.items()}
    return {"status": status, "remotes": [group.remote.name for group in made] or [default.name]}


def _compare(context: VerbContext, objects: Objects, link: Link, group: Group) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in [name for name, entries in group.manifests.items() if entries is None]:
        try:
            raw = link.transfer.read(name)
        except ObjectMissingError:
            found[group.paths[name]] = MISSING
            continue
        check(name, raw)
        group.take(name, raw)
    # A manifest is here now in any case, as with DVC, which fetches those that it lacks.
    manifests = [name for name, entries in group.manifests.items() if entries is not None and group.is_whole(name)]
    for name in set(manifests) - set(link.present(manifests)):
        found[group.paths[name]] = NEW
    names = list(group.files)

    def tick(done: int, total: int) -> None:
        context.progress("looking at the remote", (done, total))

    there = link.present(names, tick)
    link.lacks(group, set(names) - set(there))
    for name, size in zip(names, objects.sizes(names), strict=True):
        state = _state(name, size is not None, name in there)
        if state is not None:
            found[group.files[name]] = state
    return found


def _state(name: ObjectName, here: bool, there: bool) -> str | None:
    if here:
        return None if there else NEW
    return DELETED if there else MISSING
