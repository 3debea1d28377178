"""DVC's cache, read in place."""

from __future__ import annotations

import os
from pathlib import Path

from millpond.daemon.names import ObjectName
from millpond.daemon.project.dvccache import DvcCache


def test_sizes_of_many_are_those_of_each(tmp_path: Path) -> None:
    digests = [f"{number:032x}" for number in range(5)]
    assert DvcCache(str(tmp_path)).sizes(digests) == [None] * 5
    folder = tmp_path / "files/md5/00"
    folder.mkdir(parents=True)
    (folder / digests[0][2:]).write_bytes(b"")
    (folder / digests[2][2:]).write_bytes(b"four")
    (folder / digests[3][2:]).mkdir()
    os.symlink(digests[2][2:], folder / digests[4][2:])
    cache = DvcCache(str(tmp_path))
    assert cache.sizes(digests) == [0, None, 4, None, 4]
    assert cache.sizes(digests) == [cache.size(ObjectName("md5", digest)) for digest in digests]
