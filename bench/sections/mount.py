"""Time from the command until a listing is answered, and the memory of what serves the mount, for the first data set (small files)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.context import Context
from bench.data import LABELS, DataSet
from bench.host import memory
from bench.peers import Peer, Plain
from bench.projects import Millpond
from bench.reading import find, read
from bench.sections.reads import peers

SECTION = "mount"


def measure(context: Context) -> None:
    """Each tool mounts, lists, finds, reads all; millpond also while no daemon runs."""
    made = next(iter(context.data.values()))
    tools = [tool for tool in peers(context, SECTION) if not isinstance(tool, Plain)]
    for tool in tools:
        tool.store(made.root, made.name)
    for tool in context.rounds(tools):
        _served(context, tool, made)
        if isinstance(tool, Millpond):
            tool.stop()
            _until_listed(context, tool, made, "mount until ls, daemon not running")


def _served(context: Context, tool: Peer, made: DataSet) -> None:
    """Figures of one mount through its life."""
    label, tell = LABELS[made.name], context.figures.tell
    context.host.settle()
    mounted = tool.mount(made.name, context.place(tool.name))
    try:
        checked = read(mounted.root, made, made.paths[:1]).checked
        tell(SECTION, "mount until ls", tool.name, mounted.ready_s, checked=checked)
        if mounted.pid is None:
            return
        stages: dict[str, Callable[[Path], int]] = {
            "after ls": lambda root: checked,
            f"after find, {label}": lambda root: find(root)[2],
            f"after reading, {label}": lambda root: read(root, made, made.paths).checked,
        }
        for stage, work in stages.items():
            seen = work(mounted.root)
            tell(SECTION, f"memory {stage}", tool.name, memory(mounted.pid)["rss"] / 2**20, checked=seen, unit="MiB")
    finally:
        mounted.close()


def _until_listed(context: Context, tool: Peer, made: DataSet, work: str) -> None:
    context.host.settle()
    mounted = tool.mount(made.name, context.place(tool.name))
    try:
        checked = read(mounted.root, made, made.paths[:1]).checked
        context.figures.tell(SECTION, work, tool.name, mounted.ready_s, checked=checked)
    finally:
        mounted.close()
