"""Where the data of an import comes from: the entry of its pointer's `deps`, as DVC writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Imported:
    """The one dependency of an import. `text` is its entry as JSON, the keys in the pointer's order: so it can be compared, and
    kept in sets; `frozen` as the pointer says."""

    text: str
    frozen: bool = True

    @classmethod
    def of(cls, deps: list[dict[str, Any]], outs: int, frozen: bool) -> Imported | None:
        """Of a pointer's deps; None unless it is an import: one dependency, one output."""
        if len(deps) != 1 or outs != 1 or not isinstance(deps[0].get("path"), str):
            return None
        return cls(json.dumps(deps[0], default=str), frozen)

    @property
    def entry(self) -> dict[str, Any]:
        """The entry, anew at each call."""
        found: dict[str, Any] = json.loads(self.text)
        return found

    @property
    def repo(self) -> Mapping[str, Any] | None:
        """{url, rev, rev_lock, config, remote} of what comes from another repository; None of what comes from a url."""
        found = self.entry.get("repo")
        return found if isinstance(found, dict) and isinstance(found.get("url"), str) else None

    @property
    def is_repo(self) -> bool:
        return self.repo is not None

    @property
    def shown(self) -> str:
        """How DVC calls it: `data (https://host/repo)`, or the url."""
        repo = self.repo
        path = str(self.entry["path"])
        return path if repo is None else f"{path} ({repo['url']})"
