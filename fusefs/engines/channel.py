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
        # Requests that were read from another descriptor, where alone the kernel takes their answers.
        self._others: dict[int, int] = {}

    def answer_on(self, unique: int, fd: int) -> None:
        """A request is to be answered on another descriptor."""
        self._others[unique] = fd

    def reply(self, unique: int, *parts: Bytes) -> bool:
        """Answer with up to 1,000 parts; whether anybody still waited for it. Raises OSError when the kernel does not
        take it."""
        return self._write(unique, [OUT_HEADER.pack(OUT_HEADER.size + sum(map(len, parts)), 0, unique), *parts])

    def error(self, unique: int, number: int) -> None:
        """Answer with an errno."""
        try:
            self._write(unique, [OUT_HEADER.pack(OUT_HEADER.size, -number, unique)])
        except OSError as error:
            self._others.pop(unique, None)
            log.error("the kernel does not take an error's answer: %s", error)

    def _write(self, unique: int, parts: Sequence[Bytes]) -> bool:
        fd = self._others.get(unique, self._fd) if self._others else self._fd
        taken = True
        try:
            os.writev(fd, parts)
        except OSError as error:
            if error.errno not in _UNWANTED:
                raise  # then it is answered with an error, at the same place
            taken = False
        if self._others:
            self._others.pop(unique, None)
        return taken
