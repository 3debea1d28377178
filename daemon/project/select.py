"""Which outputs a verb's targets mean: pointers, outputs, paths inside them, stages, folders with --recursive."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from millpond.daemon.errors import OverlapError, TargetError
from millpond.daemon.project.outputs import LOCK_FILE, Output
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.stages import STAGES_FILE
from millpond.daemon.project.walk import above


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


def refuse_clashes(outputs: Sequence[Output], *, agreeing: bool = False) -> None:
    """Raise OverlapError when two pointers track one path, or one tracks a path in what another does: who changes either of them
    would leave the other wrong. With `agreeing` two that name the same data for one path pass."""
    by_path: dict[str, Output] = {}
    for output in outputs:
        other = by_path.setdefault(output.path, output)
        if other is not output and not (agreeing and other.name == output.name):
            raise _clash(
                f"'{printable(output.path)}' is tracked by '{_origin(other)}' and by '{_origin(output)}'", output
            )
    for output in outputs:
        for folder in above(output.path):
            if (holder := by_path.get(folder)) is not None:
                inner, outer = printable(output.path), printable(holder.path)
                raise _clash(f"'{inner}' of '{_origin(output)}' lies in '{outer}' of '{_origin(holder)}'", output)


def _clash(problem: str, output: Output) -> OverlapError:
    shown = _origin(output)
    return OverlapError(problem, path=printable(output.path), hint=f"keep one of the two: millpond remove {shown}")


def _origin(output: Output) -> str:
    """The pointer, or the stage, that has an output, as `remove` takes it."""
    if output.stage is None:
        return printable(output.pointer)
    return printable(f"{os.path.join(os.path.dirname(output.pointer), STAGES_FILE)}:{output.stage}")


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
