"""The daemon's log: its last lines, what is added, each line as text."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millpond.cli import logs


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200).map(lambda data: data.replace(b"\r", b"\n")), st.integers(0, 12))
def test_last_lines_are_the_last_whole_lines(tmp_path: Path, data: bytes, count: int) -> None:
    path = tmp_path / "log"
    path.write_bytes(data)
    whole = [line for line in data.split(b"\n")[:-1]]
    lines, (inode, offset) = logs.last_lines(path, count)
    assert [line[:-1] for line in lines] == (whole[-count:] if count else [])
    assert offset == data.rfind(b"\n") + 1
    assert inode == path.stat().st_ino


def test_last_lines_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"%08d %s\n" % (number, b"x" * 200) for number in range(3000)))
    lines, _ = logs.last_lines(path, 700)
    assert [int(line[:8]) for line in lines] == list(range(2300, 3000))


def test_following_goes_on_across_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\nhalf")
    _, position = logs.last_lines(path, 1)
    lines = logs.follow_lines(path, position, pause=lambda: None)
    with open(path, "ab") as file:
        file.write(b" whole\nsecond\n")
    assert [next(lines), next(lines)] == [b"half whole\n", b"second\n"]
    os.rename(path, tmp_path / "log.1")
    path.write_bytes(b"rotated\n")
    assert next(lines) == b"rotated\n"
    os.truncate(path, 0)
    with open(path, "ab") as file:
        file.write(b"again\n")
    assert next(lines) == b"again\n"


def test_following_waits_for_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "log"
    pauses = []

    def pause() -> None:
        pauses.append(path.exists())
        path.write_bytes(b"first\n")

    assert next(logs.follow_lines(path, None, pause=pause)) == b"first\n"
    assert pauses == [False]


def test_a_line_as_text() -> None:
    entry = {
        "time": "2026-03-01T09:15:02.123Z",
        "level": "info",
        "logger": "jobs",
        "text": "add",
        "request": "3-1",
        "uid": 1000,
        "seconds": 0.25,
    }
    assert logs.shown(json.dumps(entry)) == "2026-03-01T09:15:02.123Z info    jobs   [3-1] add uid=1000 seconds=0.25"
    del entry["request"]
    assert logs.shown(json.dumps(entry | {"traceback": "Traceback:\n  x"})).endswith(
        "add uid=1000 seconds=0.25\n    Traceback:\n      x"
    )


@given(st.text())
def test_what_is_no_entry_is_shown_as_it_is(line: str) -> None:
    assert logs.shown(line) == line
