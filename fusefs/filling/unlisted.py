"""Which directories are listed ahead: those of which many files are looked up one by one, by a program that never lists them.

The kernel takes pages ahead only for inodes that it knows, and a file that is looked up costs two requests: entries by the hundred cost a twelfth of that.
So all that is listed costs no more than twice what all lookups have cost by then: who reads few files of many directories loses no more than that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

# Files looked up within so many seconds, of all directories, before any is listed.
TOGETHER, WITHIN_S = 32, 2.0
# A directory is listed once one of so many of its entries was looked up, but not less than so many of them; none that has more entries, and not more
# of them in one go. Not if half of them were by then, as of a directory of a few files: that gains nothing.
PART, LEAST, MOST_ENTRIES, MOST_TOGETHER = 64, 2, 1 << 15, 1 << 17
# Entries that are listed for each lookup there was, and what opening a directory counts for beside its entries.
WORTH, OPENING = 32, 24
# Seconds without a look after which all is as at the beginning, and after which one may be listed again, as the kernel may have forgotten it.
QUIET_S, _AGAIN_S = 10.0, 60.0
# Directories whose looks are counted.
_MOST_COUNTED = 8192


class Unlisted:
    """`where` tells a directory's path and entries, None if it is none to be listed. Times are seconds of one clock."""

    def __init__(self, where: Callable[[int], tuple[bytes, int] | None]) -> None:
        self._where = where
        # Looks at each directory since all was quiet; of all together since `_began`; and when each was told to be listed, or that it is not worth it.
        self._counts: OrderedDict[int, int] = OrderedDict()
        self._told: OrderedDict[int, float] = OrderedDict()
        self._looks = self._entries = 0
        # Since all was quiet: lookups, and what listing has cost, in entries.
        self._all = self._cost = 0
        self._began = self._last = float("-inf")

    def looked_up(self, directory: int, now: float) -> bytes | None:
        """A file of it was; its path if it is to be listed."""
        if now - self._last > QUIET_S:
            self._entries = self._all = self._cost = 0
            self._counts.clear()
        self._last = now
        if now - self._began > WITHIN_S:
            self._began, self._looks = now, 0
        self._looks += 1
        self._all += 1
        count = self._counts[directory] = self._counts.get(directory, 0) + 1
        self._counts.move_to_end(directory)
        if len(self._counts) > _MOST_COUNTED:
            self._counts.popitem(last=False)
        if self._looks < TOGETHER or count < LEAST or now - self._told.get(directory, float("-inf")) < _AGAIN_S:
            return None
        path, entries = self._where(directory) or (None, 0)
        if path is not None and not 2 * count <= entries <= MOST_ENTRIES:
            path = None  # it is not worth it
        if path is not None:
            cost = entries + OPENING
            if entries > min(count * PART, MOST_TOGETHER - self._entries) or self._cost + cost > self._all * WORTH:
                return None
            self._entries += entries
            self._cost += cost
        del self._counts[directory]
        self._told[directory] = now
        self._told.move_to_end(directory)
        if len(self._told) > _MOST_COUNTED:
            self._told.popitem(last=False)
        return path

    def forget(self, directory: int) -> None:
        """It was not listed."""
        self._told.pop(directory, None)
