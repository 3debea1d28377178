"""One mount served by several processes: readers of what the store has in the page cache, and the mount not yet.

The readers are threads of one process, so they take one core. What several processes can bring is what the cores beside it can: on two, at
most what the holder alone leaves of the second.
"""

from __future__ import annotations

import json
import os
import time

from bench.context import Context
from bench.data import LABELS, DataSet
from bench.host import BenchError
from bench.projects import Millpond
from bench.reading import read_together

SECTION = "serving"
READERS = 4
# Processes; more than there are cores for tell nothing.
COUNTS = (1, 2, 4)
_BEGIN_S = 30.0


def measure(context: Context) -> None:
    """Small files shuffled, and large ones, by several readers at once, for each number of processes."""
    folder = context.folder / SECTION
    folder.mkdir()
    millpond = Millpond(folder / "millpond")
    context.stack.callback(millpond.close)
    millpond.init()
    for made in context.data.values():
        millpond.store(made.root, made.name)
        _read(context, millpond, made, 1, tell=False)  # from the disk
        for count in context.rounds([each for each in COUNTS if each <= max(2, os.cpu_count() or 2)]):
            _read(context, millpond, made, count)


def _read(context: Context, tool: Millpond, made: DataSet, count: int, *, tell: bool = True) -> None:
    mounted = tool.mount(made.name, context.place(tool.name), "--serving", str(count))
    try:
        until = time.monotonic() + _BEGIN_S
        while len((found := json.loads((mounted.root / ".millpond/stats").read_text()))["servers"]) < count - 1:
            if found["serving_why"] or time.monotonic() > until:
                raise BenchError(f"no {count} processes serve: {found['serving_why']}")
            time.sleep(0.1)
        while count > 1 and found["served"] == 0:  # they have begun when one has answered
            if time.monotonic() > until:
                raise BenchError("no server answers")
            for number in range(100):
                (mounted.root / f"none-{time.monotonic()}-{number}").exists()
            found = json.loads((mounted.root / ".millpond/stats").read_text())
        got = read_together(mounted.root, made, made.shuffled(), READERS)
        if tell:
            label = f"{LABELS[made.name]}, {READERS} readers, {count} process{'' if count == 1 else 'es'}"
            context.figures.tell(SECTION, label, tool.name, got.seconds, checked=got.checked, volume=made.size)
    finally:
        mounted.close()
