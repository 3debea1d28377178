"""DVC's run cache: what stages made before, by command, dependencies, parameters and names of outputs.

`.dvc/cache/runs/KE/KEY/VALUE`: KEY is the SHA-256 of the lock entry's JSON with outputs reduced to their paths, VALUE that
of the whole entry; `size` and `nfiles` are left out of both, wherever they are. The file holds the entry as YAML.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from heapq import nlargest
from itertools import islice
from typing import Any

from millpond.daemon.errors import InvalidFileError
from millpond.daemon.pipeline.lock import is_entry, rendered_alone
from millpond.daemon.pipeline.stage import OUTS, Stage
from millpond.daemon.project import yamlio
from millpond.daemon.project.durable import write_all

# Entries of one key that are looked at; files that are, where the newest ones are wanted.
_MOST, _MOST_FILES = 1000, 20_000


def can_reuse(stage: Stage) -> bool:
    """Whether DVC would take outputs of an earlier run for this stage's."""
    if stage.always_changed or not stage.cmd or not stage.outs or not (stage.deps or stage.params):
        return False
    return all(dep.place is not None for dep in stage.deps) and all(
        out.place is not None and not out.place.startswith("/") and not out.persist for out in stage.outs
    )


def can_record(stage: Stage) -> bool:
    """Whether DVC would remember a run of this stage: metrics and plots may be Git's, other outputs not."""
    return can_reuse(stage) and all(out.cache or out.kind != OUTS for out in stage.outs)


class RunCache:
    """The run cache below DVC's cache folder."""

    def __init__(self, cache: str) -> None:
        self._folder = os.path.join(cache, "runs")

    def found(self, entry: Mapping[str, Any], outs: list[str]) -> Iterator[dict[str, Any]]:
        """Whole entries of earlier runs with this command, these dependencies and parameters, newest first."""
        key = _digest({**entry, "outs": sorted(outs)})
        folder = self._place(key) if key is not None else ""
        try:
            with os.scandir(folder) as files:
                aged = sorted(((file.stat().st_mtime_ns, file.path) for file in files), reverse=True)
        except OSError:
            return
        for _, path in aged[:_MOST]:
            read = _read(path)
            if read is not None:
                yield read

    def newest(self, most: int) -> Iterator[tuple[float, dict[str, Any]]]:
        """(when it was saved, in seconds since 1970; whole entry) of the newest runs of all stages, the newest first."""
        found: list[tuple[float, str]] = []
        for path in islice(_files(self._folder, 3), _MOST_FILES):
            with contextlib.suppress(OSError):
                found.append((os.stat(path).st_mtime, path))
        for saved, path in nlargest(most, found):
            read = _read(path)
            if read is not None:
                yield saved, read

    def save(self, entry: dict[str, Any]) -> None:
        """Remember a run. Raises OSError."""
        key = _digest({**entry, "outs": [out["path"] for out in entry.get("outs") or []]})
        value = _digest(entry)
        if key is None or value is None:
            return
        path = os.path.join(self._place(key), value)
        if os.path.exists(path):
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_all({path: rendered_alone(entry)})

    def _place(self, key: str) -> str:
        return os.path.join(self._folder, key[:2], key)


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            text = yamlio.decode(yamlio.read(file), path)
        entry = yamlio.load(text, path)
    except (InvalidFileError, OSError):
        return None
    return entry if is_entry(entry) else None


def _files(folder: str, depth: int) -> Iterator[str]:
    """The paths of all that lies so many folders deep."""
    try:
        with os.scandir(folder) as entries:
            inside = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False) == (depth > 1)]
    except OSError:
        return
    for path in inside:
        if depth == 1:
            yield path
        else:
            yield from _files(path, depth - 1)


def _digest(entry: Mapping[str, Any]) -> str | None:
    """None for what has values that JSON does not know; DVC cannot remember those either."""
    try:
        text = json.dumps(without_sizes(entry), sort_keys=True)
    except (TypeError, ValueError):
        return None
    return hashlib.sha256(text.encode(), usedforsecurity=False).hexdigest()


def without_sizes(value: Any) -> Any:
    """Without `size` and `nfiles`, wherever they are."""
    if isinstance(value, Mapping):
        return {key: without_sizes(each) for key, each in value.items() if key not in ("size", "nfiles")}
    return [without_sizes(each) for each in value] if isinstance(value, list) else value
