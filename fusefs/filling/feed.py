"""What a process that answers requests tells the filler: one way, never waiting, dropped when there is no room."""

from __future__ import annotations

import socket
import time
from collections import OrderedDict

from millpond.fusefs.filling import messages

# Larger files are none of the filler's.
MAX_BYTES = 128 << 10
# So many files read in so many seconds are told; slower readers need no help.
TOGETHER, WITHIN_S = 16, 2.0
# Listed folders that are kept until files are read.
_MOST_FOLDERS = 8192
# Entries that are listed before the filler is woken, which has opened everything then when files are read; and not again for so many seconds.
MANY, _AGAIN_S = 256, 30.0


class Feed:
    """For one thread. `sock` is this process's, also when several processes have it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._folders: OrderedDict[bytes, None] = OrderedDict()
        self._files: list[tuple[int, int]] = []
        self._began = 0.0
        self._entries = 0
        self._woken = -_AGAIN_S

    def listed(self, folder: bytes, entries: int) -> None:
        """The kernel was told entries of a folder with their inodes."""
        self._folders[folder] = None
        if len(self._folders) > _MOST_FOLDERS:
            self._folders.popitem(last=False)
        self._entries += entries
        if self._entries >= MANY:
            self._entries = 0
            if (now := time.monotonic()) - self._woken > _AGAIN_S:
                self._woken = now
                self._tell()

    def read(self, inode: int, size: int) -> None:
        """A READ brought a whole file."""
        if size > MAX_BYTES:
            return
        if not self._files:
            self._began = time.monotonic()
        self._files.append((inode, size))
        if len(self._files) >= TOGETHER:
            if time.monotonic() - self._began <= WITHIN_S:
                self._tell()
            self._files.clear()

    def _tell(self) -> None:
        try:
            while self._folders:
                part = list(self._folders)[: messages.MOST_FOLDERS]
                self._sock.send(messages.listed(part), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                for folder in part:
                    del self._folders[folder]
            if len(self._files) >= TOGETHER:
                self._sock.send(messages.read(self._files), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:  # there is no room, or nobody: folders are told the next time, files are not
            return
