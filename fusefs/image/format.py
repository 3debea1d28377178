"""EROFS on the disk, as far as an image of folders, files and links without compression needs it.

After the kernel's fs/erofs/erofs_fs.h (Linux 5.4 and later; all little endian). No optional feature is used, so every kernel that
mounts images from files reads these. Blocks have BLOCK bytes. An inode is named by its place: number `nid` lies at
META_BLOCK * BLOCK + nid * 32, so an inode of 64 bytes takes two numbers.
"""

from __future__ import annotations

from struct import Struct

BLOCK = 4096
BLOCK_BITS = 12
# The inode of the file that an image is, where it is served.
IMAGE_INODE = 2
# Where the superblock is, in bytes.
SUPER_OFFSET = 1024
_MAGIC = 0xE0F5E1E2
# magic, checksum, compatible features, log2 of the block's bytes, extra slots, root's nid, inodes, build time in s and ns, blocks,
# first block of inodes, of shared attributes, uuid, volume's name, incompatible features; the rest of its 128 bytes is zeros.
_SUPER = Struct("<IIIBBHQQIIII16s16sI")
SUPER_BYTES = 128
# format, attributes, mode, -, size, first block, number for 32-bit stat, uid, gid, mtime in s and ns, links, reserved
_INODE = Struct("<HHHHQIIIIQII16x")
INODE_BYTES = 64
NIDS = INODE_BYTES // 32
INODES = BLOCK // INODE_BYTES
# An inode of 64 bytes whose data lies in consecutive blocks (EROFS_INODE_FLAT_PLAIN).
_PLAIN = 1
# nid, where its name begins in the block, type
DIRENT = Struct("<QHBx")
REGULAR, DIRECTORY, SYMLINK = 1, 2, 7
# Blocks of data and of names have numbers of 32 bits.
MAX_BLOCK = 1 << 32


def superblock(*, root_nid: int, meta_block: int, inodes: int, blocks: int) -> bytes:
    """SUPER_BYTES at SUPER_OFFSET; `inodes` and `blocks` are what statfs shows."""
    head = _SUPER.pack(
        _MAGIC, 0, 0, BLOCK_BITS, 0, root_nid, inodes, 0, 0, min(blocks, MAX_BLOCK - 1), meta_block, 0, bytes(16), bytes(16), 0
    )  # fmt: skip
    return head.ljust(SUPER_BYTES, b"\0")


def inode(mode: int, size: int, first: int, *, number: int, uid: int, gid: int, mtime_s: int) -> bytes:
    """INODE_BYTES of an inode whose data begins in the block `first`."""
    return _INODE.pack(
        _PLAIN, 0, mode, 0, size, first if size else 0, number & 0xFFFF_FFFF, uid, gid, mtime_s, 0, 1
    )  # fmt: skip


def blocks_of(size: int) -> int:
    """Blocks that so many bytes take."""
    return (size + BLOCK - 1) >> BLOCK_BITS


def dirents(entries: list[tuple[bytes, int, int]]) -> bytes:
    """A block of a folder: (name, nid, type) in the order of names, which must fit; at least one."""
    at = len(entries) * DIRENT.size
    heads, names = [], []
    for name, nid, kind in entries:
        heads.append(DIRENT.pack(nid, at, kind))
        names.append(name)
        at += len(name)
    return b"".join(heads + names).ljust(BLOCK, b"\0")
