"""Other repositories, of DVC or of Git alone, read at a commit without being checked out: on this machine where they lie, else in a
clone (clones.py). Their settings are those of that commit; of one that lies here also those of its workspace, which know where its
remote is and how to get in.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.errors import NotARepoError, RevisionError, TargetError, UsageError
from millpond.daemon.project import config as config_module
from millpond.daemon.project.config import Config
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.dvccache import DvcCache
from millpond.daemon.project.gitrepo import GitRepo
from millpond.daemon.project.ignore import DVC_DIR, IgnoreRules
from millpond.daemon.project.importing.clones import clone
from millpond.daemon.project.importing.urls import shown_url
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo, find_root, git_at
from millpond.daemon.project.statcache import StatCache
from millpond.daemon.remote import remotes

# Where the Python library's settings for a remote are, as JSON, in the environment that its requests run in.
SETTINGS = "MILLPOND_REMOTE_SETTINGS"
# How a remote is named that only --remote-config describes.
_UNNAMED = "remote-config"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is laid over another repository's config: a file of settings, the name of its default remote, settings of that remote."""

    config: str | Mapping[str, Any] | None = None
    remote: str | None = None
    remote_config: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Settings:
        """Of a verb's {config, remote, remote_config}. Raises UsageError."""
        made = cls(params.get("config"), params.get("remote"), dict(params.get("remote_config") or {}))
        if made.config and made.remote and made.remote_config:
            raise UsageError("--config cannot be given together with both --remote and --remote-config")
        return made

    @classmethod
    def recorded(cls, repo: Mapping[str, Any]) -> Settings:
        """Of a pointer's `repo` entry."""
        remote = repo.get("remote")
        if isinstance(remote, dict):
            return cls(repo.get("config"), None, {str(key): str(value) for key, value in remote.items()})
        return cls(repo.get("config"), remote)

    @classmethod
    def of_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Of what the Python library was given: there, for they may be secrets, and nothing of an environment is noted anywhere."""
        raw = environ.get(SETTINGS)
        return cls() if raw is None else cls(**json.loads(raw))

    def environ(self) -> dict[str, str]:
        """The same as an environment's variable; none where there is nothing to be said."""
        said = {"remote": self.remote, "remote_config": dict(self.remote_config)}
        return {SETTINGS: json.dumps(said)} if self.remote or self.remote_config else {}

    def entry(self) -> dict[str, Any]:
        """As DVC records it in a pointer."""
        if self.remote and self.remote_config:
            return {"config": {"core": {"remote": self.remote}, "remote": {self.remote: dict(self.remote_config)}}}
        found: dict[str, Any] = {}
        if self.config:
            found["config"] = self.config
        if self.remote or self.remote_config:
            found["remote"] = self.remote or dict(self.remote_config)
        return found

    def lay_over(self, config: Config, folder: str) -> None:
        """Raises InvalidFileError, TargetError, RemoteConfigError for a remote that is not there then."""
        if isinstance(self.config, str):
            path = os.path.abspath(os.path.join(folder, self.config))
            if not config_module.merge_file(config, path):
                raise TargetError(f"there is no config file '{printable(self.config)}'", path=printable(self.config))
        elif self.config:
            _lay_mapping(config, self.config, folder)
        if self.remote:
            config.values.setdefault("core", {})["remote"] = self.remote.lower()
        if self.remote_config:
            name = config.get("core", "remote") or _UNNAMED
            config.values.setdefault("core", {})["remote"] = name
            config.remotes[name] = {**config.remotes.get(name, {}), **self.remote_config}
            config.origin[f'remote "{name}"', "url"] = os.path.join(folder, "config")
        elif self.remote:
            remotes.find(config, self.remote)


def _lay_mapping(config: Config, sections: Mapping[str, Any], folder: str) -> None:
    """A config that a pointer has in itself."""
    for section, values in sections.items():
        if not isinstance(values, dict):
            continue
        if section == "remote":
            for name, settings in values.items():
                merged = {str(key): str(value) for key, value in dict(settings).items()}
                config_module.merge(config, {f'remote "{str(name).lower()}"': merged}, os.path.join(folder, "config"))
        else:
            flat = {str(key): str(value) for key, value in values.items()}
            config_module.merge(config, {section: flat}, os.path.join(folder, "config"))


