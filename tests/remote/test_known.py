"""Notes of what a remote holds: never in the way, and never taken from another process that writes them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from millpond.daemon.names import ObjectName
from millpond.daemon.remote.known import Known

NAME = ObjectName("md5", "0" * 32)


def opened(folder: Path) -> Known:
    return Known("/remote", {"HOME": str(folder), "XDG_CACHE_HOME": str(folder)})


def noted(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("remotes/*") if path.is_file() and "-" not in path.name]


def test_notes_that_cannot_be_kept_count_until_the_end(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.close()
    [file] = noted(tmp_path)
    folder = file.parent
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("in its place")
    notes = opened(tmp_path)
    notes.add([NAME], complete=True)
    assert notes.of([NAME]) == {NAME} and folder.read_text() == "in its place"
    notes.close()


def test_a_damaged_file_is_thrown_away(tmp_path: Path) -> None:
    opened(tmp_path).close()
    [file] = noted(tmp_path)
    file.write_bytes(b"no database" * 1000)
    for expected in (set(), {NAME}):
        notes = opened(tmp_path)
        assert notes.of([NAME]) == expected
        notes.add([NAME], complete=True)
        notes.close()


@pytest.mark.long
def test_a_file_that_another_process_is_making_is_left_to_it(tmp_path: Path) -> None:
    opened(tmp_path).close()
    [file] = noted(tmp_path)
    file.unlink()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    before = file.stat().st_ino
    notes = opened(tmp_path)
    notes.add([NAME], complete=True)
    notes.close()
    assert file.stat().st_ino == before
    other.execute("COMMIT")
    other.close()
