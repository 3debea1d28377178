"""Which objects a remote holds: asked for one by one, or by listing where that takes fewer requests."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Future

from millpond.daemon.names import ObjectName
from millpond.daemon.remote.layout import MODERN

# More objects than this are looked for by listing, where that takes fewer requests than asking for each.
ASK_EACH = 1000
_PREFIXES = tuple(f"{MODERN}/{number:02x}" for number in range(256))
_OLDER = tuple(f"{number:02x}" for number in range(256))
# All places where objects are: DVC 3's and those of DVC 1 and 2.
PREFIXES = (*_PREFIXES, *_OLDER)
# The folders that these are in.
PARENTS = (MODERN, "")
# Names in one page of a listing.
_PAGE = 1000
# Objects of a listing that is kept, about 130 bytes each.
_MAX_LISTED = 1_000_000

# Bytes of what lies under each name, in order, None where nothing does.
Each = Callable[[Sequence[ObjectName]], Iterator[int | None]]
# Whether a key below a prefix is wanted.
Wanted = Callable[[str, str], bool]
# Keys of objects, or what is made of them, and bytes.
Rows = list[tuple[str, int]]
# Told of a prefix what lies below it, in whatever thread and order it comes.
Heard = Callable[[str, Rows], None]
# (key, size in bytes) of what is wanted, or of all, below each prefix, in order.
Sizes = Callable[[Iterable[str], Wanted | None, Heard | None], Iterator[Rows]]


class Presence:
    """For one remote. One thread at a time; what it begins goes on in another one."""

    def __init__(self, each: Each, sizes: Sizes, *, lists: bool) -> None:
        """`lists`: whether a listing can be asked for, and may pay."""
        self._each = each
        self._sizes = sizes
        self._lists = lists
        # All that the remote holds, where it was listed and is asked for again; and what of it lies where DVC 2 put it.
        self._listed: dict[str, int] | None = None
        self._older: dict[str, int] | None = None
        # A listing that was begun.
        self._coming: Future[dict[str, int] | None] | None = None
        # What came of a listing that is kept, folder by folder, until `came` takes it.
        self._came: deque[tuple[str, Rows]] = deque()

    def begin(self, count: int) -> None:
        """So many names are asked for soon, with `more`: list the remote meanwhile, if that pays."""
        if count <= ASK_EACH or not self._lists or self._listed is not None or self._coming is not None:
            return
        coming = self._coming = Future[dict[str, int] | None]()

        def work() -> None:
            try:
                coming.set_result(self._list_all(count, frozenset(), True, self._hear))
            except BaseException as error:  # told to who asks
                coming.set_exception(error)

        threading.Thread(target=work, name="listing", daemon=True).start()

    def came(self) -> Rows:
        """Digests and bytes of objects, as far as a listing that was begun has come, each told once. From any thread."""
        rows: Rows = []
        while self._came:
            prefix, page = self._came.popleft()
            rows += [(_value(prefix, key), size) for key, size in page]
        return rows

    def listed(self, values: Sequence[str]) -> list[int | None]:
        """Sizes of objects that a listing which was begun tells; None for what it has not, or where there is none. Raises what the
        listing raised."""
        self._wait()
        return [None] * len(values) if self._listed is None else list(map(self._listed.get, values))

    def _wait(self) -> None:
        if self._coming is not None:
            coming, self._coming = self._coming, None
            coming.result()

    def of(
        self, names: Sequence[ObjectName], tick: Callable[[int, int], None] | None = None, *, more: bool = False
    ) -> dict[ObjectName, int]:
        """Which of these are there, with their sizes. With `more` others are asked for soon: a listing is kept for them."""
        self._wait()
        if (more and self._listed is not None) or (len(names) > ASK_EACH and self._lists):
            found = self._by_listing(names, more)
            if found is not None:
                return found
        there: dict[ObjectName, int] = {}
        for number, (name, size) in enumerate(zip(names, self._each(names), strict=True), 1):
            if size is not None:
                there[name] = size
            if tick is not None:
                tick(number, len(names))
        return there

    def _by_listing(self, names: Sequence[ObjectName], more: bool) -> dict[ObjectName, int] | None:
        """As `of`, None where the remote holds so much more that a listing would take longer."""
        listed = self._listed if more else None
        if listed is None:
            listed = self._list_all(len(names), {name.value for name in names}, more)
        if listed is None:
            return None
        there = {name: listed[name.value] for name in names if name.value in listed}
        if len(there) == len(names):
            return there
        rest = [name for name in names if name not in there]
        # DVC 2 has its own folders, one for each two digits as well.
        if len(rest) > ASK_EACH:
            older = self._list_older(rest, more)
            there |= {name: older[name.value] for name in rest if name.value in older}
        elif rest:
            there |= {name: size for name, size in zip(rest, self._each(rest), strict=True) if size is not None}
        return there

    def _list_all(self, count: int, wanted: Set[str], more: bool, heard: Heard | None = None) -> dict[str, int] | None:
        """Sizes by digest of what is wanted; with `more` of all that is listed, kept unless that is too much. None where asking for
        each of `count` takes fewer requests. `heard` is told of all that is kept, as it comes."""
        # Digests are spread evenly: one folder of 256 tells how many objects there are.
        first = list(self._sizes(_PREFIXES[:1], None, None))
        there = len(first[0]) * len(_PREFIXES)
        if there / _PAGE + len(_PREFIXES) > count:
            return None
        # So much is not kept; then a listing for what is not known yet is for nothing.
        more = more and there < _MAX_LISTED
        if not (more or wanted):
            return None
        listed = self._list_folders(_PREFIXES, wanted, more, first, heard)
        if more and len(listed) < _MAX_LISTED:
            self._listed, self._older = listed, None
        return listed

    def _hear(self, prefix: str, page: Rows) -> None:
        self._came.append((prefix, page))

    def _list_older(self, names: Sequence[ObjectName], more: bool) -> dict[str, int]:
        """As `_list_all`, of what lies where DVC 2 put it."""
        if more and self._older is not None:
            return self._older
        listed = self._list_folders(_OLDER, {name.value for name in names}, more, [])
        if more and len(listed) < _MAX_LISTED:
            self._older = listed
        return listed

    def _list_folders(
        self,
        prefixes: Sequence[str],
        wanted: Set[str],
        more: bool,
        begun: list[list[tuple[str, int]]],
        heard: Heard | None = None,
    ) -> dict[str, int]:
        """`begun`: the listings of the first prefixes, which were made already."""
        listed: dict[str, int] = {}
        # Of a bucket of many million objects, many folders of which are listed at once, the others are never held together.
        keep = None if more else lambda prefix, key: _value(prefix, key) in wanted
        if heard is not None:
            for prefix, page in zip(prefixes, begun, strict=False):
                heard(prefix, page)
        pages = (page for part in (begun, self._sizes(prefixes[len(begun) :], keep, heard)) for page in part)
        for prefix, page in zip(prefixes, pages, strict=True):
            rows = [(_value(prefix, key), size) for key, size in page]
            whole = more and len(listed) < _MAX_LISTED
            listed.update(rows if whole else (row for row in rows if row[0] in wanted))
        return listed


def _value(prefix: str, key: str) -> str:
    """The digest of an object, with `.dir`, by its key in one of the folders. What is no object is in the way of none: nobody asks for
    such a name."""
    return prefix[-2:] + key[len(prefix) + 1 :]
