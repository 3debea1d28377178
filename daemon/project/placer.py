"""Carrying out checkout's plans: remove, make folders, write files, and remember their digests.

A file gets its name when it is complete, so that at any instant it is the old one or the new one. Nothing is fsynced, as
with DVC: it can be checked out again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from millpond.daemon.errors import ConflictError, DiskFullError, MillpondError, ObjectMissingError, TargetError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import running
from millpond.daemon.project.arrivals import Arrivals
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.copying import Staged, Staging, below, copy_into, remove_tree
from millpond.daemon.project.digests import Group
from millpond.daemon.project.durable import make_folders, refuse_too_long, writing
from millpond.daemon.project.plan import ADDED, Content, Plan, Planner
from millpond.daemon.project.repo import printable
from millpond.daemon.project.statcache import Moment
from millpond.daemon.project.walk import FIELDS, Listing, stat_fields
from millpond.daemon.project.workspace import Workspace


@dataclass(frozen=True, slots=True)
class _Write:
    """A file to bring: from the store or DVC's cache, asked for as `source`, to `path` (absolute)."""

    plan: Plan
    inner: str
    path: str
    source: ObjectName
    size: int


class Placer:
    """Applies plans to the workspace."""

    def __init__(self, context: VerbContext, workspace: Workspace, arrivals: Arrivals | None = None) -> None:
        self._context = context
        self._workspace = workspace
        self._repo = workspace.repo
        self._arrivals = arrivals
        self._written: dict[str, tuple[os.stat_result, ObjectName]] = {}
        self._done = [0, 0]
        self._all = [0, 0]

    def put(self, content: Content) -> None:
        """Bring one content into place by force. Raises ObjectMissingError and what `apply` raises."""
        (plan,) = Planner(self._workspace).plans([content])
        if plan.missing:
            raise ObjectMissingError(
                f"the data of '{printable(content.path)}' is not at hand", path=printable(content.path)
            )
        self.apply([plan])

    def apply(self, plans: Sequence[Plan]) -> None:
        """Carry out all plans. Raises DiskFullError, TargetError (cannot write), StoreDamagedError, ConflictError, BusyError (a stage
        that runs needs what would change; nothing was changed)."""
        touched = [plan.content.path for plan in plans if plan.state is not None]
        running.refuse(self._repo, writes=touched, env=os.environ)
        try:
            for plan in plans:
                self._remove(plan)
            for plan in plans:
                self._take_arrived(plan)
            writes = [write for plan in plans for write in self._writes(plan)]
            self._all = [len(writes), sum(write.size for write in writes)]
            with Staging() as staging:
                self._make_folders(plans)
                self._from_cache([write for write in writes if not self._in_store(write)], staging)
                self._from_store([write for write in writes if self._in_store(write)], staging)
            for plan in plans:
                if plan.content.isexec and not plan.writes and plan.state is not None and not plan.deletes:
                    _make_executable(self._repo.path(plan.content.path))
        except OSError as error:
            raise self._failed(error) from error
        self._remember(plans)

    def _remove(self, plan: Plan) -> None:
        emptied: set[str] = set()
        for inner in plan.deletes:
            path = self._repo.path(plan.full(inner))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            emptied.add(os.path.dirname(path))
        top = self._repo.path(plan.content.path)
        for inner in plan.clear:
            path = self._repo.path(plan.full(inner))
            if os.path.islink(path):
                os.unlink(path)
            else:
                remove_tree(path)
        if plan.content.name is None and not os.path.islink(top) and os.path.isdir(top):
            # Folders without files are in no manifest: they go with the data, unless something of others is in them.
            for folder in [*reversed(below(top)[1]), top]:
                _remove_empty(folder)
        for folder in emptied:
            while folder.startswith(f"{top}/") and _remove_empty(folder):
                folder = os.path.dirname(folder)

    def _take_arrived(self, plan: Plan) -> None:
        """Give a folder that is new here, and was written while its files came, its place."""
        content = plan.content
        if self._arrivals is None or content.name is None or plan.state != ADDED or not content.is_dir:
            return
        top = self._repo.path(content.path)
        for inner, (name, found) in self._arrivals.place(content.path, content.name, plan.writes).items():
            self._written[f"{top}/{inner}"] = found, name

    def _writes(self, plan: Plan) -> Iterator[_Write]:
        """What is not there yet."""
        for inner, name in plan.writes.items():
            path = self._repo.path(plan.full(inner))
            if path not in self._written:
                place = plan.places[name]
                yield _Write(plan, inner, path, place.name, place.size)

    def _in_store(self, write: _Write) -> bool:
        return write.plan.places[write.plan.writes[write.inner]].in_store

    def _make_folders(self, plans: Sequence[Plan]) -> None:
        """Raises InvalidFileError for a path that is too long for any file, before anything is made."""
        for plan in plans:
            for inner in plan.writes:
                refuse_too_long(self._repo.path(plan.full(inner)))
        for plan in plans:
            top = self._repo.path(plan.content.path)
            if plan.content.is_dir and plan.state is not None:
                os.makedirs(top, exist_ok=True)
            for folder in {os.path.dirname(plan.full(inner)) for inner in plan.writes}:
                make_folders(self._repo.path(folder))

    def _from_cache(self, writes: Sequence[_Write], staging: Staging) -> None:
        for write in writes:
            opened = self._repo.cache.open(write.source)
            if opened is None:
                raise ObjectMissingError(
                    f"object {write.source} vanished from the DVC cache", path=printable(write.path), hint="try again"
                )
            source, size = opened
            try:
                staged = staging.open(write.path)
                with writing(write.path):
                    copy_into(source, staged.fd, size)
                self._place(write, staging, staged)
            finally:
                os.close(source)

    def _from_store(self, writes: Sequence[_Write], staging: Staging) -> None:
        waiting = iter(writes)
        current: tuple[_Write, Staged] | None = None
        try:
            for piece in self._context.store.fetch(write.source for write in writes):
                if current is None:
                    write = next(waiting)
                    current = write, staging.open(write.path)
                staging.write(current[1], piece.data)
                piece.data.release()  # the store's memory is unmapped after the next piece
                if piece.last:
                    (write, staged), current = current, None
                    self._place(write, staging, staged)
        finally:
            if current is not None:
                staging.drop(current[1])

    def _place(self, write: _Write, staging: Staging, staged: Staged) -> None:
        found = staging.place(staged, isexec=write.plan.content.isexec and not write.inner)
        self._written[write.path] = found, write.plan.writes[write.inner]
        self._done[0] += 1
        self._done[1] += write.size
        self._context.progress("checking out", (self._done[0], self._all[0]), (self._done[1], self._all[1]))

    def _remember(self, plans: Sequence[Plan]) -> None:
        """Keep the digests of what is in place now: files just written, and old ones that were known."""
        now = Moment.now(self._repo.dvc_dir)
        for plan in plans:
            content = plan.content
            if content.name is None:
                self._workspace.loose().drop(content.path)
            elif content.is_dir:
                self._remember_folder(plan, content.name, now)
            elif plan.writes:
                group = self._workspace.files([content.path], content.name.algo)
                self._recall(group, None)
                self._workspace.keep_files(group, since=now)
            elif plan.group is not None:
                self._workspace.keep_files(plan.group)
        self._workspace.save()

    def _remember_folder(self, plan: Plan, name: ObjectName, now: Moment) -> None:
        if plan.state is None:
            if plan.group is not None and plan.index is None:
                # Not always `name`: a part may be as it should while the rest is not.
                self._workspace.keep_folder(plan.content.path, plan.group, plan.group.tree().value)
            return
        group = self._workspace.folder(plan.content.path, name.algo)
        self._recall(group, plan.group if plan.index is None else None)
        whole = None not in group.digests and group.tree() == name
        self._workspace.keep_folder(plan.content.path, group, name.value if whole else "", since=now)

    def _recall(self, group: Group, old: Group | None) -> None:
        """Fill in digests: of files written, if nobody wrote to them since, and of unchanged ones that are not racy."""
        group.whole = False
        before = _rows(old.listing) if old is not None else {}
        digests = dict(zip(old.listing.paths, old.digests, strict=True)) if old is not None else {}
        after = _rows(group.listing)
        since = self._workspace.since
        for index, path in enumerate(group.listing.paths):
            row = after[path]
            written = self._written.get(group.path(index))
            group.digests[index] = None
            if written is not None:
                found, name = written
                if (row[1], row[2], row[3]) == stat_fields(found)[1:4] and name.algo == group.algo:
                    group.digests[index] = bytes.fromhex(name.value)
            elif old is not None and before.get(path) == row and not since.is_racy(row[0], row[4]):
                group.digests[index] = digests[path]

    def _failed(self, error: OSError) -> MillpondError:
        path = printable(os.fsdecode(error.filename or self._repo.root))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFullError(
                f"no room left to write '{path}'", path=path, hint="make room, then run checkout again"
            )
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR):
            return ConflictError(
                f"'{path}' was changed by someone else meanwhile", path=path, hint="run checkout again"
            )
        return TargetError(f"cannot write '{path}': {error.strerror}", path=path)


def _rows(listing: Listing) -> dict[str, array[int]]:
    return {path: listing.stats[at * FIELDS : (at + 1) * FIELDS] for at, path in enumerate(listing.paths)}


def _remove_empty(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except OSError:
        return False
    return True


def _make_executable(path: str) -> None:
    """Execute permission for whoever may read."""
    mode = os.stat(path).st_mode & 0o7777
    os.chmod(path, mode | (mode & 0o444) >> 2)
