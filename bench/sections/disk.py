"""Disk that a second version takes which differs from the first by 1 %.

The figure is growth in percent of what the first version took. The second version is read back (of DVC: by checkout), so
that nothing is counted that could not be had again.
"""

from __future__ import annotations

import time

from bench.context import Context
from bench.data import LABELS, DataSet, edit
from bench.peers import Peer, Plain, Squash
from bench.projects import Dvc, Millpond
from bench.reading import check
from bench.sections.reads import peers

SECTION = "disk"
SETS = ("small", "shard", "csv")
# A daemon makes folders of what was stored when its caller has been answered: they count.
SETTLE_S = 1.0


def measure(context: Context) -> None:
    """Each data set and its edited copy, one after the other in one repository a tool. Sizes are exact: one run."""
    # Images for squashfuse and for the kernel are the same; plain files need no measuring.
    tools = [tool for tool in peers(context, SECTION) if not isinstance(tool, Plain) and not _kernels(tool)]
    dvc = Dvc(context.folder / "dvc")
    dvc.init()
    for name, made in context.data.items():
        if name not in SETS:
            continue
        second = edit(made, context.folder / f"second-{name}")
        for tool in tools:
            _peer(context, tool, made, second)
        _dvc(context, dvc, made, second)


def _kernels(tool: Peer) -> bool:
    return isinstance(tool, Squash) and tool.kernel


def _peer(context: Context, tool: Peer, made: DataSet, second: DataSet) -> None:
    used = [tool.disk()]
    # What has versions has both under one name, as people use it; the others make two archives.
    names = [made.name] * 2 if isinstance(tool, Millpond) else [f"{made.name}-1", f"{made.name}-2"]
    for name, version in zip(names, (made, second), strict=True):
        tool.store(version.root, name)
        time.sleep(SETTLE_S)
        used.append(tool.disk())
    mounted = tool.mount(names[-1], context.place(tool.name))
    try:
        checked = check(mounted.root, second)
    finally:
        mounted.close()
    _tell(context, tool.name, made, used, checked)


def _dvc(context: Context, dvc: Dvc, made: DataSet, second: DataSet) -> None:
    used = [dvc.disk()]
    for version in (made, second):
        dvc.take(version.root, made.name)
        dvc.command("add", "-q", made.name)
        used.append(dvc.disk())
    dvc.drop(made.name)
    dvc.command("checkout", "-q", f"{made.name}.dvc")
    _tell(context, dvc.name, made, used, check(dvc.repo / made.name, second))


def _tell(context: Context, tool: str, made: DataSet, used: list[int], checked: int) -> None:
    """`used`: bytes before, with the first version, with both."""
    first, growth = used[1] - used[0], used[2] - used[1]
    label, tell = LABELS[made.name], context.figures.tell
    share, more = 100 * first / made.size, 100 * growth / max(first, 1)
    tell(SECTION, f"first version, of its size, {label}", tool, share, checked=checked, unit="%")
    tell(SECTION, f"second version, more than the first, {label}", tool, more, checked=checked, unit="%")
