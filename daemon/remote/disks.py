"""The file systems that a remote's directory lies on, synced whole, or known not to be so.

The kernel tells of a write that failed in the background once to each descriptor that was open by then, and to one that is opened later only
if nobody was told: another program's sync is enough to lose it. So there is a descriptor of each from before the first file is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from pathlib import Path

from millpond.daemon.project.durable import sync_file_system, sync_folder
from millpond.daemon.store.layout import NETWORK, file_system

# Those that hand on to whoever keeps the bytes that one file is to be synced, but not that all are. NFS has them there when a file is closed.
_EACH = (NETWORK - {"nfs", "nfs4", "ceph"}) | {"fuse", "fuseblk", "vboxsf", "virtiofs", "prl_fs"}


class Disks:
    """Those that files are written to; used from any thread. To be closed."""

    def __init__(self, top: str) -> None:
        self._top = top
        # By device: folders below `top` may be links, or mounts.
        self._fds: dict[int, int] = {}
        # Files are written to new folders while there is a sync under way.
        self._opening, self._syncing = threading.Lock(), threading.Lock()
        self._failed: OSError | None = None
        # Whether files must be synced one by one, as a sync of all does not reach who keeps them.
        self.one_by_one = False
        # Whether no other machine keeps any of them, as far as is known.
        self.is_local = True
        weakref.finalize(self, _close, self._fds)

    def write_to(self, folder: str) -> None:
        """Files of a folder are about to be written. Raises OSError."""
        device = os.stat(folder).st_dev
        with self._opening:
            if device not in self._fds:
                kind = file_system(Path(folder))
                self.one_by_one = self.one_by_one or kind in _EACH or kind.startswith("fuse.")
                self.is_local = self.is_local and kind not in NETWORK and not self.one_by_one
                self._fds[device] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sync(self) -> None:
        """Have all that was written on the disk. Raises OSError; always, once it did: what was lost then may be anybody's."""
        with self._syncing:
            if self._failed is not None:
                raise OSError(self._failed.errno, self._failed.strerror)
            try:
                for fd in list(self._fds.values()):
                    sync_file_system(fd)
                if not self._fds:
                    sync_file_system(self._top)
            except OSError as error:
                self._failed = error
                raise

    def close(self) -> None:
        """Nothing is synced any more. A sync that is under way is not waited for: descriptors are closed when its thread has done."""
        if self._syncing.acquire(blocking=False):
            self._failed = self._failed or OSError(errno.EBADF, os.strerror(errno.EBADF))
            _close(self._fds)
            self._syncing.release()


def sync_names(folder: str) -> None:
    """Have the names in a folder on disk, where its file system has such a thing for folders. Raises OSError."""
    try:
        sync_folder(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _close(fds: dict[int, int]) -> None:
    while fds:
        with contextlib.suppress(OSError):
            os.close(fds.popitem()[1])
