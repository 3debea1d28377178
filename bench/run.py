"""Figures of millpond against DVC, ext4, squashfs, EROFS, Borg, restic, rclone and s3fs: `make bench`, or `python -m bench.run`.

Purpose: to tell, on this machine and in one run, whether the targets of the design are kept and where time goes. Tools take
turns, every figure is a median of several runs, and what was read is compared with what was stored. Results go to
`bench/results/<time>.json` and `.md`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from bench import data
from bench.context import Context
from bench.figures import Figures
from bench.host import BenchError, Host, clean
from bench.sections import access, add, disk, lazy, million, mount, pipelines, reads, serving, share, startup, versions
from bench.targets import judge, table

RESULTS = Path(__file__).parent / "results"
# Name -> what measures it, and its share of the time allowed.
SECTIONS: dict[str, tuple[Callable[[Context], None], float]] = {
    "startup": (startup.measure, 0.06),
    "add": (add.measure, 0.17),
    "versions": (versions.measure, 0.2),
    "mount": (mount.measure, 0.08),
    "reads": (reads.measure, 0.24),
    "access": (access.measure, 0.16),
    "serving": (serving.measure, 0.04),
    "share": (share.measure, 0.08),
    "lazy": (lazy.measure, 0.25),
    "disk": (disk.measure, 0.08),
    "pipelines": (pipelines.measure, 0.1),
    "million": (million.measure, 0.08),
}
# The most that a section puts on the disk at scale 1, bytes: two repositories of all data, and archives of it.
NEEDED = 14e9


def parse(arguments: list[str]) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(
        prog="bench",
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Reads alone, in about two minutes: python -m bench.run --only reads --sets small,shard --scale 0.2",
    )
    parser.add_argument("--only", help=f"sections, comma-separated, of: {', '.join(SECTIONS)}")
    parser.add_argument("--sets", help=f"data sets, comma-separated, of: {', '.join(data.LABELS)}")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the data; 1 is 2.4 GB and a million files")
    parser.add_argument("--runs", type=int, default=3, help="runs a figure, fewer when time runs out (at least one)")
    parser.add_argument("--minutes", type=float, default=18.0, help="time after which no further run starts")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where to work: a local disk")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--keep-page-cache", action="store_true", help="never drop the machine's page cache")
    options = parser.parse_args(arguments)
    options.only = list(SECTIONS) if options.only is None else options.only.split(",")
    options.sets = list(data.LABELS) if options.sets is None else options.sets.split(",")
    unknown = [name for name in options.only if name not in SECTIONS]
    unknown += [name for name in options.sets if name not in data.LABELS]
    if unknown or not 0 < options.scale <= 10 or options.runs < 1 or options.minutes <= 0:
        parser.error(f"nothing is called {unknown[0]}" if unknown else "a number is out of range")
    return options


def bench(options: argparse.Namespace, folder: Path) -> tuple[Figures, dict[str, object]]:
    """Run the sections in `folder`; each one's leavings are removed after it."""
    host = Host(folder, drop=not options.keep_page_cache)
    host.require(round(NEEDED * options.scale + 1e8))
    figures = Figures()
    made = data.make(folder / "data", options.scale, options.sets)
    about = host.about() | {
        "scale": options.scale,
        "data": {name: {"files": len(one.files), "bytes": one.size} for name, one in made.items()},
    }
    times: dict[str, float] = {}
    loads: dict[str, float] = {}
    failed: list[str] = []
    for name in options.only:
        measure, share = SECTIONS[name]
        began = time.monotonic()
        loads[name] = round(os.getloadavg()[0], 1)
        print(f"bench: {name} ...", file=sys.stderr, flush=True)
        work = folder / name
        work.mkdir()
        try:
            with ExitStack() as stack:
                share_s = options.minutes * 60 * share
                measure(Context(work, host, made, figures, stack, options.runs, share_s, options.scale))
        except BenchError as error:
            # The other sections' figures are still worth having; the exit code tells.
            print(f"bench: {name} failed: {error}", file=sys.stderr, flush=True)
            failed.append(name)
        finally:
            clean(work)
        times[name] = round(time.monotonic() - began, 1)
        print(f"bench: {name} took {times[name]:.0f} s", file=sys.stderr, flush=True)
    return figures, about | {"seconds": times, "load average before": loads, "failed": failed}


def report(figures: Figures, about: dict[str, object], disk_name: str, out: Path) -> str:
    """Write JSON and Markdown; the Markdown."""
    verdicts = list(judge(figures, disk_name))
    facts = "\n".join(f"- {key}: {value}" for key, value in about.items())
    note = "Medians. In brackets: that tool's figure over millpond's; above 1 millpond is ahead."
    text = f"{facts}\n\n{note}\n\n{figures.tables()}\n{table(verdicts)}"
    stem = time.strftime("%Y%m%d-%H%M%S")
    figures.save(out / f"{stem}.json", about, [asdict(verdict) for verdict in verdicts])
    (out / f"{stem}.md").write_text(text)
    return text


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; 0, or 1 when a tool failed or gave back other bytes."""
    options = parse(sys.argv[1:] if arguments is None else arguments)

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    if options.dir is not None and not Path(options.dir).is_dir():
        print(f"bench: '{options.dir}' is no folder", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="mpb-", dir=options.dir))
    try:
        figures, about = bench(options, folder)
        print(report(figures, about, str(about["disk"]), options.out))
        return 1 if about["failed"] else 0
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    finally:
        clean(folder)


if __name__ == "__main__":
    sys.exit(main())
