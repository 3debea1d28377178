"""What the figures must be (design, section 10): judged from medians, side by side in one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.figures import OURS, Figures
from bench.sections import access, lazy, pipelines, reads, share, versions

COLD = ("squashfuse", "squashfs (kernel)", "EROFS (kernel)", "borg", "restic")
# What answers nothing but FUSE: warm, no server can be faster, so a figure is held against it with a margin for noise.
BARE, CEILING = "bare FUSE", 0.93
# The disk's file system without large folios, which FUSE has not either.
PAGES = "ext4, single pages"


@dataclass(frozen=True, slots=True)
class Target:
    """Of `work`: with `against`, that tool's figure must be at least `limit` times ours; with `beside`, ours at most `limit`
    times our figure of that other work; without both, ours at most `limit`. Ours is that of `of`."""

    work: str
    limit: float
    against: str = ""
    beside: str = ""
    of: str = OURS


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what was measured; `met` tells whether it is kept."""

    work: str
    asked: str
    measured: str
    met: bool


def targets(disk: str) -> list[Target]:
    """All targets; `disk` is the name of the tool that reads plain files."""
    streams = [f"1 large file in sequence, {at_once} reads" for at_once in ("128 KiB", "1 MiB")]
    small = [f"small files {way}" for way in ("in order", "shuffled", "shuffled, 4 readers", "shuffled, 16 readers")]
    cold = [f"{work}, cold" for work in (*small, *streams)]
    readers = (", 4 readers", ", 16 readers")
    random_peers = ("squashfs (kernel)", "EROFS (kernel)", disk)
    return [
        Target("add, small files", 4, "dvc"),
        Target("add, 1 large file", 2, "dvc"),
        Target("add, 4 large files", 3, "dvc"),
        Target("status, small files", 6, "dvc"),
        Target("status, small files", 0.12),
        *(Target(f"{work}, warm", 0.7, disk) for work in streams),
        *(Target(f"{work}, warm", 0.7, PAGES) for work in streams),
        *(Target(f"{work}, warm, handed over", 0.95, disk) for work in streams),
        *(Target(f"{work}, cold, handed over", 0.8, disk) for work in streams),
        Target("small files in order, warm", 0.95, disk),
        *(Target(f"{work}, warm", CEILING, BARE) for work in (*streams, *small)),
        *(Target(f"{work}, cold", 1.5, "squashfs (kernel)") for work in streams),
        *(Target(f"{access.NOISE} in sequence, {at_once} reads, cold", 0.8, disk) for at_once in ("128 KiB", "1 MiB")),
        *(Target(f"small files shuffled{many}, cold", 2, tool) for many in ("", *readers) for tool in random_peers),
        *(Target(f"{work}, cold", 2, tool) for work in reads.LISTED.values() for tool in random_peers),
        *(Target(f"{work}, cold", 4, reads.PORTABLE) for work in reads.LISTED.values()),
        Target("find, small files, cold", 1, "squashfs (kernel)"),
        *(Target(work, 1, tool) for work in cold for tool in COLD),
        *_image(disk, streams, small),
        Target(share.PUSH, 3, "dvc"),
        Target(share.PULL, 3, "dvc"),
        *(Target(lazy.EPOCH, 3, tool) for tool in ("rclone", "s3fs")),
        Target(lazy.STREAM, 0.8, lazy.LINK),
        Target(lazy.PUSH, 3, "dvc"),
        Target(lazy.PULL, 3, "dvc"),
        Target(lazy.BESIDE, 0.5),
        Target(lazy.MEMORY, 400),
        *_versions(),
        Target(pipelines.NOTHING, 5, "dvc"),
        Target(pipelines.NOTHING_LARGE, 10, "dvc"),
        Target(pipelines.OVERHEAD, 0.03),
        Target(pipelines.PARALLEL, 0.65, beside=pipelines.SERIAL),
        Target("mount until ls", 0.3),
        Target("first mount until ls", 2),
        Target("next mount until ls", 0.3),
        *(Target("holder's memory after find", 80, of=tool) for tool in (OURS, reads.IMAGE)),
        Target("memory of add, 1 large file", 300),
        Target("memory of add, small files", 300),
        Target("second version, more than the first, small files", 2),
        Target("second version, more than the first, 1 large file", 2),
        Target("second version, more than the first, CSV", 2),
        *(Target(f"{verb} beyond the bare interpreter", 0.06) for verb in ("root", "version", "status")),
    ]


def _image(disk: str, streams: list[str], small: list[str]) -> Iterator[Target]:
    """What the kernel reads as an image it reads as it reads a disk."""
    yield from (Target(f"{work}, warm", 0.95, disk, of=reads.IMAGE) for work in (*streams, *small))
    yield from (Target(f"{work}, cold", 1.5, "squashfs (kernel)", of=reads.IMAGE) for work in streams)
    tools = ("squashfs (kernel)", "EROFS (kernel)", disk)
    works = [*small, *reads.LISTED.values()]
    yield from (Target(f"{work}, cold", 2, tool, of=reads.IMAGE) for work in works for tool in tools)
    for at_once in ("128 KiB", "1 MiB"):
        yield Target(f"{access.NOISE} in sequence, {at_once} reads, cold", 0.8, disk, of=reads.IMAGE)


def _versions() -> Iterator[Target]:
    """Six times as fast as DVC where nothing is written, and ten times the files in ten times the time."""
    few, many = versions.SIZES
    for name in (*versions.COMPARED, "checkout of v2 over v1"):
        if name != "list -R":
            yield from (
                Target(versions.work(name, files), 6 if name in versions.COMPARED else 3, "dvc")
                for files in versions.SIZES
            )
        yield Target(versions.work(name, many), many / few, beside=versions.work(name, few))
    yield from (Target(versions.work(name, many), 5) for name in ("gc of the first version", "gc of everything"))


def judge(figures: Figures, disk: str) -> Iterator[Verdict]:
    """A verdict for each target whose figures were measured."""
    for target in targets(disk):
        ours = figures.median(target.work, target.of)
        theirs = figures.median(target.work, target.against) if target.against else None
        before = figures.median(target.beside, target.of) if target.beside else None
        if ours is None or (target.against and theirs is None) or (target.beside and before is None):
            continue
        if before is not None:
            ratio = ours / max(before, 1e-9)
            asked, measured = f"at most {target.limit:g}x of {target.beside}", f"{ratio:.2f}x"
            yield Verdict(target.work, asked, measured, ratio <= target.limit)
        elif theirs is not None:
            ratio = theirs / max(ours, 1e-9)
            asked, measured = f"at least {target.limit:g}x of {target.against}", f"{ratio:.2f}x"
            yield Verdict(target.work + target.of.removeprefix(OURS), asked, measured, ratio >= target.limit)
        else:
            unit = next(row.unit for row in figures.rows if row.work == target.work)
            asked, measured = f"at most {target.limit:g} {unit}", f"{ours:.3g} {unit}"
            yield Verdict(target.work, asked, measured, ours <= target.limit)


def table(verdicts: list[Verdict]) -> str:
    """Markdown."""
    lines = ["### targets", "", "| work | asked | measured | met |", "|---|---|---|---|"]
    lines += [f"| {v.work} | {v.asked} | {v.measured} | {'yes' if v.met else 'NO'} |" for v in verdicts]
    return "\n".join([*lines, ""])
