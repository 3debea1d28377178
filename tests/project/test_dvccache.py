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


def test_what_is_no_regular_file_is_no_manifest(tmp_path: Path) -> None:
    """Whatever lies there, nobody waits for it or fails."""
    names = [ObjectName("md5", f"{number:032x}.dir") for number in range(5)]
    cache = DvcCache(str(tmp_path))
    file, folder, fifo, link, _ = (Path(cache.path_of(name) or "") for name in names)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"[]")
    folder.mkdir()
    os.mkfifo(fifo)
    link.symlink_to(tmp_path)
    assert [cache.read_unchecked(name) for name in names] == [b"[]", None, None, None, None]
    assert [cache.open(name) for name in names[1:]] == [None] * 4
