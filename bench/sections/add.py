"""add, status and checkout beside DVC.

Data lies in the page cache, as after it was written. DVC does not fsync; millpond is measured with fsync, as it ships,
and without. millpond's daemon runs when `add` begins (its start is a figure of the section `startup`).
"""

from __future__ import annotations

from bench.context import Context
from bench.data import LABELS, DataSet
from bench.host import BenchError
from bench.projects import Dvc, Millpond
from bench.reading import check

SECTION = "add, status, checkout"
TARGET = "data"


def measure(context: Context) -> None:
    """All data sets, one after the other; both tools' pointers must be the same."""
    millpond = Millpond(context.folder / "add-millpond")
    context.stack.callback(millpond.close)
    dvc = Dvc(context.folder / "add-dvc")
    millpond.init()
    dvc.init()
    for made in context.data.values():
        for project in (millpond, dvc):
            project.take(made.root, TARGET)
        for tool in context.rounds(["millpond", "dvc", "millpond, no fsync"]):
            if tool == "dvc":
                _run(context, dvc, made, tool)
            else:
                _run(context, millpond, made, tool)
        if millpond.pointer(TARGET) != dvc.pointer(TARGET):
            raise BenchError(f"the pointers of {made.name} differ: {millpond.pointer(TARGET)}, {dvc.pointer(TARGET)}")
        for project in (millpond, dvc):
            project.drop(TARGET)
    millpond.close()


def _run(context: Context, project: Millpond | Dvc, made: DataSet, tool: str) -> None:
    """One round: add, status, remove, checkout, and every byte looked at."""
    tell, host, what = context.figures.tell, context.host, LABELS[made.name]
    if isinstance(project, Millpond):
        project.reset(fsync="no fsync" not in tool)
    else:
        project.reset()
    host.settle()
    added = project.command("add", "-q", TARGET)
    peak = project.daemon_peak() if isinstance(project, Millpond) else added.peak
    host.settle()
    if made.name == "small":
        # The first one may still have to look at files that were written in the clock tick of `add`.
        project.command("status", "-q")
        status_s = project.command("status", "-q").seconds
    project.drop(TARGET)
    host.settle()
    checkout = project.command("checkout", "-q", f"{TARGET}.dvc" if isinstance(project, Dvc) else TARGET)
    checked = check(project.repo / TARGET, made)
    tell(SECTION, f"add, {what}", tool, added.seconds, checked=checked, volume=made.size)
    tell(SECTION, f"memory of add, {what}", tool, peak / 2**20, checked=checked, unit="MiB")
    if "no fsync" in tool:
        return
    if made.name == "small":
        tell(SECTION, f"status, {what}", tool, status_s, checked=checked)
    tell(SECTION, f"checkout, {what}", tool, checkout.seconds, checked=checked, volume=made.size)
