"""Memory files: what is mapped stays while anybody looks at it, and goes when nobody does."""

from __future__ import annotations

import os
import threading

import pytest

from millpond.daemon import memfd
from millpond.daemon.errors import ProtocolError


def mappings() -> int:
    """Memory files that this process has mapped."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:" in line for line in maps)


def test_a_part_that_a_thread_still_holds_outlives_the_block() -> None:
    before, begun, go_on, found = mappings(), threading.Event(), threading.Event(), []

    def look(part: memoryview) -> None:
        begun.set()
        go_on.wait(10)
        found.append(bytes(part))

    with memfd.mapped(memfd.from_bytes(b"0123456789")) as view:
        thread = threading.Thread(target=look, args=(view[2:5],))
        thread.start()
        begun.wait(10)
    assert mappings() == before + 1
    go_on.set()
    thread.join()
    del thread
    assert found == [b"234"] and mappings() == before


def test_a_file_that_is_not_sealed_is_refused_and_closed() -> None:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    with pytest.raises(ProtocolError, match="not a sealed"), memfd.mapped(fd):
        pass
    with pytest.raises(OSError):
        os.fstat(fd)
