"""Disk that a second version takes which differs from the first by 1 %.

The figure is growth in percent of what the first version took. Both versions are read back (of DVC: the second one, by
checkout), so that nothing is counted that could not be had again.
"""

from __future__ import annotations

from bench.context import Context
from bench.data import LABELS, DataSet, edit
from bench.peers import Peer, Plain
from bench.projects import Dvc
from bench.reading import check
from bench.sections.reads import peers

SECTION = "disk"
SETS = ("small", "shard", "csv")


def measure(context: Context) -> None:
    """Each data set and its edited copy, in fresh repositories. Sizes are exact: one run."""
    for name in SETS:
        made = context.data[name]
        versions = {"v1": made, "v2": edit(made, context.folder / f"second-{name}")}
        for tool in peers(context, f"disk-{name}"):
            if not isinstance(tool, Plain):
                _peer(context, tool, versions)
        dvc = Dvc(context.folder / f"disk-{name}" / "dvc")
        dvc.init()
        _dvc(context, dvc, versions)


def _peer(context: Context, tool: Peer, versions: dict[str, DataSet]) -> None:
    used: list[int] = []
    for version, made in versions.items():
        tool.store(made.root, version)
        used.append(tool.disk())
    checked = 0
    for version, made in versions.items():
        mounted = tool.mount(version, context.place(tool.name))
        try:
            checked += check(mounted.root, made)
        finally:
            mounted.close()
    _tell(context, tool.name, versions["v1"], used, checked)


def _dvc(context: Context, dvc: Dvc, versions: dict[str, DataSet]) -> None:
    used: list[int] = []
    for made in versions.values():
        dvc.take(made.root, "data")
        dvc.command("add", "-q", "data")
        used.append(dvc.disk())
    dvc.drop("data")
    dvc.command("checkout", "-q", "data.dvc")
    _tell(context, dvc.name, versions["v1"], used, check(dvc.repo / "data", versions["v2"]))


def _tell(context: Context, tool: str, made: DataSet, used: list[int], checked: int) -> None:
    first, both = used
    label, tell = LABELS[made.name], context.figures.tell
    share, growth = 100 * first / made.size, 100 * (both - first) / first
    tell(SECTION, f"first version, of its size, {label}", tool, share, checked=checked, unit="%")
    tell(SECTION, f"second version, more than the first, {label}", tool, growth, checked=checked, unit="%")
