"""The daemon's log for people: its last lines, what is added to it, each line as text."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# How often a followed log is looked at, as tail(1) does it where nothing tells it of changes.
POLL_S = 0.2
_BLOCK = 64 << 10
# What stands at fixed places of a line; everything else is shown as name=value.
_PLACED = frozenset({"time", "level", "logger", "text", "request", "traceback"})


def last_lines(path: Path, count: int) -> tuple[list[bytes], tuple[int, int]]:
    """The last `count` whole lines, oldest first, and the position (inode, offset) after them."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        end, data = status.st_size, b""
        start = end
        while start > 0 and data.count(b"\n") <= count:
            start = max(start - _BLOCK, 0)
            file.seek(start)
            data = file.read(end - start)
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.splitlines(keepends=True)
    return (lines[-count:] if count else []), (status.st_ino, end - (len(data) - len(whole)))


def follow_lines(path: Path, position: tuple[int, int] | None, *, pause: Callable[[], None]) -> Iterator[bytes]:
    """Whole lines as they are added, for ever, also across rotation and a log that is not there yet.

    `pause` is called when there is nothing new.
    """
    inode, offset = position if position is not None else (-1, 0)
    while True:
        try:
            with open(path, "rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != inode or found.st_size < offset:
                    inode, offset = found.st_ino, 0
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    offset += len(line)
                    yield line
        except FileNotFoundError:
            inode, offset = -1, 0
        pause()


def poll() -> None:
    """Wait for the next look at a followed log."""
    time.sleep(POLL_S)


def shown(line: str) -> str:
    """A line of JSON as text: time, level, request, message, the rest as name=value; other lines as they are."""
    try:
        entry: dict[str, Any] = json.loads(line)
        head = [entry["time"], f"{entry['level']:<7}", f"{entry.get('logger', ''):<6}"]
    except (ValueError, KeyError, TypeError):
        return line
    if entry.get("request"):
        head.append(f"[{entry['request']}]")
    rest = [f"{name}={value}" for name, value in entry.items() if name not in _PLACED]
    text = " ".join([*head, str(entry.get("text", "")), *rest])
    trace = entry.get("traceback")
    return text if not trace else text + "\n" + "\n".join("    " + part for part in str(trace).splitlines())
