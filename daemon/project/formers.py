"""Which manifest a directory had before: of the next one, which is mostly the same, only what is new in it is stored (DESIGN.md, "Recipe of
parts"). Whatever is named here is a hint: a wrong one costs room and nothing else, so nothing that fails here is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TypeVar

import pygit2

from millpond.daemon.errors import MillpondError
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import ONE_CHUNK_BYTES, ObjectStore
from millpond.daemon.project import outputs
from millpond.daemon.project.repo import Repo

T = TypeVar("T")
# Commits that are looked at, first parents of HEAD; different names that the store is asked for.
_COMMITS, _ASKED = 64, 8


class Formers:
    """Of one project's outputs, for one verb."""

    def __init__(self, repo: Repo, store: ObjectStore) -> None:
        self._repo = repo
        self._store = store
        # What this verb has stored of an output's path last, and whether that is committed.
        self._latest: dict[str, ObjectName] = {}
        self._is_committed = True

    def put(self, data: bytes, path: str, pointer: str) -> ObjectName:
        """Store a manifest of the output at `path`, which `pointer` names, both from the root. Its name, to be committed. Raises as
        ObjectStore.put_bytes."""
        large = len(data) > ONE_CHUNK_BYTES  # else it is stored whole
        if large and path in self._latest and not self._is_committed:
            # The daemon follows what is committed alone.
            self._store.commit()
            self._is_committed = True
        name = self._store.put_bytes(data, is_dir=True, like=self.of(path, pointer) if large else None)
        self._latest[path], self._is_committed = name, False
        return name

    def of(self, path: str, pointer: str) -> ObjectName | None:
        """The manifest that the store has of what the output at `path` was, or may become."""
        if path in self._latest:
            return self._latest[path]
        found = _once(chain(self._workspace(path, pointer), self._committed(path, pointer)))
        try:
            for name in islice((name for name in found if name.is_sound_dir), _ASKED):
                if self._store.sizes([name])[0] is not None:
                    return name
        except (MillpondError, OSError, LookupError, ValueError, pygit2.GitError):
            return None
        return None

    def _workspace(self, path: str, pointer: str) -> Iterator[ObjectName]:
        """What the pointer says now, and what was put in place, or added, there last."""
        with contextlib.suppress(OSError), open(self._repo.path(pointer), "rb") as file:
            yield from _named(pointer, file.read(), path)
        known = self._repo.stat_cache.load(self._repo.path(path))
        if known is not None and known.tree:
            yield ObjectName("md5", known.tree)

    def _committed(self, path: str, pointer: str) -> Iterator[ObjectName]:
        """What it was before the last merge or pull, and in the commits that led to HEAD, the latest first."""
        git = self._repo.git
        head = None if git is None else git.head()
        if git is None or head is None:
            return
        before = []
        with contextlib.suppress(MillpondError):
            before.append(git.resolve("ORIG_HEAD"))
        where = self._repo.git_path(pointer)
        commits = chain(before, git.first_parents(head, _COMMITS))
        for blob in _once(git.blob_id(commit, where) for commit in commits):
            content = None if blob is None else git.read(blob)
            if content is not None:
                yield from _named(pointer, content, path)


def _once(found: Iterable[T]) -> Iterator[T]:
    """Each of them once, as they come."""
    seen: set[T] = set()
    for each in found:
        if each not in seen:
            seen.add(each)
            yield each


def _named(pointer: str, content: bytes, path: str) -> Iterator[ObjectName]:
    """The name that a pointer or lock file gives an output."""
    with contextlib.suppress(MillpondError):
        for output in outputs.outputs_of(pointer, content, None):
            if output.path == path and output.name is not None:
                yield output.name
