"""Which files another repository has at a path, links followed, and whether each is Git's or an object of its tracked data."""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterable, Iterator

from millpond.daemon.errors import InvalidFileError, StoreDamagedError, TargetError
from millpond.daemon.objects import ObjectStore
from millpond.daemon.project import ignore, manifest, outputs
from millpond.daemon.project.gitrepo import TreeFile
from millpond.daemon.project.hashing import is_md5
from millpond.daemon.project.ignore import DVC_DIR, IGNORE_FILE, FolderRules
from millpond.daemon.project.importing.external import External
from millpond.daemon.project.importing.repofiles import Item, RepoFiles
from millpond.daemon.project.importing.urls import shown_url
from millpond.daemon.project.outputs import GitTree, Output
from millpond.daemon.project.paths import printable
from millpond.daemon.project.stages import STAGES_FILE
from millpond.daemon.remote.silence import Tell

# Links that lead to links.
_MOST_LINKS = 8


@contextlib.contextmanager
def opened(
    external: External, path: str, store: ObjectStore, *, jobs: int | None = None, tell: Tell | None = None
) -> Iterator[RepoFiles]:
    """The files at `path` (relative to the repository's root; "." for all). `tell` is told of remotes that are silent.

    Raises TargetError when nothing is there, ObjectMissingError and as RepoFiles.read for a manifest that cannot be had.
    """
    found = _Finding(external, store, jobs, tell).run(path)
    try:
        yield found
    finally:
        found.close()


