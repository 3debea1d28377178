"""`freeze`, `unfreeze`: have a stage or pointer keep what it has, or not any more, whatever it depends on."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import UsageError
from millpond.daemon.project import stagefile, yamlio
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.durable import write_all, write_error
from millpond.daemon.project.repo import Repo, printable


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
            file, stage = stagefile.meant(repo, target)
            if stage == "":
                shown = printable(target)
                raise UsageError(f"no stage of '{shown}' is named", hint=f"name one: '{shown}:STAGE'")
            if file not in documents:
                documents[file] = stagefile.load(repo, file)
            _set(target, documents[file][1], stage, frozen=bool(params.get("frozen")))
        texts = {file: yamlio.dump(document) for file, (_, document) in documents.items()}
        changed = {file: text for file, text in texts.items() if text != documents[file][0]}
        try:
            write_all({repo.path(file): text for file, text in changed.items()})
        except OSError as error:
            raise write_error(error) from error
    return {"changed": [repo.wire(file) for file in changed]}


def _set(target: str, document: Any, stage: str | None, *, frozen: bool) -> None:
    entry = document if stage is None else stagefile.entry(document, stage, target)
    if frozen:
        entry["frozen"] = True
    else:
        entry.pop("frozen", None)
