"""What a filler cannot see to itself while it waits in the kernel: a thread that waits for nothing else.

When the holder is killed, a request that it had not taken is answered by nobody, and the filler may wait for the page that it has locked.
The filler's own descriptor is what keeps the connection from ending. So this thread takes what is there, and answers that it failed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import threading
import time

from millpond.daemon.mounts.place import mounted_at
from millpond.fusefs.engines.protocol import IN_HEADER, OUT_HEADER, SILENT

log = logging.getLogger("millpond.filler")

# How often it is seen whether the connection has ended, and whether there is another request when nobody else takes them.
_LOOK_S, _TAKE_S = 1.0, 0.01
_REQUEST_BYTES = 64 << 10


class Guard:
    """Over a clone `device` of a mount's descriptor, `number` being the mount's `major:minor`. `why` is set when the filler is to end."""

    def __init__(self, device: int, *, holder: int, place: str, number: str) -> None:
        self._device = device
        self._holder = holder
        self._place, self._number = place, number
        self._end, self._ending = os.pipe2(os.O_CLOEXEC)
        # The table as it was when there was nothing to be said yet; its changes are told by poll.
        self._table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)
        self.why = ""
        # Readable when `why` is set.
        self.told = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def begin(self) -> None:
        """Watch from now on."""
        self._thread.start()

    def end(self) -> None:
        """The filler has nothing under way: watch no more."""
        os.close(self._ending)
        self._thread.join()
        for fd in (self._end, self._table, self.told):
            os.close(fd)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        poll.register(self._holder, select.POLLIN)
        poll.register(self._table, select.POLLPRI)
        if not self._is_mounted():
            self._say("the mount was detached")
        while True:
            found = dict(poll.poll(int(_LOOK_S * 1000)))
            if self._end in found:
                return
            if self._holder in found:
                self._say("the holder is gone")
                self._answer_all()
                return
            # A push may be under way still, and then nobody but this thread can see to it that it ends.
            if not self.why and self._table in found and not self._is_mounted():
                self._say("the mount was detached")
            if self._has_ended():
                return

    def _say(self, why: str) -> None:
        self.why = why
        os.eventfd_write(self.told, 1)

    def _is_mounted(self) -> bool:
        """Whether the mount is where whoever must abort it looks for it."""
        entry = mounted_at(self._place)
        return entry is not None and entry.device == self._number

    def _has_ended(self) -> bool:
        # Asked, not waited for: who waits in poll is woken by every request.
        poll = select.poll()
        poll.register(self._device, 0)
        if not poll.poll(0):
            return False
        self._say("the mount is gone")
        return True

    def _answer_all(self) -> None:
        """Have all who ask get an error, until this process ends or the connection has."""
        os.set_blocking(self._device, False)
        buffer = bytearray(_REQUEST_BYTES)
        while True:
            try:
                os.readv(self._device, [buffer])
            except BlockingIOError:
                time.sleep(_TAKE_S)
                continue
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                return
            _, op, unique, *_ = IN_HEADER.unpack_from(buffer)
            if op not in SILENT:
                with contextlib.suppress(OSError):
                    os.write(self._device, OUT_HEADER.pack(OUT_HEADER.size, -errno.ECONNABORTED, unique))
