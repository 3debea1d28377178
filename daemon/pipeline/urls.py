"""What lies at the urls of dependencies and outputs: asked of the servers, as the caller, and no bytes read where their listing tells."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from millpond.daemon.errors import CancelledError, MillpondError, RemoteConfigError, TargetError, UsageError
from millpond.daemon.names import ObjectName
from millpond.daemon.pipeline.lock import TAGS, Locked
from millpond.daemon.pipeline.places import Item, is_followed, is_root
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.importing import opening, urls
from millpond.daemon.project.importing.keep import counted, found_of
from millpond.daemon.project.importing.opening import Connections
from millpond.daemon.project.importing.source import RemoteSource
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo
from millpond.daemon.remote import remotes
from millpond.daemon.remote.backend import DELETE_KEYS
from millpond.daemon.remote.remotes import Remote

# Urls that are looked at at once, and how often, in seconds, it is seen meanwhile whether the caller has had enough.
_AT_ONCE, _LOOK_S = 16, 0.2


@dataclass(slots=True)
class Urls:
    """The urls of one verb, by how they are written. `look` first, for as many as possible at once; then `at`."""

    context: VerbContext
    repo: Repo
    _found: dict[str, Locked | MillpondError | None] = field(default_factory=dict)

    def look(self, items: Iterable[Item]) -> None:
        """See what is at urls that are not known. What cannot be seen is told by `at`. Raises CancelledError."""
        fresh = {item.path: item for item in items if item.path not in self._found}
        if not fresh:
            return
        with Connections(os.environ) as connections, contextlib.ExitStack() as stack:
            pool = ThreadPoolExecutor(min(_AT_ONCE, len(fresh)), thread_name_prefix="urls")
            # Who cancels does not wait for a server's answer.
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            tasks = {path: pool.submit(self._listed, item, connections) for path, item in fresh.items()}
            for count, (path, task) in enumerate(tasks.items()):
                self._wait(task, (count, len(tasks)), path)
                self._found[path] = self._told(task)

    def at(self, item: Item) -> Locked | None:
        """What is at a url, None for nothing. Raises RemoteError, CredentialsError, RemoteConfigError, UsageError."""
        self.look([item])
        found = self._found[item.path]
        if isinstance(found, MillpondError):
            raise found
        return found

    def forget(self) -> None:
        """Look again at urls when they are asked for."""
        self._found.clear()

    def keeps_versions(self, item: Item) -> bool:
        """Whether the remote of a `remote://` is one whose versions count, not what they hold."""
        try:
            return self._remote(item).flag("version_aware")
        except RemoteConfigError:
            return False

    def remove(self, item: Item) -> None:
        """Remove what `at` finds at a url, and nothing beside it. Raises as `at`."""
        self._found.pop(item.path, None)
        with Connections(os.environ) as connections:
            try:
                found = self._listed(item, connections)
            except TargetError as error:
                if not error.details.get("absent"):
                    raise
                return
            keys = [entry.key for entry in found.entries]
            for start in range(0, len(keys), DELETE_KEYS):
                self.context.progress("removing the last output", (start, len(keys)), note=urls.shown_url(item.path))
                found.transfer.backend.delete_many(keys[start : start + DELETE_KEYS])

    def _remote(self, item: Item) -> Remote:
        if not is_followed(item):
            raise not_followed(item)
        return remotes.of_url(self.repo.config, item.path, {})

    def _listed(self, item: Item, connections: Connections) -> RemoteSource:
        return opening.listed(item.path, self._remote(item), connections)

    def _wait(self, task: Future[RemoteSource], done: tuple[int, int], path: str) -> None:
        while True:
            self.context.progress("looking at urls", done, note=urls.shown_url(path))
            if concurrent.futures.wait([task], _LOOK_S).done:
                return

    def _told(self, task: Future[RemoteSource]) -> Locked | MillpondError | None:
        error = task.exception()
        if isinstance(error, MillpondError):
            return None if error.details.get("absent") else error
        found = task.result()
        try:
            return _locked(found) or self._hashed(found)
        except CancelledError:
            raise
        except MillpondError as failure:
            return failure

    def _hashed(self, found: RemoteSource) -> Locked:
        """Of what only its bytes can tell."""
        names = []
        digest = hashlib.md5(usedforsecurity=False)
        for _, data, last in counted(self.context, "hashing", found, range(len(found.paths))):
            digest.update(data)
            if last:
                names.append(ObjectName("md5", digest.hexdigest()))
                digest = hashlib.md5(usedforsecurity=False)
        made = found_of(found, names)
        return Locked(made.name, made.size, made.nfiles)

    def refuse_more(self, item: Item) -> None:
        """Raise UsageError for an output outside of the project that may be more than one: it holds a remote or the cache, or is a whole
        bucket."""
        held = [f"the remote '{name}'" for name in self.repo.config.remotes if _holds(item.key, self._url_of(name))]
        held += ["DVC's cache"] if _holds(item.key, self.repo.cache.folder) else []
        if is_root(item.key) or held:
            what = f"holds {held[0]}" if held else "is a whole bucket or server"
            shown = printable(urls.shown_url(item.path))
            raise UsageError(
                f"output '{shown}' {what}, and outputs are removed before their stage runs",
                hint="name a folder of its own, or say that it stays: `persist: true`",
            )

    def _url_of(self, name: str) -> str:
        try:
            return remotes.find(self.repo.config, name).url
        except RemoteConfigError:
            return ""


def _holds(outer: str, inner: str) -> bool:
    return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")


def not_followed(item: Item) -> UsageError:
    """The error for a url of a kind that is not followed here."""
    shown = printable(urls.shown_url(item.path))
    kinds = "s3://, ssh://, http(s):// and remote://"
    return UsageError(
        f"'{shown}' is of a kind that only DVC follows: here it is {kinds}", hint="use `dvc` for this stage"
    )


def _locked(found: RemoteSource) -> Locked | None:
    """What a listing tells of a content; None where its bytes must."""
    token = found.token()
    if token is None:
        return None
    name = ObjectName("md5", token["md5"]) if "md5" in token else None
    tag = next(((key, token[key]) for key in TAGS if key in token), None)
    version = None if found.is_dir else found.entries[0].version
    return Locked(name, token["size"], token.get("nfiles"), False, tag, version)
