"""What a request's notifications become."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.cli.console import Console
from millpond.cli.progress import MAX_SAMPLES, Meter, Reporter, waiting_text


def told(done: int, total: int | None, **more: object) -> dict[str, object]:
    return {"phase": "storing", "bytes": [done, total], **more}


def test_bytes_files_rate_and_time_left() -> None:
    meter = Meter()
    meter.update(told(0, 100_000_000, files=[0, 1000]), 0.0)
    meter.update(told(20_000_000, 100_000_000, files=[250, 1000], note="a/b"), 2.0)
    assert meter.detail() == "250 of 1,000 files, 20.0 MB of 100 MB, 10.0 MB/s, 8 s left, a/b"
    assert meter.fraction() == pytest.approx(0.2)


def test_files_alone() -> None:
    meter = Meter()
    meter.update({"phase": "reading", "files": [0, 300]}, 0.0)
    meter.update({"phase": "reading", "files": [100, 300]}, 1.0)
    assert meter.detail() == "100 of 300 files, 100/s, 2 s left"


def test_what_is_not_known_is_not_shown() -> None:
    meter = Meter()
    assert (meter.detail(), meter.fraction(), meter.left_s()) == ("", None, None)
    meter.update(told(5, None), 0.0)
    meter.update(told(1005, None), 1.0)
    assert meter.detail() == "1.00 kB, 1.00 kB/s"
    assert meter.fraction() is None


def test_a_total_of_files_counts_where_bytes_have_none() -> None:
    meter = Meter()
    meter.update(told(10, None, files=[1, 4]), 0.0)
    assert meter.fraction() == 0.25


def test_the_rate_is_that_of_the_last_seconds() -> None:
    meter = Meter()
    for second in range(20):
        meter.update(told(min(second, 10) * 1000, 20_000), float(second))
    assert meter.rate() == 0.0
    assert meter.left_s() is None, "a stall has no end to tell"


def test_a_new_phase_begins_anew() -> None:
    meter = Meter()
    meter.update(told(0, 100), 0.0)
    meter.update(told(90, 100), 1.0)
    meter.update({"phase": "writing", "bytes": [1, 100]}, 2.0)
    assert meter.rate() is None
    assert meter.detail() == "1 B of 100 B"


@given(st.lists(st.tuples(st.integers(0, 10**12), st.one_of(st.none(), st.integers(0, 10**12))), max_size=200))
def test_any_order_of_amounts_is_shown(amounts: list[tuple[int, int | None]]) -> None:
    meter = Meter()
    for number, (done, total) in enumerate(amounts):
        meter.update(told(done, total), number / 10)
        assert len(meter._samples) <= MAX_SAMPLES
        fraction, left = meter.fraction(), meter.left_s()
        assert fraction is None or 0 <= fraction <= 1
        assert left is None or left >= 0
        assert "\n" not in meter.detail()


def test_waiting_says_for_whom_and_how_long() -> None:
    params = {"for": "add by alice (pid 12)", "since_s": 3.0}
    assert waiting_text(params) == "waiting for add by alice (pid 12), 3 s"
    assert waiting_text({"for": "add by alice (pid 12)", "since_s": 0.0}) == "waiting for add by alice (pid 12)"


def console(**settings: bool) -> tuple[Console, io.StringIO]:
    err = io.StringIO()
    made = Console(io.StringIO(), err, terminal=settings.get("terminal", False))
    made.quiet = settings.get("quiet", False)
    return made, err


def test_without_a_terminal_waiting_is_said_once_for_each_reason() -> None:
    made, err = console()
    with Reporter(made) as reporter:
        for since in (0, 1, 2):
            reporter.notified("$/waiting", {"for": "add by alice (pid 12)", "since_s": since})
        reporter.notified("$/waiting", {"for": "checkout by bob (pid 13)", "since_s": 3})
        reporter.notified("$/progress", told(5, 10))
    assert err.getvalue() == "waiting for add by alice (pid 12)\nwaiting for checkout by bob (pid 13)\n"


def test_quiet_says_nothing() -> None:
    made, err = console(quiet=True, terminal=True)
    with Reporter(made) as reporter:
        reporter.notified("$/waiting", {"for": "add by alice (pid 12)"})
        reporter.notified("$/progress", told(5, 10))
        reporter.notified("$/log", {"level": "warning", "text": "w"})
        reporter.cancelling()
    assert err.getvalue() == ""


def test_log_lines_by_level() -> None:
    made, err = console()
    lines = [("warning", "w\n2"), ("info", "i"), ("debug", "d"), ("new-level", "n")]
    with Reporter(made) as reporter:
        for level, line in lines:
            reporter.notified("$/log", {"level": level, "text": line})
        reporter.notified("$/unheard-of", {})
    assert err.getvalue() == "WARNING: w\\n2\n"
    made.verbose = 1
    with Reporter(made) as reporter:
        for level, line in lines:
            reporter.notified("$/log", {"level": level, "text": line})
    assert err.getvalue().endswith("WARNING: w\\n2\ni\nDEBUG: d\nn\n")


def test_on_a_terminal_the_line_is_drawn_and_taken_away() -> None:
    made, err = console(terminal=True)
    with Reporter(made) as reporter:
        reporter.notified("$/waiting", {"for": "add by [bold]alice[/] (pid 12)", "since_s": 3})
        reporter.notified("$/progress", told(500, 1000))
    drawn = err.getvalue()
    assert "waiting for add by [bold]alice[/] (pid 12), 3 s" in drawn
    assert drawn.endswith("\x1b[2K"), "the line is erased at the end"


@pytest.mark.parametrize("verbose", [0, 1])
def test_on_a_terminal_with_v_a_line_that_stays_says_once_for_whom_is_waited(verbose: int) -> None:
    made, err = console(terminal=True)
    made.verbose = verbose
    with Reporter(made) as reporter:
        for since in (3, 8):
            reporter.notified("$/waiting", {"for": "remote 'team' to answer (push)", "since_s": since})
    assert err.getvalue().count("waiting for remote 'team' to answer (push)\n") == verbose
