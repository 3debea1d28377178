"""Contents that come in over a network, put into the store in portions: each is durable before the next begins."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Generic, TypeVar

from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data, Keep, ObjectStore

K = TypeVar("K")
# What is made durable at once.
_COMMIT_BYTES, _COMMIT_FILES = 256 << 20, 10_000


def put_all(
    store: ObjectStore,
    arrivals: Iterator[tuple[K, Data, bool]],
    stored: Callable[[K, ObjectName, int], None],
    durable: Callable[[], None] = lambda: None,
    keep: Keep | None = None,
) -> None:
    """Store contents as they come: (what it is for the caller, bytes, whether they end it), one content after the other. `stored` is
    told of each what its bytes are named and how many they are; those of a portion are durable when the next one begins, and all
    when this returns; `durable` is told of each portion; `keep`: as ObjectStore.put_pieces. Raises DiskFullError, and what `arrivals` raises."""
    ended = False
    while not ended:
        portion = _Portion(arrivals)
        with closing(store.put_pieces(portion, keep)) as names:  # when it fails nobody is told of more, from then on
            for name, _ in names:
                key, size = portion.done.popleft()
                stored(key, name, size)
        store.commit()
        durable()
        ended = portion.ended


class _Portion(Generic[K]):
    """Arrivals up to where a commit is due, as ObjectStore.put_pieces takes them."""

    def __init__(self, arrivals: Iterator[tuple[K, Data, bool]]) -> None:
        self._arrivals = arrivals
        # Whose last bytes have gone to the store, with their sizes.
        self.done: deque[tuple[K, int]] = deque()
        self.ended = False

    def __iter__(self) -> Iterator[tuple[Data, bool, bool]]:
        total = files = size = 0
        for key, data, last in self._arrivals:
            size += len(data)
            if last:
                self.done.append((key, size))
                total, files, size = total + size, files + 1, 0
            yield data, last, False
            if last and (total >= _COMMIT_BYTES or files >= _COMMIT_FILES):
                return
        self.ended = True
