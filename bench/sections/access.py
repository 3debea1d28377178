"""Reads at random, by mappings and by a loader's workers; incompressible data; and the processor time that a gigabyte costs.

The processor time is the reader's and the server's together; what the kernel's own threads do for squashfs and EROFS is not in it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.access import Scatter, epoch, mapped_whole, opened, scattered, scattered_mapped, skim
from bench.context import Context
from bench.data import LABELS, DataSet, examine
from bench.host import BenchError, processor_s
from bench.peers import Peer
from bench.reading import COMMON, LARGE, Reading, read
from bench.sections.reads import peers, with_image

SECTION = "access"
NOISE = "1 incompressible file"
# Random reads of each size (bytes -> how many, at scale 1).
SCATTERED = {4 << 10: 4_000, 128 << 10: 1_000}
_NOISE_BYTES = 512 << 20

Work = Callable[[Path], Reading]


def measure(context: Context) -> None:
    """Every way on every tool, cold and warm."""
    tools = peers(context, SECTION)
    ways = {
        made.name: (made, _ways(made, context.scale))
        for made in context.data.values()
        if made.name in ("small", "shard")
    }
    if "shard" in ways:
        noise = _noise(context)
        ways[noise.name] = (
            noise,
            {
                f"{NOISE} in sequence, {label}": partial(read, made=noise, paths=noise.paths, at_once=size)
                for label, size in (("128 KiB reads", COMMON), ("1 MiB reads", LARGE))
            },
        )
    for made, _ in ways.values():
        for tool in tools:
            tool.store(made.root, made.name)
    for made, found in ways.values():
        for tool in context.rounds(with_image(tools)):
            for label, way in found.items():
                _cold_and_warm(context, tool, made, label, way)
            if made.name in LABELS:
                _cost(context, tool, made)


def _ways(made: DataSet, scale: float) -> dict[str, Work]:
    """Label -> what to do with the mount's root."""
    if made.name == "small":
        return {
            "epoch of small files by 4 worker processes": partial(epoch, made=made),
            "small files by Python's open()": partial(opened, made=made),
        }
    ways: dict[str, Work] = {"1 large file by a mapping, in sequence": partial(mapped_whole, made=made)}
    for size, count in SCATTERED.items():
        scatter = Scatter.of(made, size, max(20, round(count * scale)))
        label = f"{size >> 10} KiB at random, 1 large file"
        ways[label] = partial(scattered, scatter=scatter)
        ways[f"{label}, by a mapping"] = partial(scattered_mapped, scatter=scatter)
    return ways


def _noise(context: Context) -> DataSet:
    """One file that does not compress."""
    root, rng = context.folder / "noise", random.Random("noise")
    root.mkdir()
    with open(root / "noise.bin", "wb") as file:
        for _ in range(max(1, round(_NOISE_BYTES * context.scale) >> 20)):
            file.write(rng.randbytes(1 << 20))
    return examine("noise", root)


def _cold_and_warm(context: Context, tool: Peer, made: DataSet, label: str, way: Work) -> None:
    mounted = tool.mount(made.name, context.place(tool.name))
    try:
        context.host.forget(*tool.backing())
        for state in ("cold", "", "warm"):
            got = way(mounted.root)
            if state:
                context.figures.tell(
                    SECTION, f"{label}, {state}", tool.name, got.seconds, checked=got.checked, volume=got.checked
                )
    finally:
        mounted.close()


def _cost(context: Context, tool: Peer, made: DataSet) -> None:
    """Processor time of a cold reading and of a warm one; the bytes are compared after it."""
    mounted = tool.mount(made.name, context.place(tool.name))
    label = LABELS[made.name]
    try:
        context.host.forget(*tool.backing())
        for state in ("cold", "", "warm"):
            before = time.process_time() + processor_s(mounted.pid)
            done = skim(mounted.root, made, COMMON)
            used = time.process_time() + processor_s(mounted.pid) - before
            if done != made.size:
                raise BenchError(f"{tool.name} gave {done} bytes of {made.size}")
            if state:
                work, cost = f"processor time, {label} in order, {state}", used / made.size * 1e9
                context.figures.tell(SECTION, work, tool.name, cost, checked=done, unit="CPU s/GB")
        read(mounted.root, made, made.paths)
    finally:
        mounted.close()
