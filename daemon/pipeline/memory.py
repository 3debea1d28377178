"""What the last runs of a project's stages were like: how long they took, and why they ran. In `.dvc/tmp/millpond`, with the
logs of commands; losing it costs nothing but a worse order and an answer."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass, field
from typing import Any

import xxhash

from millpond.daemon.pipeline.stage import Stage, address
from millpond.daemon.project.durable import write_all

_FILE = "stages.json"
# Stages that are remembered.
_MOST = 20_000
_MAX_BYTES = 64 << 20


@dataclass(slots=True)
class Memory:
    """`stages` by address from the project's root: {seconds, outcome, reasons}."""

    folder: str
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    _noted: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, temporary: str) -> Memory:
        """What is kept in a project's `.dvc/tmp`."""
        folder = os.path.join(temporary, "millpond")
        return cls(folder, _loaded(folder))

    def seconds(self, stage: Stage) -> float:
        """How long the stage took when it last ran; 0 when nobody knows."""
        value = self.stages.get(address(stage, stage.file), {}).get("seconds")
        return float(value) if isinstance(value, int | float) else 0.0

    def note(self, stage: Stage, **values: Any) -> None:
        """Remember something of a stage; what is not told stays."""
        name = address(stage, stage.file)
        self.stages[name] = self.stages.pop(name, {}) | values
        self._noted[name] = self._noted.pop(name, {}) | values

    def save(self) -> None:
        """Keep what was noted, beside what other commands have meanwhile. Failing to is no error."""
        stages = _loaded(self.folder)
        for name, values in self._noted.items():
            stages[name] = stages.pop(name, {}) | values
        kept = dict(list(stages.items())[-_MOST:])
        with contextlib.suppress(OSError):
            os.makedirs(self.folder, exist_ok=True)
            write_all({os.path.join(self.folder, _FILE): json.dumps(kept)})

    def log(self, stage: Stage) -> str:
        """The absolute path of the log of a stage's commands."""
        return log_path(self.folder, stage)


def _loaded(folder: str) -> dict[str, dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError), open(os.path.join(folder, _FILE), "rb") as file:
        stages = json.loads(file.read(_MAX_BYTES))
        if isinstance(stages, dict):
            return {key: value for key, value in stages.items() if isinstance(value, dict)}
    return {}


def log_path(folder: str, stage: Stage) -> str:
    """Where in what is kept of a project the log of a stage is."""
    return os.path.join(folder, "logs", f"{slug(stage)}.log")


def slug(stage: Stage) -> str:
    """A file's name that is the stage's alone, and tells people which."""
    name = address(stage, stage.file)
    plain = re.sub(r"[^A-Za-z0-9_.@-]+", "-", name)[:100]
    return f"{plain}-{xxhash.xxh3_64_hexdigest(os.fsencode(name))[:8]}"
