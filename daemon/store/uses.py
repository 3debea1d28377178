"""When segments were read last, so that eviction takes what nobody wants first: one row a segment, written now and
then.

    uses       segment u64be -> seconds since the epoch, u64

Readers, here and in the mounts' processes, note the numbers of the segments that they read, in a set; who collects it
takes the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from millpond.daemon.store.index import stamp, stamped
from millpond.daemon.store.segments import segment_numbers, segment_path

if TYPE_CHECKING:
    from millpond.daemon.store.store import Store

# What was read in this time goes last.
WARM_S = 7 * 86_400.0


def note_used(store: Store, segments: Iterable[int]) -> None:
    """These segments were read just now, or since this was called last; rows of segments that are gone are dropped.
    Raises DiskFullError, StoreDamagedError."""
    index, now = store.reader.index, stamp(store.now())
    there = set(segment_numbers(store.path / "segments"))
    used = there.intersection(segments)

    def work(txn: Any) -> None:
        for number in used:
            txn.put(number.to_bytes(8, "big"), now, db=index.uses)
        with txn.cursor(db=index.uses) as cursor:
            more = cursor.first()
            while more:
                more = cursor.next() if int.from_bytes(cursor.key(), "big") in there else cursor.delete()

    if used:
        store.write(work)


def ages(store: Store) -> dict[int, tuple[bool, float]]:
    """For each segment whether it was read within WARM_S, and when it was used: read, or else written. Sorted by this,
    what goes first comes first."""
    index = store.reader.index
    with index.begin() as txn, txn.cursor(db=index.uses) as cursor:
        read = {int.from_bytes(key, "big"): stamped(value) for key, value in cursor}
    warm = store.now() - WARM_S
    found = {}
    for number in segment_numbers(store.path / "segments"):
        last = read.get(number)
        if last is None:
            found[number] = (False, segment_path(store.path / "segments", number).stat().st_mtime)
        else:
            found[number] = (last > warm, float(last))
    return found
