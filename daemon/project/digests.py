"""Digests of workspace files: from the stat cache where a file is unchanged, else by reading it, once.

A `Group` is the unit of the cache: one tracked folder, or all single files of a repository. `fill` hashes (and stores) what
several groups lack in one stream, in their order, so that the store sees many small files together.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from millpond.daemon.errors import FileChangedError
from millpond.daemon.jobs.reading import check_unchanged, open_regular
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import ObjectStore, Put
from millpond.daemon.project import manifest
from millpond.daemon.project.dvccache import DvcCache
from millpond.daemon.project.hashing import digest_of
from millpond.daemon.project.statcache import DIGEST, Moment, Snapshot
from millpond.daemon.project.walk import FIELDS, Listing, stat_fields

LEGACY = "md5-dos2unix"
# (files done, files in all, bytes done, bytes in all)
Progress = Callable[[int, int, int, int], None]


@dataclass(frozen=True, slots=True)
class Place:
    """A content at hand: the name to ask for it by, its size, and whether the store has it (else DVC's cache)."""

    name: ObjectName
    size: int
    in_store: bool


class Objects:
    """Where contents may be: the store, and the project's DVC cache beside it."""

    def __init__(self, store: ObjectStore, cache: DvcCache) -> None:
        self.store = store
        self.cache = cache

    def places(self, names: Sequence[ObjectName]) -> list[Place | None]:
        """Where each content is at hand, None where it is not.

        A legacy name is also answered by the content of that MD5: text without CRLF has the same digest both ways.
        """
        found: list[Place | None] = [
            None if size is None else Place(name, size, True)
            for name, size in zip(names, self.store.sizes(names), strict=True)
        ]
        for index, name in enumerate(names):
            if found[index] is None and (size := self.cache.size(name)) is not None:
                found[index] = Place(name, size, False)
        old = [index for index, name in enumerate(names) if found[index] is None and name.algo == LEGACY]
        if old:
            for index, place in zip(old, self.places([as_md5(names[index]) for index in old]), strict=True):
                found[index] = place
        return found

    def sizes(self, names: Sequence[ObjectName]) -> list[int | None]:
        """The size of each content that is at hand, None for the others."""
        return [None if place is None else place.size for place in self.places(names)]

    def whole(self, name: ObjectName) -> bool:
        """Whether a content is at hand in the store (or DVC's cache, if it is a file), and all that a manifest names."""
        return self.store.complete(name) if name.is_dir else self.sizes([name])[0] is not None

    def missing(self, entries: Mapping[str, ObjectName]) -> dict[str, ObjectName]:
        """Those of the entries whose content is nowhere at hand."""
        sizes = self.sizes(list(entries.values()))
        return {path: name for (path, name), size in zip(entries.items(), sizes, strict=True) if size is None}

    def manifest(self, name: ObjectName) -> bytes | None:
        """A manifest's text, None if it is nowhere. Raises StoreDamagedError."""
        place = self.places([name])[0]
        if place is None:
            return None
        return self.store.read(place.name) if place.in_store else self.cache.read(place.name)


def as_md5(name: ObjectName) -> ObjectName:
    return ObjectName("md5", name.value)


@dataclass(slots=True)
class Group:
    """Files below `base` and what is known of them: `digests[i]` for `listing.paths[i]`, None until `fill`.

    `snapshot` is what the cache had; `whole` says that it holds for all of `listing` as it is.
    """

    base: str
    listing: Listing
    algo: str
    snapshot: Snapshot | None
    whole: bool = False
    digests: list[bytes | None] = field(default_factory=list)
    _tree: ObjectName | None = None

    @classmethod
    def of(cls, base: str, listing: Listing, snapshot: Snapshot | None, algo: str = "md5") -> Group:
        if snapshot is not None and snapshot.algo != algo:
            snapshot = None
        group = cls(base, listing, algo, snapshot)
        if snapshot is None:
            group.digests = [None] * len(listing.paths)
        elif snapshot.same(listing):
            group.whole = True
            group.digests = list(_split(snapshot.digests))
        else:
            group.digests = list(snapshot.known(listing))
        return group

    def path(self, index: int) -> str:
        path = self.listing.paths[index]
        return (
            path if path.startswith("/") else f"{self.base}/{path}"
        )  # a single file outside of the project is as it is

    def name(self, index: int) -> ObjectName:
        digest = self.digests[index]
        assert digest is not None
        return ObjectName(self.algo, digest.hex())

    def size(self, index: int) -> int:
        return self.listing.stats[index * FIELDS + 2]

    def text(self) -> bytes:
        """The manifest. All digests must be known."""
        return manifest.serialise(zip(self.listing.paths, self.hexes(), strict=True))

    def tree(self) -> ObjectName:
        """The manifest's name; from the snapshot where it holds."""
        if self._tree is None:
            if self.whole and self.snapshot is not None and self.snapshot.tree:
                self._tree = ObjectName(self.algo, self.snapshot.tree)
            else:
                self._tree = ObjectName(self.algo, manifest.manifest_name(self.text()).value)
        return self._tree

    def note(self, index: int, digest: bytes | None, row: tuple[int, ...]) -> None:
        """A file was read, or written: its digest and its numbers now."""
        self.listing.stats[index * FIELDS : (index + 1) * FIELDS] = array("q", row)
        self.digests[index] = digest
        self.whole, self._tree = False, None

    def hexes(self) -> list[str]:
        digests = [digest for digest in self.digests if digest is not None]
        assert len(digests) == len(self.digests), "digests asked for before they were filled in"
        return [digest.hex() for digest in digests]

    def to_snapshot(self, since: Moment, tree: str = "") -> Snapshot:
        """What to keep, all reading having begun after `since`; files that are racy or not hashed will be read again."""
        known = b"".join([digest or bytes(DIGEST) for digest in self.digests])
        stats = since.settled(self.listing.stats)
        for index, digest in enumerate(self.digests):
            if digest is None:
                stats = stats[:] if stats is self.listing.stats else stats
                stats[index * FIELDS + 4] = 0
        return Snapshot(self.algo, tree, self.listing.paths, stats, known)


def _split(digests: bytes) -> Iterator[bytes]:
    return (digests[at : at + DIGEST] for at in range(0, len(digests), DIGEST))


def fill(groups: Sequence[Group], store: ObjectStore, *, keep: bool, progress: Progress | None = None) -> None:
    """Read every file whose digest is not known; with `keep` its content is stored (named at the store's commit).

    The listings' numbers become those of the file as read. Raises FileChangedError, TargetError, DiskFullError.
    """
    todo = [
        (group, index)
        for group in groups
        if not group.whole or keep
        for index, digest in enumerate(group.digests)
        if digest is None
    ]
    total = sum(group.size(index) for group, index in todo)

    def tick(files: int, done: int) -> None:
        if progress is not None:
            progress(files, len(todo), done, total)

    modern = [(group, index) for group, index in todo if group.algo == "md5"]
    paths = (group.path(index) for group, index in modern)
    for (group, index), put in zip(modern, store.put_files(paths, tick=tick, store=keep), strict=True):
        _note(group, index, put)
    for group, index in todo:
        if group.algo != "md5":
            _note(group, index, _hash_here(group.path(index), group.algo))


def forget_missing(groups: Iterable[Group], objects: Objects) -> None:
    """Make `fill` read again the files whose content is nowhere at hand, though the digest is known."""
    # A folder that is as it was when its manifest came into the store needs no look at each of its files.
    groups = [group for group in groups if not (group.whole and objects.store.complete(group.tree()))]
    known = [(group, index) for group in groups for index, digest in enumerate(group.digests) if digest is not None]
    for (group, index), size in zip(known, objects.sizes([group.name(index) for group, index in known]), strict=True):
        if size is None:
            group.digests[index] = None


def _note(group: Group, index: int, put: Put) -> None:
    if put.stat.st_size != put.size:
        raise FileChangedError(f"'{put.path}' changed while it was read", path=put.path, hint="try again")
    group.note(index, bytes.fromhex(put.name.value), stat_fields(put.stat))


def _hash_here(path: str, algo: str) -> Put:
    """Hash a file in this process: for names that the store does not compute."""
    fd, before = open_regular(path)
    with os.fdopen(fd, "rb") as file:
        digest = digest_of(file, algo)
        check_unchanged(path, file.fileno(), before)
    return Put(path, ObjectName(algo, digest), before.st_size, before)
