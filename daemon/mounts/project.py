"""A DVC project as mounts see it: where its objects are, in its caches and on its remotes, as the caller may read them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from millpond.daemon.errors import MillpondError, ObjectMissingError, RemoteConfigError, TargetError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import config
from millpond.daemon.project.config import Config
from millpond.daemon.project.digests import LEGACY
from millpond.daemon.project.dvccache import DvcCache
from millpond.daemon.project.gitrepo import GitRepo
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.rootdir import find_root
from millpond.daemon.remote.places import Places, without_remote

# A remote that fails is not asked again after so long: one that never answers takes 20 s.
_DEADLINE_S = 15.0


class Project:
    """A DVC project as far as mounts need it: its root, its Git repository, its caches."""

    def __init__(
        self, root: str, settings: Config | None = None, outputs: Callable[[], Iterable[Output]] | None = None
    ) -> None:
        """`settings` in place of its own; `outputs` where those that its remotes are to know cannot be found from `root`."""
        self.root = root
        self.dvc_dir = os.path.join(root, ".dvc")
        self.git = GitRepo.discover(root)
        self.config = config.load(self.dvc_dir, os.environ) if settings is None else settings
        folder = self.config.cache_dir(self.dvc_dir)
        # Objects of DVC 2 may lie in the default place although config names another now.
        self.caches = [DvcCache(path) for path in dict.fromkeys((folder, os.path.join(self.dvc_dir, "cache")))]
        # A folder that is not there need not be asked for each of very many objects.
        self._there = [cache for cache in self.caches if os.path.isdir(cache.folder)]
        # Whether the first remote is being listed, or was.
        self.is_listing = False
        self.places = Places(lambda: self.config, os.environ, outputs, deadline_s=_DEADLINE_S)

    @classmethod
    def find(cls, start: str) -> Project:
        """The project that holds `start`. Raises NotARepoError."""
        return cls(find_root(start))

    @property
    def prefix(self) -> str:
        """Where the project lies in its Git work tree; empty at its top."""
        if self.git is None or self.git.root is None:
            return ""
        found = os.path.relpath(self.root, self.git.root)
        return "" if found == "." else found.replace(os.sep, "/")

    def relative(self, target: str) -> str:
        """A target's path from the project's root, empty for the root itself. Raises TargetError outside of it."""
        path = os.path.abspath(target)
        parent, name = os.path.split(path)
        path = os.path.join(os.path.realpath(parent), name)
        found = os.path.relpath(path, self.root)
        if found == ".." or found.startswith("../"):
            raise TargetError(f"'{target}' is outside of the project '{self.root}'", path=target)
        return "" if found == "." else found

    def size(self, name: ObjectName) -> int | None:
        """Bytes of an object in one of the caches."""
        for cache in self._there:
            size = cache.size(name)
            if size is not None:
                return size
        return None

    def md5_sizes(self, digests: Sequence[str]) -> list[int | None]:
        """`size` of many md5 objects, by their digests in hexadecimal."""
        found: list[int | None] = [None] * len(digests)
        for cache in self._there:
            lacking = [index for index, size in enumerate(found) if size is None]
            for index, size in zip(lacking, cache.sizes([digests[index] for index in lacking]), strict=True):
                found[index] = size
        return found

    def read(self, name: ObjectName) -> bytes | None:
        """A small object of one of the caches, checked."""
        for cache in self.caches:
            data = cache.read(name)
            if data is not None:
                return data
        return None

    def remote_sizes(self, names: Sequence[ObjectName], what: str) -> list[int | None]:
        """Sizes of objects that are not here, as the remotes tell them: None where none has it, or there is none. Raises
        RemoteError, CredentialsError, ObjectMissingError where the remote's settings are wrong."""
        if not self.config.remotes:
            return [None] * len(names)
        try:
            asked = [name for name in dict.fromkeys(names) if name.algo in ("md5", LEGACY)]
            found = self.places.sizes(asked, more=True)
        except RemoteConfigError as error:
            raise without_remote(error, what) from None
        return [found.get(name) for name in names]

    def listed_sizes(self, values: Sequence[str]) -> list[int | None]:
        """Sizes of objects with these values as far as a listing that was begun tells them."""
        return self.places.listed(values) if self.is_listing else [None] * len(values)

    def read_unchecked(self, name: ObjectName) -> tuple[bytes, str] | None:
        """(bytes, path) of an object of one of the caches, for who finds out their name by himself."""
        for cache in self.caches:
            data = cache.read_unchecked(name)
            if data is not None:
                return data, cache.path_of(name) or ""
        return None

    def expect(self, files: int, name: ObjectName | None = None) -> None:
        """What a manifest names that is here neither is probably on the same remote: list that meanwhile. `name` when the manifest came."""
        if not self._there:
            with suppress(RemoteConfigError):  # who asks for the manifest is told
                self.places.expect(files, name)
                self.is_listing = True

    def remote_manifest(self, name: ObjectName, shown: str) -> bytes:
        """A manifest that only a remote has. Raises as `remote_sizes`, StoreDamagedError."""
        what = f"the manifest of '{shown}' ({name})"
        try:
            return self.places.read(name)
        except RemoteConfigError as error:
            raise without_remote(error, what) from None
        except ObjectMissingError as error:
            raise ObjectMissingError(f"{what} is neither here nor on a remote", path=shown, hint=error.hint) from None
        except MillpondError as error:  # whose message knows the object alone
            error.message = f"{what} cannot be had: {error.message}"
            raise
