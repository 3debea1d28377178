"""The table of exit codes: made from the error registry, so that it cannot fall behind."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from millpond.cli import exits
from millpond.daemon.errors import MillpondError, registry

_OWN = {
    exits.OK: "Done.",
    exits.DIFFERENT: "What was asked is not so: `status -q` or `repro --check` found changes, `doctor` or `remote check` a fault, `check-ignore` no rule, "
    "`remote default` none; a mount was not restored, or a job failed without a code of its own.",
    exits.BROKEN_PIPE: "The reader of the output went away.",
}


@dataclass(frozen=True, slots=True)
class ExitCode:
    """One row: the code, the kind of error that ends with it (empty: none), its meaning in a sentence."""

    code: int
    kind: str
    meaning: str


def exit_codes() -> list[ExitCode]:
    """All rows, by code, then by kind."""
    rows = [ExitCode(code, "", meaning) for code, meaning in _OWN.items()]
    for kind, cls in registry().items():
        if cls is not MillpondError:
            rows.append(ExitCode(cls.exit_code, kind, _first_sentence(cls)))
    return sorted(rows, key=lambda row: (row.code, row.kind))


def _first_sentence(cls: type[MillpondError]) -> str:
    text = inspect.getdoc(cls) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("`", "")
