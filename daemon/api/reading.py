"""`millpond.open`, `read` and `get_url`: as dvc.api has them, with DVC's rules for what a path and a revision mean."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, overload

from millpond.daemon.api.files import ObjectFile, ObjectText
from millpond.daemon.api.versions import Recent, Version
from millpond.daemon.errors import TargetError

_MODES = {"r": "t", "rt": "t", "tr": "t", "rb": "b", "br": "b"}
StrPath = str | os.PathLike[str]
Settings = Mapping[str, str] | None
# Memory of this process's own calls: nothing of it is seen in their results.
_recent = Recent()


@overload
def open(
    path: StrPath,
    mode: Literal["rb", "br"],
    *,
    rev: str | None = None,
    repo: StrPath | None = None,
    remote: str | None = None,
    remote_config: Settings = None,
) -> ObjectFile: ...
@overload
def open(
    path: StrPath,
    mode: Literal["r", "rt", "tr"] = "r",
    *,
    rev: str | None = None,
    repo: StrPath | None = None,
    remote: str | None = None,
    remote_config: Settings = None,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> ObjectText: ...
@overload
def open(
    path: StrPath,
    mode: str,
    *,
    rev: str | None = None,
    repo: StrPath | None = None,
    remote: str | None = None,
    remote_config: Settings = None,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> ObjectFile | ObjectText: ...


def open(
    path: StrPath,
    mode: str = "r",
    *,
    rev: str | None = None,
    repo: StrPath | None = None,
    remote: str | None = None,
    remote_config: Settings = None,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> ObjectFile | ObjectText:
    """A file of a repository, tracked or Git's: a file object, also for `with`.

    `rev` is anything that Git takes for a commit; None: the workspace, its file if it is there, else what its pointers name.
    `repo` is a folder in a repository; None: the current one; or a url that Git takes, which is cloned, `rev` None being its
    default branch. `remote` and `remote_config` are laid over its config: the name of its default remote, and settings of that
    remote; both stay in memory. `path` begins at the repository's root; with neither `rev` nor
    `repo` in the current folder. `mode` is r, rt or rb; the other arguments are those of the built-in open.

    The data comes from the store, DVC's cache or the remotes, through the daemon, which is started when there is none. Large
    files are read in parts. The object may be used after a fork, and pickled.

    Raises ValueError (mode), FileNotFoundError, IsADirectoryError, PermissionError; MillpondError of all other kinds: no
    repository, an unknown revision, data that is nowhere, a remote that refuses.
    """
    kind = _MODES.get(mode)
    if kind is None:
        raise ValueError(f"mode '{mode}' is none of r, rt, rb: versions are read, never written")
    if kind == "b" and not encoding == errors == newline == None:  # noqa: E711
        raise ValueError("encoding, errors and newline are for text")
    version, inner = _version(path, rev, repo, remote, remote_config)
    if kind == "b":
        return ObjectFile(version, inner)
    return ObjectText(version, inner, encoding, errors, newline)


def read(
    path: StrPath,
    mode: str = "r",
    *,
    rev: str | None = None,
    repo: StrPath | None = None,
    remote: str | None = None,
    remote_config: Settings = None,
    encoding: str | None = None,
    errors: str | None = None,
) -> Any:
    """All of a file: text, or bytes with mode rb. Arguments and errors are those of `open`."""
    with open(
        path,
        mode,
        rev=rev,
        repo=repo,
        remote=remote,
        remote_config=remote_config,
        encoding=encoding,
        errors=errors,
    ) as file:
        return file.read()


def get_url(path: StrPath, *, rev: str | None = None, repo: StrPath | None = None, remote: str | None = None) -> str:
    """Where the object of a tracked file or folder lies on its remote (else on `remote`), whether or not it is there.

    Raises TargetError for what is not tracked, RemoteConfigError without a remote; NotARepoError, RevisionError.
    """
    version, inner = _version(path, rev, repo)
    return version.url(inner, remote)


def _version(
    path: StrPath,
    rev: str | None,
    repo: StrPath | None,
    remote: str | None = None,
    remote_config: Settings = None,
) -> tuple[Version, str]:
    version = _recent.get(None if repo is None else os.fspath(repo), rev, remote, remote_config)
    try:
        return version, version.relative(os.fspath(path))
    except TargetError as error:
        raise FileNotFoundError(2, str(error), os.fspath(path)) from error
