"""A project's files in its workspace or at a revision, Git's and tracked ones alike, read where they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from millpond.daemon.errors import InvalidFileError, RevisionError, UsageError
from millpond.daemon.pipeline import pipelines as loading
from millpond.daemon.pipeline.pipelines import Content, Pipelines
from millpond.daemon.pipeline.places import Places
from millpond.daemon.project import browse
from millpond.daemon.project.browse import Tree
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.outputs import GitTree
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo

WORKSPACE = "workspace"
# Metrics, parameters and plots are read into memory; data is not what they are for.
MAX_BYTES = 64 << 20


class Snapshot:
    """The files at one revision. `label` is what it is called; `commit` None for the workspace."""

    def __init__(
        self, label: str, commit: str | None, pipelines: Pipelines, content: Content, tree: Callable[[], Tree]
    ) -> None:
        self.label = label
        self.commit = commit
        self.pipelines = pipelines
        self._content = content
        self._make_tree = tree
        self._made: Tree | None = None

    @property
    def _tree(self) -> Tree:
        # Made when it is needed: a metric in Git or in the workspace needs no look at what is tracked.
        if self._made is None:
            self._made = self._make_tree()
        return self._made

    def read(self, path: str) -> bytes | None:
        """A file's content, from the store where it is tracked and not in place; None when it is nowhere.

        Raises InvalidFileError for one that is too large, StoreDamagedError.
        """
        raw = self._content(path)
        if raw is None:
            item = self._tree.item(path)
            if item is None or item.is_dir or item.name is None:
                return None
            size = self._tree.objects.sizes([item.name])[0]
            if size is not None and size > MAX_BYTES:
                raise too_large(printable(self.pipelines.shown(path)))
            raw = self._tree.objects.manifest(item.name)
        return raw

    def files(self, path: str) -> list[str]:
        """The paths of all files below a folder, sorted; the path itself when it is a file or nothing."""
        item = self._tree.item(path)
        if item is None or not item.is_dir:
            return [path]
        prefix = f"{path}/" if path else ""
        return sorted(f"{prefix}{row.path}" for row in self._tree.walk(path) if not row.item.is_dir)


def too_large(shown: str) -> InvalidFileError:
    """The error for a file that is no metric, parameter or plot by its size."""
    return InvalidFileError(f"'{shown}' is too large to be shown: it has more than {MAX_BYTES >> 20} MiB", path=shown)


def workspace(context: VerbContext, repo: Repo) -> Snapshot:
    """The workspace. What cannot be read is in its `pipelines.failed`."""
    found = loading.load(repo, tolerant=True)
    objects = Objects(context.store, repo.cache)
    return Snapshot(
        WORKSPACE,
        None,
        found,
        lambda path: _in_place(repo, path),
        lambda: browse.workspace_tree(repo.root, repo.rules, objects, detail=False),
    )


def _in_place(repo: Repo, path: str) -> bytes | None:
    shown = printable(repo.seen(path))
    try:
        with open(repo.path(path), "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise InvalidFileError(f"cannot read '{shown}': {error.strerror}", path=shown) from error
    if len(raw) > MAX_BYTES:
        raise too_large(shown)
    return raw


def revision(context: VerbContext, repo: Repo, name: str, label: str | None = None) -> Snapshot:
    """A Git revision. Raises RevisionError."""
    git = repo.git
    if git is None:
        raise RevisionError(f"this project is not in a Git repository, so it has no revision '{printable(name)}'")
    commit = git.resolve(name)
    prefix = "" if (base := repo.git_path("")) == "." else f"{base}/"
    objects = Objects(context.store, repo.cache)

    def content(path: str) -> bytes | None:
        return git.blob(commit, f"{prefix}{path}") if path and not path.startswith(("/", "../")) else None

    found = Pipelines(Places(repo.root, repo.config), content, repo.seen)
    loading.fill(found, GitTree(git, commit, prefix.rstrip("/")).pointer_files(), loading.style_of(repo), tolerant=True)
    return Snapshot(
        label or name,
        commit,
        found,
        content,
        lambda: browse.revision_tree(git, commit, prefix.rstrip("/"), objects, detail=False),
    )


def named(context: VerbContext, repo: Repo, name: str | None) -> Snapshot:
    """A revision, or without a name the workspace. Raises RevisionError."""
    return workspace(context, repo) if name in (None, WORKSPACE) else revision(context, repo, str(name))


def pair(context: VerbContext, repo: Repo, params: dict[str, Any]) -> tuple[Snapshot | None, Snapshot]:
    """What `a_rev` (HEAD) and `b_rev` (the workspace) name; None for a HEAD that is not there yet. Raises RevisionError."""
    a_rev = params.get("a_rev") or "HEAD"
    if a_rev == "HEAD" and (repo.git is None or repo.git.has_no_commits):
        return None, named(context, repo, params.get("b_rev"))
    return named(context, repo, a_rev), named(context, repo, params.get("b_rev"))


def several(context: VerbContext, repo: Repo, params: dict[str, Any]) -> Iterator[Snapshot]:
    """The workspace and then what {all_branches, all_tags, all_commits} say, each commit once, under all of its names.

    Raises UsageError, RevisionError.
    """
    yield workspace(context, repo)
    wanted = {key for key in ("all_branches", "all_tags", "all_commits") if params.get(key)}
    if not wanted:
        return
    if repo.git is None:
        raise UsageError("this project is not in a Git repository, so it has no revisions")
    names: dict[str, list[str]] = {}
    if "all_branches" in wanted:
        for name, commit in repo.git.branches().items():
            names.setdefault(commit, []).append(name)
    if "all_tags" in wanted:
        for name, commit in repo.git.tags().items():
            names.setdefault(commit, []).append(name)
    if "all_commits" in wanted:
        for commit in repo.git.history():
            names.setdefault(commit, []).append(commit)
    for commit, labels in names.items():
        yield revision(context, repo, commit, ",".join(labels))
