"""What a training program does: a data set read by worker processes, as PyTorch's DataLoader has them. It is imported by them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Sequence
from typing import Any

from millpond import MillpondFileSystem


class DataSet:
    """Files by number. `handle` is one that was opened, and read from, by whoever made this."""

    def __init__(self, fs: MillpondFileSystem, paths: Sequence[str], handle: Any) -> None:
        self.fs = fs
        self.paths = paths
        self.handle = handle

    def __getitem__(self, number: int) -> bytes:
        return bytes(self.fs.cat_file(self.paths[number]))


def worker(data: DataSet, indices: Any, results: Any) -> None:
    """One worker process: numbers come, contents go; then what it read by the handle it was given, and its threads."""
    while (number := indices.get(timeout=60)) is not None:
        results.put((number, data[number]))
    data.handle.seek(1000)
    results.put((None, (os.getpid(), data.handle.read(100_000), [each.name for each in threading.enumerate()])))


def epoch(data: DataSet, how: str, workers: int) -> tuple[dict[int, bytes], list[Any]]:
    """All files by number, read by so many workers that are started as `how` says; and what each told in the end."""
    context: Any = multiprocessing.get_context(how)
    indices, results = context.Queue(), context.Queue()
    started = [context.Process(target=worker, args=(data, indices, results)) for _ in range(workers)]
    for process in started:
        process.start()
    for number in range(len(data.paths)):
        indices.put(number)
    for _ in started:
        indices.put(None)
    found: dict[int, bytes] = {}
    told: list[Any] = []
    while len(told) < workers:
        number, value = results.get(timeout=60)
        if number is None:
            told.append(value)
        else:
            found[number] = value
    for process in started:
        process.join(30)
        assert process.exitcode == 0
    for queue in (indices, results):
        queue.close()
        queue.join_thread()
    return found, told
