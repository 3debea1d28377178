"""The kernel's FUSE protocol: numbers and layouts that a read-only file system needs, little more.

After include/uapi/linux/fuse.h, version 7.31 (fields that later versions added at the ends are zeros or not looked at). All in
the machine's own byte order.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

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
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


class Rule(NamedTuple):
    """How a request is treated: what is answered, and what the kernel remembers of the answer."""

    answer: str
    remembered: str = ""


_CHANGE = Rule("EROFS; a read-only mount is not asked")
_UNKNOWN = "ENOSYS"

# The one table of what we speak; DESIGN.md has it too, and a test compares them.
RULES: dict[Op, Rule] = {
    Op.INIT: Rule("version 7.31 and the flags below", "the agreement, as long as the mount lives"),
    Op.LOOKUP: Rule("the entry, counted; node 0 for none", "for ever in a folder, also that there is none; else 1 s"),
    Op.FORGET: Rule("nothing; counts go down"),
    Op.BATCH_FORGET: Rule("nothing; counts go down"),
    Op.GETATTR: Rule("attributes", "for ever in a folder, else 1 s; of `.millpond/stats` not at all"),
    Op.READLINK: Rule("the target", "for ever, but for branches and tags of a versions mount"),
    Op.OPEN: Rule("ENOSYS; when opens are recorded or counted, a handle and KEEP_CACHE or PASSTHROUGH", "ENOSYS: no more opens and closes"),
    Op.READ: Rule("the bytes, fewer at the end only; EIO for what is damaged or gone", "pages, until memory is needed"),
    Op.FLUSH: Rule(_UNKNOWN, "no more asked"),
    Op.RELEASE: Rule("nothing; opens are counted with --materialize"),
    Op.FSYNC: Rule(_UNKNOWN, "no more asked; fsync succeeds"),
    Op.OPENDIR: Rule("ENOSYS; in a versions mount CACHE_DIR and KEEP_CACHE for folders", "ENOSYS: no more asked"),
    Op.READDIR: Rule("names, types and numbers", "the listing, but for changing directories"),
    Op.READDIRPLUS: Rule("entries with attributes, each counted", "as LOOKUP and READDIR"),
    Op.RELEASEDIR: Rule("nothing to do"),
    Op.FSYNCDIR: Rule(_UNKNOWN, "no more asked; fsync succeeds"),
    Op.STATFS: Rule("files and bytes of the version, nothing free"),
    Op.GETXATTR: Rule("the value, with --xattrs; else ENOSYS", "ENOSYS: no more asked"),
    Op.LISTXATTR: Rule("the names, with --xattrs; else ENOSYS", "ENOSYS: no more asked"),
    Op.ACCESS: Rule("ENOSYS; the kernel checks (default_permissions)", "no more asked"),
    Op.INTERRUPT: Rule("EINTR to the request that it names, if it waits and the signal ends its program"),
    Op.DESTROY: Rule("nothing to do"),
    Op.IOCTL: Rule("ENOSYS: ENOTTY"),
    Op.POLL: Rule(_UNKNOWN, "no more asked; always ready"),
    Op.LSEEK: Rule(_UNKNOWN, "no more asked; a file has no holes"),
    Op.SYNCFS: Rule(_UNKNOWN, "no more asked"),
    Op.STATX: Rule(_UNKNOWN, "no more asked; GETATTR instead"),
    Op.SETUPMAPPING: Rule("ENOSYS; for virtiofs only"),
    **dict.fromkeys(
        (
            Op.SETATTR, Op.SYMLINK, Op.MKNOD, Op.MKDIR, Op.UNLINK, Op.RMDIR, Op.RENAME, Op.LINK, Op.WRITE, Op.SETXATTR,
            Op.REMOVEXATTR, Op.CREATE, Op.FALLOCATE, Op.RENAME2, Op.COPY_FILE_RANGE, Op.TMPFILE,
        ),
        _CHANGE,
    ),
}  # fmt: skip
CHANGES = frozenset(op for op, rule in RULES.items() if rule is _CHANGE)
# The kernel expects no answer to these.
SILENT = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT})


class Init(IntFlag):
    """What kernel and server agree on."""

    ASYNC_READ = 1 << 0
    DO_READDIRPLUS = 1 << 13
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37


# Why each flag is asked for; a kernel that does not offer one goes without it. Not ASYNC_DIO: who reads directly would wait
# where not even SIGKILL reaches him.
FLAGS: dict[Init, str] = {
    Init.ASYNC_READ: "several reads of one file at once",
    Init.DO_READDIRPLUS: "a listing brings the attributes: a walk asks once a folder",
    Init.NO_OPEN_SUPPORT: "ENOSYS to OPEN means no more opens; not when opens are recorded",
    Init.PARALLEL_DIROPS: "lookups and listings of one directory at once",
    Init.MAX_PAGES: "reads of up to 256 pages instead of 32",
    Init.CACHE_SYMLINKS: "targets are kept; not in a versions mount, whose links move",
    Init.NO_OPENDIR_SUPPORT: "ENOSYS to OPENDIR means no more, and listings are kept; not in a versions mount",
    Init.EXPLICIT_INVAL_DATA: "pages are dropped only when we say so, which we never do",
    Init.INIT_EXT: "flags beyond the 32nd; with --materialize",
    Init.PASSTHROUGH: "large files are read from files on a disk (kernel 6.9); with --materialize",
}

# Flags of the answers to OPEN and OPENDIR.
KEEP_CACHE, CACHE_DIR, PASSTHROUGH = 1 << 1, 1 << 3, 1 << 7
# d_ino of an entry whose inode has no number yet: FUSE_UNKNOWN_INO.
UNKNOWN_INODE = 0xFFFF_FFFF

# len u32, opcode u32, unique u64, nodeid u64, uid u32, gid u32, pid u32, extensions u16, padding u16
IN_HEADER = Struct("=IIQQIIIHH")
# len u32, error i32, unique u64
OUT_HEADER = Struct("=IiQ")
# A notification has the unique 0, and its kind in the place of the error.
NOTIFY_STORE = 4
# nodeid, offset u64; size, padding u32; then the bytes
STORE_OUT = Struct("=QQI4x")
# What goes before the bytes of a NOTIFY_STORE.
STORE_HEAD = Struct(OUT_HEADER.format + STORE_OUT.format.removeprefix("="))
# major, minor, max_readahead, flags
INIT_IN = Struct("=IIII")
# flags2 u32, behind INIT_IN in newer kernels
INIT_IN_MORE = Struct("=I")
# major, minor, max_readahead, flags u32; max_background, congestion_threshold u16; max_write, time_gran u32; max_pages,
# map_alignment u16; flags2, max_stack_depth u32; unused
INIT_OUT = Struct("=IIIIHHIIHHII24x")
# ino, size, blocks, atime, mtime, ctime u64; their nanoseconds u32; mode, nlink, uid, gid, rdev, blksize, flags u32
_ATTR = "QQQQQQIIIIIIIIII"
# nodeid, generation, entry_valid, attr_valid u64; their nanoseconds u32; attr
ENTRY_OUT = Struct("=QQQQII" + _ATTR)
# attr_valid u64; its nanoseconds, padding u32; attr
ATTR_OUT = Struct("=QII" + _ATTR)
# fh u64, open_flags u32, backing i32
OPEN_OUT = Struct("=QIi")
# fh u64; then what is not looked at
RELEASE_IN = Struct("=Q")
# fh, offset u64; size, read_flags u32; lock_owner u64; flags, padding u32
READ_IN = Struct("=QQIIQII")
# ino, off u64; namelen, type u32; then the name, padded to 8 bytes
DIRENT = Struct("=QQII")
# An entry of READDIRPLUS: ENTRY_OUT, DIRENT, and the name padded to so many bytes.
PLUS = {size: Struct(f"{ENTRY_OUT.format}{DIRENT.format[1:]}{size}s") for size in range(8, 264, 8)}
# blocks, bfree, bavail, files, ffree u64; bsize, namelen, frsize, padding u32; spare u32 x 6
STATFS_OUT = Struct("=QQQQQIIII24x")
# size, padding u32
XATTR_IN = Struct("=II")
XATTR_OUT = Struct("=II")
# unique u64
INTERRUPT_IN = Struct("=Q")
# nlookup u64
FORGET_IN = Struct("=Q")
# count, padding u32; then for each: nodeid, nlookup u64
BATCH_FORGET_IN = Struct("=II")
FORGET_ONE = Struct("=QQ")

assert (IN_HEADER.size, OUT_HEADER.size, INIT_OUT.size, ENTRY_OUT.size, ATTR_OUT.size) == (40, 16, 64, 128, 104)
assert all(PLUS[size].size == ENTRY_OUT.size + DIRENT.size + size for size in PLUS)
assert (READ_IN.size, STATFS_OUT.size, OPEN_OUT.size, DIRENT.size, STORE_OUT.size) == (40, 80, 16, 24, 24)

# Requests that the kernel may send ahead of need, and pages of one.
_MAX_BACKGROUND = 64
_MAX_PAGES = 256
# The longest answer: what the pages hold.
MAX_ANSWER = _MAX_PAGES * 4096


def why_too_old(body: memoryview) -> str:
    """Why the kernel that sends this INIT cannot be served; "" when it can."""
    major, minor, *_ = INIT_IN.unpack_from(body)
    return (
        ""
        if (major, minor) >= (MAJOR, MINOR)
        else f"the kernel speaks FUSE {major}.{minor}, older than {MAJOR}.{MINOR}"
    )


def is_ours(body: memoryview) -> bool:
    """Whether an INIT is in our version; a newer kernel asks again in it."""
    return bool(INIT_IN.unpack_from(body)[0] == MAJOR)


def offered(body: memoryview) -> Init:
    """The flags of an INIT."""
    _, _, _, flags = INIT_IN.unpack_from(body)
    if Init.INIT_EXT in Init(flags) and len(body) >= INIT_IN.size + INIT_IN_MORE.size:
        flags |= INIT_IN_MORE.unpack_from(body, INIT_IN.size)[0] << 32
    return Init(flags)


def agreement(body: memoryview, agreed: Init) -> bytes:
    """The answer to an INIT: our version, these of its flags, its read-ahead, and how much may be asked for at once."""
    _, _, max_readahead, _ = INIT_IN.unpack_from(body)
    return INIT_OUT.pack(
        MAJOR, MINOR, max_readahead, agreed & 0xFFFF_FFFF, _MAX_BACKGROUND, _MAX_BACKGROUND * 3 // 4, 4096, 1,
        _MAX_PAGES, 0, agreed >> 32, 1 if Init.PASSTHROUGH in agreed else 0,
    )  # fmt: skip
