"""`commit` of `.dvc` files: store what tracked files and folders hold now, and record it in their pointers."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.project import targets
from millpond.daemon.project.add import Adding, Options
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.select import Choice, refuse_clashes, select
from millpond.daemon.project.status import changed


def commit(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """{targets, recursive, force, dry} -> {unconfirmed: [{pointer, outs}]} or as `add`; outputs of stages are passed over.

    With `dry` nothing is done in any case. Without `force` nothing is done when tracked data was changed: those outputs are `unconfirmed`, for a person to confirm.
    Data that was added with --no-commit needs no confirmation. Raises as `add`.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    names = [wirepath.decode(target) for target in params.get("targets") or []]
    with context.lock(repo.root, "write"):
        outputs = repo.outputs()
        refuse_clashes(outputs)
        chosen = select(repo, outputs, names, recursive=bool(params.get("recursive")))
        chosen = [choice for choice in chosen if choice.output.stage is None and choice.output.cache]
        if not params.get("force"):
            pointers: dict[str, list[str]] = {}
            for output in changed(context, repo, [choice.output for choice in chosen]):
                pointers.setdefault(repo.wire(output.pointer), []).append(repo.wire(output.path))
            if pointers:
                return {"unconfirmed": [{"pointer": pointer, "outs": outs} for pointer, outs in pointers.items()]}
        if not chosen or params.get("dry"):
            return {"added": [], "git_add": [], "autostaged": False, "warnings": []}
        places = [_place(repo, choice) for choice in chosen]
        found = targets.resolve(repo, places, outputs)
        options = Options(places, glob=False, store=True, force=False, out=None, relink=not params.get("no_relink"))
        return Adding(context, repo, options).run(found)


def _place(repo: Repo, choice: Choice) -> str:
    return repo.seen(os.path.join(choice.output.path, choice.inner) if choice.inner else choice.output.path)
