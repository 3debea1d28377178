"""The GPUs of this machine: from NVIDIA's management library where Python can ask it (`pip install 'millpond[gpu]'`), else from what the
driver tells in /proc. No program is started, and whatever goes wrong, there are none: a record is not worth an error."""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import threading
from typing import Any

PROC = "/proc/driver/nvidia/gpus"
# GPUs that are told, characters of one's description, and seconds that a driver has for its answer.
_MOST, _MOST_TEXT, _WAIT_S = 64, 10_000, 3.0
Gpu = dict[str, Any]


def gpus(*, proc: str = PROC, wait_s: float = _WAIT_S) -> list[Gpu]:
    """{model, uuid} of each, and {memory: bytes, driver: version} where the library tells. `proc`: where the driver tells of them."""
    answers: queue.SimpleQueue[list[Gpu]] = queue.SimpleQueue()
    # A driver that hangs must not hold up a stage that is done; the thread ends with the process.
    threading.Thread(target=lambda: answers.put(_by_library()), name="gpus", daemon=True).start()
    found: list[Gpu] = []
    with contextlib.suppress(queue.Empty):
        found = answers.get(timeout=wait_s)
    return found or _by_files(proc)


def _by_library() -> list[Gpu]:
    found: list[Gpu] = []
    with contextlib.suppress(Exception):  # it is not there, has no driver, or one that is too old for it
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        try:
            driver = _text(nvml.nvmlSystemGetDriverVersion())
            for index in range(min(nvml.nvmlDeviceGetCount(), _MOST)):
                device = nvml.nvmlDeviceGetHandleByIndex(index)
                found.append(
                    {
                        "model": _text(nvml.nvmlDeviceGetName(device)),
                        "uuid": _text(nvml.nvmlDeviceGetUUID(device)),
                        "memory": int(nvml.nvmlDeviceGetMemoryInfo(device).total),
                        "driver": driver,
                    }
                )
        finally:
            nvml.nvmlShutdown()
    return found


def _by_files(folder: str) -> list[Gpu]:
    found = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder))[:_MOST]:
            with open(os.path.join(folder, name, "information"), encoding="utf-8", errors="replace") as file:
                pairs = (line.partition(":") for line in file.read(_MOST_TEXT).splitlines())
                told = {key.strip(): value.strip() for key, _, value in pairs}
            found.append({"model": told.get("Model", ""), "uuid": told.get("GPU UUID", "")})
    return found


def _text(value: str | bytes) -> str:
    """Older ones of the library give bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