@dataclass(slots=True)
class External:
    """A repository at a commit. `prefix` is the path of its root in Git's tree; `top` its folder where it lies here, None for a clone;
    `url` as it was given."""

    url: str
    git: GitRepo
    commit: str
    prefix: str
    top: str | None
    settings: Settings
    environ: Mapping[str, str]
    folder: str
    _projects: dict[str, Repo] = field(default_factory=dict)

    def project(self, path: str = "") -> Repo:
        """The DVC repository whose root is at `path` in the tree ("" or that of a repository inside), with its settings and cache.
        Raises InvalidFileError."""
        if path not in self._projects:
            self._projects[path] = self._project(path)
        return self._projects[path]

    def in_git(self, path: str) -> str:
        """A path below the root, as Git's tree has it."""
        return posixpath.join(self.prefix, path) if self.prefix else path

    def _project(self, path: str) -> Repo:
        root = os.path.join(self.top or self.git.git_dir, path) if path else self.top or self.git.git_dir
        dvc_dir = os.path.join(root, DVC_DIR)
        config = config_at(self.git, self.commit, self.in_git(path), dvc_dir, self.environ)
        if self.top is not None:
            levels = config_module.level_paths(dvc_dir, self.environ)
            for level in ("project", "local"):
                config_module.merge_file(config, levels[level])
        self.settings.lay_over(config, self.folder)
        cache = DvcCache(config.cache_dir(dvc_dir) if self.top is not None else os.path.join(dvc_dir, "cache"))
        return Repo(root, root, config, IgnoreRules(root), cache, StatCache.of_user(self.environ), self.git)


def config_at(git: GitRepo, commit: str, path: str, dvc_dir: str, environ: Mapping[str, str]) -> Config:
    """The config of the DVC repository at `path` of a commit, over the system's and the user's; relative paths count from `dvc_dir`. Raises
    InvalidFileError."""
    levels = config_module.level_paths(dvc_dir, environ)
    config = Config()
    for level in ("system", "global"):
        config_module.merge_file(config, levels[level])
    raw = git.blob(commit, posixpath.join(path, DVC_DIR, "config"))
    if raw is not None:
        text = raw.decode("utf-8", "surrogateescape")
        config_module.merge(config, config_module.parse(text, levels["project"]), levels["project"])
    return config


@contextlib.contextmanager
def opened(
    context: VerbContext,
    url: str,
    rev: str | None,
    settings: Settings,
    environ: Mapping[str, str],
    *,
    folders: tuple[str, ...],
) -> Iterator[External]:
    """The repository at a url, at a revision (None: what its default branch has). A relative path is looked for from each of `folders`,
    absolute ones. Raises NotARepoError, RevisionError, RemoteError, and as clones.clone."""
    path = local_path(url, folders)
    if path is not None:
        yield _local(url, path, rev, settings, environ, folders[0])
        return
    with clone(context, url, rev, environ) as (git, commit):
        yield External(url, git, commit, "", None, settings, environ, folders[0])


def local_path(url: str, folders: tuple[str, ...]) -> str | None:
    """The folder on this machine that a repository's url means; None for one that is elsewhere. Raises NotARepoError."""
    path = url.removeprefix("file://")
    for folder in folders:
        found = os.path.abspath(os.path.join(folder, os.path.expanduser(path)))
        if os.path.isdir(found):
            return found
    if "://" in path or ":" in path.partition("/")[0]:
        return None
    shown = printable(url)
    raise NotARepoError(f"there is no repository at '{shown}'", path=shown, hint="see the path, or clone it first")


def _local(
    url: str, path: str, rev: str | None, settings: Settings, environ: Mapping[str, str], folder: str
) -> External:
    top, git = _root(path), git_at(path, environ)
    if top is not None and git is not None and git.root is not None and os.path.relpath(top, git.root).startswith(".."):
        top = None  # around the Git repository, and none of it
    shown = shown_url(url)
    if git is None:
        if top is None:
            raise NotARepoError(f"'{shown}' is neither a DVC nor a Git repository", path=shown)
        raise RevisionError(f"'{shown}' is not in a Git repository, so it has no revisions", path=shown)
    if top is None and git.root is not None:
        top = git.root
    try:
        commit = git.resolve(rev or "HEAD")
    except RevisionError as error:
        hint = (
            error.hint
            if git.has_no_commits
            else f"see `git -C {shlex.quote(path)} log` or `git -C {shlex.quote(path)} tag`"
        )
        raise RevisionError(f"{error.message} in '{shown}'", hint=hint) from error
    prefix = "" if top is None or git.root is None else os.path.relpath(top, git.root)
    return External(url, git, commit, "" if prefix == "." else prefix, top, settings, environ, folder)


def _root(path: str) -> str | None:
    try:
        return find_root(path)
    except NotARepoError:
        return None
