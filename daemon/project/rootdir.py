"""Where a repository begins. Standard library only: the Python library asks it without a daemon."""

from __future__ import annotations

import os

from millpond.daemon.errors import NotARepoError
from millpond.daemon.project.paths import printable

DVC_DIR = ".dvc"


def find_root(start: str) -> str:
    """The nearest folder at or above `start` that has a folder `.dvc`, as a real path. Raises NotARepoError.

    As in DVC the search does not leave the file system's mount point.
    """
    folder = os.path.realpath(start)
    while True:
        if os.path.isdir(os.path.join(folder, DVC_DIR)):
            return folder
        parent = os.path.dirname(folder)
        if parent == folder or os.path.ismount(folder):
            raise NotARepoError(
                f"you are not inside of a DVC repository (checked up to mount point '{printable(folder)}')",
                path=printable(start),
                hint="make one with `millpond init`, or give its place with --cd",
            )
        folder = parent
