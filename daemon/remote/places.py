"""The remotes of a project as places to read objects from: the default one first, then the others that are configured."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, TypeVar

from millpond.daemon.errors import MillpondError, ObjectMissingError, RemoteConfigError, StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.project.hashing import digest_of
from millpond.daemon.remote import remotes
from millpond.daemon.remote.backend import Got
from millpond.daemon.remote.layout import keys_of
from millpond.daemon.remote.transfer import Transfer
from millpond.daemon.remote.versioned import Catalog

if TYPE_CHECKING:
    from millpond.daemon.project.config import Config

T = TypeVar("T")
# An object that nobody has.
NOTHING = ObjectName("md5", "0" * 32)


class Places:
    """Used from any number of threads, but for `sizes`. Connected when first asked; credentials are looked for again after a
    refusal, so who renews them need not mount again."""

    def __init__(self, load: Callable[[], Config], environ: Mapping[str, str]) -> None:
        self._load = load
        self._environ = environ
        # One thread connects; others may look at what was moved meanwhile.
        self._connecting = threading.Lock()
        self._lock = threading.Lock()
        self._transfers: list[Transfer] | None = None
        # What was moved by those before.
        self._before = 0, 0

    @property
    def moved(self) -> tuple[int, int]:
        """Requests and bytes so far."""
        with self._lock:
            return self._moved()

    def transfers(self) -> list[Transfer]:
        """One for each remote that can be used. Raises RemoteConfigError where the default one cannot."""
        with self._connecting:
            found = self._transfers
            if found is None:
                found = self._connect()
                with self._lock:
                    self._transfers = found
            return found

    def renew(self) -> None:
        """Connect anew: settings or credentials may have changed."""
        with self._connecting, self._lock:
            self._before = self._moved()
            self._transfers = None

    def check(self, name: ObjectName | None) -> None:
        """Ask for a byte of an object, best of one that is there: S3 refuses those who may read, but not list, what is not. Raises
        CredentialsError, RemoteError, RemoteConfigError."""
        with contextlib.suppress(ObjectMissingError):
            self.get(name or NOTHING, 0, 1)

    def close(self) -> None:
        """Let go of connections. It may be used again."""
        with self._connecting, self._lock:
            self._before = self._moved()
            for transfer in self._transfers or ():
                transfer.__exit__()
            self._transfers = None

    def sizes(self, names: Sequence[ObjectName], *, more: bool = False) -> dict[ObjectName, int]:
        """Those that are there, with their sizes, as the remotes tell them now; with `more` others are asked for soon, and what a listing
        told before is good enough."""
        found: dict[ObjectName, int] = {}
        for transfer in self.transfers():
            rest = [name for name in names if name not in found]
            found |= transfer.present(rest, more=more) if rest else {}
        return found

    def expect(self, count: int) -> None:
        """So many sizes are asked for soon: list the first remote meanwhile, if that pays. Raises RemoteConfigError where it cannot be
        used."""
        self.transfers()[0].expect(count)

    def listed(self, values: Sequence[str]) -> list[int | None]:
        """Sizes of the objects with these values as the first remote's listing tells them, if one was begun. Raises RemoteError,
        CredentialsError."""
        return self.transfers()[0].listed(values)

    def prepare(self) -> None:
        """Connect now, so that who asks first need not wait for that; what is wrong he is told."""
        with contextlib.suppress(MillpondError):
            for transfer in self.transfers():
                transfer.backend.prepare()

    def get(self, name: ObjectName, start: int, size: int | None, *, etag: str | None = None) -> Got:
        """A range of an object, wherever it is. Raises ObjectMissingError, RemoteChangedError, RemoteError, CredentialsError."""
        return self._anywhere(name, lambda transfer, key: transfer.get(key, start, size, etag=etag))

    def read(self, name: ObjectName) -> bytes:
        """All of an object, checked against its MD5. Raises as `get`, and StoreDamagedError."""
        data = bytes(self.get(name, 0, None).data)
        check(name, data)
        return data

    def _anywhere(self, name: ObjectName, ask: Callable[[Transfer, str], T]) -> T:
        transfers = self.transfers()
        for transfer in transfers:
            for key in keys_of(name):
                try:
                    return ask(transfer, key)
                except ObjectMissingError:
                    continue
        shown = ", ".join(f"'{each.backend.name}'" for each in transfers)
        raise ObjectMissingError(
            f"object {name} is neither here nor on remote {shown}", hint="push it from where it still is"
        )

    def _moved(self) -> tuple[int, int]:
        found = self._transfers or []
        requests, size = self._before
        return requests + sum(each.requests for each in found), size + sum(each.bytes for each in found)

    def _connect(self) -> list[Transfer]:
        config = self._load()
        first = remotes.find(config)
        catalog = self._catalog(config)
        made = [Transfer(remotes.connect(first, self._environ, catalog))]
        for name in sorted(config.remotes):
            if name != first.name:
                try:
                    made.append(Transfer(remotes.connect(remotes.find(config, name), self._environ, catalog)))
                except MillpondError:  # a kind that is not served here, a folder that is not there: others may have it
                    continue
        return made

    def _catalog(self, config: Config) -> Catalog:
        """Where the files of all versions of the project are on remotes that keep versions themselves; empty where there is none."""
        from millpond.daemon.project.repo import Repo
        from millpond.daemon.project.roots import ProjectRoots, Scope

        catalog = Catalog()
        if any({"version_aware", "worktree"} & values.keys() for values in config.remotes.values()):
            repo = Repo.open(os.path.dirname(config.dvc_dir), self._environ)
            roots = ProjectRoots(repo.root, None if repo.git is None else repo.git.root, self._environ, [])
            catalog.add(roots.outputs(Scope(all_commits=repo.git is not None), b"version_id"))
        return catalog


def check(name: ObjectName, data: bytes) -> None:
    """Raise StoreDamagedError for bytes that are not what the name says."""
    # A manifest is named by its bytes under both algorithms.
    if digest_of(BytesIO(data), "md5" if name.is_dir else name.algo) != name.hex:
        raise StoreDamagedError(
            f"object {name} on the remote is not what its name says", hint="push it again from where it is whole"
        )


def without_remote(error: RemoteConfigError, what: str) -> ObjectMissingError:
    """The error for an object that is nowhere at hand, where no remote can be asked."""
    return ObjectMissingError(
        f"{what} is neither in the store nor in the project's cache, and {error.message}", hint=error.hint
    )
