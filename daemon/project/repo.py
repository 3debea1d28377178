"""A DVC repository as a verb sees it: where it is, its settings, rules, Git, and how paths are shown."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pygit2
from pygit2.enums import ConfigLevel

from millpond.daemon import wirepath
from millpond.daemon.errors import NotARepoError
from millpond.daemon.project import config as config_module
from millpond.daemon.project import outputs
from millpond.daemon.project.config import Config
from millpond.daemon.project.dvccache import DvcCache
from millpond.daemon.project.gitrepo import GitRepo
from millpond.daemon.project.ignore import DVC_DIR, IgnoreRules
from millpond.daemon.project.outputs import Output, WorkTree
from millpond.daemon.project.paths import printable as printable
from millpond.daemon.project.rootdir import find_root as find_root
from millpond.daemon.project.statcache import StatCache


@dataclass(slots=True)
class Repo:
    """An open repository. Paths called relative are relative to `root`, with `/`; `cwd` is the caller's folder."""

    root: str
    cwd: str
    config: Config
    rules: IgnoreRules
    cache: DvcCache
    stat_cache: StatCache
    git: GitRepo | None

    @classmethod
    def open(cls, cwd: str, environ: Mapping[str, str]) -> Repo:
        """The repository that holds `cwd`. Raises NotARepoError, InvalidFileError (config)."""
        return cls._at(find_root(cwd), cwd, environ)

    @classmethod
    def without_dvc(cls, cwd: str, environ: Mapping[str, str]) -> Repo:
        """The Git repository that holds `cwd`, as one in which nothing is tracked yet. Raises NotARepoError."""
        found = _git(cwd, environ)
        if found is None or found.root is None:
            shown = printable(cwd)
            raise NotARepoError(f"'{shown}' is neither in a DVC nor in a Git repository", path=shown)
        return cls._at(found.root, cwd, environ)

    @classmethod
    def _at(cls, root: str, cwd: str, environ: Mapping[str, str]) -> Repo:
        dvc_dir = os.path.join(root, DVC_DIR)
        config = config_module.load(dvc_dir, environ)
        return cls(
            root=root,
            cwd=os.path.realpath(cwd),
            config=config,
            rules=IgnoreRules(root),
            cache=DvcCache(config.cache_dir(dvc_dir)),
            stat_cache=StatCache.of_user(environ),
            git=None if config.flag("core", "no_scm") else _git(root, environ),
        )

    @property
    def dvc_dir(self) -> str:
        return os.path.join(self.root, DVC_DIR)

    @property
    def temporary(self) -> str:
        """`.dvc/tmp`, made when it is missing."""
        folder = os.path.join(self.dvc_dir, "tmp")
        os.makedirs(folder, exist_ok=True)
        return folder

    def path(self, relative: str) -> str:
        """The absolute path."""
        return os.path.join(self.root, relative) if relative else self.root

    def relative(self, target: str) -> str | None:
        """The relative path of what a caller names from `cwd` ("" for the root), None for what lies outside.

        Links in the path are left alone when it lies inside by its spelling; a path from elsewhere (by a link to the
        repository, say) counts when the folder that holds it lies inside.
        """
        path = os.path.abspath(os.path.join(self.cwd, target))
        found = self._below(path)
        if found is None:
            parent = os.path.realpath(os.path.dirname(path))
            found = self._below(os.path.join(parent, os.path.basename(path)))
        return found

    def _below(self, path: str) -> str | None:
        if path == self.root:
            return ""
        prefix = os.path.join(self.root, "")
        return path[len(prefix) :] if path.startswith(prefix) else None

    def seen(self, relative: str) -> str:
        """The path from the caller's folder, as DVC shows paths."""
        return os.path.relpath(self.path(relative), self.cwd)

    def wire(self, relative: str) -> str:
        """`seen`, in its form on the wire."""
        return wirepath.encode(self.seen(relative))

    def for_git(self, written: Iterable[str]) -> list[str]:
        """Of files that were written, for people: what is to be given to `git add`, on the wire. Nothing where there is no Git."""
        return [] if self.git is None else [self.wire(path) for path in written]

    def git_path(self, relative: str) -> str:
        """The path from the root of Git's work tree."""
        base = (self.git.root if self.git is not None else None) or self.root
        return os.path.relpath(self.path(relative), base)

    def outputs(self) -> list[Output]:
        """All tracked outputs of the workspace. Raises InvalidFileError."""
        return [output for output in outputs.collect(WorkTree(self.root, self.rules)) if not output.stale]


def git_at(root: str, environ: Mapping[str, str]) -> GitRepo | None:
    """The Git repository that holds a folder, or is one (bare), with the user's own settings; None if none does."""
    # libgit2 looked for the user's files when it was loaded, in the environment of another process.
    home = environ.get("HOME") or os.path.expanduser("~")
    pygit2.settings.search_path[ConfigLevel.GLOBAL] = home
    pygit2.settings.search_path[ConfigLevel.XDG] = os.path.join(
        environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config"), "git"
    )
    return GitRepo.discover(root)


def _git(root: str, environ: Mapping[str, str]) -> GitRepo | None:
    found = git_at(root, environ)
    return found if found is not None and found.root is not None else None
