"""A plot in a terminal: lines of points in Braille, each character 2 by 4 dots. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from millpond.cli import text
from millpond.cli.render import Paint, plain

WIDTH, HEIGHT = 60, 12
# What each line is drawn in, where colours are on.
_STYLES = ("green", "red", "yellow", "bold", "dim")
# The dots of a Braille character by (column, row).
_DOTS = {(0, 0): 1, (0, 1): 2, (0, 2): 4, (1, 0): 8, (1, 1): 16, (1, 2): 32, (0, 3): 64, (1, 3): 128}
Points = list[tuple[float, float]]


def lines(name: str, points: dict[str, Any], *, paint: Paint = plain) -> Iterator[str]:
    """{x, y, rows, series} of a plot as lines of text: its name, the drawing with the ends of its axes, what each line is."""
    yield text.printable(name)
    named = _named(points)
    if not named:
        yield "  no numbers to draw"
        return
    xs = [x for each in named.values() for x, _ in each]
    ys = [y for each in named.values() for _, y in each]
    across, up = (min(xs), max(xs)), (min(ys), max(ys))
    drawn = _draw(named, across, up)
    heads = {0: f"{up[1]:.4g}", HEIGHT - 1: f"{up[0]:.4g}"}
    width = max(map(len, heads.values()))
    for row in range(HEIGHT):
        cells = "".join(_cell(drawn, column, row, paint) for column in range(WIDTH))
        yield f"{heads.get(row, ''):>{width}} {cells}".rstrip()
    low, high = f"{across[0]:.4g}", f"{across[1]:.4g}"
    label = f"{text.printable(str(points['x']))}"
    yield f"{'':{width}} {low} {label:^{max(WIDTH - len(low) - len(high) - 2, 0)}} {high}"
    for number, each in enumerate(named):
        yield f"{'':{width}} {paint('⣿', _STYLES[number % len(_STYLES)])} {text.printable(each)}"


def _named(points: dict[str, Any]) -> dict[str, Points]:
    """The points of each line that are numbers; a line is a revision's, of a file and field where there are several."""
    series = points["series"]
    files, fields = ({each[key] for each in series} for key in ("filename", "field"))
    found: dict[str, Points] = {}
    for row in points["rows"]:
        x, y = _number(row.get(points["x"])), _number(row.get(points["y"]))
        if x is not None and y is not None:
            parts = [
                row["rev"],
                *([row["filename"]] if len(files) > 1 else []),
                *([row["field"]] if len(fields) > 1 else []),
            ]
            found.setdefault(" ".join(map(str, parts)), []).append((x, y))
    return found


def _number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if abs(found) != float("inf") and found == found else None


def _draw(
    named: dict[str, Points], across: tuple[float, float], up: tuple[float, float]
) -> dict[tuple[int, int], tuple[int, int]]:
    """(dots, number of the line) of each character that has any."""
    place_x, place_y = _scale(across, WIDTH * 2 - 1), _scale(up, HEIGHT * 4 - 1)
    drawn: dict[tuple[int, int], tuple[int, int]] = {}
    for number, each in enumerate(named.values()):
        dots = [(place_x(x), HEIGHT * 4 - 1 - place_y(y)) for x, y in sorted(each)]
        for start, end in zip(dots, dots[1:] or dots, strict=False):
            for x, y in _line(start, end):
                cell = x // 2, y // 4
                drawn[cell] = drawn.get(cell, (0, number))[0] | _DOTS[x % 2, y % 4], number
    return drawn


def _scale(ends: tuple[float, float], most: int) -> Callable[[float], int]:
    low, high = ends
    return lambda value: round((value - low) / (high - low) * most) if high > low else most // 2


def _line(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    for step in range(steps + 1):
        yield (
            start[0] + round((end[0] - start[0]) * step / steps),
            start[1] + round((end[1] - start[1]) * step / steps),
        )


def _cell(drawn: dict[tuple[int, int], tuple[int, int]], column: int, row: int, paint: Paint) -> str:
    if (column, row) not in drawn:
        return " "
    dots, number = drawn[column, row]
    return paint(chr(0x2800 + dots), _STYLES[number % len(_STYLES)])
