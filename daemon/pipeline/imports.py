"""Imports among the stages of a repro: those that are not frozen follow their source, as `update` does."""

from __future__ import annotations

from dataclasses import dataclass

from millpond.daemon.pipeline.changed import DEP, MODIFIED, OUT, Reason
from millpond.daemon.pipeline.stage import Stage
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.importing.changes import changes
from millpond.daemon.project.importing.importurl import How
from millpond.daemon.project.importing.update import Updating
from millpond.daemon.project.outputs import Output, pointer_outputs
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo


@dataclass(slots=True)
class Followed:
    """An import whose source may have something else now."""

    context: VerbContext
    repo: Repo
    output: Output

    @classmethod
    def of(cls, context: VerbContext, repo: Repo, stage: Stage) -> Followed | None:
        """Of a stage; None for what is no import, and for a frozen one."""
        if stage.pointer is None or stage.frozen or not stage.pointer.deps:
            return None
        own = pointer_outputs(stage.pointer, stage.file)
        return cls(context, repo, own[0]) if len(own) == 1 and own[0].imported is not None else None

    @property
    def told(self) -> str:
        """What is said of it when it is brought."""
        assert self.output.imported is not None
        return f"Importing '{printable(self.output.imported.shown)}' -> '{printable(self.repo.seen(self.output.path))}'"

    def reasons(self) -> list[Reason]:
        """How its source differs from what was imported. Raises as `importing.changes`."""
        found = changes(self.context, self.repo, [self.output], updates=True)
        return [Reason(DEP, state, path) for each in found.values() for path, state in each.deps.items()]

    def bring(self) -> None:
        """Import what the source has now. Raises as `update`: what would be lost in the workspace is refused."""
        Updating(self.context, self.repo, self.output, How()).run(None)


def is_due(reasons: list[Reason]) -> bool:
    """Whether an import is to be brought anew: its source differs, or its data is not here. What was changed here is not lost for that."""
    return any(reason.kind == DEP or (reason.kind == OUT and reason.state != MODIFIED) for reason in reasons)
