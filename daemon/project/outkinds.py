"""Which outputs are metrics or plots, by what the dvc.yaml files of a version say; for `fetch --type`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from posixpath import basename, dirname, join, normpath
from typing import Any

from millpond.daemon.project import yamlio
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.paths import overlap
from millpond.daemon.project.stages import STAGES_FILE

KINDS = ("metrics", "plots")
_TEMPLATE = re.compile(r"\$\{[^}]*\}")


class OutKinds:
    """The paths of metrics and plots in `files` (as Tree.pointer_files gives them): those of stages, and what is listed beside them.
    Raises InvalidFileError."""

    def __init__(self, files: Mapping[str, bytes], kinds: Collection[str]) -> None:
        self._paths: set[str] = set()
        # A template stands for anything.
        self._patterns: list[re.Pattern[str]] = []
        for file, content in files.items():
            if basename(file) == STAGES_FILE:
                for path in _listed(yamlio.load(yamlio.decode(content, file), file), kinds):
                    self._add(normpath(join(dirname(file), path)))

    def has(self, output: Output) -> bool:
        """Whether an output is one of them, holds one, or lies in one."""
        path = output.path
        return any(overlap(path, each) for each in self._paths) or any(
            pattern.fullmatch(path) for pattern in self._patterns
        )

    def _add(self, path: str) -> None:
        if "${" in path:
            self._patterns.append(re.compile(".*".join(re.escape(part) for part in _TEMPLATE.split(path))))
        else:
            self._paths.add(path)


def _listed(document: Any, kinds: Collection[str]) -> Iterator[str]:
    """Paths from a dvc.yaml's folder."""
    if not isinstance(document, dict):
        return
    for kind in kinds:
        for path, options in _items(document.get(kind)):
            yield from _sources(path, options) if kind == "plots" else (path,)
    stages = document.get("stages")
    for entry in stages.values() if isinstance(stages, dict) else ():
        if isinstance(entry, dict):
            body = entry["do"] if isinstance(entry.get("do"), dict) else entry
            wdir = str(body.get("wdir") or ".")
            yield from (join(wdir, path) for kind in kinds for path, _ in _items(body.get(kind)))


def _items(found: Any) -> Iterator[tuple[str, Any]]:
    """What is listed: paths, or mappings of paths to their options; or one such mapping."""
    for item in found if isinstance(found, list) else [found]:
        if isinstance(item, dict):
            yield from ((str(path), options) for path, options in item.items())
        elif item is not None:
            yield str(item), None


def _sources(path: str, options: Any) -> Iterator[str]:
    """The files that a plot is drawn from: those of its axes, where they name any."""
    axes = [options.get(axis) for axis in ("y", "x")] if isinstance(options, dict) else []
    if axes and isinstance(axes[0], dict):
        yield from (str(file) for axis in axes if isinstance(axis, dict) for file in axis)
    else:
        yield path
