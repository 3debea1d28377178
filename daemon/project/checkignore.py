"""`check-ignore`: which paths `.dvcignore` rules out, and by which rule."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.repo import Repo


def check_ignore(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets} -> {rows: [[target, ignored, [rule]]]}, in the order of the targets; `rule` is FILE:LINE:PATTERN, the
    deciding one last. What lies outside of the project has no rule. Raises NotARepoError, InvalidFileError."""
    repo = Repo.open(os.getcwd(), os.environ)
    rows: list[list[Any]] = []
    for target in params.get("targets") or []:
        relative = repo.relative(wirepath.decode(target))
        if not relative:
            rows.append([target, False, []])
            continue
        ignored, rules = repo.rules.matching(relative, os.path.isdir(repo.path(relative)))
        rows.append([target, ignored, [wirepath.encode(rule) for rule in rules]])
    return {"rows": rows}
