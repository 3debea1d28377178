"""What dvc.yaml says of outputs and dvc.lock does not: the folder they are relative to, whether DVC keeps them, and whether
their stage is still there. Templates are not resolved here: a `${...}` in a path stands for anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from posixpath import normpath
from typing import Any

from millpond.daemon.project import yamlio

STAGES_FILE = "dvc.yaml"


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage, or all that a foreach or matrix makes: `wdir` None where it is a template; `outs`: (path, its options)."""

    wdir: str | None
    outs: tuple[tuple[re.Pattern[str], dict[str, Any]], ...]

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Stage:
        """The stage of an entry of dvc.yaml."""
        body = entry["do"] if isinstance(entry.get("do"), dict) else entry
        wdir = str(body.get("wdir") or ".")
        return cls(None if "${" in wdir else wdir, tuple((_pattern(path), options) for path, options in outs_of(body)))

    def caches(self, path: str) -> bool | None:
        """Whether DVC keeps the output `path` (relative to `wdir`); None when the stage does not have it any more."""
        found = self._find(path)
        return None if found is None else found.get("cache") is not False

    def options(self, path: str) -> dict[str, Any]:
        """The options of the output `path`; none where the stage does not have it."""
        return self._find(path) or {}

    def _find(self, path: str) -> dict[str, Any] | None:
        return next((options for pattern, options in self.outs if pattern.fullmatch(normpath(path))), None)


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of one dvc.yaml."""

    _stages: dict[str, Stage] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: bytes, path: str) -> Stages:
        """Raises InvalidFileError for what is not YAML; what is no stage is left out."""
        document = yamlio.load(yamlio.decode(content, path), path)
        stages = document.get("stages") if isinstance(document, dict) else None
        if not isinstance(stages, dict):
            return cls()
        return cls({str(name): Stage.of(entry) for name, entry in stages.items() if isinstance(entry, dict)})

    @property
    def names(self) -> list[str]:
        """The names as dvc.yaml has them."""
        return list(self._stages)

    def get(self, name: str) -> Stage | None:
        """The stage that dvc.lock calls `name` ("base@key" for one of several)."""
        return self._stages.get(name) or self._stages.get(name.partition("@")[0])


def outs_of(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path as it is written, its options) of all outputs of a stage's entry."""
    for kind in ("outs", "metrics", "plots"):
        items = body.get(kind)
        for item in items if isinstance(items, list) else ():
            # A path, or paths with their options.
            for path, options in item.items() if isinstance(item, dict) else ((item, None),):
                yield str(path), options if isinstance(options, dict) else {}


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"\$\{[^}]*\}", normpath(path))
    return re.compile(".*".join(re.escape(part) for part in parts))
