"""What a job writes, on disk: one record a line, in the form of Kubernetes' container logs, so that any reader can make use of it.

    2026-11-28T04:05:06.123456789Z stdout F a whole line
    2026-11-28T04:05:07.000000001Z stderr P a part of one, which goes on in the next record of its stream
    2026-11-28T04:05:08.000000000Z millpond F a line of the shim's own

Content is the job's bytes, whatever they are. A line that is not ended is written after PARTIAL_S, and what carriage
returns have overwritten by then is left out: a progress bar that is drawn all day does not push everything else out.

`log` is begun anew when it is full; the part before stays as `log.1`, what was there is dropped, and the new part says so.
A disk that is full costs output, never the job: what could not be written is counted, and told when there is room again.
Standard library only: the command line reads logs with `parse`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from typing import NamedTuple

NAME, EARLIER = "log", "log.1"
# Bytes of each of the two parts, when the job does not say.
PART_BYTES = 16 << 20
MIN_PART_BYTES = 64 << 10
PARTIAL_S = 0.25
# A line that is longer comes in parts.
MAX_LINE = 16 << 10
# How often a disk that had no room is tried again.
RETRY_S = 1.0
# The stream of the shim's own lines.
OWN = b"millpond"
# So the first record of a part begins, when what came before the part before it is gone; it is told before both.
DROPPED = "the log begins with part"
# So the last of them begins when a verb has failed.
ERROR = "ERROR: "


class Record(NamedTuple):
    """One record: when (as written), of which stream, whether it ends a line, its bytes."""

    time: bytes
    stream: bytes
    whole: bool
    content: bytes


def parse(line: bytes) -> Record | None:
    """A record of its line, None for what is none: the torn end of a part."""
    fields = line.split(b" ", 3)
    if len(fields) != 4 or not line.endswith(b"\n") or fields[2] not in (b"F", b"P"):
        return None
    return Record(fields[0], fields[1], fields[2] == b"F", fields[3][:-1])


class LogWriter:
    """The log below `folder`, written by one process. `clock` gives nanoseconds since the epoch."""

    def __init__(self, folder: str, part_bytes: int = PART_BYTES, clock: Callable[[], int] = time.time_ns) -> None:
        self._path = os.path.join(folder, NAME)
        self._earlier = os.path.join(folder, EARLIER)
        self._limit = max(part_bytes, MIN_PART_BYTES)
        self._clock = clock
        self._pending: dict[bytes, bytearray] = {}
        # Streams of which the last record did not end its line.
        self._midway: set[bytes] = set()
        self._due: float | None = None
        self._fd = -1
        self._size = 0
        self._earlier_size = 0
        self._part = 1
        self._retry_at = 0.0
        self._untold = 0
        self.bytes = 0
        self.dropped = 0
        self.lost = 0

    @property
    def due(self) -> float | None:
        """When `flush` wants to be called, as time.monotonic() tells it; None: it need not be."""
        return self._due

    def feed(self, stream: bytes, data: bytes) -> None:
        """Take in what the job wrote. Never raises for the disk's sake."""
        self.bytes += len(data)
        pending = self._pending.setdefault(stream, bytearray())
        pending += data
        end = pending.rfind(b"\n") + 1
        if end:
            lines, self._pending[stream] = bytes(pending[:end]), pending[end:]
            self._write(self._records(stream, lines))
        while len(self._pending[stream]) >= MAX_LINE:
            part, self._pending[stream] = self._pending[stream][:MAX_LINE], self._pending[stream][MAX_LINE:]
            self._write(self._record(stream, bytes(part), whole=False))
        if any(self._pending.values()):
            self._due = self._due or time.monotonic() + PARTIAL_S
        else:
            self._due = None

    def flush(self) -> None:
        """Write lines that are not ended as far as they are."""
        self._due = None
        for stream, pending in self._pending.items():
            if pending:
                self._write(self._record(stream, bytes(pending), whole=False))
                pending.clear()

    def note(self, text: str) -> None:
        """A line of the shim's own."""
        line = text.replace("\n", "\\n")
        self._write(self._record(OWN, line.encode("utf-8", "surrogateescape")))

    def close(self) -> None:
        """Flush, and have it on disk if there is room. Safe twice."""
        self.flush()
        self._retry_at = 0.0
        if self._untold:
            self._write(b"")
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _records(self, stream: bytes, lines: bytes) -> bytes:
        """Whole lines that came at once."""
        now = timestamp(self._clock())
        if b"\r" in lines:
            return b"".join([self._record(stream, line, now) for line in lines.split(b"\n")[:-1]])
        # Millions of short lines are made into records without a step of Python's for each.
        head = b"%s %s F " % (now, stream)
        self._midway.discard(stream)
        return head + lines[:-1].replace(b"\n", b"\n" + head) + b"\n"

    def _record(self, stream: bytes, content: bytes, now: bytes | None = None, *, whole: bool = True) -> bytes:
        content = without_overwritten(content, begins_line=stream not in self._midway)
        (self._midway.discard if whole else self._midway.add)(stream)
        return b"%s %s %s %s\n" % (now or timestamp(self._clock()), stream, b"F" if whole else b"P", content)

    def _write(self, data: bytes) -> None:
        """Append records whole, or count them as lost."""
        size = len(data)
        if self._untold:
            told = f"{self._untold} bytes of the log are not here: they could not be written"
            data = self._record(OWN, told.encode()) + data
        try:
            if self._untold and time.monotonic() < self._retry_at:
                raise OSError(errno.EAGAIN, "the disk was full a moment ago")
            if self._fd < 0 or self._size + len(data) > self._limit:
                self._next_part()
            _append(self._fd, data, self._size)
        except OSError as error:
            self._untold += size
            self.lost += size
            if error.errno != errno.EAGAIN:
                self._retry_at = time.monotonic() + RETRY_S
            return
        self._size += len(data)
        self._untold = 0

    def _next_part(self) -> None:
        """Begin `log`, or begin it anew. Raises OSError; then the part before goes on."""
        if self._fd >= 0 and self._size:
            os.rename(self._path, self._earlier)
            os.close(self._fd)
            self._fd = -1
            self.dropped, self._earlier_size = self.dropped + self._earlier_size, self._size
            self._part += 1
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size = 0
            if self.dropped:
                told = f"{DROPPED} {self._part - 1} of it: {self.dropped} bytes from before were dropped, for want of room (--log-size)"
                line = self._record(OWN, told.encode())
                _append(self._fd, line, 0)
                self._size = len(line)


def _append(fd: int, data: bytes, size: int) -> None:
    """Write all of it at the end of a file of `size` bytes, or nothing. Raises OSError."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, size)
        raise


def without_overwritten(line: bytes, *, begins_line: bool) -> bytes:
    """The line without what carriage returns let later text overwrite: parts that are no longer than one after them.

    What is before the first one stays when the line's beginning is written already.
    """
    if b"\r" not in line:
        return line
    first, *rest = line.split(b"\r")
    kept: list[bytes] = []
    longest = 0
    for part in reversed(rest):
        if len(part) > longest or not kept:
            kept.append(part)
            longest = max(longest, len(part))
    if not begins_line or len(first) > longest:
        return b"\r".join([first, *reversed(kept)])
    return b"\r" + b"\r".join(reversed(kept))


def timestamp(nanoseconds: int) -> bytes:
    """RFC 3339, UTC, nine digits of a second."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % rest
