"""What a user's files hashed to when last read: one cache file for each tracked folder, one for a repo's single files.

An entry holds while (dev, ino, size, mtime_ns, ctime_ns) are the same and its ctime lies before the moment at which its
reading began, on the file system's own clock: a later write then must show another ctime (Git's racy timestamps). The
files belong to one user and are believed for that user only. Losing one costs a re-hash, so they are not fsynced; a damaged
one is as good as none.

Format of a file, little-endian: magic (8), XXH3-64 of all that follows (8); then, in one zstd frame: lengths of scope,
algo and tree (u32 each), of paths (u64), count (u64); scope, algo, tree, paths (each ended by NUL), stats (count x 5 x
i64), digests (count x 16).
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
import struct
import tempfile
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import xxhash
import zstandard

from millpond.daemon import xdg
from millpond.daemon.project.rootdir import DVC_DIR
from millpond.daemon.project.walk import FIELDS, Listing

MAGIC = b"MPSTAT2\n"
_HEAD = struct.Struct("<8sQ")
_LENGTHS = struct.Struct("<IIIQQ")
DIGEST = 16
ROW = FIELDS * 8
# The fastest: it takes 1.5 ms for 10,000 files, and 60 % off.
_LEVEL = 1
# Bounds of a user's cache: files, and bytes of one snapshot (about 10 million entries).
MAX_FILES = 4096
MAX_BYTES = 1 << 30
# Snapshots that a save looks at for whether their folders are gone, and the bytes of each that tell.
_LOOKED = 8
_HEAD_BYTES = 8192
# Clocks of two file systems are not compared more finely than this.
_OTHER_DEVICE_NS = 2_000_000_000
# A ctime that no file has: the entry never matches.
_RACY = 0


@dataclass(slots=True)
class Snapshot:
    """One folder (or a repo's single files) as last hashed with `algo`.

    `tree`: the manifest's value ("<32 hex>.dir"), "" where there is none or not all entries are known. `paths`, `stats` as
    in Listing; `digests`: 16 bytes a file.
    """

    algo: str
    tree: str
    paths: list[str]
    stats: array[int]
    digests: bytes

    def same(self, listing: Listing) -> bool:
        """Whether every file is there and unchanged, and none is new."""
        return self.stats == listing.stats and self.paths == listing.paths

    def known(self, listing: Listing) -> list[bytes | None]:
        """The digest of each file of `listing`, None where it must be hashed."""
        rows = self.stats.tobytes()
        new = listing.stats.tobytes()
        at = {path: index for index, path in enumerate(self.paths)}
        found: list[bytes | None] = []
        for index, path in enumerate(listing.paths):
            old = at.get(path)
            if old is not None and rows[old * ROW : old * ROW + ROW] == new[index * ROW : index * ROW + ROW]:
                found.append(self.digests[old * DIGEST : old * DIGEST + DIGEST])
            else:
                found.append(None)
        return found


@dataclass(frozen=True, slots=True)
class Moment:
    """A point on a file system's clock: `ns` as its inodes show it, `dev` the device whose clock it is (None: ours)."""

    ns: int
    dev: int | None

    @classmethod
    def now(cls, folder: str) -> Moment:
        """Now, by the clock of the file system that holds `folder`; this machine's, with slack, if it cannot be asked."""
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                found = os.fstat(probe.fileno())
                return cls(found.st_ctime_ns, found.st_dev)
        except OSError:
            return cls(time.time_ns(), None)

    def is_racy(self, dev: int, ctime_ns: int) -> bool:
        """Whether a file with this ctime, first read after this moment, may have changed without another ctime."""
        return ctime_ns >= (self.ns if dev == self.dev else self.ns - _OTHER_DEVICE_NS)

    def settled(self, stats: array[int]) -> array[int]:
        """`stats` (as in Listing) with racy entries made to match nothing."""
        kept = stats
        for at in range(0, len(stats), FIELDS):
            if self.is_racy(stats[at], stats[at + 4]):
                if kept is stats:
                    kept = stats[:]
                kept[at + 4] = _RACY
        return kept


def user_folder(environ: Mapping[str, str]) -> str:
    """Where what only one user believes is kept: `$XDG_CACHE_HOME/millpond-user`, else below `~/.cache`."""
    return os.path.join(xdg.base(environ, "XDG_CACHE_HOME", ".cache"), "millpond-user")


class StatCache:
    """The cache of one user below `folder`, which is made when first needed, for that user only (0700)."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.join(folder, "stat")

    @classmethod
    def of_user(cls, environ: Mapping[str, str]) -> StatCache:
        """Below `user_folder`."""
        return cls(user_folder(environ))

    def load(self, scope: str) -> Snapshot | None:
        """The snapshot kept for `scope` (an absolute path); None if there is none, it is damaged, or not ours."""
        try:
            with open(self._path(scope), "rb") as file:
                found = os.fstat(file.fileno())
                if found.st_uid != os.geteuid() or found.st_size > MAX_BYTES or not stat.S_ISREG(found.st_mode):
                    return None
                return _decode(file.read(), scope)
        except OSError:
            return None

    def save(self, scope: str, snapshot: Snapshot) -> None:
        """Keep `snapshot` for `scope`. Failing to is no error: the next reader hashes again."""
        body = _encode(scope, snapshot)
        if len(body) > MAX_BYTES:
            return
        packed = zstandard.ZstdCompressor(level=_LEVEL).compress(body)
        raw = _HEAD.pack(MAGIC, xxhash.xxh3_64_intdigest(packed)) + packed
        with contextlib.suppress(OSError):
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            self._prune(self._path(scope))
            fd, temporary = tempfile.mkstemp(dir=self.folder, prefix="new-")
            try:
                with open(fd, "wb") as file:
                    file.write(raw)
                os.rename(temporary, self._path(scope))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise

    def _path(self, scope: str) -> str:
        return os.path.join(self.folder, xxhash.xxh3_128_hexdigest(os.fsencode(scope)))

    def _prune(self, but: str) -> None:
        """Drop what is of no use: of some snapshots those whose folders are gone, and at the bound the oldest quarter."""
        with os.scandir(self.folder) as scan:
            paths = [entry.path for entry in scan]
        if len(paths) >= MAX_FILES:
            for path in sorted(paths, key=lambda each: os.lstat(each).st_mtime_ns)[: MAX_FILES // 4]:
                os.unlink(path)
            return
        for path in random.sample(paths, min(_LOOKED, len(paths))):
            scope = None if path == but else _scope_in(path)
            if scope is not None and _is_gone(scope):
                with contextlib.suppress(FileNotFoundError):  # another process was quicker
                    os.unlink(path)


def _scope_in(path: str) -> str | None:
    """What a snapshot's file says that it is about, by its first bytes, which are not checked."""
    with contextlib.suppress(OSError, zstandard.ZstdError, struct.error), open(path, "rb") as file:
        head = file.read(_HEAD.size)
        if head[: len(MAGIC)] == MAGIC:
            with zstandard.ZstdDecompressor().stream_reader(file, read_size=_HEAD_BYTES) as body:
                begin = body.read(_HEAD_BYTES)
            length = _LENGTHS.unpack_from(begin)[0]
            scope = begin[_LENGTHS.size : _LENGTHS.size + length]
            return os.fsdecode(scope) if len(scope) == length else None
    return None


def _is_gone(scope: str) -> bool:
    """Whether a folder is no more, though its project is there; one that is mounted nowhere just now is not gone, and single
    files never are."""
    if scope.endswith("/") or "//" in scope:
        return False
    try:
        os.lstat(scope)
        return False
    except (FileNotFoundError, NotADirectoryError):
        return any(os.path.isdir(os.path.join(parent, DVC_DIR)) for parent in _parents(scope))
    except (OSError, ValueError):
        return False


def _parents(path: str) -> Iterator[str]:
    while path != (parent := os.path.dirname(path)):
        yield parent
        path = parent


def _encode(scope: str, snapshot: Snapshot) -> bytes:
    texts = [os.fsencode(scope), snapshot.algo.encode(), snapshot.tree.encode()]
    paths = b"".join(os.fsencode(path) + b"\0" for path in snapshot.paths)
    lengths = _LENGTHS.pack(*map(len, texts), len(paths), len(snapshot.paths))
    return b"".join([lengths, *texts, paths, snapshot.stats.tobytes(), snapshot.digests])


def _unpacked(raw: bytes) -> memoryview | None:
    if len(raw) < _HEAD.size:
        return None
    magic, checksum = _HEAD.unpack_from(raw)
    packed = memoryview(raw)[_HEAD.size :]
    if magic != MAGIC or checksum != xxhash.xxh3_64_intdigest(packed):
        return None
    with contextlib.suppress(zstandard.ZstdError):
        if _LENGTHS.size <= zstandard.frame_content_size(packed) <= MAX_BYTES:
            return memoryview(zstandard.ZstdDecompressor().decompress(packed))
    return None


def _decode(raw: bytes, scope: str) -> Snapshot | None:
    """The snapshot in `raw`; None unless it is whole and about `scope`."""
    body = _unpacked(raw)
    if body is None:
        return None
    scope_length, algo_length, tree_length, paths_length, count = _LENGTHS.unpack_from(body)
    parts = []
    at = _LENGTHS.size
    for length in (scope_length, algo_length, tree_length, paths_length, count * ROW, count * DIGEST):
        parts.append(body[at : at + length])
        at += length
    if at != len(body) or bytes(parts[0]) != os.fsencode(scope):
        return None
    stats = array("q")
    stats.frombytes(parts[4])
    text = os.fsdecode(bytes(parts[3]))
    return Snapshot(
        algo=bytes(parts[1]).decode(),
        tree=bytes(parts[2]).decode(),
        paths=text.split("\0")[:-1],
        stats=stats,
        digests=bytes(parts[5]),
    )
