"""How numbers, times and names are shown to people. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from millpond.daemon.settings import parsed_size as parsed_size

# Names in a sentence.
NAMED = 3
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_BINARY = ("", "k", "M", "G", "T", "P")
_SPANS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def count(number: int) -> str:
    """A count with thousands apart: 1,797."""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """`1 file`, `3 files`."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def them(number: int) -> str:
    """The pronoun for so many things."""
    return "it" if number == 1 else "them"


def they_are(number: int) -> str:
    """The same as a subject."""
    return "it is" if number == 1 else "they are"


def some(names: Sequence[str]) -> str:
    """The first few of these, for a sentence: `'a', 'b', 'c' and 4 more`."""
    return ", ".join(names[:NAMED]) + (f" and {count(len(names) - NAMED)} more" if len(names) > NAMED else "")


def size(number: float) -> str:
    """Bytes in decimal units, three significant digits: 999 B, 1.02 kB, 20.5 MB."""
    unit = 0
    value = float(number)
    # 999.5 would be shown as 1000 in its unit.
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    if unit == 0:
        return f"{value:.0f} B"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {_UNITS[unit]}"


def binary_size(number: int) -> str:
    """Bytes as DVC's lists show them: 999, 4.00k, 20.5M, in units of 1024 with three significant digits."""
    value, unit = float(number), 0
    while value >= 999.5 and number >= 1024 and unit < len(_BINARY) - 1:
        value /= 1024
        unit += 1
    if unit == 0:
        return f"{value:.0f}"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}{_BINARY[unit]}"


def duration(seconds: float) -> str:
    """A span of time in its two largest units: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 4 d 1 h."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    for number, (unit, name) in enumerate(_SPANS):
        if whole >= unit:
            rest = whole % unit // _SPANS[number + 1][0] if number + 1 < len(_SPANS) else 0
            return f"{whole // unit} {name}" + (f" {rest} {_SPANS[number + 1][1]}" if rest else "")
    raise AssertionError("ten seconds are more than one")


def printable(text: str) -> str:
    """The text with control characters escaped, so that a file's name cannot move the cursor or add a line."""
    if text.isprintable() or not any(map(_is_control, text)):
        return text
    return "".join([_escaped(char) if _is_control(char) or char == "\\" else char for char in text])


def shortened(path: str, most: int = 32) -> str:
    """The end of a path that is longer, from a slash on where there is one: `.../alice/project`."""
    if len(path) <= most:
        return path
    end = path[3 - most :]
    return "..." + (end[end.index("/") :] if "/" in end else end)


def shell_quoted(path: str) -> str:
    """The path as one word of a POSIX shell that can be pasted; control characters in bash's `$'...'` form."""
    if not any(_is_control(char) for char in path):
        import shlex

        return shlex.quote(path)
    return "$'" + printable(path).replace("'", "\\'") + "'"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, pad: int = 0) -> list[str]:
    """Lines of left-aligned columns, two spaces apart, at least `pad` wider than their heads; nothing but the header for no
    rows."""
    widths = [max(len(head) + pad, *(len(row[column]) for row in rows), 0) for column, head in enumerate(header)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table as GitHub's Markdown has them, as wide as DVC makes them."""
    widths = [max(len(head) + 2, *(len(row[column]) for row in rows), 0) for column, head in enumerate(header)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, *rows]
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _is_control(char: str) -> bool:
    # C0, DEL, C1. Lone surrogates are undecodable bytes of names: they go out as those bytes.
    return ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0


def _escaped(char: str) -> str:
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}
    return named.get(char) or f"\\x{ord(char):02x}"
