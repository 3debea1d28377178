"""A worker's store when files could not be put: what comes behind that is whole, and what came before it is not lost."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.jobs.helpers import Site, running

from millpond.daemon import memfd
from millpond.daemon.errors import ProtocolError
from millpond.daemon.jobs.objects import IN_FLIGHT, IN_FLIGHT_BESIDE, DaemonObjectStore
from millpond.daemon.md5.kernels import Kernels
from millpond.daemon.names import ObjectName


class Stop(Exception):
    pass


Memory = Callable[[], int]


@pytest.fixture
def memory_files() -> Memory:
    """How many descriptors of memory files there are but for those that other tests have left."""
    before = set(_memory_files())
    return lambda: sum(inode not in before for inode in _memory_files())


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="mp-puts-") as folder, running(Path(folder)) as found:
        yield found


@pytest.mark.parametrize(
    ("count", "size", "times"),
    [(1, 96 << 20, 2), (4, 33 << 20, 1), pytest.param(1, 96 << 20, 13, marks=pytest.mark.long)],
)
def test_what_was_begun_is_no_part_of_what_comes_next(
    site: Site, tmp_path: Path, memory_files: Memory, count: int, size: int, times: int
) -> None:
    """One file alone, and several beside each other; so often that unanswered requests would be too many."""
    early, late = tmp_path / "early", tmp_path / "late"
    early.write_bytes(b"early" * 5000)
    late.write_bytes(b"late" * 100_000)
    large = _sparse(tmp_path, count, size)
    with site.start() as client:
        store = DaemonObjectStore(client)
        [first] = store.put_files([str(early)])
        for _ in range(times):
            with pytest.raises(Stop):
                list(store.put_files(large, tick=_stop))
        assert not memory_files()
        names = [first.name, store.put_bytes(b"{}" * 50_000)]
        puts = list(store.put_files([str(late), *large]))
        store.commit()
        assert [put.name.value for put in puts] == [_md5(put.path) for put in puts]
        names += [put.name for put in puts]
        assert names[1] == ObjectName("md5", hashlib.md5(b"{}" * 50_000).hexdigest())
        assert store.sizes(names) == [25_000, 100_000, 400_000, *[size] * count]
        assert store.read(puts[0].name) == late.read_bytes()


@pytest.mark.parametrize("pieces", [[[1, True]], [["x", True, False]], [7], 7, [[1, True, False, None]]], ids=str)
def test_pieces_that_are_none(site: Site, pieces: object) -> None:
    with site.start() as client:
        session = client.call("store.begin", {})[0]["session"]
        with memfd.sent(b"x") as fd, pytest.raises(ProtocolError, match="pieces"):
            client.call("store.feed", {"session": session, "pieces": pieces}, fds=[fd])


@pytest.mark.long
def test_sixteen_large_files_take_little_memory(site: Site, tmp_path: Path, memory_files: Memory) -> None:
    noise = os.urandom(34 << 20)
    paths = [tmp_path / f"{number}" for number in range(16)]
    for number, path in enumerate(paths):
        path.write_bytes(memoryview(noise)[number << 16 :])
    most = 0

    def tick(_files: int, _bytes: int) -> None:
        nonlocal most
        most = max(most, memory_files())

    with site.start() as client:
        store = DaemonObjectStore(client)
        puts = list(store.put_files(map(str, paths), tick=tick))
        store.commit()
        pid = client.call("daemon.status", {})[0]["pid"]
    assert [put.name.value for put in puts] == [_md5(put.path) for put in puts]
    status = Path(f"/proc/{pid}/status").read_text()
    assert int(status.partition("VmHWM:")[2].split()[0]) < 300 << 10
    # Each is open twice, for its bytes as well.
    kernels = Kernels.of_here()
    beside = kernels is not None and kernels.are_usable()
    assert most <= 2 * ((IN_FLIGHT_BESIDE if beside else IN_FLIGHT) + 2)


def test_a_consumer_that_ends_early_is_no_harm(site: Site, tmp_path: Path, memory_files: Memory) -> None:
    files = [tmp_path / "small", *map(Path, _sparse(tmp_path, 2, 60 << 20))]
    files[0].write_bytes(b"small")
    with site.start() as client:
        store = DaemonObjectStore(client)
        puts = store.put_files(map(str, files))
        assert next(iter(puts)).name.value == _md5(str(files[0]))
        puts.close()  # type: ignore[attr-defined]
        assert not memory_files()
        found = list(store.put_files(map(str, files[1:])))
        store.commit()
        assert [put.name.value for put in found] == [_md5(put.path) for put in found]


def _sparse(folder: Path, count: int, size: int) -> list[str]:
    paths = []
    for number in range(count):
        with open(folder / f"large{number}", "wb") as file:
            file.write(b"%d" % number)
            file.truncate(size)
        paths.append(file.name)
    return paths


def _memory_files() -> list[int]:
    """Inodes of this process's memory files, one for each descriptor."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if "memfd:millpond" in os.readlink(path := f"/proc/self/fd/{name}"):
                found.append(os.stat(path).st_ino)
    return found


def _stop(_files: int, _bytes: int) -> None:
    raise Stop


def _md5(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
