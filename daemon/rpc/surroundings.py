"""Where a verb's worker runs: its client's directory, environment and umask. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import TargetError

_STATUS_BYTES = 4096


def surroundings(environ: Mapping[str, str], wait_s: float | None) -> dict[str, Any]:
    """The `context` of a verb's request; `wait_s`: how long it waits for locks (None: for ever). Raises TargetError."""
    try:
        cwd = os.getcwd()
    except OSError as error:
        raise TargetError(f"the current directory is not there any more: {error.strerror}") from error
    env = {wirepath.encode(key): wirepath.encode(value) for key, value in environ.items()}
    return {"cwd": wirepath.encode(cwd), "env": env, "umask": _umask(), "wait_s": wait_s}


def _umask() -> int:
    """umask(2) tells the mask only by changing it, for other threads too."""
    with open("/proc/self/status", "rb", buffering=0) as file:
        _, found, rest = file.read(_STATUS_BYTES).partition(b"\nUmask:")
    return int(rest.split(None, 1)[0], 8) if found else 0o022
