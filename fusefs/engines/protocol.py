"""The kernel's FUSE protocol: numbers and layouts that a read-only file system needs, little more.

After include/uapi/linux/fuse.h, version 7.31 (fields that later versions added at the ends are zeros or not looked at). All in
the machine's own byte order.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

MAJOR, MINOR = 7, 31


class Op(IntEnum):
    """Requests; what is not here is answered with ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45


# Never sent for a read-only mount; refused all the same.
CHANGES = frozenset(
    {
        Op.SETATTR, Op.SYMLINK, Op.MKNOD, Op.MKDIR, Op.UNLINK, Op.RMDIR, Op.RENAME, Op.LINK, Op.WRITE, Op.SETXATTR,
        Op.REMOVEXATTR, Op.CREATE, Op.FALLOCATE, Op.RENAME2,
    }
)  # fmt: skip


class Init(IntFlag):
    """What kernel and server agree on."""

    ASYNC_READ = 1 << 0
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24


# Flags of an OPENDIR's answer.
KEEP_CACHE, CACHE_DIR = 1 << 1, 1 << 3

# len u32, opcode u32, unique u64, nodeid u64, uid u32, gid u32, pid u32, extensions u16, padding u16
IN_HEADER = Struct("=IIQQIIIHH")
# len u32, error i32, unique u64
OUT_HEADER = Struct("=IiQ")
# major, minor, max_readahead, flags
INIT_IN = Struct("=IIII")
# major, minor, max_readahead, flags u32; max_background, congestion_threshold u16; max_write, time_gran u32; max_pages u16;
# unused
INIT_OUT = Struct("=IIIIHHIIH34x")
# ino, size, blocks, atime, mtime, ctime u64; their nanoseconds u32; mode, nlink, uid, gid, rdev, blksize, flags u32
_ATTR = "QQQQQQIIIIIIIIII"
# nodeid, generation, entry_valid, attr_valid u64; their nanoseconds u32; attr
ENTRY_OUT = Struct("=QQQQII" + _ATTR)
# attr_valid u64; its nanoseconds, padding u32; attr
ATTR_OUT = Struct("=QII" + _ATTR)
# fh u64, open_flags u32, backing i32
OPEN_OUT = Struct("=QIi")
# fh, offset u64; size, read_flags u32; lock_owner u64; flags, padding u32
READ_IN = Struct("=QQIIQII")
# ino, off u64; namelen, type u32; then the name, padded to 8 bytes
DIRENT = Struct("=QQII")
# blocks, bfree, bavail, files, ffree u64; bsize, namelen, frsize, padding u32; spare u32 x 6
STATFS_OUT = Struct("=QQQQQIIII24x")
# size, padding u32
XATTR_IN = Struct("=II")
XATTR_OUT = Struct("=II")
# nlookup u64
FORGET_IN = Struct("=Q")
# count, padding u32; then for each: nodeid, nlookup u64
BATCH_FORGET_IN = Struct("=II")
FORGET_ONE = Struct("=QQ")

assert (IN_HEADER.size, OUT_HEADER.size, INIT_OUT.size, ENTRY_OUT.size, ATTR_OUT.size) == (40, 16, 64, 128, 104)
assert (READ_IN.size, STATFS_OUT.size, OPEN_OUT.size, DIRENT.size) == (40, 80, 16, 24)
