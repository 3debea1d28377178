"""What the daemon hears of shims and reads of results: their user's claims about his own jobs, bounded and checked."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import trio

from millpond.daemon.jobs.process import start_ticks
from millpond.daemon.jobs.record import MAX_TITLE, JobRecord

# What a result says beyond its row is kept up to so many characters.
MAX_OUTCOME = 64 << 10
_MAX_WORD = 64 << 10
_RETRY_S = 1.0
_OUTCOME = ("seconds", "rusage", "oom", "log", "ended_with_it", "mounts")


def row_of(result: dict[str, Any]) -> dict[str, Any]:
    """What a result says, as far as it is of the right kind: a user's file says what he likes, about his own job."""
    row: dict[str, Any] = {"outcome": {name: result[name] for name in _OUTCOME if result.get(name) is not None}}
    if len(json.dumps(row["outcome"])) > MAX_OUTCOME:
        row["outcome"] = {}
    for name in ("exit_code", "signal"):
        if type(result.get(name)) is int and abs(result[name]) < 1 << 31:
            row[name] = result[name]
    for name in ("started", "ended"):
        if type(result.get(name)) is float and math.isfinite(result[name]):
            row[name] = result[name]
    if isinstance(result.get("reason"), str):
        row["reason"] = result["reason"][:MAX_TITLE]
    return row


def refusal(answer: bytes) -> str:
    """Why a shim does not begin; it is its user's process, and may say anything."""
    try:
        return str(json.loads(answer)["message"])[:MAX_TITLE]
    except (ValueError, KeyError, TypeError):
        return "its process could not begin, and does not say why"


async def open_shim(record: JobRecord, boot: str) -> int:
    """A pidfd of the shim, -1 when it has ended; `boot` is the kernel's boot id. Waits while there are too few descriptors."""
    if record.boot != boot:
        return -1
    while True:
        try:
            pidfd = os.pidfd_open(record.pid)
            break
        except ProcessLookupError:
            return -1
        except OSError:
            await trio.sleep(_RETRY_S)
    if start_ticks(record.pid) != record.start:  # after it was opened, so that it is this process's for certain
        os.close(pidfd)
        return -1
    return pidfd


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


async def line_of(stream: trio.SocketStream) -> bytes:
    """A line, or what there was of it at the end of the stream."""
    answer = b""
    while not answer.endswith(b"\n") and len(answer) < _MAX_WORD and (part := await stream.receive_some(65536)):
        answer += part
    return answer
