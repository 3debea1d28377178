"""`get`, `get-url`, `list-url`: data from elsewhere without a pointer, in a project or in none."""

from __future__ import annotations

import os
import posixpath
from contextlib import AbstractContextManager
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import NotARepoError, TargetError
from millpond.daemon.project import config as config_module
from millpond.daemon.project import dvcfile
from millpond.daemon.project.config import Config
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.ignore import DVC_DIR
from millpond.daemon.project.importing import external, opening, repofiles, repotree, source, target, urls
from millpond.daemon.project.importing.deliver import deliver
from millpond.daemon.project.importing.external import Settings
from millpond.daemon.project.importing.source import Source
from millpond.daemon.project.importing.urls import shown_url
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import find_root
from millpond.daemon.project.sharing import waiting
from millpond.daemon.project.stages import STAGES_FILE
from millpond.daemon.remote.layout import key_of
from millpond.daemon.remote.pace import rate
from millpond.daemon.remote.silence import Tell


def get(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {url, source, out, rev, show_url, jobs, force, config, remote, remote_config} -> {path, files, bytes, warnings}; with `show_url`
    {storage}: where the object of what is at `source` lies.

    Raises NotARepoError, RevisionError, TargetError, ConflictError, ObjectMissingError, StoreDamagedError, RemoteConfigError,
    RemoteError, CredentialsError, DiskFullError.
    """
    settings = Settings.of(params)
    url, path = wirepath.decode(params["url"]), wirepath.decode(params["source"])
    here = os.path.realpath(os.getcwd())
    place = "" if params.get("show_url") else _place(path, params)
    with (
        external.opened(context, url, params.get("rev"), settings, os.environ, folders=(here,)) as other,
        repotree.opened(other, path, context.store, jobs=params.get("jobs"), tell=waiting(context, "get")) as files,
    ):
        if params.get("show_url"):
            return {"storage": wirepath.encode(_storage(files, path))}
        return _delivered(context, files, place, params)


def get_url(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {url, out, jobs, force, fs_config} -> {path, files, bytes, warnings}. Raises TargetError, ConflictError, RemoteConfigError, RemoteError,
    RemoteChangedError, CredentialsError, DiskFullError."""
    url = wirepath.decode(params["url"])
    place = _place(url, params)
    with _opened(url, params, waiting(context, "get-url"), jobs=params.get("jobs"), rate=rate(os.environ)) as found:
        return _delivered(context, found, place, params)


def list_url(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {url, recursive, level, tree, fs_config} -> {rows: [[path, depth, is_dir, size]]}: sorted, with `tree` in a tree's order and
    what is listed first; a folder has no size.

    Raises as `get_url`.
    """
    url = wirepath.decode(params["url"])
    level = params.get("level")
    with _opened(url, params, waiting(context, "list-url")) as found:
        top = found.path if isinstance(found, source.LocalSource) else shown_url(url)
        if not found.is_dir or level == 0:
            return {"rows": [[wirepath.encode(top), 0, found.is_dir, None if found.is_dir else found.sizes[0]]]}
        rows = _rows(found, level if params.get("recursive") or params.get("tree") else 1)
    if params.get("tree"):
        rows = [(url, 0, True, None), *rows]
    else:
        rows = sorted(row for row in rows if not params.get("recursive") or not row[2] or row[1] == level)
    return {"rows": [[wirepath.encode(path), *rest] for path, *rest in rows]}


def _rows(found: Source, level: int | None) -> list[tuple[str, int, bool, int | None]]:
    """Files and the folders that lead to them, each folder before what is in it, to a depth."""
    made: dict[str, tuple[str, int, bool, int | None]] = {}
    for path, size in zip(found.paths, found.sizes, strict=True):
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            made.setdefault(folder, (folder, depth, True, None))
        made[path] = (path, len(parts), False, size)
    rows = sorted(made.values(), key=lambda row: row[0].split("/"))
    return [row for row in rows if level is None or row[1] <= level]


def _place(url: str, params: dict[str, Any]) -> str:
    """The absolute path at which data is to be. Raises TargetError where something is already."""
    out = None if params.get("out") is None else wirepath.decode(params["out"])
    name = "" if out is not None and not (os.path.isdir(out) or out.endswith("/")) else urls.basename(url)
    place = os.path.abspath(target.destination(name, out))
    shown = printable(place if out is None else out)
    if place.endswith(dvcfile.SUFFIX) or os.path.basename(place) == STAGES_FILE:
        raise TargetError(f"'{shown}' is the name of a DVC file", path=shown, hint="get the data that it tracks")
    target.refuse_existing(place, force=bool(params.get("force")))
    return place


def _delivered(context: VerbContext, found: Source, place: str, params: dict[str, Any]) -> dict[str, Any]:
    files, size = deliver(context, found, place, force=bool(params.get("force")))
    told = [wirepath.encode(each) for each in source.warnings(found)]
    return {"path": wirepath.encode(os.path.relpath(place)), "files": files, "bytes": size, "warnings": told}


def _storage(files: repofiles.RepoFiles, path: str) -> str:
    """Where the object of a path lies: on the remote of its repository, or in the cache of one that has none and lies here."""
    name = files.output.name if files.output is not None else None if files.is_dir else files.items[0].name
    if name is None:
        shown = printable(path)
        raise TargetError(
            f"'{shown}' is not tracked data as a whole, so it has no storage of its own",
            path=shown,
            hint="name a tracked file or directory, or a file in one",
        )
    item = files.items[0] if files.items else None
    root = "" if item is None else item.project
    output = files.output if item is None else item.output
    own = None if output is None else output.remote
    project = files.external.project(root)
    if own is None and project.config.get("core", "remote") is None and files.external.top is not None:
        return str(project.cache.path_of(name))
    return posixpath.join(files.link(root, own).remote.url, key_of(name))


def _opened(
    url: str, params: dict[str, Any], tell: Tell, *, jobs: int | None = None, rate: float | None = None
) -> AbstractContextManager[Source]:
    """All that a url names, seen from the current folder."""
    here = os.path.realpath(os.getcwd())
    return opening.opened(
        url,
        _config(),
        source.settings(params.get("fs_config")),
        os.environ,
        folder=here,
        jobs=jobs,
        rate=rate,
        everything=True,
        tell=tell,
    )


def _config() -> Config:
    """The project's that the caller is in; the user's own outside of any. Raises InvalidFileError."""
    here = os.path.realpath(os.getcwd())
    try:
        here = find_root(here)
    except NotARepoError:
        here = "/"
    return config_module.load(os.path.join(here, DVC_DIR), os.environ)
