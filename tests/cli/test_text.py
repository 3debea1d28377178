"""Numbers, times and names as people see them."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.cli import text


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1024, "1.02 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (20_500_000, "20.5 MB"),
        (10**18, "1000 PB"),
    ],
)
def test_size(number: int, shown: str) -> None:
    assert text.size(number) == shown


@given(st.integers(0, 10**17), st.integers(0, 10**17))
def test_size_is_at_most_three_digits_and_grows(a: int, b: int) -> None:
    def value(shown: str) -> float:
        number, unit = shown.split(" ")
        assert len(number.replace(".", "")) <= 3
        return float(number) * float(1000 ** ["B", "kB", "MB", "GB", "TB", "PB"].index(unit))

    small, large = sorted((a, b))
    assert value(text.size(small)) <= value(text.size(large))
    assert value(text.size(a)) == pytest.approx(a, rel=0.006)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0 s"),
        (0.04, "0 s"),
        (0.44, "0.4 s"),
        (2.0, "2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (86400 * 4 + 3700, "4 d 1 h"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_plural() -> None:
    assert text.plural(1, "file") == "1 file"
    assert text.plural(1797, "file") == "1,797 files"


@given(st.text())
def test_printable_is_one_line_without_control_characters(value: str) -> None:
    shown = text.printable(value)
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in shown)
    if not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in value):
        assert shown == value


def test_printable_tells_a_backslash_from_an_escape() -> None:
    assert text.printable("a\nb") == "a\\nb"
    assert text.printable("a\\n\x1b[0mb") == "a\\\\n\\x1b[0mb"
    assert text.printable("a\\nb") == "a\\nb"


def test_quoted_paths_mean_themselves_to_a_shell() -> None:
    paths = [
        "plain",
        "two words",
        "it's",
        "$HOME",
        "new\nline",
        "tab\tand 'quote'",
        "back\\slash\x01",
        "-dash",
        "é\x7f",
    ]
    for path in paths:
        command = ["bash", "-c", f"printf %s {text.shell_quoted(path)}"]
        assert subprocess.run(command, capture_output=True, check=True).stdout.decode() == path


def test_table_aligns_its_columns() -> None:
    assert text.table(["A", "LONG"], [["xyz", "1"], ["", "22"]]) == ["A    LONG", "xyz  1", "     22"]
