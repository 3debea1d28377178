"""Which stages a repro looks at, and in which order; with several at once, the longest way first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import UsageError
from millpond.daemon.pipeline import targets
from millpond.daemon.pipeline.graph import Graph
from millpond.daemon.pipeline.pipelines import Pipelines
from millpond.daemon.pipeline.stage import Stage
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.stages import STAGES_FILE

MAX_JOBS = 1024
FAIL, KEEP_GOING, IGNORE = "fail", "keep-going", "ignore"


@dataclass(frozen=True, slots=True)
class Options:
    """What a repro was asked for, in DVC's words; `approved`: stages that the person agreed to, of an interactive one;
    `look`: only whether any is out of date; `explain`: which earlier run each stage is nearest to; `mount`: whether data that is
    not here is mounted, None for what settings say."""

    targets: tuple[str, ...] = ()
    force: bool = False
    force_downstream: bool = False
    single_item: bool = False
    pipeline: bool = False
    all_pipelines: bool = False
    recursive: bool = False
    downstream: bool = False
    glob: bool = False
    dry: bool = False
    pull: bool = False
    allow_missing: bool = False
    no_commit: bool = False
    no_run_cache: bool = False
    interactive: bool = False
    look: bool = False
    mount: bool | None = None
    quiet: bool = False
    explain: bool = False
    on_error: str = FAIL
    jobs: int = 1
    approved: frozenset[str] = frozenset()

    @classmethod
    def of(cls, params: dict[str, Any]) -> Options:
        """Raises UsageError."""
        flags = {name: bool(params.get(name)) for name, kind in cls.__annotations__.items() if kind == "bool"}
        jobs = params.get("jobs") or 1
        if not isinstance(jobs, int) or not 1 <= jobs <= MAX_JOBS:
            raise UsageError(f"--jobs {jobs} is no number from 1 to {MAX_JOBS}")
        on_error = str(params.get("on_error") or FAIL)
        if on_error not in (FAIL, KEEP_GOING, IGNORE):
            raise UsageError(f"'{on_error}' is none of {FAIL}, {KEEP_GOING}, {IGNORE}")
        names = tuple(wirepath.decode(target) for target in params.get("targets") or [])
        approved = frozenset(wirepath.decode(name) for name in params.get("approved") or [])
        mount = None if params.get("mount") is None else bool(params["mount"])
        return cls(names, **flags, on_error=on_error, jobs=jobs, approved=approved, mount=mount)


def chosen(repo: Repo, loaded: Pipelines, graph: Graph, options: Options) -> list[Stage]:
    """The stages to look at, what is needed first. Raises TargetError."""
    if options.all_pipelines:
        return graph.above(graph.stages)
    named = targets.meant(
        repo, loaded, options.targets or [STAGES_FILE], recursive=options.recursive, glob=options.glob
    )
    if options.pipeline:
        return graph.connected(named)
    if options.single_item:
        return named
    return graph.below(named) if options.downstream else graph.above(named)


@dataclass(slots=True)
class Queue:
    """Stages that wait for those they need. With one job the order is that of `steps`; with several the stage with the most
    work behind it is first."""

    steps: Sequence[Stage]
    graph: Graph | None
    seconds: Callable[[Stage], float]
    parallel: bool
    _waits: dict[Stage, int] = field(default_factory=dict)
    _ready: list[tuple[float, int, Stage]] = field(default_factory=list)
    _order: dict[Stage, tuple[float, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ahead = self._ahead() if self.parallel else dict.fromkeys(self.steps, 0.0)
        self._order = {stage: (-ahead[stage], number) for number, stage in enumerate(self.steps)}
        among = set(self.steps)
        for stage in self.steps:
            self._waits[stage] = len([each for each in self._needs(stage) if each in among])
            if not self._waits[stage]:
                self._push(stage)

    @property
    def count(self) -> int:
        """Of all stages."""
        return len(self.steps)

    def pop(self) -> Stage | None:
        """The next stage that waits for nothing."""
        return heapq.heappop(self._ready)[2] if self._ready else None

    def done(self, stage: Stage) -> None:
        """What waits for the stage need not any more."""
        for each in self.graph.needed[stage] if self.graph is not None else ():
            if each in self._waits:
                self._waits[each] -= 1
                if not self._waits[each]:
                    self._push(each)

    def _push(self, stage: Stage) -> None:
        heapq.heappush(self._ready, (*self._order[stage], stage))

    def _needs(self, stage: Stage) -> Iterable[Stage]:
        return self.graph.needs[stage] if self.graph is not None else ()

    def _ahead(self) -> dict[Stage, float]:
        """Seconds from the start of each stage to the end of the longest chain that it begins."""
        found: dict[Stage, float] = {}
        for stage in reversed(self.steps):
            after = self.graph.needed[stage] if self.graph is not None else ()
            # What was never timed counts a little, so that of two such chains the longer one is first.
            found[stage] = max(self.seconds(stage), 0.001) + max((found.get(each, 0.0) for each in after), default=0.0)
        return found
