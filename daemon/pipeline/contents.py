"""What lies where dependencies and outputs are, and what of recorded data is at hand; each looked at once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from millpond.daemon.mounts.place import require_mounted
from millpond.daemon.names import ObjectName
from millpond.daemon.pipeline.absent import Absent
from millpond.daemon.pipeline.lock import Locked
from millpond.daemon.pipeline.places import Item
from millpond.daemon.pipeline.urls import Urls
from millpond.daemon.project import manifest, mounted
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Group, fill
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.statcache import Moment
from millpond.daemon.project.walk import stat_fields
from millpond.daemon.project.workspace import Workspace

# A place and the algorithm that its name is wanted by.
Wanted = tuple[str, str]
# Something is there that can have no name: a device, or a folder with one in it.
ODD = Locked(None)


@dataclass(slots=True)
class Contents:
    """The workspace of one verb. `look` first, for as many places as possible at once; then `at`."""

    context: VerbContext
    repo: Repo
    workspace: Workspace
    urls: Urls
    # What is not there and is taken as if it were.
    absent: Absent | None = None
    _found: dict[Wanted, Locked | None] = field(default_factory=dict)
    # What a single file held when it had these numbers, and was not written since.
    _files: dict[Wanted, tuple[tuple[int, ...], Locked]] = field(default_factory=dict)
    _whole: dict[ObjectName, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, context: VerbContext, repo: Repo) -> Contents:
        return cls(context, repo, Workspace(repo, context.store), Urls(context, repo))

    def of_item(self, item: Item, algo: str = "md5") -> Locked | None:
        """What a dependency or output is now, None for nothing. Raises as `look`, and as Urls.at."""
        return self.urls.at(item) if item.place is None else self.at(item.place, algo)

    def at(self, place: str, algo: str = "md5") -> Locked | None:
        """What is at a place, None for nothing."""
        if (place, algo) not in self._found:
            self.look([(place, algo)])
        return self._found[place, algo]

    def look(self, wanted: Iterable[Wanted]) -> None:
        """See what is at places that are not known. Raises NotMountedError, TargetError, FileChangedError."""
        since = Moment.now(self.repo.dvc_dir)
        single: dict[str, list[str]] = {}
        folders: list[tuple[Wanted, Group]] = []
        for each in dict.fromkeys(wanted):
            if each in self._found:
                continue
            place, algo = each
            standing = None if self.absent is None or algo != "md5" else self.absent.standing(place)
            if standing is not None:
                self._found[each] = standing
                continue
            path = self.repo.path(place)
            try:
                found = os.stat(path)
            except OSError:
                require_mounted(path)
                self._found[each] = None
                continue
            known = self._files.get(each)
            if known is not None and known[0] == stat_fields(found):
                self._found[each] = known[1]
            elif stat.S_ISDIR(found.st_mode):
                folders.append((each, self.workspace.folder(place, algo)))
            elif stat.S_ISREG(found.st_mode):
                single.setdefault(algo, []).append(place)
            else:
                self._found[each] = ODD
        files = [(algo, self.workspace.files(places, algo)) for algo, places in single.items()]
        fill([*(group for _, group in files), *(group for _, group in folders)], self.context.store, keep=False,
             progress=self._progress)  # fmt: skip
        for algo, group in files:
            self._take_files(algo, group, since)
        for each, group in folders:
            self._take_folder(each, group, since)

    def forget(self) -> None:
        """Look again at places when they are asked for."""
        self._found.clear()
        self.urls.forget()

    def take(self, place: str, found: Locked) -> None:
        """It is known what is at a place now."""
        self._found[place, "md5"] = found

    def save(self) -> None:
        """Keep what was hashed for the next command."""
        self.workspace.save()

    def look_for(self, names: Iterable[ObjectName]) -> None:
        """See which contents are at hand, folders with all that they hold. Raises StoreDamagedError."""
        fresh = [name for name in dict.fromkeys(names) if name not in self._whole]
        files = [name for name in fresh if not name.is_dir]
        objects = self.workspace.objects
        for name, size in zip(files, objects.sizes(files), strict=True):
            self._whole[name] = size is not None
        for name in fresh:
            if name.is_dir:
                self._whole[name] = self.context.store.complete(name) or self._has_all(name)

    def at_hand(self, name: ObjectName) -> bool:
        """Whether a content is in the store or in DVC's cache, a folder with all that it holds."""
        if name not in self._whole:
            self.look_for([name])
        return self._whole[name]

    def to_be_had(self, name: ObjectName, place: str) -> bool:
        """Whether a content is at hand, is mounted at its place, or is that of data which is absent and need not be there."""
        if self.at_hand(name) or (self.absent is not None and self.absent.to_be_had(name)):
            return True
        path = self.repo.path(place)
        return os.path.lexists(path) and mounted.object_at(path) == name

    def stored(self, names: Iterable[ObjectName]) -> None:
        """These are at hand now."""
        self._whole.update(dict.fromkeys(names, True))

    def _has_all(self, name: ObjectName) -> bool:
        objects = self.workspace.objects
        raw = objects.manifest(name)
        if raw is None:
            return False
        inside: Sequence[ObjectName] = [entry.name for entry in manifest.parse(raw, source=str(name), algo=name.algo)]
        return None not in objects.sizes(inside)

    def _take_files(self, algo: str, group: Group, since: Moment) -> None:
        for index, place in enumerate(group.listing.paths):
            found = os.stat(self.repo.path(place))
            locked = Locked(group.name(index), group.size(index), None, bool(found.st_mode & 0o111))
            self._found[place, algo] = locked
            if not since.is_racy(found.st_dev, found.st_ctime_ns):
                self._files[place, algo] = stat_fields(found), locked
        self.workspace.keep_seen(group, since=since)

    def _take_folder(self, each: Wanted, group: Group, since: Moment) -> None:
        place, _ = each
        if group.listing.odd:
            self._found[each] = ODD
            return
        inside = [] if self.absent is None or group.algo != "md5" else self.absent.below(place)
        if inside:
            assert self.absent is not None
            rows = zip(group.listing.paths, group.hexes(), strict=True)
            self._found[each] = self.absent.merged(place, rows, group.listing.total, inside)
            return
        self._found[each] = Locked(group.tree(), group.listing.total, len(group.listing.paths))
        self.workspace.keep_folder(place, group, group.tree().value, since=since, ours=False)

    def _progress(self, files: int, all_files: int, done: int, total: int) -> None:
        self.context.progress("hashing", (files, all_files), (done, total))
