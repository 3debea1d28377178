"""Answers to the kernel: one write each, on the descriptor that the requests come from."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence

from millpond.daemon.store.reader import Bytes
from millpond.fusefs.engines.protocol import OUT_HEADER

log = logging.getLogger("millpond.fusefs")

# ENOENT: nobody waits for this answer (any more); the others: the mount is gone, which the session's loop will see.
_UNWANTED = (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EPIPE, errno.ECONNRESET)


class Channel:
    """The writing side of a mount."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def reply(self, unique: int, *parts: Bytes) -> bool:
        """Answer with up to 1,000 parts; whether anybody still waited for it. Raises OSError when the kernel does not
        take it."""
        return self._write([OUT_HEADER.pack(OUT_HEADER.size + sum(map(len, parts)), 0, unique), *parts])

    def error(self, unique: int, number: int) -> None:
        """Answer with an errno."""
        try:
            self._write([OUT_HEADER.pack(OUT_HEADER.size, -number, unique)])
        except OSError as error:
            log.error("the kernel does not take an error's answer: %s", error)

    def _write(self, parts: Sequence[Bytes]) -> bool:
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            if error.errno in _UNWANTED:
                return False
            raise
        return True
