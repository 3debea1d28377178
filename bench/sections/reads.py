"""Reads through mounts, cold and warm, beside the disk's own files, squashfs, Borg and restic.

Also what a training loader does in its first epoch: it lists the tree, then reads it shuffled. The listing counts, as for it a mount brings
what others must look up later; millpond's other engines take part.

Cold: mounted anew (so that no server remembers anything), page cache dropped. Warm: the third reading, because at the second
one the kernel still moves pages from one of its lists to another, each page once.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from bench.context import Context
from bench.data import LABELS, DataSet
from bench.host import BenchError
from bench.peers import Mounted, Peer, installed
from bench.projects import Millpond
from bench.reading import COMMON, LARGE, Reading, find, list_and_read, read, read_together
from millpond.daemon.mounts.kernel import why_no_image

SECTION = "reads"
# Large files, and small files, that are read at once.
STREAMS, READERS = 4, (4, 16)
# Listed, then shuffled, by one reader and by several.
LISTED = {
    readers: f"{LABELS['small']} listed, then shuffled" + (f", {readers} readers" if readers > 1 else "")
    for readers in (1, *READERS)
}
PORTABLE, IMAGE = "millpond, pyfuse3", "millpond, erofs"


class ByEngine:
    """millpond's mounts by another engine than it chooses, over the same store."""

    def __init__(self, name: str, millpond: Millpond) -> None:
        self.name = name
        self._millpond = millpond

    def store(self, tree: Path, version: str) -> None:
        """It is there."""

    def mount(self, version: str, place: Path) -> Mounted:
        return self._millpond.mount(version, place, "--engine", self.name.split(", ")[1])

    def backing(self) -> list[Path]:
        return self._millpond.backing()

    def disk(self) -> int:
        return self._millpond.disk()


def with_image(tools: list[Peer]) -> list[Peer]:
    """With the engine that has the kernel read an image, where that may be."""
    images: list[Peer] = [ByEngine(IMAGE, tool) for tool in tools if isinstance(tool, Millpond) and not why_no_image()]
    return [*tools, *images]


def peers(context: Context, name: str) -> list[Peer]:
    """millpond with an empty store, then all peers that are installed."""
    folder = context.folder / name
    folder.mkdir()
    millpond = Millpond(folder / "millpond")
    context.stack.callback(millpond.close)
    millpond.init()
    return [millpond, *installed(folder, context.host.disk_type())]


def measure(context: Context) -> None:
    """Small files in order, shuffled, by several readers, and found; a large file and a CSV in one stream; four at once."""
    tools = peers(context, SECTION)
    for made in context.data.values():
        for tool in tools:
            tool.store(made.root, made.name)
    for made in context.data.values():
        for tool in context.rounds(with_image(tools)):
            for label, reading in _readings(made).items():
                _cold_and_warm(context, tool, made, label, reading)
            if made.name == "small":
                _find(context, tool, made)
        if made.name == "small":
            _listed(context, tools, made)
        if made.name == "shard":
            for tool in context.rounds(tools[:2]):
                _handed_over(context, tool, made)


def _readings(made: DataSet) -> dict[str, Callable[[Path], Reading]]:
    """Ways to read a data set: label -> what to do with its root."""
    label = LABELS[made.name]
    if made.name == "small":
        return {
            f"{label} in order": lambda root: read(root, made, made.paths),
            f"{label} shuffled": lambda root: read(root, made, made.shuffled()),
        } | {
            f"{label} shuffled, {readers} readers": partial(
                read_together, made=made, paths=made.shuffled(), readers=readers
            )
            for readers in READERS
        }
    if made.name == "shards":
        return {f"{label} at once": lambda root: read_together(root, made, made.paths, STREAMS)}
    return {
        f"{label} in sequence, 128 KiB reads": lambda root: read(root, made, made.paths, COMMON),
        f"{label} in sequence, 1 MiB reads": lambda root: read(root, made, made.paths, LARGE),
    }


def _cold_and_warm(context: Context, tool: Peer, made: DataSet, label: str, reading: Callable[[Path], Reading]) -> None:
    mounted = tool.mount(made.name, context.place(tool.name))
    try:
        context.host.forget(*tool.backing())
        for state in ("cold", "", "warm"):
            got = reading(mounted.root)
            if not state:
                continue
            context.figures.tell(
                SECTION, f"{label}, {state}", tool.name, got.seconds, checked=got.checked, volume=made.size
            )
    finally:
        mounted.close()


def _listed(context: Context, tools: list[Peer], made: DataSet) -> None:
    """Cold."""
    others: list[Peer] = [
        ByEngine(PORTABLE, tool) for tool in tools if isinstance(tool, Millpond) and find_spec("pyfuse3") is not None
    ]
    for tool in context.rounds([*with_image(tools), *others]):
        for readers, label in LISTED.items():
            mounted = tool.mount(made.name, context.place(tool.name))
            try:
                context.host.forget(*tool.backing())
                got = list_and_read(mounted.root, made, made.shuffled(), readers)
            finally:
                mounted.close()
            context.figures.tell(
                SECTION, f"{label}, cold", tool.name, got.seconds, checked=got.checked, volume=made.size
            )


def _handed_over(context: Context, tool: Peer, made: DataSet) -> None:
    """Warm and cold, once the kernel reads the files by itself; the disk's own files again beside it."""
    place = context.place(tool.name)
    if isinstance(tool, Millpond):
        mounted = tool.mount(made.name, place, "--materialize", f"{2 * made.size}B")
    else:
        mounted = tool.mount(made.name, place)
    try:
        for path in [*made.paths, *made.paths] if isinstance(tool, Millpond) else ():
            os.close(os.open(mounted.root / path, os.O_RDONLY))
        if isinstance(tool, Millpond):
            _wait_handed_over(mounted.root, len(made.files))
        for label, reading in _readings(made).items():
            for _ in range(3):
                got = reading(mounted.root)
            context.figures.tell(
                SECTION, f"{label}, warm, handed over", tool.name, got.seconds, checked=got.checked, volume=made.size
            )
            context.host.forget(*tool.backing())
            got = reading(mounted.root)
            context.figures.tell(
                SECTION, f"{label}, cold, handed over", tool.name, got.seconds, checked=got.checked, volume=made.size
            )
    finally:
        mounted.close()


def _wait_handed_over(root: Path, count: int) -> None:
    """Until the kernel reads this many files by itself."""
    until = time.monotonic() + 120
    while int((found := json.loads((root / ".millpond/stats").read_text()))["passthrough_files"]) < count:
        if time.monotonic() > until or found["passthrough"] != "on":
            raise BenchError(f"the kernel did not take the files over: {found['passthrough']}")
        time.sleep(0.1)


def _find(context: Context, tool: Peer, made: DataSet) -> None:
    mounted = tool.mount(made.name, context.place(tool.name))
    try:
        context.host.forget(*tool.backing())
        for state in ("cold", "warm"):
            seconds, files, size = find(mounted.root)
            if (files, size) != (len(made.files), made.size):
                raise BenchError(
                    f"{tool.name} lists {files} files of {size} bytes, not {len(made.files)} of {made.size}"
                )
            context.figures.tell(SECTION, f"find, {LABELS[made.name]}, {state}", tool.name, seconds, checked=size)
    finally:
        mounted.close()
