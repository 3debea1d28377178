"""What the kernel has, it asks nobody for: a mount whose holder is stopped is read, walked and looked at as before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fusefs.helpers import File, mixed, mount, open_store, put_tree

pytestmark = pytest.mark.fuse

_READS = """
import os, sys
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        path = os.path.join(folder, name)
        # Not by open(): older Pythons ask with an ioctl whether it is a terminal, and the kernel keeps no answer to that.
        fd = os.open(path, os.O_RDONLY)
        size = os.fstat(fd).st_size
        assert len(os.read(fd, size + 1)) == size == os.stat(path).st_size
        os.close(fd)
        assert not os.path.exists(path + ".missing")
"""
# The kernel of some machines takes pages away after seconds.
_TRIES = 4


def test_what_is_cached_is_asked_of_nobody(base: Path) -> None:
    tree = {b"folder-%d/file-%02d" % (number % 3, number): File(mixed(number * 3000, number)) for number in range(30)}
    tree[b"large"] = File(mixed(3_000_000, 99))
    store = open_store(base / "store")
    totals = put_tree(store, tree)
    store.close()
    with mount(base / "store", totals, base / "m") as mounted:
        command = [sys.executable, "-c", _READS, os.fspath(mounted.place)]
        for _ in range(_TRIES):
            subprocess.run(command, check=True, timeout=60)
            os.kill(mounted.pid, signal.SIGSTOP)
            with subprocess.Popen(command) as reader:
                try:
                    assert reader.wait(10) == 0
                    return
                except subprocess.TimeoutExpired:
                    pass
                finally:
                    os.kill(mounted.pid, signal.SIGCONT)
    pytest.fail("a mount that was read a moment ago asks its holder again")
