"""What every section of the bench is given."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.data import DataSet
from bench.figures import Figures
from bench.host import Host

T = TypeVar("T")


@dataclass(slots=True)
class Context:
    """`stack` undoes at the end what a section leaves running. `share_s` is the time after which a section starts no
    further run (the first one is always whole)."""

    folder: Path
    host: Host
    data: dict[str, DataSet]
    figures: Figures
    stack: ExitStack
    runs: int
    share_s: float
    scale: float

    def place(self, name: str) -> Path:
        """An empty directory to mount at."""
        path = self.folder / "mnt" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def rounds(self, tools: Sequence[T]) -> Iterator[T]:
        """Every tool once a run, in an order that turns, so that none always comes first; bounded by `share_s`."""
        began = time.monotonic()
        for number in range(self.runs):
            if number and time.monotonic() - began > self.share_s * number / (number + 1):
                return
            turn = number % len(tools)
            yield from [*tools[turn:], *tools[:turn]]
