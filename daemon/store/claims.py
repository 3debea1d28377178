"""What running verbs count on: records and contents that eviction must not touch, by the connection that found them
here.

Who puts what is here already is told by a look-up, and the same look-up claims it, under a lock that who removes holds
as well. So nobody waits for anybody, and nothing that was found is gone before its finder has ended.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

# Ids that all claims may hold together: 100 bytes of memory each.
MAX_IDS = 1_000_000


@dataclass(slots=True)
class Claim:
    """Of one connection: ids of records and contents, roots of manifests (ledger.py) with all that they name. `since`:
    when it began to put what a pointer is to name, in seconds since the epoch; `mark`: (segment, offset) of the store's
    end when it began to put; `begun`: by the connection itself; `holds`: how many keep it alive."""

    ids: set[bytes] = field(default_factory=set)
    manifests: set[bytes] = field(default_factory=set)
    since: float | None = None
    mark: tuple[int, int] | None = None
    begun: bool = False
    holds: int = 0


class Claims:
    """All claims on a store. From any thread; only `lock` may be waited for."""

    def __init__(self) -> None:
        # Held by who finds something and claims it, and by who looks at the claims and removes: for as long as a commit
        # may take.
        self.lock = threading.Lock()
        self._mutex = threading.RLock()
        # Grows when a manifest is claimed.
        self.generation = 0
        self._claims: dict[int, Claim] = {}
        self._count = 0
        self._frozen = 0
        self._ended: list[int] = []

    def begin(self, owner: int) -> bool:
        """A connection may claim from now on; False when it could before. Each `begin` that was True, and each `hold`,
        is ended by `end`."""
        with self._mutex:
            claim = self._claims.get(owner)
            if claim is not None and claim.begun:
                return False
            self.hold(owner)
            self._claims[owner].begun = True
            return True

    def hold(self, owner: int) -> None:
        """Keep a connection's claims until `end`, also when it is gone."""
        with self._mutex:
            self._claims.setdefault(owner, Claim()).holds += 1

    def end(self, owner: int) -> None:
        """Let go of the claims, unless somebody else holds them, once nothing is being evicted."""
        with self._mutex:
            if self._frozen:
                self._ended.append(owner)
                return
            claim = self._claims[owner]
            claim.holds -= 1
            if not claim.holds:
                self._count -= len(claim.ids) + len(claim.manifests)
                del self._claims[owner]

    def puts(self, owner: int, mark: tuple[int, int], now: float | None) -> None:
        """A connection puts: records behind `mark` may be its; what is granted from `now` on, too, if it is a
        verb's."""
        with self._mutex:
            claim = self._claims.get(owner)
            if claim is not None and claim.mark is None:
                claim.mark, claim.since = mark, now

    def add(self, owner: int, ids: Iterable[bytes] = (), manifests: Iterable[bytes] = ()) -> None:
        """Claim records, contents, and what manifests name."""
        with self._mutex:
            claim = self._claims.get(owner)
            if claim is None or self._count > MAX_IDS:  # its connection has ended
                return
            before = len(claim.ids) + len(claim.manifests)
            claim.ids.update(ids)
            known = len(claim.manifests)
            claim.manifests.update(manifests)
            self.generation += len(claim.manifests) > known
            self._count += len(claim.ids) + len(claim.manifests) - before

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """While something is being evicted claims stay, so that what was found since the plan was made counts."""
        with self._mutex:
            self._frozen += 1
        try:
            yield
        finally:
            with self._mutex:
                self._frozen -= 1
                if not self._frozen:
                    ended, self._ended = self._ended, []
                    for owner in ended:
                        self.end(owner)

    @property
    def all(self) -> bool:
        """Whether there are more claims than are remembered, so that everything is claimed."""
        return self._count > MAX_IDS

    @property
    def since(self) -> float:
        """When the oldest verb that puts began to; what was granted since then is claimed."""
        with self._mutex:
            return min((each.since for each in self._claims.values() if each.since is not None), default=float("inf"))

    @property
    def mark(self) -> tuple[int, int] | None:
        """Behind it are records that those who put now have written, and not named yet; None when nobody puts."""
        with self._mutex:
            return min((each.mark for each in self._claims.values() if each.mark is not None), default=None)

    @property
    def manifests(self) -> set[bytes]:
        """Roots of all manifests that are claimed."""
        with self._mutex:
            return set().union(*(each.manifests for each in self._claims.values()))

    def has(self, ids: Iterable[bytes]) -> bool:
        """Whether any of these is claimed."""
        wanted = list(ids)
        with self._mutex:
            return any(each in claim.ids for claim in self._claims.values() for each in wanted)
