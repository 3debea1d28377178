"""A server: a process that shares a holder's work. It takes a request, answers it if nothing must be waited for, hands it over
if anything must, and takes the next.

`python -m millpond.fusefs.serving.server DEVICE SLOT DIRECTORIES SOCKET PARENT SETTINGS`: descriptors, the holder's pid, and
{store, uid, feed, image} as JSON; with a descriptor `image` the kernel reads an image. It ends when the mount does, when the holder hangs up, and with the holder.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import NoReturn

from millpond.daemon import wirepath
from millpond.daemon.jobs import process
from millpond.daemon.store.reader import StoreReader
from millpond.fusefs.engines.answers import Answers, Work
from millpond.fusefs.engines.channel import Channel
from millpond.fusefs.engines.imaging import ImageAnswers
from millpond.fusefs.engines.protocol import IN_HEADER, Op
from millpond.fusefs.engines.readahead import ReadAhead
from millpond.fusefs.filling.feed import Feed
from millpond.fusefs.image.image import Image
from millpond.fusefs.image.space import Space
from millpond.fusefs.serving import messages
from millpond.fusefs.serving.shared import Counter, Directories, Slot
from millpond.fusefs.serving.view import HandOver, ServedFilesystem, ServedImage

# Requests that may be answered here; what they need decides.
_OURS = (Op.LOOKUP, Op.GETATTR, Op.READLINK, Op.READ, Op.READDIR, Op.READDIRPLUS)
# Memory that is used again for reading chunks, in bytes.
_BUFFER_BYTES = 8 << 20
# How often what was read is told, and removed segments are let go of; how many requests may come in a row before it is looked whether
# the holder wants this to end.
_TELL_S = 5.0
_ROW = 256


class Server:
    """Requests of `device`, a clone of the mount's."""

    def __init__(
        self,
        device: int,
        slot: Slot,
        sock: socket.socket,
        filesystem: ServedFilesystem,
        feed: Feed | None,
        image: Image | None = None,
    ) -> None:
        self._device = device
        self._slot = slot
        self._sock = sock
        self._fs = filesystem
        self._pid = 0
        channel, ahead = Channel(device), ReadAhead(0)
        if image is None:
            answers = Answers(filesystem, channel, _wait, ahead, feed=feed)
            self._table = {op: answers.table[op] for op in _OURS}
        else:
            made = ImageAnswers(
                filesystem, image, channel, _wait, ahead, name=b"", pid=lambda: self._pid, read=self._tell_asked
            )
            self._table = {Op.READ: made.table[Op.READ]}
        self._told_folder: bytes | None = None
        self._tell_at = time.monotonic() + _TELL_S
        self._poll = select.epoll()
        # One request is to wake one server.
        self._poll.register(device, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self._poll.register(sock, select.EPOLLIN)

    def run(self) -> None:
        """Until the mount is gone or the holder wants no more. Raises OSError."""
        os.set_blocking(self._device, False)
        row = 0
        while True:
            self._slot.clear()
            if row >= _ROW and not self._goes_on(0.0):
                return
            row = 0 if row >= _ROW else row + 1
            try:
                size = os.readv(self._device, [self._slot.room])
            except BlockingIOError:
                self._fs.idle()
                if not self._goes_on(_TELL_S):
                    return
                continue
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):  # the request was taken back
                    continue
                raise
            if size < IN_HEADER.size:
                return
            self._handle(self._slot.room[:size])

    def _handle(self, request: memoryview) -> None:
        _, op, unique, inode, _, _, self._pid, _, _ = IN_HEADER.unpack_from(request)
        self._slot.count(Counter.REQUESTS, 1)
        filesystem, work = self._fs, self._table.get(op)
        before = filesystem.opens, filesystem.reads, filesystem.read_bytes
        if work is not None:
            try:
                with filesystem.reading():
                    work(unique, inode, request[IN_HEADER.size :])
                self._slot.count(Counter.OPENS, filesystem.opens - before[0])
                self._slot.count(Counter.READS, filesystem.reads - before[1])
                self._slot.count(Counter.READ_BYTES, filesystem.read_bytes - before[2])
                return
            except Exception:
                # Whatever it is: the holder meets it too, and says so.
                filesystem.opens, filesystem.reads, filesystem.read_bytes = before
        self._hand_over(op, request)

    def _hand_over(self, op: int, request: memoryview) -> None:
        folder = self._fs.last_folder
        if op == Op.READ and folder is not None and folder != self._told_folder:
            self._told_folder = folder
            self._sock.send(messages.FOLDER + folder)
        self._sock.send(messages.REQUEST + bytes(request))
        self._slot.count(Counter.HANDED_OVER, 1)

    def _tell_asked(self, pid: int, offset: int, size: int) -> None:
        self._sock.send(messages.asked(pid, offset, size))

    def _goes_on(self, wait_s: float) -> bool:
        """Wait for a request; whether the holder wants more."""
        for fd, _ in self._poll.poll(wait_s):
            if fd == self._sock.fileno():  # it says nothing: it hung up
                return False
        if time.monotonic() >= self._tell_at:
            self._tell_at = time.monotonic() + _TELL_S
            self._fs.reader.let_go()
            for message in messages.used(self._fs.take_used()):
                self._sock.send(message)
        return True


def _wait(unique: int, work: Work) -> NoReturn:
    raise HandOver


def main() -> None:
    """See the module."""
    device, slot_fd, directories_fd, sock_fd, parent = map(int, sys.argv[1:6])
    process.die_with(parent, signal.SIGKILL)
    process.set_name("millpond-server")
    settings = json.loads(sys.argv[6])
    slot, directories = Slot(slot_fd), Directories(directories_fd)
    slot.lock()
    os.close(slot_fd)
    os.close(directories_fd)
    image_fd = int(settings["image"])
    feed = Feed([socket.socket(fileno=fd) for fd in settings["feed"]]) if settings["feed"] else None
    reader = StoreReader.open(Path(wirepath.decode(settings["store"])), _BUFFER_BYTES)
    with socket.socket(fileno=sock_fd) as sock:
        filesystem = ServedFilesystem(reader, directories, settings["uid"])
        image = None if image_fd < 0 else ServedImage(filesystem.folders, Space(image_fd), uid=0, gid=0, closed=True)
        try:
            Server(device, slot, sock, filesystem, feed, image).run()
            for message in messages.used(filesystem.take_used()):
                sock.send(message)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the holder is gone
        finally:
            reader.close()


if __name__ == "__main__":
    main()
