"""The store's directory: its parts, their modes, and where it may not lie."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from millpond.daemon.errors import StoreFormatError
from millpond.daemon.store.files import Files, as_store_error

FOLDERS = ("index", "segments", "tmp")
# File systems on which LMDB's locks and mmap are not safe between hosts.
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "afs", "ceph", "9p", "gpfs", "glusterfs", "beegfs", "fuse.sshfs"}
)


class UnsyncedFiles(Files):
    """For measurements against programs that do not fsync: never for data that matters."""

    def fdatasync(self, fd: int) -> None:
        """Nothing."""

    def begin_writing(self, fd: int, offset: int, size: int) -> None:
        """Nothing."""

    def fsync_dir(self, path: Path) -> None:
        """Nothing."""


def prepare(path: Path, group: int | None) -> None:
    """Make the directories, 0700 or (with a group) 0750. Raises StoreFormatError on a network file system."""
    if path.exists() and not path.is_dir():
        raise StoreFormatError(
            f"the store '{path}' is no directory",
            path=str(path),
            hint="set MILLPOND_STORE to a directory, or to none yet",
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = file_system(path)
        if found in NETWORK:
            raise StoreFormatError(
                f"the store '{path}' lies on a network file system ({found}), where its index is not safe",
                path=str(path),
                hint="set MILLPOND_STORE to a directory on a local disk, for instance /var/tmp/millpond-$USER",
            )
        for folder in (path, *(path / name for name in FOLDERS)):
            folder.mkdir(mode=0o700, exist_ok=True)
            if group is not None:
                os.chown(folder, -1, group)
                # The group's id is inherited by what is created inside.
                folder.chmod(0o2750)
    except OSError as error:
        raise as_store_error(error, path) from error


def sync_parents(path: Path, files: Files) -> None:
    """Make the store's own directory durable, up to the root: which of them are new is not known."""
    for parent in path.resolve().parents:
        try:
            files.fsync_dir(parent)
        except OSError as error:
            # Not ours to look into, or a file system that has nothing to sync.
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL):
                raise


def file_mode(group: int | None) -> int:
    return 0o600 if group is None else 0o640


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`, as /proc/self/mountinfo names it; empty if it is not found."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    # A mountpoint may have any bytes in its name.
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        for line in file:
            fields, _, tail = line.partition(" - ")
            if fields.split(" ")[2] == wanted:
                return tail.split(" ")[0]
    return ""


def reserve(path: Path, wanted: int) -> int:
    """Bytes to leave free: `wanted`, but at most a twentieth of the file system."""
    found = os.statvfs(path)
    return min(wanted, found.f_blocks * found.f_frsize // 20)
