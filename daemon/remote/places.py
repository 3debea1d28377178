"""The remotes of a project as places to read objects from: the default one first, then the others that are configured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from millpond.daemon.errors import MillpondError, ObjectMissingError, RemoteConfigError, StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.project.hashing import is_md5
from millpond.daemon.remote import remotes
from millpond.daemon.remote.backend import Got
from millpond.daemon.remote.layout import keys_of
from millpond.daemon.remote.transfer import Transfer

if TYPE_CHECKING:
    from millpond.daemon.project.config import Config

T = TypeVar("T")


class Places:
    """Used from any number of threads, but for `sizes`. Connected when first asked; credentials are looked for again after a
    refusal, so who renews them need not mount again."""

    def __init__(self, load: Callable[[], Config], environ: Mapping[str, str]) -> None:
        self._load = load
        self._environ = environ
        self._lock = threading.Lock()
        self._transfers: list[Transfer] | None = None

    @property
    def moved(self) -> tuple[int, int]:
        """Requests and bytes so far."""
        found = self._transfers or []
        return sum(each.requests for each in found), sum(each.bytes for each in found)

    def transfers(self) -> list[Transfer]:
        """One for each remote that can be used. Raises RemoteConfigError where the default one cannot."""
        with self._lock:
            if self._transfers is None:
                self._transfers = self._connect()
            return self._transfers

    def renew(self) -> None:
        """Connect anew: settings or credentials may have changed."""
        with self._lock:
            self._transfers = None

    def sizes(self, names: Sequence[ObjectName]) -> dict[ObjectName, int]:
        """Those that are there, with their sizes, as the remotes tell them."""
        found: dict[ObjectName, int] = {}
        for transfer in self.transfers():
            rest = [name for name in names if name not in found]
            found |= transfer.present(rest, more=True) if rest else {}
        return found

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

    def _connect(self) -> list[Transfer]:
        config = self._load()
        first = remotes.find(config)
        made = [Transfer(remotes.connect(first, self._environ))]
        for name in sorted(config.remotes):
            if name != first.name:
                try:
                    made.append(Transfer(remotes.connect(remotes.find(config, name), self._environ)))
                except MillpondError:  # a kind that is not served here, a folder that is not there: others may have it
                    continue
        return made


def check(name: ObjectName, data: bytes) -> None:
    """Raise StoreDamagedError for bytes that are not what the name says."""
    if not is_md5(data, name.hex):
        raise StoreDamagedError(
            f"object {name} on the remote is not what its name says", hint="push it again from where it is whole"
        )


def without_remote(error: RemoteConfigError, what: str) -> ObjectMissingError:
    """The error for an object that is nowhere at hand, where no remote can be asked."""
    return ObjectMissingError(
        f"{what} is neither in the store nor in the project's cache, and {error.message}", hint=error.hint
    )
