"""The parts of the bench that decide whether its figures can be believed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from bench import data
from bench.figures import Figures
from bench.host import BenchError, run
from bench.reading import check, find, read
from bench.targets import judge


def test_data_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = data.make(tmp_path / "a", 0.001), data.make(tmp_path / "b", 0.001)
    assert {name: made.files for name, made in first.items()} == {name: made.files for name, made in second.items()}
    assert first["small"].shuffled() == second["small"].shuffled() != first["small"].paths


@pytest.mark.parametrize("name", ["small", "shard", "shards", "csv"])
def test_a_second_version_differs_a_little(tmp_path: Path, name: str) -> None:
    made = data.make(tmp_path / "a", 0.003)[name]
    second = data.edit(made, tmp_path / "b")
    assert second.paths == made.paths
    assert second.files != made.files
    assert abs(second.size - made.size) <= made.size * 0.02
    assert data.examine(name, made.root) == made


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "add"])
def test_other_bytes_are_found(tmp_path: Path, harm: str) -> None:
    made = data.make(tmp_path / "a", 0.001)["small"]
    assert check(made.root, made) == made.size
    victim = made.root / made.paths[3]
    if harm == "flip":
        whole = bytearray(victim.read_bytes())
        whole[-1] ^= 1
        victim.write_bytes(whole)
    elif harm == "cut":
        os.truncate(victim, victim.stat().st_size - 1)
    elif harm == "remove":
        victim.unlink()
    else:
        (made.root / "more").write_bytes(b"")
    with pytest.raises(BenchError):
        check(made.root, made)


def test_reading_counts_all(tmp_path: Path) -> None:
    made = data.make(tmp_path, 0.001)["small"]
    assert read(made.root, made, made.shuffled()).checked == made.size
    assert find(made.root)[1:] == (len(made.files), made.size)


def test_a_command_that_fails_or_hangs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="ended with 3"):
        run([sys.executable, "-c", "raise SystemExit(3)"], cwd=tmp_path, env=os.environ)
    with pytest.raises(BenchError, match="ended with -9"):
        run(
            [sys.executable, "-c", "input_never_comes = __import__('signal').pause()"],
            cwd=tmp_path,
            env=os.environ,
            limit_s=0.5,
        )
    assert run([sys.executable, "-c", "print(1)"], cwd=tmp_path, env=os.environ).stdout == "1\n"


def test_targets_are_judged_by_medians() -> None:
    figures = Figures()
    for ours, theirs in ((1.0, 4.1), (9.0, 4.1), (1.0, 0.1)):
        figures.tell("s", "add, small files", "millpond", ours, checked=1)
        figures.tell("s", "add, small files", "dvc", theirs, checked=1)
    figures.tell("s", "mount until ls", "millpond", 0.5, checked=1)
    verdicts = {verdict.work: verdict.met for verdict in judge(figures, "ext4")}
    assert verdicts == {"add, small files": True, "mount until ls": False}
    assert "(4.10x)" in figures.tables()
