"""A loss of power, for real: a file system whose journal is cut off, and what its disk holds mounted in its place."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

# EXT4_IOC_SHUTDOWN, and its flag for what is not in the journal yet being lost.
_SHUTDOWN, _NO_FLUSH = 0x8004587D, 2


class Disk:
    """An ext4 of its own, mounted at `place`, that writes nothing by itself for ten minutes."""

    def __init__(self, folder: Path, size: int = 64 << 20) -> None:
        self.place = folder / "disk"
        self._image = folder / "image"
        self.place.mkdir()
        with open(self._image, "wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", self._image], check=True)
        self._mount()

    def lose_power(self) -> None:
        """Only what was synced is there afterwards."""
        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_FLUSH))
        finally:
            os.close(fd)
        # Other namespaces may have it mounted still: another image is another file system.
        after = self._image.with_suffix(".after")
        shutil.copyfile(self._image, after)
        self.close()
        after.rename(self._image)
        self._mount()

    def fail(self) -> None:
        """What the kernel does of a file system whose disk failed: from now on it is read-only."""
        subprocess.run(["mount", "-o", "remount,abort", self.place], check=False, capture_output=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.place], check=True)

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", "loop,commit=600", self._image, self.place], check=True)
