"""What passes between a mount's processes and a filler of it: one SOCK_SEQPACKET message each, whose first byte says what it is."""

from __future__ import annotations

import struct
from collections.abc import Iterable

# To the filler: folders that were listed; small files that a READ brought; the path of a directory to list; a clone of the mount's descriptor comes with
# this.
LISTED, READ, LIST, DEVICE = b"L", b"R", b"S", b"D"
# To that of an image: something is read; a window to bring.
AWAKE, WINDOW = b"A", b"N"
# From it: it wants a clone; why it ends; and segments that it read (serving.messages.used).
WANTED, ENDED = b"W", b"E"
# Longer than any message.
MAX_BYTES = 64 << 10
FOLDER_BYTES = 32
# Folders of one message.
MOST_FOLDERS = 512
# inode u64, bytes u32
_FILE = struct.Struct("=QI")
_WINDOW = struct.Struct("=QQ")


def listed(folders: Iterable[bytes]) -> bytes:
    """The message that tells up to MOST_FOLDERS folders."""
    return LISTED + b"".join(folders)


def folders_of(body: bytes) -> list[bytes]:
    """The folders of a message of `listed`, without its first byte."""
    return [body[at : at + FOLDER_BYTES] for at in range(0, len(body), FOLDER_BYTES)]


def read(files: Iterable[tuple[int, int]]) -> bytes:
    """The message that tells (inode, bytes) of files."""
    return READ + b"".join(_FILE.pack(inode, size) for inode, size in files)


def files_of(body: bytes) -> list[tuple[int, int]]:
    """The files of a message of `read`, without its first byte."""
    return list(_FILE.iter_unpack(body))


def window(blocks: range) -> bytes:
    """The message that tells a window of an image."""
    return WINDOW + _WINDOW.pack(blocks.start, blocks.stop)


def window_of(body: bytes) -> range:
    """The window of such a message, without its first byte."""
    return range(*_WINDOW.unpack(body))
