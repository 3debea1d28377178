"""Large files that the kernel reads by itself: when they change over, that bytes stay right, and what ends it."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fusefs.helpers import File as Content
from tests.fusefs.helpers import Mounted, answering, eventually, mount, open_store, put_tree

from millpond.daemon.names import ObjectName
from millpond.daemon.store.trees import TreeEntry, build_tree

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MIB = 1 << 20


def content(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size // 2) + bytes(size - size // 2)


def made(base: Path, sizes: dict[str, int]) -> tuple[Any, dict[str, bytes]]:
    data = {name: content(number, size) for number, (name, size) in enumerate(sizes.items())}
    store = open_store(base / "store")
    totals = put_tree(store, {name.encode(): Content(each) for name, each in data.items()})
    store.close()
    return totals, data


def touch(mounted: Mounted, name: str) -> None:
    os.close(os.open(mounted.place / name, os.O_RDONLY))


def over(mounted: Mounted, count: int) -> Callable[[], bool]:
    return lambda: bool(mounted.stats()["passthrough_files"] == count)


def test_a_large_file_changes_over_at_its_third_open_and_a_small_one_never(base: Path) -> None:
    totals, data = made(base, {"large": 3 * MIB + 5, "small": 1000})
    with mount(base / "store", totals, base / "m", materialize=1 << 30) as mounted:
        for _ in range(3):
            touch(mounted, "small")
        assert (mounted.place / "large").read_bytes() == data["large"]
        assert mounted.stats()["passthrough_files"] == 0
        touch(mounted, "large")
        eventually(over(mounted, 1), "it is written out")
        reads = mounted.stats()["reads"]
        with open(mounted.place / "large", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            assert bytes(view) == data["large"]
            assert os.pread(file.fileno(), 100, 3 * MIB) == data["large"][3 * MIB :]
        assert (mounted.place / "large").read_bytes() == data["large"]
        found = mounted.stats()
        assert found["reads"] == reads, "the holder is not asked"
        assert (found["passthrough_opens"], found["passthrough_bytes"], found["passthrough"]) == (2, 3 * MIB + 5, "on")
        assert (mounted.place / "small").read_bytes() == data["small"]
        # Nothing that anybody could open, and nothing that a crash would leave.
        assert list((base / "store/tmp").iterdir()) == []


def test_a_file_that_is_open_stays_as_it_is_until_it_is_closed(base: Path) -> None:
    totals, data = made(base, {"large": 2 * MIB})
    with mount(base / "store", totals, base / "m", materialize=1 << 30) as mounted:
        held = os.open(mounted.place / "large", os.O_RDONLY)
        touch(mounted, "large")
        eventually(over(mounted, 1), "it is written out")
        assert (mounted.place / "large").read_bytes() == data["large"]
        assert mounted.stats()["passthrough_opens"] == 0, "the kernel would refuse to have it open both ways"
        os.close(held)

        def passed() -> bool:  # the close comes a moment later
            assert (mounted.place / "large").read_bytes() == data["large"]
            return bool(mounted.stats()["passthrough_opens"])

        eventually(passed, "it changes over")


def test_the_budget_holds_and_the_least_recently_used_go(base: Path) -> None:
    totals, data = made(base, {f"f{number}": 2 * MIB for number in range(4)})
    with mount(base / "store", totals, base / "m", materialize=5 * MIB) as mounted:
        for name in data:
            touch(mounted, name)
            touch(mounted, name)
            eventually(lambda: mounted.stats()["passthrough_bytes"] > 0, "it is written out")
            time.sleep(0.2)
            assert mounted.stats()["passthrough_bytes"] <= 5 * MIB
        assert mounted.stats()["passthrough_files"] == 2
        for name, each in data.items():
            assert (mounted.place / name).read_bytes() == each
        held = [os.open(mounted.place / name, os.O_RDONLY) for name in ("f2", "f3")]
        assert mounted.stats()["passthrough_opens"] >= 2
        touch(mounted, "f0")
        time.sleep(0.3)
        assert mounted.stats()["passthrough_files"] == 2, "what is open stays"
        for fd, name in zip(held, ("f2", "f3"), strict=True):
            assert os.pread(fd, 4 * MIB, 0) == data[name]
            os.close(fd)


@pytest.mark.long
def test_many_readers_with_too_small_a_budget_get_the_right_bytes(base: Path) -> None:
    totals, data = made(base, {f"f{number}": MIB + 4096 * number + 7 for number in range(6)})
    failures: list[str] = []

    def reader(seed: int, place: Path) -> None:
        rnd, until = random.Random(seed), time.monotonic() + 4
        while time.monotonic() < until and not failures:
            name = rnd.choice(list(data))
            try:
                with open(place / name, "rb") as file:
                    for _ in range(rnd.randrange(4)):
                        at, size = rnd.randrange(len(data[name])), rnd.randrange(1, 300_000)
                        if os.pread(file.fileno(), size, at) != data[name][at : at + size]:
                            failures.append(f"{name} at {at}")
                    if rnd.random() < 0.3:
                        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
                            if view[at := rnd.randrange(len(view))] != data[name][at]:
                                failures.append(f"{name} mapped at {at}")
            except OSError as error:
                failures.append(f"{name}: {error}")

    with mount(base / "store", totals, base / "m", materialize=3 * MIB) as mounted:
        threads = [threading.Thread(target=reader, args=(seed, mounted.place)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert mounted.stats()["passthrough_opens"] > 0 and mounted.guard.poll() is None


def test_a_killed_holder_leaves_what_is_open_readable_and_the_mount_dead(base: Path) -> None:
    totals, data = made(base, {"large": 2 * MIB})
    with mount(base / "store", totals, base / "m", materialize=1 << 30) as mounted:
        touch(mounted, "large")
        touch(mounted, "large")
        eventually(over(mounted, 1), "it is written out")
        with open(mounted.place / "large", "rb") as file:
            os.kill(mounted.pid, signal.SIGKILL)
            mounted.ended()
            assert os.pread(file.fileno(), MIB, 0) == data["large"][:MIB]
            with pytest.raises(OSError) as caught:
                os.stat(mounted.place / "other")
            assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def test_a_damaged_file_is_never_handed_over(base: Path) -> None:
    totals, data = made(base, {"large": 2 * MIB})
    for segment in (base / "store/segments").glob("*.seg"):
        raw = segment.read_bytes()
        at = raw.find(data["large"][300_000:300_032])
        if at >= 0:
            with open(segment, "r+b") as file:
                file.seek(at)
                file.write(bytes([raw[at] ^ 1]))
    with mount(base / "store", totals, base / "m", materialize=1 << 30) as mounted:
        for _ in range(4):
            touch(mounted, "large")
            time.sleep(0.1)
        assert mounted.stats()["passthrough_files"] == 0
        with pytest.raises(OSError) as caught:
            (mounted.place / "large").read_bytes()
        assert caught.value.errno == errno.EIO


def test_what_lies_whole_elsewhere_is_handed_over_as_it_is(base: Path) -> None:
    data = content(1, 2 * MIB)
    (base / "object").write_bytes(data)
    store = open_store(base / "store")
    name = ObjectName("md5", "0" * 32)
    totals = build_tree(store, [TreeEntry(b"f", len(data), False, name)])
    store.close()

    def give(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        return {"size": len(data)}, [os.open(base / "object", os.O_RDONLY)]

    with mount(base / "store", totals, base / "m", materialize=1, source=answering(give)) as mounted:
        touch(mounted, "f")
        touch(mounted, "f")
        eventually(over(mounted, 1), "it is handed over")
        assert (mounted.place / "f").read_bytes() == data
        found = mounted.stats()
        assert (found["passthrough_opens"], found["passthrough_bytes"]) == (1, 0), "it costs nothing of the budget"


def test_an_object_elsewhere_that_is_changed_is_no_longer_believed(base: Path) -> None:
    data = content(1, 2 * MIB)
    (base / "object").write_bytes(data)
    store = open_store(base / "store")
    totals = build_tree(store, [TreeEntry(b"f", len(data), False, ObjectName("md5", "0" * 32))])
    store.close()
    checked: list[int] = []

    def give(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        checked.append(os.stat(base / "object").st_mtime_ns)
        return {"size": len(data)}, [os.open(base / "object", os.O_RDONLY)]

    with mount(base / "store", totals, base / "m", materialize=1, source=answering(give)) as mounted:
        touch(mounted, "f")
        touch(mounted, "f")
        eventually(over(mounted, 1), "it is handed over")
        held = os.open(mounted.place / "f", os.O_RDONLY)
        with open(base / "object", "r+b") as file:
            file.write(b"other")
        with pytest.raises(OSError) as caught:
            os.open(mounted.place / "f", os.O_RDONLY)
        assert caught.value.errno == errno.EIO
        os.close(held)
        before = len(checked)

        def opens() -> bool:  # the close comes a moment later
            try:
                return bool((mounted.place / "f").read_bytes())
            except OSError:
                return False

        eventually(opens, "its source is asked again")
        assert len(checked) > before


def test_a_file_larger_than_the_budget_drives_nobody_out(base: Path) -> None:
    totals, _ = made(base, {"small": 2 * MIB, "large": 8 * MIB})
    with mount(base / "store", totals, base / "m", materialize=4 * MIB) as mounted:
        for name in ("small", "large"):
            touch(mounted, name)
            touch(mounted, name)
            eventually(over(mounted, 1), "the small one is handed over")
        time.sleep(0.3)
        assert mounted.stats()["passthrough_bytes"] == 2 * MIB


def test_without_the_option_nothing_is_handed_over_and_opens_are_not_asked(base: Path) -> None:
    totals, data = made(base, {"large": 2 * MIB})
    with mount(base / "store", totals, base / "m") as mounted:
        for _ in range(4):
            assert (mounted.place / "large").read_bytes() == data["large"]
        assert "passthrough" not in mounted.stats()


def test_the_other_engine_goes_without_it(base: Path) -> None:
    totals, data = made(base, {"large": 2 * MIB})
    with mount(base / "store", totals, base / "m", engine="pyfuse3", materialize=1 << 30) as mounted:
        for _ in range(4):
            assert (mounted.place / "large").read_bytes() == data["large"]
