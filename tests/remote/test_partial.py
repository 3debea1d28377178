"""Objects that are here in part: whatever was filled, in whatever order, and whatever became of the files meanwhile."""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.daemon.names import ObjectName
from millpond.daemon.remote.layout import digest_of, key_of, keys_of
from millpond.daemon.remote.pace import Budget, Pace
from millpond.daemon.remote.partial import BLOCK_BYTES, Partial, sweep

NAME = ObjectName("md5", "0123456789abcdef0123456789abcdef")
SIZE = 3 * BLOCK_BYTES + 777
DATA = random.Random(1).randbytes(SIZE)
BLOCKS = 4


def block(number: int) -> memoryview:
    return memoryview(DATA)[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]


@settings(max_examples=25, deadline=None)
@given(
    first=st.lists(st.integers(0, BLOCKS - 1), max_size=6),
    second=st.lists(st.integers(0, BLOCKS - 1), max_size=6),
    damage=st.none() | st.tuples(st.sampled_from(["data", "map"]), st.integers(0, SIZE - 1)),
    etag=st.sampled_from(["one", "two"]),
)
def test_what_counts_is_what_is_right(
    first: list[int], second: list[int], damage: tuple[str, int] | None, etag: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Partial(folder, NAME, SIZE, "one")
        for number in first:
            made.fill(number, block(number))
            start, end = made.run(number)
            assert os.pread(made.fd, end - start, start) == DATA[start:end]
        made.close()
        if damage is not None:
            path = Path(made.path if damage[0] == "data" else f"{made.path}.map")
            raw = bytearray(path.read_bytes())
            raw[damage[1] % len(raw)] ^= 1
            path.write_bytes(raw)
        again = Partial(folder, NAME, SIZE, etag)
        for number in range(BLOCKS):
            if again.has(number):
                assert number in first and etag == "one"
                assert os.pread(again.fd, BLOCK_BYTES, number * BLOCK_BYTES) == block(number)
            else:
                assert number not in first or damage is not None or etag == "two"
        for number in second:
            again.fill(number, block(number))
        assert again.is_whole == all(again.has(number) for number in range(BLOCKS))
        again.close()


def test_two_at_one_object_keep_apart(tmp_path: Path) -> None:
    made = Partial(str(tmp_path), NAME, SIZE, "one")
    with pytest.raises(BlockingIOError):
        Partial(str(tmp_path), NAME, SIZE, "one")
    made.close()
    Partial(str(tmp_path), NAME, SIZE, "one").close()


def test_what_is_old_is_swept(tmp_path: Path) -> None:
    for name, age in (("old", 8 * 86_400), ("new", 86_400)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    sweep(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@given(st.text("0123456789abcdef", min_size=32, max_size=32), st.booleans(), st.sampled_from(["md5", "md5-dos2unix"]))
def test_keys_lead_back_to_names(digest: str, is_dir: bool, algo: str) -> None:
    name = ObjectName(algo, digest + (".dir" if is_dir else ""))
    assert keys_of(name)[0] == key_of(name) and len(set(keys_of(name))) == 2
    assert {digest_of(key) for key in keys_of(name)} == {name.value}
    assert digest_of(f"runs/{digest}") is None and digest_of(key_of(name)[:-1]) is None


def test_the_pace_follows_what_it_brings() -> None:
    """A remote that serves 20 at once at full speed, then one that chokes."""
    pace, now = Pace(48), 0.0
    for _ in range(4000):
        now += 0.02 / min(pace.limit, 20)
        pace.done(100_000, now)
    grown = pace.limit
    assert grown >= 20
    pace.refused()
    assert pace.limit == grown // 2
    for _ in range(100):
        pace.refused()
    assert pace.limit == 2
    assert Pace(1).limit == 1


def test_a_pause_makes_the_pace_fall_once_and_not_to_the_least() -> None:
    """Each request takes 20 ms however many there are; now and then nobody takes what came for a second, as during a sync."""
    pace, now, least = Pace(48), 0.0, 48
    for number in range(1, 40_000):
        now += 1.0 if number % 8000 == 0 else 0.02 / pace.limit
        pace.done(20_000, now)
        if number > 8000:
            least = min(least, pace.limit)
    assert least >= 24 and pace.limit >= 40


def test_a_budget_lets_no_more_through() -> None:
    budget = Budget(1_000_000)
    waited = sum(budget.wait_s(500_000) for _ in range(2))
    assert waited == 0, "a second's worth at once"
    assert 0.9 < budget.wait_s(1_000_000) <= 1.0
