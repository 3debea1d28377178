"""What to mount: from a target and a revision to a tree, as the caller, who reads his own Git and his own cache."""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import (
    ObjectMissingError,
    RevisionError,
    TargetError,
)
from millpond.daemon.mounts.foretelling import Foretelling
from millpond.daemon.mounts.listing import KEY_BYTES, UNKNOWN, WireEntry, pack_entries
from millpond.daemon.mounts.project import Project
from millpond.daemon.names import ALGORITHMS, ObjectName
from millpond.daemon.objects import ObjectStore
from millpond.daemon.project import outputs
from millpond.daemon.project.digests import LEGACY, as_md5
from millpond.daemon.project.dvccache import misnamed
from millpond.daemon.project.gitrepo import GitRepo
from millpond.daemon.project.ignore import IgnoreRules
from millpond.daemon.project.outputs import GitTree, Output, WorkTree


class Peer(Protocol):
    """What this module needs of the worker's client."""

    def call(
        self, method: str, params: dict[str, Any], *, fds: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]: ...
    def notify(self, method: str, params: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """A tree to be mounted: `root` in hex, `commit` None for the workspace, `name` the object of a tracked directory; `is_far`: remotes
    had to be asked for sizes, and so will be for what is read."""

    root: str
    files: int
    bytes: int
    commit: str | None
    name: str | None
    target: str
    is_far: bool = False


class Planner:
    """Makes plans of one project for one caller."""

    def __init__(self, project: Project, peer: Peer, store: ObjectStore) -> None:
        project.places.tell = lambda who, since_s: peer.notify("$/waiting", {"for": who, "since_s": round(since_s, 1)})
        self._project = project
        self._peer = peer
        self._store = store
        # Whether remotes had to be asked: what is read will come from there.
        self._is_far = False

    def plan(self, target: str, rev: str | None) -> Plan:
        """The tree of `target` (relative to the project's root; empty: all of it) at a revision, or as the workspace's
        pointers name it. Raises RevisionError, TargetError, ObjectMissingError."""
        commit = self._commit(rev)
        tree = WorkTree(self._project.root, IgnoreRules(self._project.root))
        found = outputs.collect(GitTree(self._git(), commit, self._project.prefix) if commit else tree)
        outs = {output.path: output for output in found if output.cache}
        for path in _with_parents(_without_suffix(target, outs)):
            if path in outs and (outs[path].is_dir or path == target or path + ".dvc" == target):
                return self._tracked(outs[path], target, commit)
        return self._whole(target, commit, list(outs.values()))

    def plan_object(self, name: ObjectName, target: str, *, isexec: bool = False) -> Plan:
        """The tree of a tracked directory, or of a file alone in a folder, by its name: whatever pointers name now. Raises
        ObjectMissingError, RemoteError, CredentialsError."""
        plan = self._tracked(Output(target, target, name, None, None, isexec), target, None)
        return dataclasses.replace(plan, name=str(name))

    def _tracked(self, output: Output, target: str, commit: str | None) -> Plan:
        """A tracked directory, a path in it, or a tracked file (shown alone in a folder)."""
        if output.name is None:
            raise TargetError(f"'{output.path}' has no version yet", path=output.path, hint="add it: millpond add")
        if not output.is_dir:
            entry = self._file(output, posixpath.basename(output.path))
            return self._build([entry], commit, target)
        inner = target[len(output.path) :].strip("/") if target.startswith(output.path + "/") else ""
        totals = self._listing(output.name, inner, target, output.nfiles)
        name = str(output.name) if not inner else None
        return Plan(totals["root"], totals["files"], totals["bytes"], commit, name, target, self._is_far)

    def _whole(self, target: str, commit: str | None, outs: list[Output]) -> Plan:
        """A folder of the project, or all of it: Git's files and the data of all outputs in it."""
        prefix = f"{target}/" if target else ""
        inside = [output for output in outs if output.path.startswith(prefix) and output.name is not None]
        entries = self._git_entries(commit, target) if commit else []
        if not inside and not entries:
            at = f" at {commit[:12]}" if commit else " in the workspace"
            raise TargetError(f"'{target or '.'}' is neither tracked data nor a folder with such{at}", path=target)
        taken = {os.fsencode(output.path[len(prefix) :]) for output in inside}
        entries = [entry for entry in entries if not _below(entry.path, taken)]
        for output in inside:
            path = output.path[len(prefix) :]
            if output.is_dir:
                assert output.name is not None
                totals = self._listing(output.name, "", output.path, output.nfiles)
                root = bytes.fromhex(totals["root"])
                entries.append(WireEntry(os.fsencode(path), False, int(totals["files"]), None, None, root))
            else:
                entries.append(self._file(output, path))
        return self._build(entries, commit, target)

    def _file(self, output: Output, path: str) -> WireEntry:
        assert output.name is not None
        name = output.name
        size = self._store.sizes([name])[0]
        if size is None and name.algo == LEGACY:
            # Text without CRLF, and whatever is no text, has the same digest both ways.
            size = self._store.sizes([as_md5(name)])[0]
            name = name if size is None else as_md5(name)
        if size is None:
            size = self._project.size(output.name)
        if size is None:
            size = self._project.remote_sizes([output.name], f"'{output.path}' ({output.name})")[0]
        if size is None:
            raise ObjectMissingError(
                f"'{output.path}' ({output.name}) is neither in the store nor in the project's cache nor on a remote",
                path=output.path,
                hint="push it from where it still is, then: millpond fetch",
                details={"paths": [wirepath.encode(output.path)], "count": 1},
            )
        return WireEntry(os.fsencode(path), output.isexec, size, str(name), None, None)

    def _git_entries(self, commit: str, target: str) -> list[WireEntry]:
        git = self._git()
        start = posixpath.join(self._project.prefix, target) if target else self._project.prefix
        algo = git.hash_algo
        entries = []
        for file in git.files(commit, start):
            path = os.fsencode(file.path[len(start) + 1 :] if start else file.path)
            if file.mode == 0o160000:
                continue  # a submodule is another repository
            if file.is_link:
                entries.append(WireEntry(path, False, 0, None, git.read(file.oid) or b"", None))
            else:
                entries.append(WireEntry(path, file.is_exec, file.size, f"{algo}:{file.oid}", None, None))
        return entries

    def _build(self, entries: list[WireEntry], commit: str | None, target: str) -> Plan:
        fd = pack_entries(entries)
        try:
            result, _ = self._peer.call("listing.tree", {}, fds=[fd])
        finally:
            os.close(fd)
        return Plan(result["root"], result["files"], result["bytes"], commit, None, target, self._is_far)

    def _listing(self, name: ObjectName, inner: str, shown: str, files: int | None) -> dict[str, Any]:
        """The tree of a manifest, helped out with what only this user has; `files`: how many it names, as its pointer says."""
        data: bytes | None = None
        if self._store.sizes([name])[0] is None:
            if name.algo != "md5":
                data = self._project.read(name)
                if data is None:
                    self._project.expect(files or 0)
                    data = self._project.remote_manifest(name, shown)
                return self._legacy(name, data, inner, shown)
            # The daemon hashes it in any case: to do so here, too, takes 0.15 s of a million files.
            found = self._project.read_unchecked(name)
            if found is None:
                self._project.expect(files or 0)
                found = self._project.remote_manifest(name, shown), ""
            data, path = found
            self._project.expect(data.count(b'"relpath"'), name)
            # Manifests are small and asked for again and again: the store keeps them, under every name they have.
            stored = self._store.put_bytes(data, is_dir=True)
            if stored != name:
                raise misnamed(path, stored.hex)
            self._store.commit()
        result, fds = self._peer.call("listing.ensure", {"name": str(name), "path": inner})
        if "unknown" in result and data is not None and self._foretell(data):
            os.close(fds[0])
            result, fds = self._peer.call("listing.sizes", {})
        while "unknown" in result:
            with memfd.sent(self._sizes(fds[0], shown).tobytes()) as sizes:
                result, fds = self._peer.call("listing.sizes", {}, fds=[sizes])
        return result

    def _foretell(self, data: bytes) -> bool:
        """Tell the daemon of the objects of a manifest what a listing that was begun tells, while it comes; whether anything was told."""
        if not self._project.is_listing:
            return False
        places, foretelling = self._project.places, Foretelling(self._peer, data)
        places.listed([], lambda: foretelling.tell(places.came()))
        foretelling.tell(places.came(), last=True)
        self._is_far = self._is_far or foretelling.has_told
        return foretelling.has_told

    def _legacy(self, name: ObjectName, data: bytes, inner: str, shown: str) -> dict[str, Any]:
        """A manifest of DVC 1 or 2: its entries have another algorithm than its bytes, so it is sent as a tree."""
        from millpond.daemon.project import manifest

        found = manifest.parse(data, source=shown, algo=name.algo)
        prefix = f"{inner}/" if inner else ""
        entries = []
        for entry in found:
            if entry.relpath.startswith(prefix):
                output = Output(entry.relpath, shown, entry.name, None, None, False)
                entries.append(self._file(output, entry.relpath[len(prefix) :]))
        plan = self._build(entries, None, shown)
        return {"root": plan.root, "files": plan.files, "bytes": plan.bytes}

    def _sizes(self, keys_fd: int, shown: str) -> array[int]:
        """Sizes as a listing that was begun tells them, else from the project's caches, else from its remotes, for names whose keys
        (17 bytes each) are in a memory file."""
        with memfd.mapped(keys_fd) as view:
            keys = bytes(view)
        text, step = keys.hex(), 2 * KEY_BYTES
        values = [text[at + 2 : at + step] for at in range(0, len(text), step)]
        sizes = self._project.listed_sizes(values)
        rest = [number for number, size in enumerate(sizes) if size is None]
        self._is_far = self._is_far or len(rest) < len(sizes)
        if set(keys[::KEY_BYTES]) == {ALGORITHMS["md5"]}:
            found = self._project.md5_sizes([values[number] for number in rest])
        else:
            found = [self._project.size(_name_at(keys, number)) for number in rest]
        for number, size in zip(rest, found, strict=True):
            sizes[number] = size
        lacking = [number for number in rest if sizes[number] is None]
        if lacking:
            self._is_far = True
            names = [_name_at(keys, number) for number in lacking]
            for number, size in zip(lacking, self._project.remote_sizes(names, f"data of '{shown}'"), strict=True):
                sizes[number] = size
        return array("Q", [UNKNOWN if size is None else size for size in sizes])

    def _commit(self, rev: str | None) -> str | None:
        if rev is None:
            return None
        return self._git().resolve(rev)

    def _git(self) -> GitRepo:
        if self._project.git is None:
            raise RevisionError("this project is not in a Git repository, so it has no revisions")
        return self._project.git


def _name_at(keys: bytes, number: int) -> ObjectName:
    return ObjectName.from_key(keys[number * KEY_BYTES : (number + 1) * KEY_BYTES])


def split_target(text: str) -> tuple[str, str | None]:
    """`TARGET[@REV]`: the last `@` parts them; `@REV` alone is the whole revision; reflog names (`@{1}`) stay whole."""
    match = re.match(r"(.*)@((?!\{).+)\Z", text, re.DOTALL)
    if match is None or os.path.lexists(text):
        return text, None
    return match[1], match[2]


def _with_parents(path: str) -> list[str]:
    parts = path.split("/") if path else []
    return ["/".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _without_suffix(target: str, outs: dict[str, Output]) -> str:
    """`data.dvc` means `data`, as in DVC."""
    return target.removesuffix(".dvc") if target not in outs and target.removesuffix(".dvc") in outs else target


def _below(path: bytes, taken: set[bytes]) -> bool:
    parts = path.split(b"/")
    return any(b"/".join(parts[:end]) in taken for end in range(1, len(parts) + 1))
