"""What was measured: rows, their medians, tables in Markdown and a file of JSON.

Less is better in every unit used here, so a ratio is always `another tool's figure / millpond's`: above 1 millpond is
ahead.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

OURS = "millpond"
UNITS = ("s", "MiB", "%", "requests", "CPU s/GB")


@dataclass(slots=True)
class Row:
    """One tool at one piece of work.

    `values` are one a run, in `unit`. `volume` is the number of bytes that one run moved, 0 where a rate means nothing.
    `checked` is the number of bytes of output that were compared with what they must be, over all runs.
    """

    section: str
    work: str
    tool: str
    unit: str
    values: list[float] = field(default_factory=list)
    volume: int = 0
    checked: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.values)


class Figures:
    """Rows in the order in which they were first told."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], Row] = {}

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def tell(
        self, section: str, work: str, tool: str, value: float, *, checked: int, unit: str = "s", volume: int = 0
    ) -> None:
        """Add one run's figure to its row."""
        if unit not in UNITS:
            raise ValueError(f"unit {unit!r} is none of {UNITS}")
        row = self._rows.setdefault((section, work, tool), Row(section, work, tool, unit, volume=volume))
        row.values.append(value)
        row.checked += checked

    def median(self, work: str, tool: str) -> float | None:
        """The figure of a tool at a piece of work, None where it was not measured."""
        return next((row.median for row in self.rows if (row.work, row.tool) == (work, tool)), None)

    def tables(self) -> str:
        """One Markdown table a section: a line for each work, a column for each tool, with ratios in brackets."""
        return "\n".join(self._table(section) for section in dict.fromkeys(row.section for row in self.rows))

    def _table(self, section: str) -> str:
        rows = [row for row in self.rows if row.section == section]
        tools = list(dict.fromkeys(row.tool for row in rows))
        if OURS in tools:
            tools.insert(0, tools.pop(tools.index(OURS)))
        lines = [f"### {section}", "", f"| work | {' | '.join(tools)} |", "|---" * (len(tools) + 1) + "|"]
        for work in dict.fromkeys(row.work for row in rows):
            cells = {row.tool: row for row in rows if row.work == work}
            ours = cells[OURS].median if OURS in cells else None
            lines.append(f"| {work} | {' | '.join(_cell(cells.get(tool), ours) for tool in tools)} |")
        return "\n".join([*lines, ""])

    def save(self, path: Path, about: dict[str, object], targets: Iterable[object]) -> None:
        """Write everything as JSON."""
        rows = [asdict(row) | {"median": row.median} for row in self.rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"about": about, "rows": rows, "targets": list(targets)}, indent=1) + "\n")


def _cell(row: Row | None, ours: float | None) -> str:
    if row is None:
        return ""
    text = _number(row.median, row.unit)
    if row.volume:
        text += f", {row.volume / 1e6 / max(row.median, 1e-9):,.0f} MB/s"
    if ours is not None and ours > 0 and row.tool != OURS:
        text += f" ({row.median / ours:.2f}x)"
    return text


def _number(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
    return f"{value:.2f} {unit}" if unit == "CPU s/GB" else f"{value:.1f} {unit}"
