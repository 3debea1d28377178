"""`remote check`: what a remote lets its caller do."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import MillpondError
from millpond.daemon.names import ObjectName
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.sharing import Links
from millpond.daemon.remote import remotes
from millpond.daemon.remote.checks import Check, check

# What a remote of these kinds is not tried for.
_READ_ONLY = frozenset({"http", "https"})


def remote_check(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {name | null, read_only} -> {remote, url, checks: [{name, state, detail, took_s}], error: its wire form | null}.

    `state` is ok, failed, no (it cannot, and that hurts nothing) or skipped; `error` is that of the first that failed. Raises
    NotARepoError, RemoteConfigError, CredentialsError, InvalidFileError.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    name = params.get("name")
    with Links(repo, None if name is None else wirepath.decode(name), None, os.environ, versioned=True) as links:
        remote = links.remote_of(None)
    backend = remotes.connect(remote, os.environ)
    done: list[Check] = []
    try:
        write = not params.get("read_only") and remote.scheme not in _READ_ONLY
        for each in check(backend, _names(repo), write=write):
            done.append(each)
            context.progress("trying the remote", (len(done), None), note=each.name)
    finally:
        backend.close()
    error = next((each.error for each in done if each.error is not None), None)
    return {
        "remote": remote.name,
        "url": wirepath.encode(backend.url),
        "checks": [
            {"name": each.name, "state": each.state, "detail": wirepath.encode(each.detail), "took_s": each.took_s}
            for each in done
        ],
        "error": None if error is None else error.to_wire(),
    }


def _names(repo: Repo) -> list[ObjectName]:
    """Objects that the workspace's pointers name; pointers that cannot be read are another verb's affair."""
    try:
        return [output.name for output in repo.outputs() if output.name is not None and output.cache]
    except MillpondError:
        return []
