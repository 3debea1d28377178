"""Worker processes: file systems and open files that were made before a fork, or came by pickle."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.api.conftest import Made
from tests.api.consumers import DataSet, epoch

from millpond import MillpondFileSystem
from millpond.daemon.api.connections import connections

HOWS = ["fork", pytest.param("spawn", marks=pytest.mark.long), pytest.param("forkserver", marks=pytest.mark.long)]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("place", ["near", "far"])
def test_an_epoch_by_workers(request: pytest.FixtureRequest, how: str, place: str) -> None:
    made: Made = request.getfixturevalue("made" if place == "near" else "far")
    fs = MillpondFileSystem(made.repo, rev="v1")
    paths = sorted(path for path in made.first if path.startswith(("data/many", "data/sub", "data/empty")))
    large = made.first["data/large.bin"]
    before = threading.active_count()
    with fs.open("data/large.bin") as handle:
        assert handle.read(500) == large[:500]
        assert fs.cat_file("data/a.csv") == made.first["data/a.csv"]
        found, told = epoch(DataSet(fs, paths, handle), how, 3)
        # The parent's own are as they were.
        assert handle.read(500) == large[500:1000]
    assert found == {number: made.first[path] for number, path in enumerate(paths)}
    assert len({pid for pid, _, _ in told} | {os.getpid()}) == 4
    assert [data for _, data, _ in told] == [large[1000:101_000]] * 3
    if place == "near":
        # No thread of this library, here or there; those of the queues are multiprocessing's.
        assert threading.active_count() == before
        assert all(name in ("MainThread", "QueueFeederThread") for _, _, names in told for name in names)


def test_a_fork_while_other_threads_read(made: Made) -> None:
    fs = MillpondFileSystem(made.repo, rev="v1")
    paths = [path for path in made.first if path.startswith("data/many")]
    stop = threading.Event()

    def work(number: int) -> int:
        count = 0
        while not stop.is_set():
            path = paths[(count * 7 + number) % len(paths)]
            assert fs.cat_file(path) == made.first[path]
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(work, number) for number in range(4)]
        try:
            for _ in range(6):
                child = os.fork()
                if child == 0:
                    code = 1
                    try:
                        right = all(fs.cat_file(path) == made.first[path] for path in paths[:5])
                        code = 0 if right else 2
                    finally:
                        os._exit(code)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            stop.set()
        assert all(each.result(60) > 0 for each in reading)


def test_a_child_has_sockets_of_its_own_only(made: Made) -> None:
    fs = MillpondFileSystem(made.repo, rev="v1")
    fs.cat_file("data/a.csv")
    fs.cat_file("readme.md")  # from a source
    mine = _sockets()
    assert len(mine) >= 2
    child = os.fork()
    if child == 0:
        code = 1
        try:
            inherited = _sockets() & mine
            fs.cat_file("readme.md")
            code = len(inherited) * 10 + (not _sockets())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    # The parent's still work.
    assert fs.cat_file("readme.md") == b"first\n"
    assert _sockets() == mine
    connections().close()
    assert not _sockets() & mine


def _sockets() -> set[str]:
    """The sockets that this process has open, by their inode."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found
