"""Sorting more paths than memory should hold: runs on disk, merged."""

from __future__ import annotations

import heapq
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO

from millpond.daemon.store.trees import Files

# A file of a tree: its path, its size in bytes, its object's key.
FileRow = tuple[bytes, int, bytes]

# Rows of one run: about 300 bytes each while they are sorted.
RUN_ROWS = 100_000
# path's length u32, size u64, key's length u8; then path and key.
_HEAD = struct.Struct("<IQB")
_BUFFER = 256 << 10


class RowSorter:
    """Takes rows in any order and gives them in the order of their paths' parts. A context manager: its files go with it."""

    def __init__(self, folder: Path, run_rows: int | None = None) -> None:
        self._folder = folder
        self._run_rows = run_rows or RUN_ROWS
        self._rows: list[FileRow] = []
        self._runs: list[IO[bytes]] = []
        self._stack = ExitStack()

    def __enter__(self) -> RowSorter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add_files(self, files: Files) -> None:
        """Raises OSError when the disk is full."""
        for path, key in zip(files.paths, files.keys, strict=True):
            self._rows.append((path, files.sizes[key], key))
            if len(self._rows) >= self._run_rows:
                self._spill()

    def files(self, count: int) -> Iterator[Files]:
        """All rows in order, once, at most `count` of them at a time."""
        rows = self.rows()
        while batch := list(islice(rows, count)):
            paths, sizes, keys = zip(*batch, strict=True)
            yield Files(paths, keys, dict(zip(keys, sizes, strict=True)))

    def rows(self) -> Iterator[FileRow]:
        """All rows in order, once."""
        self._rows.sort(key=_by_parts)
        yield from heapq.merge(*map(_read, self._runs), self._rows, key=_by_parts)

    def _spill(self) -> None:
        self._rows.sort(key=_by_parts)
        file = tempfile.TemporaryFile(dir=self._folder, buffering=_BUFFER)  # noqa: SIM115 - the stack closes it
        run = self._stack.enter_context(file)
        for path, size, key in self._rows:
            run.write(b"".join((_HEAD.pack(len(path), size, len(key)), path, key)))
        run.seek(0)
        self._runs.append(run)
        self._rows = []


def _by_parts(row: FileRow) -> bytes:
    """A slash is less than all that names have."""
    return row[0].replace(b"/", b"\0")


def _read(run: IO[bytes]) -> Iterator[FileRow]:
    while head := run.read(_HEAD.size):
        path_bytes, size, key_bytes = _HEAD.unpack(head)
        row = run.read(path_bytes + key_bytes)
        yield row[:path_bytes], size, row[path_bytes:]
