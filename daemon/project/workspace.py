"""The workspace seen through the stat cache: groups of files to hash, and what is kept of them afterwards."""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from millpond.daemon.errors import TargetError
from millpond.daemon.mounts.place import MARKER, require_mounted
from millpond.daemon.names import DIR_SUFFIX
from millpond.daemon.objects import ObjectStore
from millpond.daemon.project import mounted
from millpond.daemon.project.digests import Group, Objects
from millpond.daemon.project.ignore import FolderRules
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.statcache import DIGEST, ROW, Moment, Snapshot
from millpond.daemon.project.walk import Listing, list_folder, stat_fields


@dataclass(slots=True)
class Loose:
    """A repo's single tracked files in the stat cache, and the list of all that was put in place there.

    `rows` by relative path: numbers and digest of a file. A tracked folder is there as "path/" with no numbers and its
    manifest's digest: `checkout` removes data that is tracked no more only if it is in this list.
    """

    rows: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    changed: bool = False

    @classmethod
    def of(cls, snapshot: Snapshot | None) -> Loose:
        found = cls()
        if snapshot is not None:
            raw = snapshot.stats.tobytes()
            for index, path in enumerate(snapshot.paths):
                found.rows[path] = (
                    raw[index * ROW : (index + 1) * ROW],
                    snapshot.digests[index * DIGEST : (index + 1) * DIGEST],
                )
        return found

    def put_group(self, group: Group, since: Moment, *, but: Loose | None = None) -> None:
        """Take in single files (paths relative to the repo), `but` those that are in another list as they are."""
        kept = group.to_snapshot(since)
        raw = kept.stats.tobytes()
        for index, path in enumerate(kept.paths):
            digest = group.digests[index]
            row = raw[index * ROW : (index + 1) * ROW]
            if digest is not None and (but is None or but.rows.get(path) != (row, digest)):
                self._put(path, row, digest)

    def put_folder(self, relative: str, tree: str) -> None:
        self._put(f"{relative}/", bytes(ROW), bytes.fromhex(tree.removesuffix(DIR_SUFFIX)))

    def drop(self, relative: str) -> None:
        for path in (relative, f"{relative}/"):
            if self.rows.pop(path, None) is not None:
                self.changed = True

    def _put(self, path: str, row: bytes, digest: bytes) -> None:
        other = path[:-1] if path.endswith("/") else f"{path}/"
        if self.rows.pop(other, None) is not None:
            self.changed = True
        if self.rows.get(path) != (row, digest):
            self.rows[path] = (row, digest)
            self.changed = True

    def snapshot(self, algo: str) -> Snapshot:
        stats = array("q")
        stats.frombytes(b"".join([row for row, _ in self.rows.values()]))
        digests = b"".join([digest for _, digest in self.rows.values()])
        return Snapshot(algo, "", list(self.rows), stats, digests)


class Workspace:
    """One verb's view of a repository's files. Made before anything is read: `since` is that moment."""

    def __init__(self, repo: Repo, store: ObjectStore) -> None:
        self.repo = repo
        self.objects = Objects(store, repo.cache)
        self.since = Moment.now(repo.dvc_dir)
        self._loose: dict[str, Loose] = {}
        self._seen: dict[str, Loose] = {}
        self._loose_snapshots: dict[str, Snapshot | None] = {}

    def folder(self, relative: str, algo: str = "md5") -> Group:
        """The files of a folder. Raises TargetError (unreadable), NotMountedError, InvalidFileError (rules)."""
        path = self.repo.path(relative)
        require_mounted(path)
        rules = self.repo.rules.at(relative)
        if rules is None:  # ignored, or another repository: nothing of it is ours
            rules = FolderRules(self.repo.root, f"{relative}/", ())
        try:
            listing = list_folder(path, rules)
        except OSError as error:
            shown = printable(self.repo.seen(relative))
            raise TargetError(f"cannot read '{shown}': {error.strerror}", path=printable(path)) from error
        for inner in listing.paths:
            if inner.endswith(MARKER):  # a mount below that is gone: its data is not here, and this is none
                require_mounted(os.path.dirname(os.path.join(path, inner)))
        group = Group.of(path, listing, self.repo.stat_cache.load(path), algo)
        mounted.fill_in(group, path, self.objects)
        return group

    def files(self, relatives: Iterable[str], algo: str = "md5") -> Group:
        """Single files that are there (links followed), as one group below the root."""
        listing = Listing()
        for relative in relatives:
            path = self.repo.path(relative)
            found = os.stat(path)
            assert stat.S_ISREG(found.st_mode)
            if os.path.islink(path):
                listing.links.append(len(listing.paths))
            listing.paths.append(relative)
            listing.stats.extend(stat_fields(found))
        group = Group.of(self.repo.root, listing, self._snapshot(self._scope(algo)), algo)
        seen = self._snapshot(self._seen_scope(algo)) if None in group.digests else None
        if seen is not None:
            group.digests = [known or other for known, other in zip(group.digests, seen.known(listing), strict=True)]
        mounted.fill_in(group, self.repo.root, self.objects)
        return group

    def loose(self, algo: str = "md5") -> Loose:
        """The single files in the cache; written back by `save`."""
        if algo not in self._loose:
            self._loose[algo] = Loose.of(self._snapshot(self._scope(algo)))
        return self._loose[algo]

    def keep_folder(
        self, relative: str, group: Group, tree: str, *, since: Moment | None = None, ours: bool = True
    ) -> None:
        """Remember a folder's digests; `tree` is its manifest's value, or "" when it is not whole. Unless it is `ours`, tracked data,
        `checkout` never removes it."""
        if not (group.whole and group.snapshot is not None and group.snapshot.tree == tree):
            self.repo.stat_cache.save(group.base, group.to_snapshot(since or self.since, tree))
        if tree and group.algo == "md5" and ours:
            self.loose().put_folder(relative, tree)

    def keep_files(self, group: Group, *, since: Moment | None = None) -> None:
        """Remember single files' digests."""
        if group.listing.paths:
            self.loose(group.algo).put_group(group, since or self.since)

    def keep_seen(self, group: Group, *, since: Moment | None = None) -> None:
        """Remember digests of single files that were looked at, whosever they are: `checkout` removes none of them."""
        if group.listing.paths:
            if group.algo not in self._seen:
                self._seen[group.algo] = Loose.of(self._snapshot(self._seen_scope(group.algo)))
            self._seen[group.algo].put_group(group, since or self.since, but=self.loose(group.algo))

    def save(self) -> None:
        """Write the single files' cache back where it changed."""
        for algo, loose in self._loose.items():
            if loose.changed:
                self.repo.stat_cache.save(self._scope(algo), loose.snapshot(algo))
        for algo, seen in self._seen.items():
            if seen.changed:
                for path in [each for each in seen.rows if not os.path.lexists(self.repo.path(each))]:
                    seen.drop(path)
                self.repo.stat_cache.save(self._seen_scope(algo), seen.snapshot(algo))

    def _snapshot(self, scope: str) -> Snapshot | None:
        if scope not in self._loose_snapshots:
            self._loose_snapshots[scope] = self.repo.stat_cache.load(scope)
        return self._loose_snapshots[scope]

    def _scope(self, algo: str) -> str:
        # No path of a folder ends with a slash or holds two in a row.
        return f"{self.repo.root}/" if algo == "md5" else f"{self.repo.root}//{algo}"

    def _seen_scope(self, algo: str) -> str:
        return f"{self.repo.root}///{algo}"
