"""The remotes of a project as places to read objects from: the default one first, then the others that are configured."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from millpond.daemon.errors import (
    CredentialsError,
    MillpondError,
    ObjectMissingError,
    RemoteChangedError,
    RemoteConfigError,
    RemoteError,
    StoreDamagedError,
    from_wire,
)
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data
from millpond.daemon.project.hashing import digest_of
from millpond.daemon.remote import remotes
from millpond.daemon.remote.backend import Got
from millpond.daemon.remote.flow import DEADLINE_S
from millpond.daemon.remote.inturn import Tell, in_turn
from millpond.daemon.remote.layout import key_of, keys_of
from millpond.daemon.remote.pace import Budget, rate
from millpond.daemon.remote.remotes import Remote
from millpond.daemon.remote.transfer import Transfer
from millpond.daemon.remote.versioned import Catalog

if TYPE_CHECKING:
    from millpond.daemon.project.config import Config
    from millpond.daemon.project.outputs import Output

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
# A remote that could not be reached, or let nobody in, is asked after the others, so that not each object waits for it; after so long
# it is looked for again, while nobody waits.
ASIDE_S = 30.0
# A remote that took so long to fail is not tried again as long as there are others: who waits does not wait for ever (large.py).
PATIENCE_S = 5.0
# Objects of which it is kept who gave them, or who has them damaged.
_MAX_NOTED = 1024
# What one remote may fail with while another has the object.
_ELSEWHERE = (RemoteError, RemoteChangedError, CredentialsError, StoreDamagedError)
# An object that nobody has.
NOTHING = ObjectName("md5", "0" * 32)


class Limits(NamedTuple):
    """What bounds reading, 0 where nothing does: bytes a second from all remotes together, requests at once to the first one."""

    rate: int = 0
    jobs: int = 0


class Places:
    """Used from any number of threads, but for `sizes`, `expect`, `came` and `listed`. Connected when first asked; credentials are looked for again after a
    refusal, so who renews them need not mount again."""

    def __init__(
        self,
        load: Callable[[], Config],
        environ: Mapping[str, str],
        outputs: Callable[[], Iterable[Output]] | None = None,
        *,
        aside_s: float = ASIDE_S,
        patience_s: float = PATIENCE_S,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """`outputs` are those that remotes which keep versions themselves are to know, in place of all of the project's; a remote that
        failed is asked last for `aside_s`, and not tried again after `patience_s` as long as there are others, nor after `deadline_s`
        where there are none. `tell` may be set: it is told for whom `sizes`, `listed` and `read` wait."""
        self.tell: Tell = _nobody
        self._load = load
        self._outputs = outputs
        self._aside_s = aside_s
        self._patience_s = patience_s
        self._deadline_s = deadline_s
        self._environ = environ
        # One thread connects; others may look at what was moved meanwhile.
        self._connecting = threading.Lock()
        self._lock = threading.Lock()
        self._transfers: list[Transfer] | None = None
        # Whose listing was begun.
        self._listing: Transfer | None = None
        # Held by who asks a remote for sizes, by its name: one that was given up may still be at it.
        self._asking: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        # Remotes that failed last, by name: when, and how.
        self._aside: dict[str, tuple[float, MillpondError]] = {}
        # Who gave an object's bytes last, and who has it damaged.
        self._gave: OrderedDict[ObjectName, str] = OrderedDict()
        self._spoiled: OrderedDict[tuple[str, ObjectName], None] = OrderedDict()
        # What was moved by those before.
        self._before = 0, 0
        self._limits = Limits()

    @property
    def limits(self) -> Limits:
        """As the settings said when it was last connected."""
        with self._lock:
            return self._limits

    @property
    def moved(self) -> tuple[int, int]:
        """Requests and bytes so far."""
        with self._lock:
            return self._moved()

    @property
    def refuses(self) -> bool:
        """Whether a remote did not let the caller in when it was asked last."""
        with self._lock:
            return any(isinstance(error, CredentialsError) for _, error in self._aside.values())

    def transfers(self) -> list[Transfer]:
        """One for each remote that can be used. Raises RemoteConfigError where the default one cannot."""
        with self._connecting:
            found = self._transfers
            if found is None:
                found = self._connect()
                with self._lock:
                    self._transfers = found
            return found

    def renew(self, *, forgive: bool = False) -> None:
        """Connect anew: settings or credentials may have changed; with `forgive` it does not count who failed before."""
        with self._connecting, self._lock:
            self._before = self._moved()
            self._transfers = None
            if forgive:
                self._aside.clear()

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
        told before is good enough. Raises RemoteError, CredentialsError where one that failed may have what the others have not."""
        found: dict[ObjectName, int] = {}
        errors: dict[str, MillpondError] = {}

        def ask(transfer: Transfer) -> bool:
            with self._asking[transfer.backend.name]:
                with self._lock:
                    rest = [name for name in names if name not in found]
                try:
                    there = transfer.present(rest, more=more) if rest else {}
                except (RemoteError, CredentialsError) as error:
                    self._failed(transfer, error)
                    with self._lock:
                        errors[transfer.backend.name] = error
                    return False
            self._answered(transfer)
            with self._lock:
                found.update((name, size) for name, size in there.items() if name not in found)
                return all(name in found for name in names)

        self._silent(in_turn(self._ordered(), ask, self.tell))
        with self._lock:
            there = dict(found)
            failed = dict(errors)
        if failed and any(name not in there for name in names):
            raise self._first(failed)
        return there

    def expect(self, count: int, manifest: ObjectName | None = None) -> None:
        """So many sizes are asked for soon, of what a manifest names: list meanwhile, if that pays, the remote that gave it, or before it came
        the one that is asked first. Raises RemoteConfigError where the default one cannot be used."""
        ordered = self._ordered()
        with self._lock:
            giver = None if manifest is None else self._gave.get(manifest)
        self._listing = next((each for each in ordered if each.backend.name == giver), ordered[0])
        self._listing.expect(count)

    def came(self) -> list[tuple[str, int]]:
        """Values of objects and their sizes, as they come of a listing that was begun; each once."""
        return [] if self._listing is None else self._listing.came()

    def listed(self, values: Sequence[str], meanwhile: Callable[[], None] | None = None) -> list[int | None]:
        """Sizes of the objects with these values as the listing tells them, if one was begun and came to its end; where it did not, or is
        silent while there are other remotes, `sizes` asks the others, and says why. `meanwhile` is called again and again while it comes."""
        transfer = self._listing
        found: list[int | None] = [None] * len(values)
        if transfer is None:
            return found
        told: list[list[int | None]] = []

        def ask(transfer: Transfer) -> bool:
            with self._asking[transfer.backend.name]:
                told.append(transfer.listed(values))
            return True

        try:
            silent = in_turn([transfer], ask, self.tell, give_up=len(self.transfers()) > 1, meanwhile=meanwhile)
        except (RemoteError, CredentialsError) as error:
            self._failed(transfer, error)
            silent = [transfer]
        else:
            self._silent(silent)
        if silent:
            self._listing = None
            return found
        return told[0]

    def prepare(self) -> None:
        """Connect now, so that who asks first need not wait for that; what is wrong he is told."""
        with contextlib.suppress(MillpondError):
            for transfer in self.transfers():
                transfer.backend.prepare()

    def get(
        self,
        name: ObjectName,
        start: int,
        size: int | None,
        *,
        etag: str | None = None,
        accept: Callable[[Got], None] = lambda got: None,
        again: bool = True,
    ) -> Got:
        """A range of an object, from the first remote that has it and whose bytes `accept` does not refuse by a StoreDamagedError. Where
        all fail the first one's error is raised; without `again` remotes that refused the caller last are not asked.

        Raises ObjectMissingError, RemoteChangedError, StoreDamagedError, RemoteError, CredentialsError."""

        def ask(transfer: Transfer, key: str, patience_s: float) -> Got:
            got = transfer.get(key, start, size, etag=etag, patience_s=patience_s)
            accept(got)
            return got

        return self._anywhere(name, ask, again)

    def read(self, name: ObjectName) -> bytes:
        """All of an object, checked against its MD5; of a remote that is silent no more is waited for than takes the others to give it.
        Raises as `get`."""
        found: list[Got] = []
        errors: dict[str, MillpondError] = {}
        ordered = self._ordered(name)

        def whole(transfer: Transfer, key: str, patience_s: float) -> Got:
            got = transfer.get(key, 0, None, patience_s=patience_s)
            check(name, got.data)
            return got

        def ask(transfer: Transfer) -> bool:
            got = self._of(transfer, name, whole, self._patience(transfer, ordered), errors)
            if got is not None:
                found.append(got)
            return got is not None

        self._silent(in_turn(ordered, ask, self.tell))
        if not found:
            raise self._nowhere(name, errors)
        return bytes(found[0].data)

    def is_damaged(self, name: ObjectName) -> bool:
        """An object, when all of it had come, was not what its name says: who gave it is asked for it after the others. Whether there are
        others who may have it whole, and have not been asked for that yet."""
        with self._lock:
            giver = self._gave.pop(name, None)
            if giver is None or (giver, name) in self._spoiled:
                return False
            _note(self._spoiled, (giver, name), None)
            return any((each.backend.name, name) not in self._spoiled for each in self._transfers or ())

    def _anywhere(self, name: ObjectName, ask: Callable[[Transfer, str, float], T], again: bool) -> T:
        errors: dict[str, MillpondError] = {}
        ordered = self._ordered(name)
        for transfer in ordered:
            refused = None if again else self._refusal(transfer)
            if refused is not None:
                errors[transfer.backend.name] = refused
                continue
            found = self._of(transfer, name, ask, self._patience(transfer, ordered), errors)
            if found is not None:
                return found
        raise self._nowhere(name, errors)

    def _of(
        self,
        transfer: Transfer,
        name: ObjectName,
        ask: Callable[[Transfer, str, float], T],
        patience_s: float,
        errors: dict[str, MillpondError],
    ) -> T | None:
        """What one remote gives of an object, looked for in both layouts; None where it has it not, or fails, noted in `errors`."""
        for key in keys_of(name):
            try:
                found = ask(transfer, key, patience_s)
            except ObjectMissingError:
                self._answered(transfer)
            except _ELSEWHERE as error:
                errors.setdefault(transfer.backend.name, error)
                if isinstance(error, (RemoteError, CredentialsError)):
                    self._failed(transfer, error)
                    break
            else:
                self._answered(transfer)
                with self._lock:
                    _note(self._gave, name, transfer.backend.name)
                return found
        return None

    def _patience(self, transfer: Transfer, ordered: Sequence[Transfer]) -> float:
        return self._deadline_s if transfer is ordered[-1] else self._patience_s

    def _nowhere(self, name: ObjectName, errors: dict[str, MillpondError]) -> MillpondError:
        """The error for an object that no remote gave."""
        if errors:
            return self._first(errors)
        shown = ", ".join(f"'{each.backend.name}'" for each in self.transfers())
        return ObjectMissingError(
            f"object {name} is neither here nor on remote {shown}", hint="push it from where it still is"
        )

    def _ordered(self, name: ObjectName | None = None) -> list[Transfer]:
        """The remotes in the order in which they are asked: those that failed of late, or have this object damaged, last."""
        transfers = self.transfers()
        now = time.monotonic()
        with self._lock:
            for transfer in transfers:
                remote = transfer.backend.name
                when, error = self._aside.get(remote, (0.0, None))
                if error is not None and now - when > self._aside_s:
                    self._aside[remote] = now, error
                    threading.Thread(target=self._look_for, args=(transfer,), daemon=True).start()
            return sorted(
                transfers,
                key=lambda each: (
                    each.backend.name in self._aside
                    or (name is not None and (each.backend.name, name) in self._spoiled)
                ),
            )

    def _look_for(self, transfer: Transfer) -> None:
        """Whether a remote that failed answers again."""
        try:
            transfer.backend.head(key_of(NOTHING))
        except MillpondError as error:
            self._failed(transfer, error)
        else:
            self._answered(transfer)

    def _refusal(self, transfer: Transfer) -> CredentialsError | None:
        with self._lock:
            _, error = self._aside.get(transfer.backend.name, (0.0, None))
        return error if isinstance(error, CredentialsError) else None

    def _failed(self, transfer: Transfer, error: MillpondError) -> None:
        with self._lock:
            self._aside[transfer.backend.name] = time.monotonic(), error

    def _silent(self, transfers: Iterable[Transfer]) -> None:
        """Others answered before these did."""
        for transfer in transfers:
            self._failed(transfer, RemoteError(f"remote '{transfer.backend.name}' does not answer"))

    def _answered(self, transfer: Transfer) -> None:
        if self._aside:
            with self._lock:
                self._aside.pop(transfer.backend.name, None)

    def _first(self, errors: Mapping[str, MillpondError]) -> MillpondError:
        """What is told: that the object is another one somewhere, for then it is to be opened again; else the first remote's error."""
        with self._lock:
            order = [each.backend.name for each in self._transfers or ()]
        found = [errors[name] for name in order if name in errors] or list(errors.values())
        chosen = next((each for each in found if isinstance(each, RemoteChangedError)), found[0])
        return from_wire(chosen.to_wire())

    def _moved(self) -> tuple[int, int]:
        found = self._transfers or []
        requests, size = self._before
        return requests + sum(each.requests for each in found), size + sum(each.moved for each in found)

    def _connect(self) -> list[Transfer]:
        config = self._load()
        first = remotes.find(config)
        catalog = self._catalog(config)
        bound = rate(self._environ)
        budget = None if bound is None else Budget(bound)

        def connected(remote: Remote) -> Transfer:
            backend = remotes.connect(remote, self._environ, catalog)
            return Transfer(backend, jobs=remote.count("jobs"), budget=budget, patience_s=self._deadline_s)

        made = [connected(first)]
        with self._lock:
            self._limits = Limits(int(bound or 0), first.count("jobs") or 0)
        for name in sorted(config.remotes):
            if name != first.name:
                try:
                    made.append(connected(remotes.find(config, name)))
                except MillpondError:  # a kind that is not served here, a folder that is not there: others may have it
                    continue
        return made

    def _catalog(self, config: Config) -> Catalog:
        """Where the files of all versions of the project are on remotes that keep versions themselves; empty where there is none."""
        from millpond.daemon.project.repo import Repo
        from millpond.daemon.project.roots import ProjectRoots, Scope

        catalog = Catalog()
        if not any({"version_aware", "worktree"} & values.keys() for values in config.remotes.values()):
            return catalog
        if self._outputs is not None:
            catalog.add(self._outputs())
        else:
            repo = Repo.open(os.path.dirname(config.dvc_dir), self._environ)
            roots = ProjectRoots(repo.root, None if repo.git is None else repo.git.root, self._environ, [])
            catalog.add(roots.outputs(Scope(all_commits=repo.git is not None), b"version_id"))
        return catalog


def _nobody(who: str, seconds: float) -> None:
    """Nobody is told for whom is waited."""


def _note(notes: OrderedDict[K, V], key: K, value: V) -> None:
    """The latest notes alone are kept."""
    notes[key] = value
    notes.move_to_end(key)
    if len(notes) > _MAX_NOTED:
        notes.popitem(last=False)


def check(name: ObjectName, data: Data) -> None:
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
