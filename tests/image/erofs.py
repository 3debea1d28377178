"""A reader of EROFS images that knows nothing of how they are made: after the description of the format in the Linux kernel's
Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h. Images without compression, of inodes of 64 bytes with plain data."""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass

BLOCK = 4096
_KINDS = {1: stat.S_IFREG, 2: stat.S_IFDIR, 7: stat.S_IFLNK}
_DIRENT_BYTES = 12


@dataclass(frozen=True, slots=True)
class Inode:
    """What an inode says; `first` is the block its data begin with."""

    nid: int
    mode: int
    size: int
    first: int
    uid: int
    gid: int
    links: int

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Reader:
    """Of an image whose bytes are what `blocks(first, count)` gives."""

    def __init__(self, blocks: Callable[[int, int], bytes]) -> None:
        self._blocks = blocks
        block = blocks(0, 1)
        magic, _, compatible, bits, slots, self.root, self.files = struct.unpack_from("<IIIBBHQ", block, 1024)
        self.blocks, self._meta, shared = struct.unpack_from("<III", block, 1024 + 36)
        incompatible, *rest = struct.unpack_from("<I44B", block, 1024 + 80)
        assert (magic, bits, slots) == (0xE0F5E1E2, 12, 0) and not compatible | incompatible | shared | any(rest)
        assert not any(block[:1024]) and not any(block[1024 + 128 :])

    def inode(self, nid: int) -> Inode:
        offset = self._meta * BLOCK + nid * 32
        data = self._blocks(offset // BLOCK, 1)[offset % BLOCK :][:64]
        layout, xattrs, mode, _, size, first, _, uid, gid, mtime, nanoseconds, links = struct.unpack_from(
            "<HHHHQIIIIQII", data
        )
        assert layout == 1 and not xattrs and not any(data[48:]) and mtime < 1 << 40 and nanoseconds < 10**9
        return Inode(nid, mode, size, first, uid, gid, links)

    def data(self, inode: Inode) -> bytes:
        """All of a file, link or folder; behind it are zeros to the end of its last block."""
        count = -(-inode.size // BLOCK)
        whole = self._blocks(inode.first, count) if count else b""
        assert not any(whole[inode.size :])
        return whole[: inode.size]

    def names(self, folder: Inode) -> list[tuple[bytes, int, int]]:
        """(name, nid, kind) of a folder's entries, in order; its own and its parent's among them."""
        found: list[tuple[bytes, int, int]] = []
        data = self.data(folder)
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            count, left = divmod(struct.unpack_from("<H", block, 8)[0], _DIRENT_BYTES)
            assert count and not left
            heads = [struct.unpack_from("<QHBB", block, number * _DIRENT_BYTES) for number in range(count)]
            for number, (nid, at, kind, reserved) in enumerate(heads):
                behind = heads[number + 1][1] if number + 1 < count else BLOCK
                assert count * _DIRENT_BYTES <= at < behind and not reserved
                name = block[at:behind] if number + 1 < count else block[at:].rstrip(b"\0")
                assert name and len(name) <= 255 and b"\0" not in name and b"/" not in name
                found.append((name, nid, _KINDS[kind]))
        names = [name for name, _, _ in found]
        assert names == sorted(set(names)), "the kernel searches them by halves"
        return found

    def find(self, folder: Inode, name: bytes) -> Inode | None:
        """An entry as the kernel finds it: first its block by the blocks' first names, then its place there."""
        low, high = 0, folder.size // BLOCK - 1
        while low < high:
            middle = (low + high + 1) // 2
            block = self._blocks(folder.first + middle, 1)
            at, *_ = struct.unpack_from("<H", block, 8)
            behind = struct.unpack_from("<H", block, 20)[0] if at > _DIRENT_BYTES else BLOCK
            if block[at:behind].rstrip(b"\0") <= name:
                low = middle
            else:
                high = middle - 1
        part = Inode(folder.nid, folder.mode, BLOCK, folder.first + low, folder.uid, folder.gid, folder.links)
        nids = [nid for each, nid, _ in self.names(part) if each == name]
        return self.inode(nids[0]) if nids else None
