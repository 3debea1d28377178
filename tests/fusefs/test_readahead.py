"""The kernel's read-ahead on a mount: large for who reads on, the kernel's own while mappings are read at random."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fusefs.helpers import File, Mounted, Node, mixed, mount, open_store, put_tree

from millpond.daemon.mounts.place import mounted_at
from millpond.fusefs.engines import READ_AHEAD_KB
from millpond.fusefs.engines.readahead import LEAST_KB

pytestmark = [pytest.mark.fuse, pytest.mark.root]

# Touches pages all over each file, far from each other.
_SCATTERED = """
import mmap, sys
for name in sys.argv[1:]:
    with open(name, 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area:
        for number in (5, 1, 6, 2, 0, 4, 3):
            area[(number * (len(area) // 7)) & ~4095 | 100]
"""


def read_ahead_kb(mounted: Mounted) -> int:
    entry = mounted_at(os.fspath(mounted.place))
    assert entry is not None
    return int(Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb").read_text())


def test_scattered_reading_makes_it_small_and_reading_on_large_again(base: Path) -> None:
    store = open_store(base / "store")
    tree: dict[bytes, Node] = {b"%d" % number: File(mixed(16 << 20, number)) for number in range(5)}
    totals = put_tree(store, tree)
    store.close()
    with mount(base / "store", totals, base / "m") as mounted:
        paths = [os.fspath(mounted.place / os.fsdecode(name)) for name in tree]
        assert read_ahead_kb(mounted) == READ_AHEAD_KB > LEAST_KB
        subprocess.run([sys.executable, "-c", _SCATTERED, *paths[:4]], check=True, timeout=30)
        assert read_ahead_kb(mounted) == LEAST_KB
        before = mounted.stats()["read_bytes"]
        subprocess.run([sys.executable, "-c", _SCATTERED, paths[4]], check=True, timeout=30)
        assert mounted.stats()["read_bytes"] - before <= 7 * (LEAST_KB << 10)
        for path in paths:
            assert Path(path).read_bytes() == tree[os.fsencode(os.path.basename(path))].data  # type: ignore[union-attr]
        assert read_ahead_kb(mounted) == READ_AHEAD_KB
