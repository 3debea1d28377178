"""Where files of a project are written before they have their name: in `.dvc/tmp`, which neither Git nor DVC looks into.

So what a process that was killed leaves behind is never taken for data, nor committed. It is removed a day later.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time

PREFIX, SUFFIX = ".millpond-", ".tmp"
# Nobody writes a file for so long; who writes a folder touches it.
_OLD_S = 86_400.0


def scratch(folder: str) -> str:
    """The folder for temporary files that are to be renamed into `folder` (absolute, it must be there): `.dvc/tmp` of the
    project around it where that is on the same disk and may be written, else `folder` itself. Raises OSError."""
    above = folder
    while True:
        found = os.path.join(above, ".dvc", "tmp")
        if os.path.isdir(found):
            usable = os.access(found, os.W_OK | os.X_OK) and _disk(found) == _disk(folder)
            return found if usable else folder
        if above == os.path.dirname(above):
            return folder
        above = os.path.dirname(above)


def _disk(folder: str) -> tuple[int, bytes]:
    """What must be equal for a rename to go from one folder to another: the device, and the mount, of which it may have
    several."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            mount = next((line for line in file if line.startswith(b"mnt_id:")), b"")
        return os.fstat(fd).st_dev, mount
    finally:
        os.close(fd)


def temporary_name(folder: str, unique: str) -> str:
    """A path in `folder` for a temporary file."""
    return os.path.join(folder, f"{PREFIX}{unique}{SUFFIX}")


def sweep(folder: str) -> None:
    """Remove what killed processes left in `folder`, a day ago or longer. What cannot be removed stays."""
    old = time.time() - _OLD_S
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and entry.name.endswith(SUFFIX):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime >= old:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        os.unlink(entry.path)
