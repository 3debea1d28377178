"""The form of a job's log: what is written comes out again, whatever it is, and stays within its bounds."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.cli.joblog import JobLog, last
from millpond.daemon.jobs import joblog
from millpond.daemon.jobs.joblog import OWN, LogWriter, Record, parse, timestamp, without_overwritten

OUT, ERR = b"stdout", b"stderr"


def written(folder: Path, stream: bytes = OUT) -> bytes:
    reader = JobLog(folder)
    try:
        records = reader.read()
    finally:
        reader.close()
    return b"".join(r.content + (b"\n" if r.whole else b"") for r in records if r.stream == stream)


def test_the_form_never_moves(tmp_path: Path) -> None:
    log = LogWriter(str(tmp_path), clock=lambda: 1_795_838_706_123_456_789)
    log.feed(OUT, b"a line\nand \xff")
    log.feed(ERR, "w\u00f6rt\n".encode())
    log.flush()
    log.feed(OUT, b" more\n")
    log.note("cancelled\nx")
    log.close()
    log.close()
    now = b"2026-11-28T04:05:06.123456789Z"
    assert (tmp_path / "log").read_bytes().splitlines() == [
        now + b" stdout F a line",
        now + " stderr F w\u00f6rt".encode(),
        now + b" stdout P and \xff",
        now + b" stdout F  more",
        now + b" millpond F cancelled\\nx",
    ]
    assert parse(b"torn") is None and parse(now + b" stdout X a\n") is None and parse(now + b" stdout F a") is None
    assert parse(now + b" stdout P \n") == Record(now, OUT, False, b"")


@given(st.lists(st.tuples(st.sampled_from([OUT, ERR]), st.binary(max_size=200), st.booleans()), max_size=30))
def test_what_a_job_writes_comes_out_again(
    tmp_path_factory: pytest.TempPathFactory, feeds: list[tuple[bytes, bytes, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = LogWriter(str(folder))
    for stream, data, flush in feeds:
        log.feed(stream, data.replace(b"\r", b"."))
        if flush:
            log.flush()
        assert (log.due is None) == (not any(log._pending.values()))
    log.close()
    for stream in (OUT, ERR):
        fed = b"".join(data.replace(b"\r", b".") for found, data, _ in feeds if found == stream)
        assert written(folder, stream) == fed


def on_a_screen(data: bytes) -> list[bytes]:
    """Lines as a terminal shows them: a carriage return goes to the beginning, later text lies over earlier."""
    lines = []
    for line in data.split(b"\n"):
        shown = bytearray()
        for part in line.split(b"\r"):
            shown[: len(part)] = part
        lines.append(bytes(shown))
    return lines


@given(st.lists(st.text("ab\r\n", max_size=20).map(str.encode), max_size=10), st.data())
def test_a_screen_shows_the_same_without_what_was_overwritten(
    tmp_path_factory: pytest.TempPathFactory, feeds: list[bytes], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = LogWriter(str(folder))
    for each in feeds:
        log.feed(OUT, each)
        if data.draw(st.booleans()):
            log.flush()
    log.close()
    assert on_a_screen(written(folder)) == on_a_screen(b"".join(feeds))


def test_a_progress_bar_of_a_day_is_small(tmp_path: Path) -> None:
    log = LogWriter(str(tmp_path))
    for step in range(100_000):
        log.feed(OUT, b"\r%3d%%|####      | %6d/100000" % (step // 1000, step))
        if step % 1000 == 0:
            log.flush()
    log.feed(OUT, b"\ndone\n")
    log.close()
    assert (tmp_path / "log").stat().st_size < 20_000
    assert written(tmp_path).endswith(b"\r 99%|####      |  99999/100000\ndone\n")
    assert without_overwritten(b"abc\r", begins_line=True) == b"abc\r"
    assert without_overwritten(b"abc\rd", begins_line=True) == b"abc\rd"
    assert without_overwritten(b"abc\rdefg", begins_line=True) == b"\rdefg"
    assert without_overwritten(b"abc\rdefg", begins_line=False) == b"abc\rdefg"


def test_a_full_part_is_begun_anew_and_says_what_is_gone(tmp_path: Path) -> None:
    log = LogWriter(str(tmp_path), part_bytes=1)  # as small as it may be
    reader = JobLog(tmp_path)
    followed: list[Record] = []
    for number in range(5000):
        log.feed(OUT, b"line %d\n" % number)
        if number % 500 == 0:
            followed.extend(reader.read())
    log.close()
    followed.extend(reader.read())
    reader.close()
    sizes = [(tmp_path / name).stat().st_size for name in ("log", "log.1")]
    assert max(sizes) <= joblog.MIN_PART_BYTES
    kept = written(tmp_path).splitlines()
    assert kept[-1] == b"line 4999" and 1000 < len(kept) < 3000
    assert kept == [b"line %d" % n for n in range(5000 - len(kept), 5000)]
    # Who follows it quickly enough misses nothing.
    assert [r.content for r in followed if r.stream == OUT] == [b"line %d" % n for n in range(5000)]
    assert not [r for r in followed if r.stream == OWN]
    # Who comes later is told first that the beginning is gone, once.
    late = JobLog(tmp_path)
    later = late.read()
    late.close()
    [told] = [at for at, r in enumerate(later) if r.stream == OWN]
    assert told == 0 and f": {log.dropped} bytes from before were dropped".encode() in later[0].content
    assert log.bytes == sum(len(b"line %d\n" % n) for n in range(5000)) and log.lost == 0


def test_a_full_disk_is_told_when_there_is_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LogWriter(str(tmp_path))
    log.feed(OUT, b"one\n")
    before = (tmp_path / "log").read_bytes()
    os.set_inheritable(log._fd, False)
    full = os.open("/dev/full", os.O_WRONLY)
    good = os.dup(log._fd)
    os.dup2(full, log._fd, inheritable=False)
    log.feed(OUT, b"two\n")
    log.feed(OUT, b"three\n")
    os.dup2(good, log._fd, inheritable=False)
    os.close(full)
    os.close(good)
    assert (tmp_path / "log").read_bytes() == before and log.lost > 80
    log.feed(OUT, b"at once\n")  # the disk is left alone for a second
    log._retry_at = time.monotonic()
    log.feed(OUT, b"four\n")
    log.close()
    assert written(tmp_path) == b"one\nfour\n"
    [told] = written(tmp_path, OWN).splitlines()
    assert told == b"%d bytes of the log are not here: they could not be written" % log.lost


def test_the_last_lines() -> None:
    def record(content: str, whole: bool = True) -> Record:
        return Record(b"t", OUT, whole, content.encode())

    records = [record("a"), record("b1", False), record("b2"), record("c"), record("d", False)]
    assert last(records, 0) == records[4:]
    assert last(records, 1) == records[3:]
    assert last(records, 2) == records[1:]
    assert last(records, 9) == records
    assert timestamp(0) == b"1970-01-01T00:00:00.000000000Z"
