"""Memory files: what is mapped stays while anybody looks at it, and goes when nobody does."""

from __future__ import annotations

import fcntl
import gc
import os
import threading
from pathlib import Path

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


def test_memory_of_ones_own_is_taken_unsealed_and_only_so() -> None:
    kept, (fd, view) = memfd.Mappings(), memfd.create_reusable()
    for text in (b"first", b"second one"):
        view[: len(text)] = text
        with kept.mapped(os.dup(fd), len(text)) as found:
            assert bytes(found) == text
    with pytest.raises(ProtocolError, match="not a sealed"), memfd.mapped(os.dup(fd)):
        pass
    with pytest.raises(ProtocolError, match="as one of"), kept.mapped(os.dup(fd), memfd.BATCH_BYTES + 1):
        pass
    with pytest.raises(OSError):
        os.ftruncate(fd, 1)
    os.close(fd)


def test_what_is_used_again_stays_mapped_once_and_not_for_ever() -> None:
    before, kept = mappings(), memfd.Mappings()
    made = [memfd.create_reusable() for _ in range(12)]
    # Each is mapped here as its maker, too.
    full = memfd.BATCH_BYTES
    with kept.mapped(os.dup(made[0][0]), full), kept.mapped(os.dup(made[0][0]), 5):
        assert mappings() == before + len(made) + 1
    with kept.mapped(os.dup(made[1][0]), full // 2 - 1):
        pass
    assert mappings() == before + len(made) + 1, "one that is not half full is not kept"
    for number, (fd, view) in enumerate(made * 2):
        view[:4] = number.to_bytes(4, "little")
        with kept.mapped(os.dup(fd), full if number < len(made) else 4) as found:
            assert int.from_bytes(found[:4], "little") == number
    assert before + len(made) < mappings() < before + 2 * len(made)
    with kept.mapped(memfd.from_bytes(b"sealed, so never again"), 6) as found:
        assert bytes(found) == b"sealed"
        there = mappings()
    del found
    assert mappings() == there - 1
    del kept
    for fd, view in made:
        view.release()
        os.close(fd)
    del made, view
    assert mappings() == before


def test_a_file_on_a_disk_is_refused_even_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"bytes")
    fd = os.open(tmp_path / "a", os.O_RDWR)
    with pytest.raises(ProtocolError, match="not a sealed"), memfd.Mappings().mapped(fd, 5):
        pass
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_received_one_is_filled_from_its_beginning_on_whoever_wrote_to_it_before() -> None:
    fd, view = memfd.create_reusable()
    os.lseek(fd, 1000, os.SEEK_SET)
    for number in (1, 2):
        parts = [bytes([number + each % 7]) * 3 for each in range(2500)]
        with memfd.Filling(os.dup(fd)) as filling:
            filling.write(parts[:1200])
            filling.write([])
            filling.write(parts[1200:])
            assert filling.sealed() == []
        assert view[:7500] == b"".join(parts)
    received = os.dup(fd)
    with pytest.raises(ProtocolError, match="do not fit"), memfd.Filling(received) as filling:
        filling.write([b"x" * memfd.BATCH_BYTES])
        filling.write([b"y"])
    with pytest.raises(OSError):
        os.fstat(received)
    assert view[0] == view[memfd.BATCH_BYTES - 1] == ord("x")
    os.close(fd)


def test_one_whose_length_may_change_is_not_filled() -> None:
    for received in (os.memfd_create("test", os.MFD_ALLOW_SEALING), os.open("/dev/null", os.O_RDWR)):
        with pytest.raises(ProtocolError, match="not a sealed"), memfd.Filling(received):
            pass
        with pytest.raises(OSError):
            os.fstat(received)


def test_a_new_one_is_sealed_and_handed_over_or_closed() -> None:
    with memfd.Filling(None) as filling:
        filling.write([b"a", b"b" * 5000])
        [fd] = filling.sealed()
    with memfd.mapped(fd) as view:
        assert bytes(view) == b"a" + b"b" * 5000
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ZeroDivisionError), memfd.Filling(None) as filling:
        filling.write([b"a"])
        _ = 1 / 0
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "how", ["sealed", "sealed for the future", "opened to read", "short", "no memory", "of any length"]
)
def test_what_cannot_be_filled_is_refused_and_closed(tmp_path: Path, how: str) -> None:
    """It would be a failure of the daemon's own, with a trace in its log."""
    fd, view = memfd.create_reusable()
    view.release()
    if how == "sealed":
        gc.collect()
        memfd.seal(fd)
    elif how == "sealed for the future":
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x10)
    elif how == "opened to read":
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        os.close(fd)
        fd = again
    elif how != "short":
        os.close(fd)
        made = how == "of any length"
        fd = memfd.create() if made else os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    with pytest.raises(ProtocolError), memfd.Filling(fd) as filling:
        filling.write([b"x"] if how != "short" else [bytes(memfd.BATCH_BYTES), b"x"])
    with pytest.raises(OSError):
        os.fstat(fd)
