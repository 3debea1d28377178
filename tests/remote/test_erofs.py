"""The erofs engine over what is not in the store (any more): evicted while it is mounted, and on a remote alone."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.mounts.conftest import contents
from tests.remote.shared import Team
from tests.remote.test_evict import evict, write
from tests.remote.test_lazy import mount

from millpond.daemon.mounts.kernel import why_no_image

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.long,
    pytest.mark.parametrize("team", ["local", "s3"], indirect=True),
    pytest.mark.skipif(bool(why_no_image()), reason="there is no EROFS of a file here"),
]


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")


def test_what_is_evicted_while_it_is_mounted_is_read_from_its_remote(team: Team) -> None:
    ann = team.person("ann")
    expected = write(ann, "d", 1)
    ann.run("add", "-q", "d")
    ann.run("push", "-q")
    place = mount(ann, "m", "--engine", "erofs", target="d")
    with open(place / "large", "rb", buffering=0) as large:
        assert os.pread(large.fileno(), 100_000, 0) == expected["large"][:100_000]
        assert evict(ann, "--to", "0")["evicted"]["objects"] == 31
        drop_caches()
        assert os.pread(large.fileno(), 4_000_000, 0) == expected["large"], "an open file goes on where it was"
    assert contents(place) == expected
    for round_ in range(3):  # evicted while they are read
        drop_caches()
        with ThreadPoolExecutor(2) as pool:
            reading = [pool.submit(read, place, expected, round_ + each) for each in range(2)]
            for _ in range(3):
                evict(ann, "--to", "0")
            assert [each.result(60) for each in reading] == [None, None]
    assert "is clean" in ann.run("fsck", "--deep").stdout


def read(place: Path, expected: dict[str, bytes], seed: int) -> None:
    for name in random.Random(seed).sample(sorted(expected), len(expected)):
        assert (place / name).read_bytes() == expected[name], name


def test_a_version_that_is_on_a_remote_alone_is_read(team: Team) -> None:
    ann, bob = team.person("ann"), team.person("bob")
    expected = write(ann, "d", 2)
    ann.run("add", "-q", "d")
    ann.run("push", "-q")
    (bob.repo / "d.dvc").write_bytes((ann.repo / "d.dvc").read_bytes())
    place = mount(bob, "m", "--engine", "erofs", target="d")
    with ThreadPoolExecutor(4) as pool:
        assert [each.result(60) for each in [pool.submit(read, place, expected, seed) for seed in range(4)]] == [
            None
        ] * 4
    assert contents(place) == expected
