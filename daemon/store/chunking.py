"""Cutting contents into chunks: FastCDC (Xia et al., USENIX ATC 2016) as pyfastcdc implements it.

The algorithm and its parameters are part of the store's format: other boundaries would still read, but no longer
deduplicate against what is stored. tests/store/test_chunking.py pins them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from pyfastcdc import FastCDC

from millpond.daemon.objects import ONE_CHUNK_BYTES

ALGORITHM = "fastcdc-2020-pyfastcdc0.3-nc2"
MIN_BYTES = ONE_CHUNK_BYTES
AVERAGE_BYTES = 256 << 10
MAX_BYTES = 1 << 20
# What is put together at first of a chunk that began in the part before: most end within, and it stays in memory until it is stored.
_HEAD_BYTES = 2 * AVERAGE_BYTES


def parameters() -> dict[str, str | int]:
    """What format.json says of chunking."""
    return {"algorithm": ALGORITHM, "min": MIN_BYTES, "average": AVERAGE_BYTES, "max": MAX_BYTES}


class Cutter:
    """Cuts one content that comes in parts; boundaries do not depend on the parts.

    A chunk that ends where a part ends is not final: it is carried over and cut again with the next part, at most
    MAX_BYTES of it.
    """

    def __init__(self) -> None:
        self._carry = b""
        self._fastcdc = FastCDC(AVERAGE_BYTES, min_size=MIN_BYTES, max_size=MAX_BYTES, normalized_chunking=2)

    def feed(self, part: memoryview, last: bool) -> Iterator[memoryview]:
        """The chunks that are final now; with `last`, all of the rest. Views are valid as long as `part` is."""
        while self._carry:
            begin = yield from self._finish_carry(part, last)
            if begin < 0:
                return
            part = part[begin:]
        ends = self._ends(part)
        if not last and ends:
            ends.pop()
        begin = 0
        for end in ends:
            yield part[begin:end]
            begin = end
        if not last:
            self._carry = bytes(part[begin:])

    def _finish_carry(self, part: memoryview, last: bool) -> Generator[memoryview, None, int]:
        """The chunk that begins in what was carried over; where in `part` it ends, or -1 when `part` is used up.

        Only as much as a chunk needs is put together: copying whole parts would cost more than cutting them.
        """
        carried = len(self._carry)
        for most in (_HEAD_BYTES, MAX_BYTES):
            room = max(0, most - carried)
            head = memoryview(self._carry + bytes(part[:room]))
            whole = len(part) <= room
            end = self._first_end(head)
            if whole or end < len(head):
                break
        if whole and end == len(head) and not last:
            self._carry = bytes(head)
            return -1
        # What was carried over has no boundary inside, but for one right before its last byte: FastCDC takes bytes by twos, so that
        # one was not seen.
        self._carry = bytes(head[end:carried])
        yield head[:end]
        return -1 if whole and end == len(head) else max(0, end - carried)

    def _first_end(self, data: memoryview) -> int:
        """Where the first chunk ends."""
        length: int = next(iter(self._fastcdc.cut_buf(data))).length
        return length

    def _ends(self, data: memoryview) -> list[int]:
        """Where chunks end."""
        ends = []
        position = 0
        for chunk in self._fastcdc.cut_buf(data):
            position += chunk.length
            ends.append(position)
        return ends
