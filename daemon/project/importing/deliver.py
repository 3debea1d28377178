"""Bringing data from elsewhere to a place that is no project's: `get`, `get-url`.

A file has its name when it is whole. A new folder is written under a name of ours beside its place and renamed when all is in it; into
one that is there, which only force allows, files go one by one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator

from millpond.daemon.errors import ConflictError
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.copying import Staged, Staging, remove_tree
from millpond.daemon.project.durable import make_folders, refuse_too_long, write_error
from millpond.daemon.project.importing.keep import counted
from millpond.daemon.project.importing.source import Source
from millpond.daemon.project.paths import printable
from millpond.daemon.project.scratch import temporary_name

_AGAIN = "make room, then do it again"


def deliver(context: VerbContext, source: Source, place: str, *, force: bool) -> tuple[int, int]:
    """Have a source's files at an absolute path that is free, or by force; files and bytes. Raises as the source's `read`,
    DiskFullError, InvalidFileError, ConflictError."""
    try:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if not source.is_dir:
            if os.path.isdir(place):
                raise _in_the_way(place, "a folder")
            return _write(context, source, {0: place})
        if os.path.lexists(place):
            if not os.path.isdir(place):
                raise _in_the_way(place, "a file")
            return _write(context, source, _paths(source, place))
        with _beside(place) as folder:
            done = _write(context, source, _paths(source, folder))
            os.rename(folder, place)
        return done
    except OSError as error:
        raise write_error(error, _AGAIN) from error


def _paths(source: Source, folder: str) -> dict[int, str]:
    return {index: f"{folder}/{path}" for index, path in enumerate(source.paths)}


def _write(context: VerbContext, source: Source, paths: dict[int, str]) -> tuple[int, int]:
    for path in paths.values():
        refuse_too_long(path)
    for folder in {os.path.dirname(path) for path in paths.values()}:
        make_folders(folder)
    staged: Staged | None = None
    size = 0
    with Staging() as staging:
        try:
            for index, data, last in counted(context, "getting", source, range(len(paths))):
                if staged is None:
                    staged = staging.open(paths[index])
                staging.write(staged, memoryview(data))
                size += len(data)
                if last:
                    whole, staged = staged, None
                    staging.place(whole)
        finally:
            if staged is not None:
                staging.drop(staged)
    return len(paths), size


@contextlib.contextmanager
def _beside(place: str) -> Iterator[str]:
    """A new folder on the same disk; what is not renamed in the block is removed."""
    folder = temporary_name(os.path.dirname(place), secrets.token_hex(8))
    os.mkdir(folder)
    try:
        yield folder
    finally:
        if os.path.isdir(folder):
            remove_tree(folder)


def _in_the_way(place: str, what: str) -> ConflictError:
    shown = printable(place)
    return ConflictError(f"'{shown}' is {what}", path=shown, hint="remove it, or choose another place")
