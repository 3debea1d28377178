"""`update` of what is no import: what others put into a `worktree` remote, in the bucket itself or by a push, comes into the project.

There each file lies at its own path, and what is the latest version there now is what the output becomes. A file whose ETag is the recorded
one is as it was, and keeps its version. All others are read from there, each the version that was listed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import TargetError, UsageError
from millpond.daemon.names import ObjectName
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.fileversions import FileVersions, Version
from millpond.daemon.project.importing import opening, versions
from millpond.daemon.project.importing.importurl import How, settle
from millpond.daemon.project.importing.keep import counted, found_of, manifest_of
from millpond.daemon.project.importing.source import RemoteSource
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.portions import put_all
from millpond.daemon.project.pushversions import files_of, tag_of
from millpond.daemon.project.recordversions import Renewed, rewritten
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.sharing import waiting
from millpond.daemon.remote import remotes
from millpond.daemon.remote.pace import rate

WORKTREE = "worktree"
_CHANGED = "add and push them, or bring back what is tracked (millpond checkout --force), then update"


def remote_of(repo: Repo, output: Output) -> str | None:
    """The `worktree` remote that an output goes to, or was pushed to last; None where there is none. Raises RemoteConfigError."""
    pushed = (each.remote for file in output.files for each in file.versions)
    name = output.remote or next((each for each in pushed if each is not None), None)
    if name is None or remotes.find(repo.config, name).versioned != WORKTREE:
        return None
    return name


class Following:
    """One output on its way to what its remote has now."""

    def __init__(self, context: VerbContext, repo: Repo, output: Output, remote: str, how: How) -> None:
        self._context = context
        self._repo = repo
        self._output = output
        self._remote = remote
        self._how = how
        self._objects = Objects(context.store, repo.cache)
        self._shown = printable(repo.seen(output.path))

    def run(self, rev: str | None) -> dict[str, Any]:
        """The verb's row. Raises UsageError for options that are for imports, ConflictError, RemoteError, CredentialsError,
        RemoteConfigError, RemoteChangedError, DiskFullError."""
        for given, option in (
            (rev, "--rev"),
            (self._how.no_download, "--no-download"),
            (self._how.to_remote, "--to-remote"),
        ):
            if given:
                raise UsageError(f"{option} is for imports, and '{self._shown}' is none", hint="leave it out")
        url = f"remote://{self._remote}/{self._output.path}"
        self._context.progress("looking at the source", note=url)
        return {
            "pointer": self._repo.wire(self._output.pointer),
            "source": wirepath.encode(url),
            "path": self._repo.wire(self._output.path),
            "changed": self._follow(url),
        }

    def _follow(self, url: str) -> bool:
        try:
            with opening.opened(
                url,
                self._repo.config,
                {versions.FLAG: "true"},
                os.environ,
                folder=self._repo.root,
                jobs=self._how.jobs,
                rate=rate(os.environ),
                tell=waiting(self._context, "update"),
            ) as found:
                assert isinstance(found, RemoteSource)
                return self._become(found)
        except TargetError as error:
            if not error.details.get("absent"):
                raise
            self._context.log(
                "warning", f"'{self._shown}' was not updated: remote '{self._remote}' has nothing at its path"
            )
            return False

    def _become(self, found: RemoteSource) -> bool:
        known = {each.relpath: each for each in files_of(self._output, self._objects) or ()}
        same = {
            index: known[path].name
            for index, (path, entry) in enumerate(zip(found.paths, found.entries, strict=True))
            if path in known and tag_of(entry) == self._tag(known[path])
        }
        if len(same) == len(found.paths) == len(known):
            return False
        names = self._brought(found, same)
        rows = {
            path: Version(self._remote, str(entry.version), tag_of(entry))
            for index, (path, entry) in enumerate(zip(found.paths, found.entries, strict=True))
            if index not in same
        }
        content = found_of(found, names)
        assert content.name is not None
        if found.is_dir:
            self._context.store.put_bytes(manifest_of(found.paths, names), is_dir=True, like=self._output.name)
        self._context.progress("committing")
        self._context.store.commit()
        files = list(zip(found.paths, names, found.sizes, strict=True)) if found.is_dir else None
        entry = Renewed(self._output.path, content.name, found.sizes[0], files, rows)
        texts = rewritten(self._repo, self._output.pointer, entry)
        settle(self._context, self._repo, self._output.path, texts, content, self._how, _CHANGED)
        return True

    def _tag(self, file: FileVersions) -> str | None:
        """The ETag that a file had on the remote."""
        tags = (each.etag for each in file.versions if each.remote in (None, self._remote))
        return next((tag.strip('"') for tag in tags if tag), None)

    def _brought(self, found: RemoteSource, same: Mapping[int, ObjectName]) -> list[ObjectName]:
        """The names of all files, in order; what is not at hand was read and stored."""
        places = self._objects.places(list(same.values()))
        names = {index: place.name for index, place in zip(same, places, strict=True) if place is not None}

        def stored(index: int, name: ObjectName, size: int) -> None:
            names[index] = name

        lacking = [index for index in range(len(found.paths)) if index not in names]
        put_all(self._context.store, counted(self._context, "updating", found, lacking), stored)
        return [names[index] for index in range(len(found.paths))]
