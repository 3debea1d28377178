"""`freeze`, `unfreeze`: have a stage or pointer keep what it has, or not any more, whatever it depends on."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import InvalidFileError, TargetError, UsageError
from millpond.daemon.project import dvcfile, yamlio
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.durable import write_all, write_error
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.stages import STAGES_FILE


def freeze(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, frozen} -> {changed: [file]}, files as seen from the caller's folder.

    Targets are `.dvc` files and stages (`name`, `FILE:name`); comments stay. Raises TargetError, UsageError, InvalidFileError;
    nothing was changed then.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    targets = [wirepath.decode(target) for target in params.get("targets") or []]
    with context.lock(repo.root, "write"):
        documents: dict[str, tuple[str, Any]] = {}
        for target in targets:
            file, stage = _meant(repo, target)
            if file not in documents:
                documents[file] = _load(repo, file)
            _set(target, documents[file][1], stage, frozen=bool(params.get("frozen")))
        texts = {file: yamlio.dump(document) for file, (_, document) in documents.items()}
        changed = {file: text for file, text in texts.items() if text != documents[file][0]}
        try:
            write_all({repo.path(file): text for file, text in changed.items()})
        except OSError as error:
            raise write_error(error) from error
    return {"changed": [repo.wire(file) for file in changed]}


def _meant(repo: Repo, target: str) -> tuple[str, str | None]:
    """(file, stage in it) that a target names; None for a pointer."""
    shown = printable(target)
    relative = repo.relative(target)
    if relative is not None and relative.endswith(dvcfile.SUFFIX):
        if not os.path.isfile(repo.path(relative)):
            raise TargetError(f"'{shown}' does not exist", path=shown)
        return relative, None
    if os.path.basename(target) == STAGES_FILE:
        raise UsageError(f"no stage of '{shown}' is named", hint=f"name one: '{shown}:STAGE'")
    file, _, name = target.rpartition(":")
    stages = repo.relative(file or STAGES_FILE)
    if stages is None or not os.path.isfile(repo.path(stages)):
        raise TargetError(f"'{shown}' is neither a .dvc file nor a stage", path=shown)
    return stages, name


def _load(repo: Repo, file: str) -> tuple[str, Any]:
    """A file's text and its document, which keeps comments and order."""
    shown = printable(repo.seen(file))
    try:
        with open(repo.path(file), "rb") as opened:
            text = yamlio.decode(yamlio.read(opened), shown)
    except OSError as error:
        raise InvalidFileError(f"cannot read '{shown}': {error.strerror}", path=shown) from error
    if file.endswith(dvcfile.SUFFIX):
        dvcfile.parse(text, shown)
    return text, yamlio.load(text, shown, round_trip=True)


def _set(target: str, document: Any, stage: str | None, *, frozen: bool) -> None:
    entry = document
    if stage is not None:
        stages = document.get("stages") if isinstance(document, dict) else None
        base, at, _ = stage.partition("@")
        entry = stages.get(base) if isinstance(stages, dict) else None
        shown = printable(target)
        if isinstance(entry, dict) and ("foreach" in entry or "matrix" in entry):
            raise UsageError(
                f"'{shown}' is one of many that a template makes" if at else f"'{shown}' makes many stages",
                hint=f"set `frozen` in '{STAGES_FILE}' by hand, in its `do:`",
            )
        if not isinstance(entry, dict) or at:
            raise TargetError(f"stage '{shown}' is not in '{STAGES_FILE}'", path=shown)
    if frozen:
        entry["frozen"] = True
    else:
        entry.pop("frozen", None)