class _Finding:
    """One look at a repository's tree."""

    def __init__(self, external: External, store: ObjectStore, jobs: int | None, tell: Tell | None) -> None:
        self._external = external
        self._store = store
        self._jobs = jobs
        self._tell = tell
        self._skipped: list[str] = []
        # Manifests are read once.
        self._read: dict[str, dict[str, Item]] = {}
        git, commit, prefix = external.git, external.commit, external.prefix
        cut = len(prefix) + 1 if prefix else 0
        self._files = {file.path[cut:]: file for file in git.files(commit, prefix) if file.mode != 0o160000}
        inside = (f"/{path}".partition(f"/{DVC_DIR}/") for path in self._files)
        self._projects = {folder.lstrip("/") for folder, found, _ in inside if found}
        self._outputs = {
            output.path: output
            for output in outputs.collect(GitTree(git, commit, prefix))
            if output.cache and not output.stale
        }

    def run(self, path: str) -> RepoFiles:
        wanted = posixpath.normpath(path.lstrip("/") or ".")
        wanted = "" if wanted == "." else wanted
        for _ in range(_MOST_LINKS):
            holder = next((out for each in _up(wanted) if (out := self._outputs.get(each)) is not None), None)
            if holder is not None and (holder.path == wanted or holder.is_dir):
                return self._tracked(holder, wanted)
            file = self._files.get(wanted)
            if file is None:
                return self._folder(path, wanted)
            if not file.is_link:
                return self._made(False, {"": self._item(wanted, file)}, None)
            wanted = self._target(wanted, file)
        raise TargetError(f"'{printable(path)}' is a link that leads nowhere", path=printable(path))

    def _made(self, is_dir: bool, items: dict[str, Item], output: Output | None) -> RepoFiles:
        paths = sorted(items, key=manifest.sort_key)
        url = self._external.url
        problem = manifest.problem(paths, ["0" * 32] * len(paths)) if is_dir else None
        if problem is not None:
            raise InvalidFileError(f"'{shown_url(url)}' at {self._external.commit[:10]} {problem}", path=shown_url(url))
        files = [items[path] for path in paths]
        more = self._jobs, self._skipped, self._tell
        return RepoFiles(self._external, self._store, url, is_dir, paths, files, output, *more)

    def _tracked(self, output: Output, wanted: str) -> RepoFiles:
        """A tracked output, or what it has at a path."""
        inner = wanted[len(output.path) + 1 :]
        if output.name is None:
            shown = printable(output.path)
            raise TargetError(f"'{shown}' has no data there: it was never committed", path=shown)
        if not output.is_dir:
            return self._made(False, {"": Item(self._owner(output.path), None, output.name, output)}, output)
        entries = self._entries(output)
        if inner in entries:
            return self._made(False, {"": entries[inner]}, None)
        prefix = f"{inner}/" if inner else ""
        below = {path[len(prefix) :]: item for path, item in entries.items() if path.startswith(prefix)}
        if inner and not below:
            raise self._absent(wanted)
        return self._made(True, below, None if inner else output)

    def _folder(self, path: str, wanted: str) -> RepoFiles:
        """All that a folder has: Git's files, and the tracked data in it, but not what other repositories inside have."""
        prefix = f"{wanted}/" if wanted else ""
        owner = self._owner(wanted)
        items: dict[str, Item] = {}
        # Who asks for what is ruled out by name gets it.
        rules: dict[str, FolderRules | None] = {wanted: self._read_rules(wanted, owner)}
        for each, file in self._files.items():
            if each.startswith(prefix) and self._is_seen(each, owner, rules):
                item = self._item(each, file)
                if item.file is not None and item.file.is_link:
                    self._skipped.append(each)
                else:
                    items[each[len(prefix) :]] = item
        for output in self._outputs.values():
            if not output.path.startswith(prefix) or self._owner(output.path) != owner or output.name is None:
                continue
            below = self._entries(output) if output.is_dir else {"": Item(owner, None, output.name, output)}
            for inner, item in below.items():
                items[posixpath.join(output.path, inner)[len(prefix) :] if inner else output.path[len(prefix) :]] = item
        if not items and wanted and not any(each.startswith(prefix) for each in self._files):
            raise self._absent(path)
        return self._made(True, items, None)

    def _entries(self, output: Output) -> dict[str, Item]:
        """A tracked folder's files by the path in it."""
        if output.path not in self._read:
            self._read[output.path] = self._read_entries(output)
        return self._read[output.path]

    def _read_entries(self, output: Output) -> dict[str, Item]:
        assert output.name is not None
        owner = self._owner(output.path)
        whole = self._made(False, {"": Item(owner, None, output.name, output)}, output)
        try:
            raw = b"".join(bytes(data) for _, data, _ in whole.read([0]))
        finally:
            whole.close()
        if not is_md5(raw, output.name.hex):
            raise StoreDamagedError(f"the manifest of '{printable(output.path)}' ({output.name}) is damaged")
        rows = manifest.parse(raw, source=str(output.name), algo=output.name.algo)
        return {row.relpath: Item(owner, None, row.name, output) for row in rows}

    def _item(self, path: str, file: TreeFile) -> Item:
        """A file of Git, links followed; a link to a folder stays one."""
        owner = self._owner(path)
        for _ in range(_MOST_LINKS):
            if not file.is_link:
                break
            path = self._target(path, file)
            holder = next((out for each in _up(path) if (out := self._outputs.get(each)) is not None), None)
            if holder is not None and holder.is_dir and path != holder.path:
                entry = self._entries(holder).get(path[len(holder.path) + 1 :])
                return entry or Item(owner, file)
            if holder is not None and not holder.is_dir and holder.path == path and holder.name is not None:
                return Item(owner, None, holder.name, holder)
            found = self._files.get(path)
            if found is None:
                break
            file = found
        return Item(owner, file)

    def _target(self, path: str, file: TreeFile) -> str:
        """Where a link leads, as a path of the tree. Raises TargetError for one that leads out of it."""
        text = os.fsdecode(self._external.git.read(file.oid) or b"")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), text))
        if not text or target == ".." or target.startswith(("../", "/")):
            shown = printable(path)
            raise TargetError(f"'{shown}' is a link that leads out of '{shown_url(self._external.url)}'", path=shown)
        return "" if target == "." else target

    def _owner(self, path: str) -> str:
        """The root of the DVC repository that a path belongs to."""
        return next((each for each in _up(path) if each in self._projects), "")

    def _is_seen(self, path: str, owner: str, rules: dict[str, FolderRules | None]) -> bool:
        """Whether a file of Git is data: no file of DVC's own, not ruled out by .dvcignore, not of a repository inside."""
        folder, _, name = path.rpartition("/")
        if name.endswith(".dvc") or name in (STAGES_FILE, IGNORE_FILE) or self._owner(path) != owner:
            return False
        here = self._rules(folder, owner, rules)
        return here is not None and not here.ignores(name, False)

    def _rules(self, folder: str, owner: str, known: dict[str, FolderRules | None]) -> FolderRules | None:
        """The rules in a folder, None if it is ruled out itself."""
        if folder not in known:
            above, _, name = folder.rpartition("/")
            upper = self._rules(above, owner, known) if folder else None
            if folder and (upper is None or upper.ignores(name, True)):
                known[folder] = None
            else:
                known[folder] = self._read_rules(folder, owner)
        return known[folder]

    def _read_rules(self, folder: str, owner: str) -> FolderRules:
        places = [each for each in reversed(list(_up(folder))) if each.startswith(owner)]
        found = [(each, self._files.get(posixpath.join(each, IGNORE_FILE))) for each in places]
        read = [(f"{each}/" if each else "", self._external.git.read(file.oid) or b"") for each, file in found if file]
        return ignore.in_tree(f"{folder}/" if folder else "", read)

    def _absent(self, path: str) -> TargetError:
        shown, url = printable(path), shown_url(self._external.url)
        return TargetError(
            f"'{shown}' is not in '{url}' at {self._external.commit[:10]}",
            path=shown,
            hint=f"see what is there: millpond list {url}",
        )


def _up(path: str) -> Iterable[str]:
    """A path and all folders above it, the nearest first, "" last."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""
