"""Which commit an entry of dvc.lock came with: the code revision of what no record here tells of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from millpond.daemon.errors import InvalidFileError
from millpond.daemon.pipeline.lock import Lock, rendered
from millpond.daemon.pipeline.provenance import key_of
from millpond.daemon.pipeline.stage import Stage
from millpond.daemon.project import yamlio
from millpond.daemon.project.gitrepo import GitRepo
from millpond.daemon.project.repo import Repo

# Commits that are looked at, and bytes of locks that are parsed because their text alone does not tell.
MOST_COMMITS, _MOST_BYTES = 10_000, 16 << 20
Entry = dict[str, Any]


class Origins:
    """Walks from a commit back along first parents, once for all stages."""

    def __init__(self, repo: Repo, git: GitRepo, commit: str) -> None:
        self._repo = repo
        self._git = git
        self._commit = commit
        # Bytes of locks that may still be parsed.
        self._left = _MOST_BYTES

    def find(self, wanted: Iterable[tuple[Stage, Entry]]) -> dict[Stage, tuple[str, bool] | None]:
        """(commit, whether it surely is that one) with which each entry came; None for one that is not committed. Not sure:
        the entry may be older, where the walk ended."""
        found: dict[Stage, tuple[str, bool] | None] = {}
        waiting = dict(wanted)
        later: str | None = None
        seen: dict[str, str | None] = {}
        for commit in self._git.first_parents(self._commit, MOST_COMMITS):
            changed = {}
            for path in {stage.lock for stage in waiting}:
                blob = self._git.blob_id(commit, self._repo.git_path(path))
                if path not in seen or seen[path] != blob:
                    changed[path] = None if blob is None else self._git.read(blob)
                seen[path] = blob
            for stage, entry in list(waiting.items()):
                has = self._has(changed[stage.lock], stage, entry) if stage.lock in changed else True
                if has:
                    continue
                del waiting[stage]
                if has is None:
                    found[stage] = (later or commit, False)
                else:
                    found[stage] = None if later is None else (later, True)
            if not waiting:
                return found
            later = commit
        # The first commit of all has them, or the walk ended before it found them.
        begun = later is not None and self._git.is_first(later)
        return found | {stage: None if later is None else (later, begun) for stage in waiting}

    def _has(self, raw: bytes | None, stage: Stage, entry: Entry) -> bool | None:
        """Whether a lock has the entry; None when too much was parsed already to find out."""
        if raw is None:
            return False
        if f"\n{rendered(stage.name, entry)}".encode(errors="surrogateescape") in raw:
            return True
        self._left -= len(raw)
        if self._left < 0:
            return None
        try:
            known = Lock.parse(yamlio.decode(raw, stage.lock), stage.lock).get(stage.name)
        except InvalidFileError:
            return False
        return known is not None and key_of(known) == key_of(entry)
