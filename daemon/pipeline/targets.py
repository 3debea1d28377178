"""Which stages a target means: a stage's name, all of a loop, `FILE:NAME`, a dvc.yaml, a `.dvc` file, an output, a folder."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable

from millpond.daemon.errors import TargetError
from millpond.daemon.pipeline.pipelines import Pipelines
from millpond.daemon.pipeline.resolve import JOIN
from millpond.daemon.pipeline.stage import Stage
from millpond.daemon.project import dvcfile
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.stages import STAGES_FILE

_TARGET = re.compile(r"(?P<file>.*?)(?::(?P<name>[^\\/:]*))?")


def meant(
    repo: Repo,
    pipelines: Pipelines,
    targets: Iterable[str],
    *,
    recursive: bool = False,
    glob: bool = False,
    outputs: bool = False,
) -> list[Stage]:
    """The stages, each once. With `recursive` a folder means all stages below it, with `glob` names are patterns, with
    `outputs` a path may be that of an output. Raises TargetError for one that means nothing."""
    found: dict[Stage, None] = {}
    for target in targets:
        stages = _folder(repo, pipelines, target) if recursive else None
        if stages is None:
            stages = _named(repo, pipelines, target, glob=glob)
        if not stages and outputs:
            stages = _maker(repo, pipelines, target)
        if stages is None:
            raise _unknown(repo, pipelines, target)
        found.update(dict.fromkeys(stages))
    return list(found)


def _folder(repo: Repo, pipelines: Pipelines, target: str) -> list[Stage] | None:
    relative = repo.relative(target)
    if relative is None or not os.path.isdir(repo.path(relative)):
        return None
    prefix = f"{relative}/" if relative else ""
    return [stage for stage in pipelines.stages if stage.file.startswith(prefix)]


def _named(repo: Repo, pipelines: Pipelines, target: str, *, glob: bool) -> list[Stage] | None:
    """The stages of a name or file; None when there is no such stage or file."""
    file, name = _split(target)
    relative = repo.relative(file or STAGES_FILE)
    if relative is None:
        return None
    if relative.endswith(dvcfile.SUFFIX):
        return [stage for stage in pipelines.stages if stage.file == relative] or None
    if relative not in pipelines.documents:
        # Without a dvc.yaml here there is nothing to do when nothing was named.
        return None
    own = [stage for stage in pipelines.stages if stage.file == relative]
    if not name:
        return own
    if name in pipelines.documents[relative].definitions and any(stage.group == name for stage in own):
        return [stage for stage in own if stage.group == name]
    if glob:
        return [stage for stage in own if fnmatch.fnmatchcase(stage.name, name)]
    return [stage for stage in own if stage.name == name] or None


def _split(target: str) -> tuple[str, str]:
    """(file, name) of a target: one that is no file's name is a stage's."""
    matched = _TARGET.fullmatch(target)
    file, name = (matched["file"], matched["name"]) if matched else (target, None)
    if name is None:
        is_file = os.path.basename(file) == STAGES_FILE or file.endswith(dvcfile.SUFFIX)
        return (file, "") if is_file else ("", file)
    return file, name


def _maker(repo: Repo, pipelines: Pipelines, target: str) -> list[Stage] | None:
    if "://" in target:
        return [stage for stage in pipelines.stages if any(out.path == target for out in stage.outs)] or None
    relative = repo.relative(target)
    if relative is None:
        return None
    return [
        stage
        for stage in pipelines.stages
        if any(out.place is not None and f"{relative}/".startswith(f"{out.place}/") for out in stage.outs)
    ] or None


def _unknown(repo: Repo, pipelines: Pipelines, target: str) -> TargetError:
    file, name = _split(target)
    shown, inside = printable(target), printable(file or STAGES_FILE)
    relative = repo.relative(file or STAGES_FILE)
    if relative in pipelines.failed:
        error = pipelines.failed[relative]
        return TargetError(error.message, path=error.path, hint=error.hint)
    if relative is None or not os.path.isfile(repo.path(relative)):
        return TargetError(f"'{inside}' does not exist" + (f": no stage '{name}'" if name else ""), path=inside)
    import difflib

    names = [stage.name for stage in pipelines.stages if stage.file == relative]
    names += [name for name in dict.fromkeys(each.partition(JOIN)[0] for each in names) if name not in names]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{printable(close[0])}'?" if close else "`millpond stage list` shows the stages"
    return TargetError(f"there is no stage '{printable(name)}' in '{inside}'", path=shown, hint=hint)
