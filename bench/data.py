"""Data that is the same on every machine: many small files, large shards, a CSV; and a second version of each.

Half of every 64 KiB block is noise and half repeats, so that data compresses to about one half; nothing occurs twice
further than that, so what deduplication gains comes from versions alone.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

BLOCK = 64 << 10
EDIT = 1 << 20
SMALL_MEAN = 21_000
FULL_SMALL = 10_000
FULL_SHARD = 1 << 30
FULL_CSV_ROWS = 1_000_000
LABELS = {"small": "small files", "shard": "1 large file", "shards": "4 large files", "csv": "CSV"}


@dataclass(frozen=True, slots=True)
class DataSet:
    """A folder of files: relative path -> (size in bytes, XXH3-128)."""

    name: str
    root: Path
    files: dict[str, tuple[int, bytes]]

    @property
    def size(self) -> int:
        return sum(size for size, _ in self.files.values())

    @property
    def paths(self) -> list[str]:
        return list(self.files)

    def shuffled(self) -> list[str]:
        """The paths in an order without locality, the same each time."""
        paths = self.paths
        random.Random(self.name).shuffle(paths)
        return paths


def half_compressible(rng: random.Random, size: int) -> Iterator[bytes]:
    """`size` bytes in blocks of up to 64 KiB."""
    while size > 0:
        noise = rng.randbytes(BLOCK // 2)
        line = rng.randbytes(64).hex().encode()
        block = noise + line * (BLOCK // 2 // len(line))
        yield block[:size]
        size -= BLOCK


def small_files(root: Path, scale: float) -> None:
    """10,000 files in 100 folders, 1 to 160 KB, 210 MB in all."""
    rng = random.Random("small")
    for number in range(max(20, round(FULL_SMALL * scale))):
        path = root / f"class-{number % 100:02d}" / f"{number:06d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = min(160_000, max(1_000, round(rng.expovariate(1 / SMALL_MEAN))))
        text = rng.randbytes(32).hex().encode()
        noise = rng.randbytes(size // 2)
        path.write_bytes(noise + (text * (size // len(text) + 1))[: size - len(noise)])


def shards(root: Path, count: int, scale: float) -> None:
    """`count` equal files, 1 GiB in all."""
    root.mkdir(parents=True)
    for number in range(count):
        rng = random.Random(f"shard {count} {number}")
        with open(root / f"shard-{number}.bin", "wb") as file:
            for block in half_compressible(rng, max(4 * BLOCK, round(FULL_SHARD * scale) // count)):
                file.write(block)


def table(root: Path, scale: float) -> None:
    """One CSV of 1,000,000 rows, about 45 MB."""
    root.mkdir(parents=True)
    rng = random.Random("csv")
    with open(root / "table.csv", "w") as file:
        file.write("id,time,sensor,state,value\n")
        for number in range(max(1000, round(FULL_CSV_ROWS * scale))):
            file.write(_csv_row(rng, number))


def _csv_row(rng: random.Random, number: int) -> str:
    state = rng.choice(("idle", "running", "stopped", "unknown"))
    return f"{number},{1_700_000_000 + number * 7},sensor-{rng.randrange(500):03d},{state},{rng.gauss(20, 5):.6f}\n"


def make(folder: Path, scale: float, names: Iterable[str] = LABELS) -> dict[str, DataSet]:
    """Write data sets below `folder`."""
    makers: dict[str, Callable[[Path], None]] = {
        "small": lambda root: small_files(root, scale),
        "shard": lambda root: shards(root, 1, scale),
        "shards": lambda root: shards(root, 4, scale),
        "csv": lambda root: table(root, scale),
    }
    for name in names:
        makers[name](folder / name)
    return {name: examine(name, folder / name) for name in names}


def edit(made: DataSet, root: Path) -> DataSet:
    """A second version at `root` that differs by 1 %: of the files where there are many, else of the bytes, in runs.

    Of large files runs of 1 MiB are overwritten; the CSV gets new rows at its end and one inserted near its start, which
    moves all that follows.
    """
    shutil.copytree(made.root, root)
    rng = random.Random(f"edit {made.name}")
    if made.name == "csv":
        path = root / "table.csv"
        lines = path.read_text().splitlines(keepends=True)
        more = [_csv_row(rng, len(lines) + extra) for extra in range(max(1, len(lines) // 100))]
        path.write_text("".join([*lines[:10], _csv_row(rng, 0), *lines[10:], *more]))
    elif made.name == "small":
        for name in rng.sample(made.paths, max(1, len(made.files) // 100)):
            size = made.files[name][0]
            (root / name).write_bytes(rng.randbytes(size // 2) + bytes(size - size // 2))
    else:
        for name, (size, _) in made.files.items():
            _overwrite(root / name, rng, size)
    return examine(made.name, root)


def _overwrite(path: Path, rng: random.Random, size: int) -> None:
    """1 % of a file's bytes, in runs of up to 1 MiB at random places."""
    left = max(1, size // 100)
    with open(path, "r+b") as file:
        while left > 0:
            length = min(EDIT, left)
            file.seek(rng.randrange(size - length + 1))
            file.write(rng.randbytes(length))
            left -= length


def examine(name: str, root: Path) -> DataSet:
    """Sizes and digests of what lies below a folder, paths sorted."""
    files: dict[str, tuple[int, bytes]] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        digest, size = xxhash.xxh3_128(), 0
        with open(path, "rb") as file:
            while block := file.read(EDIT):
                digest.update(block)
                size += len(block)
        files[str(path.relative_to(root))] = size, digest.digest()
    return DataSet(name, root, files)
