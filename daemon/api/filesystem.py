"""A repository as a filesystem of fsspec: `millpond://PATH`, for pandas, pyarrow, datasets and whatever else takes one."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl

from fsspec.spec import AbstractFileSystem

from millpond.daemon.api.files import BUFFER_BYTES, ObjectFile
from millpond.daemon.api.versions import FOLDER, Entry, Version
from millpond.daemon.errors import TargetError

T = TypeVar("T")

PROTOCOL = "millpond"
_PREFIX = f"{PROTOCOL}://"
# `?rev=v1` at the end of a url: a question mark is also a pattern's.
_QUERY = re.compile(r"\?((?:rev|repo)=.*|[A-Za-z_]\w*=[^/]*)\Z", re.DOTALL)
_DVC_S = frozenset({"dvc.yaml", "dvc.lock", ".dvcignore"})
# Files that are read at once by `cat` and `cat_ranges`.
_AT_ONCE = 8


class MillpondFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """One version, read-only. Paths begin at the repository's root.

    `repo` is a folder in a repository, None the current one, or a url that Git takes; `remote` and `remote_config` as in `open`; `rev` a revision, None the workspace: its files where they are
    there, else what its pointers name. A revision is pinned to its commit at the first look. A url may carry both:
    `millpond://data/a.csv?rev=v1`. Objects are usable from any thread and after a fork, and pickle by their arguments, with
    the commit for the revision. Nothing is cached but where a few listed folders are.
    """

    protocol = PROTOCOL
    root_marker = ""
    # A branch moves: who asks for it later is to get what it names then.
    cachable = False

    def __init__(
        self,
        repo: str | os.PathLike[str] | None = None,
        rev: str | None = None,
        remote: str | None = None,
        remote_config: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._version = Version(os.fspath(repo) if repo is not None else os.getcwd(), rev, remote, remote_config)

    def __reduce__(self) -> tuple[Any, ...]:
        version = self._version
        return _restored, (type(self), version.repo, version.rev, version.remote, version.remote_config)

    def to_dict(self, *, include_password: bool = True) -> dict[str, Any]:
        """As pickled: with the commit."""
        told: dict[str, Any] = super().to_dict(include_password=include_password)
        version = self._version
        found = {**told, "args": (), "repo": version.repo, "rev": version.rev, "remote": version.remote}
        return {**found, "remote_config": version.remote_config if include_password else {}}

    @property
    def fsid(self) -> str:
        """Tells versions apart."""
        return f"{PROTOCOL}_{self._version.repo}@{self._version.rev or 'workspace'}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        path = os.fspath(path)
        if path.startswith(_PREFIX):
            path = _QUERY.sub("", path.removeprefix(_PREFIX))
        return path.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        query = _QUERY.search(path) if path.startswith(_PREFIX) else None
        options = dict(parse_qsl(query[1], strict_parsing=True)) if query is not None else {}
        if unknown := options.keys() - {"rev", "repo"}:
            raise ValueError(
                f"'{path}' names {', '.join(sorted(unknown))}: only rev and repo can be given so (a file's own ? without millpond://)"
            )
        return options

    def invalidate_cache(self, path: str | None = None) -> None:
        """Look anew at folders."""
        self._version.forget()

    # -- reading --------------------------------------------------------------------------------------------------

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """The entries of a folder, or the file at a path. As in DVC's, pointers and `.dvcignore` are not shown unless `dvcfiles`
        is given; they can be opened. Raises FileNotFoundError."""
        inner = self._inner(path)
        found = self._version.entries(inner)
        if not kwargs.get("dvcfiles"):
            found = [entry for entry in found if entry.path == inner or not _is_dvc_s(entry)]
        return [_info(entry) for entry in found] if detail else [entry.path for entry in found]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """{name, type, size, isexec} and, of a tracked file, {md5}. Raises FileNotFoundError."""
        return _info(self._version.find(self._inner(path)))

    def checksum(self, path: str) -> str:
        """The MD5 of a file: of a tracked one as its pointer has it, of others by reading them. Raises as `open`."""
        entry = self._version.find(self._inner(path))
        if entry.type != FOLDER and entry.name is not None and entry.name.algo == "md5":
            return entry.name.hex
        digest = hashlib.md5(usedforsecurity=False)
        with self.open(path, "rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)
        return digest.hexdigest()

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> ObjectFile:
        if mode != "rb":
            self._refuse(path)
        return ObjectFile(self._version, self._inner(path), block_size or BUFFER_BYTES)

    def cat(
        self, path: str | list[str], recursive: bool = False, on_error: str = "raise", **kwargs: Any
    ) -> bytes | dict[str, Any]:
        """As in fsspec; of several files some are read at once."""
        paths = self.expand_path(path, recursive=recursive)
        if len(paths) == 1 and not isinstance(path, list) and paths[0] == self._strip_protocol(path):
            return bytes(self.cat_file(paths[0], **kwargs))
        files = paths if not recursive else [each for each in paths if not self.isdir(each)]
        found = self._at_once(lambda each: self.cat_file(each, **kwargs), files, on_error)
        return {each: data for each, data in zip(files, found, strict=True) if on_error != "omit" or _is_data(data)}

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """As in fsspec; some are read at once. `max_gap` is taken and not needed: ranges are not requests here."""
        if not isinstance(paths, list):
            raise TypeError("paths must be a list")
        firsts = starts if isinstance(starts, list) else [starts] * len(paths)
        lasts = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(paths) == len(firsts) == len(lasts):
            raise ValueError("paths, starts and ends differ in length")
        work = list(zip(paths, firsts, lasts, strict=True))
        return self._at_once(lambda each: self.cat_file(*each, **kwargs), work, on_error)

    def _at_once(self, work: Callable[[T], bytes], items: Iterable[T], on_error: str) -> list[Any]:
        """What `work` gives for each item, in order; unless `on_error` is "raise", the exception where it failed."""

        def attempt(item: T) -> Any:
            try:
                return work(item)
            except Exception as error:  # whatever it is, it is the caller's: returned, left out, or raised
                if on_error == "raise":
                    raise
                return error

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="millpond") as pool:
            return list(pool.map(attempt, items))

    def _inner(self, path: str) -> str:
        try:
            return self._version.relative(self._strip_protocol(path))
        except TargetError as error:
            raise FileNotFoundError(errno.ENOENT, str(error), path) from error

    # -- what a version refuses -----------------------------------------------------------------------------------

    def _refuse(self, path: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise OSError(errno.EROFS, "versions are read, never written", str(path))

    mkdir = makedirs = rmdir = rm = rm_file = _rm = _refuse
    cp_file = copy = mv = touch = put_file = put = pipe_file = pipe = _refuse


def _restored(
    kind: type[MillpondFileSystem], repo: str, rev: str | None, remote: str | None, settings: Mapping[str, str]
) -> MillpondFileSystem:
    return kind(repo=repo, rev=rev, remote=remote, remote_config=settings)


def _info(entry: Entry) -> dict[str, Any]:
    if entry.type == FOLDER:
        return {"name": entry.path, "type": "directory", "size": 0}
    told = {"name": entry.path, "type": "file", "size": entry.size, "isexec": entry.executable}
    if entry.name is not None and entry.name.algo == "md5":
        told["md5"] = entry.name.hex
    return told


def _is_dvc_s(entry: Entry) -> bool:
    """Whether a file is a pointer, or what else DVC keeps beside the data: never one that is tracked itself."""
    tracked = entry.name is not None and not entry.name.algo.startswith("git-")
    return entry.type != FOLDER and not tracked and (entry.base in _DVC_S or entry.base.endswith(".dvc"))


def _is_data(value: Any) -> bool:
    return not isinstance(value, Exception)
