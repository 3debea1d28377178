"""What a process that answers requests tells the fillers: one way, never waiting, dropped when there is no room."""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from zlib import crc32

from millpond.fusefs.filling import messages
from millpond.fusefs.filling.tally import Tally
from millpond.fusefs.filling.unlisted import Unlisted

# Larger files are none of a filler's.
MAX_BYTES = 128 << 10
# So many files read in so many seconds are told; slower readers need no help.
TOGETHER, WITHIN_S = 16, 2.0
# Listed folders that are kept until they are told.
_MOST_FOLDERS = 8192
# Entries that are listed before the fillers are told of their folders, so that they have opened everything, and have looked up what they can, when
# files are read; for so many seconds; and not again for so many.
MANY, _WHILE_S, _AGAIN_S = 256, 5.0, 30.0


class Feed:
    """For one thread. `socks` are this process's, one a filler, also when several processes have them. `where` tells a directory's path from the root, and
    how many entries it has, if it may be listed ahead; without it none is. `tallies` are told when files were looked up."""

    def __init__(
        self,
        socks: Sequence[socket.socket],
        where: Callable[[int], tuple[bytes, int] | None] | None = None,
        tallies: Sequence[Tally] = (),
    ) -> None:
        self._tallies = tallies
        self._ears = [_Ear(sock) for sock in socks]
        self._unlisted = None if where is None else Unlisted(where)
        self._files: list[tuple[int, int]] = []
        self._began = 0.0
        self._entries = 0
        self._woken = -_AGAIN_S

    def listed(self, folder: bytes, entries: int) -> None:
        """The kernel was told entries of a folder with their inodes."""
        for ear in self._ears:
            ear.listed(folder)
        self._entries += entries
        if self._entries >= MANY:
            self._entries = 0
            now = time.monotonic()
            if now - self._woken > _AGAIN_S:
                self._woken = now
            if now - self._woken <= _WHILE_S:
                self._tell()

    def looked_up(self, directory: int) -> None:
        """The kernel asked for a small file of a directory by its name."""
        if self._unlisted is None:
            return
        now = time.monotonic()
        for tally in self._tallies:
            tally.looked(now)
        path = self._unlisted.looked_up(directory, now)
        if path is None:
            return
        ear = self._ears[crc32(path) % len(self._ears)]
        if not ear.list(path):
            self._unlisted.forget(directory)

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

    def again(self, sock: socket.socket) -> None:
        """Who listens there is another one, that knows nothing: tell it the folders once more."""
        for ear in self._ears:
            if ear.sock is sock:
                ear.again()

    def _tell(self) -> None:
        read = messages.read(self._files) if len(self._files) >= TOGETHER else b""
        for ear in self._ears:
            ear.tell(read)


class _Ear:
    """One filler's socket, and the folders that it was told and is to be told."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._folders: OrderedDict[bytes, None] = OrderedDict()
        self._told: OrderedDict[bytes, None] = OrderedDict()

    def listed(self, folder: bytes) -> None:
        self._folders[folder] = None
        if len(self._folders) > _MOST_FOLDERS:
            self._folders.popitem(last=False)

    def again(self) -> None:
        self._folders = OrderedDict.fromkeys([*self._told, *self._folders][-_MOST_FOLDERS:])
        self._told.clear()

    def list(self, path: bytes) -> bool:
        """Have a directory listed; whether there was room to say so."""
        try:
            self.sock.send(messages.LIST + path, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def tell(self, read: bytes) -> None:
        """The folders, and `read` if it is not empty."""
        try:
            while self._folders:
                part = list(self._folders)[: messages.MOST_FOLDERS]
                self.sock.send(messages.listed(part), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                for folder in part:
                    del self._folders[folder]
                    self._told[folder] = None
                while len(self._told) > _MOST_FOLDERS:
                    self._told.popitem(last=False)
            if read:
                self.sock.send(read, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:  # there is no room, or nobody: folders are told the next time, files are not
            return
