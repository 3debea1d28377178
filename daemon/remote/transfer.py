"""One remote in use: what is there, what comes, what goes, what is removed (see flow.py for how)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data
from millpond.daemon.remote.backend import DELETE_KEYS, Backend, Entry, Got, Sent
from millpond.daemon.remote.download import Downloads, Part
from millpond.daemon.remote.flow import DEADLINE_S, Flow
from millpond.daemon.remote.layout import keys_of
from millpond.daemon.remote.pace import Budget, Turns
from millpond.daemon.remote.partial import Partials
from millpond.daemon.remote.presence import Heard, Presence, Wanted
from millpond.daemon.remote.silence import Silence, Tell
from millpond.daemon.remote.upload import Created, Upload, Uploads

T = TypeVar("T")
# Small things that are no objects, written together.
_SMALL = 64
# Objects that an instant remote is asked for in one call.
_ASKED = 512


class Transfer:
    """One remote in use, to be closed. Large objects that come are kept in `partials` until
    `stored` is called, so that a download that was cut goes on where it was."""

    def __init__(
        self,
        backend: Backend,
        *,
        jobs: int | None = None,
        rate: float | None = None,
        partials: Partials | None = None,
        budget: Budget | None = None,
        patience_s: float = DEADLINE_S,
        tell: Tell | None = None,
    ) -> None:
        """`budget`: one that several share, in place of a `rate` of its own. After `patience_s` a request is not tried again. `tell` is told, by
        who waits for what comes or goes, when the remote is silent."""
        self.backend = backend
        if jobs is not None:
            backend.many = min(backend.many, jobs)
        budget = Budget(rate) if rate is not None else budget
        self._flow = Flow(jobs, budget, patience_s, Silence(backend.name, tell))
        self._turns = Turns(jobs, budget)
        self._downloads = Downloads(backend, self._flow, partials)
        self._uploads = Uploads(backend, self._flow, jobs)
        self._presence = Presence(self._each, self._sizes, lists=backend.lists and not backend.near)

    @property
    def requests(self) -> int:
        """How many were answered."""
        return self._flow.requests

    @property
    def moved(self) -> int:
        """Bytes that came and went."""
        return self._flow.moved

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *_: object) -> None:
        self._flow.close()
        self.backend.close()

    def get(
        self, key: str, start: int, size: int | None, *, etag: str | None = None, patience_s: float = DEADLINE_S
    ) -> Got:
        """A range of an object, tried again as all else, but not when `patience_s` are over; from any thread, in its turn. Raises
        ObjectMissingError, RemoteChangedError."""
        with self._turns.turn(self._flow.stop) as took:
            got = self._flow.attempt(lambda: self.backend.get(key, start, size, etag=etag), patience_s=patience_s)
            took(len(got.data))
        self._flow.took(1, len(got.data))
        return got

    def present(
        self, names: Sequence[ObjectName], tick: Callable[[int, int], None] | None = None, *, more: bool = False
    ) -> dict[ObjectName, int]:
        """Which of these are there, with their sizes: by listing where that takes fewer requests than asking for each. With `more`
        others are asked for soon: a listing is kept for them."""
        return self._presence.of(names, tick, more=more)

    def expect(self, count: int) -> None:
        """So many names are asked for soon, with `more`."""
        self._presence.begin(count)

    def came(self) -> list[tuple[str, int]]:
        """Values of objects and their sizes, as they come of a listing since `expect`; each once."""
        return self._presence.came()

    def listed(self, values: Sequence[str]) -> list[int | None]:
        """Sizes of the objects with these values, as far as a listing since `expect` tells them."""
        return self._presence.listed(values)

    def ask(self, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Answers to questions to the backend, in order, many asked at once, each tried again."""
        return self._flow.in_order(calls)

    def answer(self, call: Callable[[], T]) -> T:
        """The answer to one question to the backend, tried again."""
        return self._flow.wait(self._flow.submit(call))

    def listings(self, prefixes: Iterable[str]) -> Iterator[list[Entry]]:
        """All that lies below each prefix."""
        return self._flow.in_order((partial(self._list, prefix) for prefix in prefixes), pace=self._flow.listing)

    def _sizes(
        self, prefixes: Iterable[str], wanted: Wanted | None, heard: Heard | None
    ) -> Iterator[list[tuple[str, int]]]:
        def sizes(prefix: str) -> list[tuple[str, int]]:
            rows = self.backend.sizes(prefix, None if wanted is None else partial(wanted, prefix))
            if heard is not None:
                heard(prefix, rows)
            return rows

        def calls() -> Iterator[Callable[[], list[tuple[str, int]]]]:
            for prefix in prefixes:
                yield partial(sizes, prefix)

        return self._flow.in_order(calls(), pace=self._flow.listing)

    def delete(self, keys: Sequence[str], before: Callable[[], None]) -> Iterator[int]:
        """Remove objects, `before` being called ahead of each request; how many are gone for good, again and again."""

        def remove(start: int) -> None:
            before()
            self.backend.delete_many(keys[start : start + DELETE_KEYS])

        starts = range(0, len(keys), DELETE_KEYS)
        for number, _ in enumerate(self._flow.in_order(partial(remove, start) for start in starts), 1):
            yield min(number * DELETE_KEYS, len(keys))

    def put_small(self, items: Iterable[tuple[str, Data]]) -> Iterator[int]:
        """Write small things that are no objects, some together; how many are there for good, again and again."""
        done = 0
        source = iter(items)
        groups = iter(lambda: list(islice(source, _SMALL)), [])

        def put(group: list[tuple[str, Data]]) -> int:
            self.backend.put_many(group)
            return len(group)

        for count in self._flow.in_order(partial(put, group) for group in groups):
            done += count
            yield done

    def get_small(self, keys: Iterable[str]) -> Iterator[Data]:
        """Things that are no objects, each whole, in order. Raises ObjectMissingError."""
        return (got.data for got in self._flow.in_order(partial(self.backend.get, key) for key in keys))

    def read(self, name: ObjectName) -> bytes:
        """A whole object that is small, or that somebody waits for. Raises ObjectMissingError."""
        found = bytearray()
        for part in self.download([name]):
            if part.error is not None:
                raise part.error
            found += part.data
        return bytes(found)

    def download(self, names: Iterable[ObjectName]) -> Iterator[Part]:
        """The bytes of objects, one after the other."""
        return self._downloads.objects(names)

    def stored(self) -> None:
        """What came so far is stored, or not what its name says: it need not be kept any more."""
        self._downloads.stored()

    def contents(self, entries: Sequence[Entry]) -> Iterator[tuple[int, Data, bool]]:
        """The bytes of what lies at these entries' keys, one after the other, each with its entry's index and whether they end it.
        Raises ObjectMissingError, RemoteChangedError for what is not as its entry says."""
        return self._downloads.contents(entries)

    def upload(self, objects: Iterable[Upload], *, created: Created, went: Sent | None = None) -> None:
        """Write objects, no two with one key; `created` is told of those that are there for good, in order, `went` meanwhile of the bytes that
        went so far in all."""
        self._uploads.send(objects, created, went)

    def sync_found(self, names: Iterable[ObjectName]) -> None:
        """Have objects that were found there be there for good, before anybody relies on them: in a directory somebody may just have named them,
        and a loss of power would take the names back."""
        if (staging := self.backend.staging) is not None:
            staging.sync_found(key for name in names for key in keys_of(name))

    def _list(self, prefix: str) -> list[Entry]:
        return list(self.backend.list(prefix))

    def _each(self, names: Sequence[ObjectName]) -> Iterator[int | None]:
        """Bytes of what lies under each name, in either layout, None where nothing does; asked for one by one."""
        if not self.backend.instant:
            yield from self._flow.in_order(partial(self._size, name) for name in names)
            return
        groups = (names[start : start + _ASKED] for start in range(0, len(names), _ASKED))
        for found in self._flow.in_order(partial(self._several, group) for group in groups):
            yield from found

    def _size(self, name: ObjectName) -> int | None:
        for key in keys_of(name):
            entry = self.backend.head(key)
            if entry is not None:
                return entry.size
        return None

    def _several(self, names: Sequence[ObjectName]) -> list[int | None]:
        keys = [keys_of(name) for name in names]
        found = self.backend.sizes_of([first for first, _ in keys])
        lacking = [number for number, size in enumerate(found) if size is None]
        for number, size in zip(lacking, self.backend.sizes_of([keys[each][1] for each in lacking]), strict=True):
            found[number] = size
        return found
