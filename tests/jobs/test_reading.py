"""Files on their way into batches: one after the other, or beside each other on strands."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.store.helpers import sample

from millpond.daemon import memfd
from millpond.daemon.errors import FileChangedError, TargetError
from millpond.daemon.jobs.batches import Batch, Memory
from millpond.daemon.jobs.hashing import hash_files
from millpond.daemon.jobs.reading import in_order, read_batches

LEAST = 700_000


@given(
    st.lists(st.one_of(st.integers(0, 2000), st.integers(LEAST - 1, 3 * LEAST)), max_size=9),
    st.sampled_from([1, 2, 3, 16]),
    st.booleans(),
)
@hypothesis.settings(deadline=None)
def test_what_is_sent_is_what_the_files_hold(sizes: list[int], strands: int, reuse: bool) -> None:
    contents = [sample(number, size) for number, size in enumerate(sizes)]
    with tempfile.TemporaryDirectory() as folder:
        paths = _written(Path(folder), contents)
        ended = _sent(paths, Memory(reuse=reuse), strands)
    assert sorted(number for number, _ in ended) == list(range(len(contents)))
    assert list(in_order(ended)) == contents
    if strands == 1:
        assert [number for number, _ in ended] == list(range(len(contents)))


def test_large_files_share_each_batch(tmp_path: Path) -> None:
    paths = _written(tmp_path, [sample(number, 20_000_000) for number in range(3)])
    memory = Memory(reuse=False)
    batches = read_batches(paths, memory, 3, LEAST)
    first = next(batches)
    assert {piece[3] for piece in first.pieces if len(piece) == 4} == {1, 2, 3}
    # The daemon is not kept waiting for the first one.
    sizes = [first.size, *(next(batches).size for _ in range(2))]
    assert sizes == [memfd.BATCH_BYTES // 4, memfd.BATCH_BYTES // 2, memfd.BATCH_BYTES]
    batches.close()


def test_large_files_wait_for_others_behind_so_many_small_ones_and_no_more(tmp_path: Path) -> None:
    """What is known of those must be kept until the large one that they come behind has ended."""
    small, *large = _written(tmp_path, [b"", *(sample(number, 9 << 20) for number in range(3))])
    paths = [large[0], *[small] * 25_000, *large[1:], *[small] * 12_000]
    memory = Memory(reuse=True)
    ended = []
    for batch in read_batches(paths, memory, 3, LEAST):
        ended += [file.number for file in batch.ends]
        memory.give_back(batch)
    memory.close()
    assert list(in_order((number, number) for number in ended)) == list(range(len(paths)))
    assert _most_waiting(ended) < 16_000
    told: list[int] = []
    for number, _ in enumerate(hash_files(paths, lambda files, _: told.append(files))):
        assert told[-1] - number < 16_000
    assert number == len(paths) - 1


def _most_waiting(numbers: list[int]) -> int:
    """How many come before one of a lower number, at most."""
    most = 0
    seen: set[int] = set()
    wanted = 0
    for number in numbers:
        seen.add(number)
        while wanted in seen:
            seen.remove(wanted)
            wanted += 1
        most = max(most, len(seen))
    return most


def test_a_file_that_changes_while_it_waits_for_others_is_read_as_it_is_then(tmp_path: Path) -> None:
    large, small = _written(tmp_path, [sample(1, 9 << 20), b"small"])

    def paths() -> Iterator[str]:
        yield large
        yield small
        with open(large, "ab") as file:
            file.write(b"more")

    expected = [hashlib.md5(sample(1, 9 << 20) + b"more").hexdigest(), hashlib.md5(b"small").hexdigest()]
    assert [hashlib.md5(data).hexdigest() for data in in_order(_sent(paths(), Memory(reuse=True), 16))] == expected
    os.truncate(large, 9 << 20)
    assert [put.name.value for put in hash_files(paths(), None)] == expected


def test_a_large_file_with_nothing_beside_it_has_no_strand(tmp_path: Path) -> None:
    paths = _written(tmp_path, [b"small", sample(1, 2 * LEAST), b"small"])
    memory = Memory(reuse=False)
    for batch in read_batches(paths, memory, 16, LEAST):
        assert [len(piece) for piece in batch.pieces] == [3, 3, 3]
        memory.give_back(batch)


@pytest.mark.parametrize("what", ["gone", "cut"])
def test_a_file_that_goes_while_others_wait_for_it_leaves_nothing_open(tmp_path: Path, what: str) -> None:
    paths = _written(tmp_path, [sample(number, 9_000_000) for number in range(3)])
    before = len(os.listdir("/proc/self/fd"))
    memory = Memory(reuse=False)
    batches = read_batches(paths, memory, 16 if what == "cut" else 2, LEAST)
    if what == "gone":
        os.unlink(paths[2])
    with pytest.raises((TargetError, FileChangedError), match=os.path.basename(paths[2])):
        for batch in batches:
            memory.give_back(batch)
            if what == "cut":
                os.truncate(paths[2], 100)
    memory.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_large_files_hashed_together_and_small_ones_between_them(tmp_path: Path) -> None:
    sizes = [number if number % 3 else (17 << 20) + number for number in range(60)]
    paths = []
    for number, size in enumerate(sizes):
        paths.append(str(tmp_path / f"{number:02d}"))
        with open(paths[-1], "wb") as file:
            file.write(sample(number, min(size, 100_000)))
            file.truncate(size)
    told: list[tuple[int, int]] = []
    found = list(hash_files(paths, lambda files, size: told.append((files, size))))
    assert [(put.path, put.size) for put in found] == list(zip(paths, sizes, strict=True))
    for put in found:
        with open(put.path, "rb") as file:
            assert put.name.value == hashlib.file_digest(file, "md5").hexdigest(), put.path
    assert told == sorted(told) and told[-1] == (len(sizes), sum(sizes)) and len(told) > 100


def test_a_file_that_is_cut_while_others_are_hashed_with_it_is_an_error(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}") for number in range(16)]
    for path in paths:
        with open(path, "wb") as file:
            file.truncate(17 << 20)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileChangedError, match=paths[7]):
        list(hash_files(paths, lambda _, size: os.truncate(paths[7], 5) if size > 20 << 20 else None))
    assert len(os.listdir("/proc/self/fd")) == before


def _written(folder: Path, contents: list[bytes]) -> list[str]:
    paths = [folder / f"{number:02d}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return [str(path) for path in paths]


def _sent(paths: Iterable[str], memory: Memory, strands: int) -> list[tuple[int, bytes]]:
    """Each file's number and what was sent of it, in the order in which they ended."""
    begun: dict[int, bytes] = {}
    ended: list[tuple[int, bytes]] = []
    for batch in read_batches(paths, memory, strands, LEAST):
        data = os.pread(batch.fd, batch.size, 0)
        assert batch.size <= memfd.BATCH_BYTES
        ended += zip((file.number for file in batch.ends), _ended(batch, data, begun), strict=True)
        memory.give_back(batch)
    memory.close()
    assert not begun
    return ended


def _ended(batch: Batch, data: bytes, begun: dict[int, bytes]) -> list[bytes]:
    whole: list[bytes] = []
    offset = 0
    for length, last, _, *strands in batch.pieces:
        strand = strands[0] if strands else 0
        begun[strand] = begun.get(strand, b"") + data[offset : offset + length]
        offset += length
        if last:
            whole.append(begun.pop(strand))
    assert offset == len(data)
    return whole
