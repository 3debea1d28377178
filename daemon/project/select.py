"""Which outputs a verb's targets mean: pointers, outputs, paths inside them, stages, folders with --recursive."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from millpond.daemon.errors import InvalidFileError, TargetError
from millpond.daemon.project import yamlio
from millpond.daemon.project.outputs import LOCK_FILE, STAGES_FILE, Output
from millpond.daemon.project.repo import Repo, printable


@dataclass(frozen=True, slots=True)
class Choice:
    """An output, and the path inside it that is meant ("" for all of it)."""

    output: Output
    inner: str = ""


def select(repo: Repo, outputs: Sequence[Output], targets: Sequence[str], *, recursive: bool = False) -> list[Choice]:
    """The choices that `targets` (as given, from the caller's folder) mean, each once; all outputs without targets.

    Raises TargetError for a target that means nothing.
    """
    if not targets:
        return [Choice(output) for output in outputs]
    found: dict[Choice, None] = {}
    for target in targets:
        choices = _meant(repo, outputs, target, recursive)
        if not choices:
            raise _unknown(repo, target)
        found.update(dict.fromkeys(choices))
    whole = {choice.output for choice in found if not choice.inner}
    return [choice for choice in found if not choice.inner or choice.output not in whole]


def _meant(repo: Repo, outputs: Sequence[Output], target: str, recursive: bool) -> list[Choice]:
    relative = repo.relative(target)
    if relative is not None:
        if recursive and os.path.isdir(repo.path(relative)):
            prefix = f"{relative}/" if relative else ""
            inside = [output for output in outputs if output.path == relative or output.pointer.startswith(prefix)]
            return [Choice(output) for output in inside]
        direct = [output for output in outputs if relative in (output.path, output.pointer)]
        if direct:
            return [Choice(output) for output in direct]
        for output in outputs:
            if output.is_dir and relative.startswith(f"{output.path}/"):
                return [Choice(output, relative[len(output.path) + 1 :])]
    return [Choice(output) for output in _stage(repo, outputs, target)]


def _stage(repo: Repo, outputs: Sequence[Output], target: str) -> list[Output]:
    """Outputs of a stage ("name", "dvc.yaml:name", ":name") or of all stages of a dvc.yaml."""
    file, colon, name = target.rpartition(":")
    if not colon:
        file, name = (target, "") if os.path.basename(target) == STAGES_FILE else ("", target)
    stages = repo.relative(file or STAGES_FILE)
    if stages is None or os.path.basename(stages) != STAGES_FILE:
        return []
    lock = os.path.join(os.path.dirname(stages), LOCK_FILE)
    return [
        output
        for output in outputs
        if output.stage is not None
        and output.pointer == lock
        and (not name or output.stage == name or output.stage.startswith(f"{name}@"))
    ]


def _unknown(repo: Repo, target: str) -> TargetError:
    shown = printable(target)
    if target.endswith(".dvc") or os.path.basename(target) == STAGES_FILE:
        return TargetError(f"'{shown}' does not exist", path=shown, hint="`millpond status` lists what is tracked")
    hint = f"did you mean `git checkout {shown}`?" if os.path.lexists(os.path.join(repo.cwd, target)) else None
    return TargetError(f"'{shown}' does not exist as an output or a stage name", path=shown, hint=hint)


def uncached(repo: Repo, outputs: Iterable[Output]) -> set[Output]:
    """Those outputs of stages that dvc.yaml says are not DVC's to keep (`cache: false`); dvc.lock does not say."""
    found: set[Output] = set()
    patterns: dict[str, list[re.Pattern[str]]] = {}
    for output in outputs:
        folder = os.path.dirname(output.pointer)
        if folder not in patterns:
            patterns[folder] = _uncached_paths(repo, os.path.join(folder, STAGES_FILE))
        # wdir may stand between the file and the path.
        if any(pattern.search(output.path) for pattern in patterns[folder]):
            found.add(output)
    return found


def _uncached_paths(repo: Repo, file: str) -> list[re.Pattern[str]]:
    try:
        with open(repo.path(file), "rb") as source:
            document = yamlio.load(yamlio.decode(yamlio.read(source), file), file)
    except (OSError, InvalidFileError):
        return []
    paths: list[str] = []
    stages = document.get("stages") if isinstance(document, dict) else None
    for stage in (stages or {}).values() if isinstance(stages, dict) else ():
        body = stage.get("do", stage) if isinstance(stage, dict) else {}
        for kind in ("outs", "metrics", "plots"):
            for item in (body.get(kind) or []) if isinstance(body, dict) else ():
                if isinstance(item, dict):
                    paths += [
                        str(path)
                        for path, options in item.items()
                        if isinstance(options, dict) and options.get("cache") is False
                    ]
    return [_as_pattern(path) for path in paths]


def _as_pattern(path: str) -> re.Pattern[str]:
    """A path of dvc.yaml as the end of a path; `${...}` stands for anything."""
    parts = re.split(r"\$\{[^}]*\}", os.path.normpath(path))
    return re.compile("(?:^|/)" + ".*".join(re.escape(part) for part in parts) + r"\Z")
