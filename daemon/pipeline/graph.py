"""The graph of a project's stages: who needs whose outputs. What cannot be one (two makers of a file, a cycle) is refused."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from millpond.daemon.errors import InvalidFileError, OverlapError
from millpond.daemon.pipeline.places import is_outside, shown
from millpond.daemon.pipeline.stage import Stage, StageOut, address
from millpond.daemon.project.paths import printable
from millpond.daemon.project.walk import above

# How the file of a stage is seen by the caller.
Seen = Callable[[str], str]


@dataclass(slots=True)
class Graph:
    """`stages` in the order of their files; `needs` and `needed` by stage, each in the order of dependencies."""

    stages: list[Stage]
    needs: dict[Stage, list[Stage]] = field(default_factory=dict)
    needed: dict[Stage, list[Stage]] = field(default_factory=dict)

    def active(self) -> Graph:
        """Without what frozen stages need: they do not look at it."""
        needs: dict[Stage, list[Stage]] = {stage: [] if stage.frozen else found for stage, found in self.needs.items()}
        needed = {stage: [each for each in found if not each.frozen] for stage, found in self.needed.items()}
        return Graph(self.stages, needs, needed)

    def above(self, starts: Iterable[Stage]) -> list[Stage]:
        """The stages and all that they need, what is needed first."""
        return list(self._post_order(starts, self.needs))

    def below(self, starts: Iterable[Stage]) -> list[Stage]:
        """The stages and all that needs them, what is needed first."""
        found = set(self._post_order(starts, self.needed))
        return [stage for stage in self._post_order(self.stages, self.needs) if stage in found]

    def connected(self, starts: Iterable[Stage]) -> list[Stage]:
        """The whole pipelines of the stages, what is needed first."""
        found: set[Stage] = set()
        waiting = list(starts)
        while waiting:
            stage = waiting.pop()
            if stage not in found:
                found.add(stage)
                waiting += [*self.needs[stage], *self.needed[stage]]
        return [stage for stage in self._post_order(self.stages, self.needs) if stage in found]

    def _post_order(self, starts: Iterable[Stage], edges: dict[Stage, list[Stage]]) -> Iterator[Stage]:
        seen: set[Stage] = set()
        for start in starts:
            if start in seen:
                continue
            seen.add(start)
            stack = [(start, iter(edges[start]))]
            while stack:
                stage, rest = stack[-1]
                following = next((each for each in rest if each not in seen), None)
                if following is None:
                    yield stack.pop()[0]
                else:
                    seen.add(following)
                    stack.append((following, iter(edges[following])))


class OutIndex:
    """Outputs by their places, with their stages. Raises OverlapError for two that clash."""

    def __init__(self, stages: Sequence[Stage], seen: Seen) -> None:
        self._seen = seen
        self._by_place: dict[str, tuple[Stage, StageOut]] = {}
        for stage in stages:
            for out in stage.outs:
                self._take(stage, out)
        self._places = sorted(self._by_place)
        for place in self._places:
            for folder in above(place):
                if folder in self._by_place:
                    raise self._overlap(folder, place)

    def around(self, place: str) -> tuple[Stage, StageOut] | None:
        """The output that `place` is or lies in."""
        for each in (place, *above(place)):
            if each in self._by_place:
                return self._by_place[each]
        return None

    def touching(self, place: str) -> list[tuple[Stage, StageOut]]:
        """Outputs that `place` is, lies in or holds."""
        holder = self.around(place)
        if holder is not None:
            return [holder]
        prefix = f"{place}/" if place else ""
        at = bisect_left(self._places, prefix)
        found = []
        while at < len(self._places) and self._places[at].startswith(prefix):
            item = self._by_place[self._places[at]]
            if place or not is_outside(item[1]):
                found.append(item)
            at += 1
        return found

    def _take(self, stage: Stage, out: StageOut) -> None:
        place = out.key
        if place == "":
            raise OverlapError(f"output '{out.path}' of {self._named(stage)} is the project itself", path=out.path)
        other = self._by_place.setdefault(place, (stage, out))[0]
        if other is not stage or self._by_place[place][1] is not out:
            where = printable(shown(out, self._seen))
            twice = (
                f"{self._named(stage)} twice" if other is stage else f"{self._named(other)} and of {self._named(stage)}"
            )
            raise OverlapError(
                f"'{where}' is an output of {twice}", path=where, hint="give each stage outputs of its own"
            )

    def _overlap(self, outer: str, inner: str) -> OverlapError:
        (holder, around), (stage, out) = self._by_place[outer], self._by_place[inner]
        where = printable(shown(out, self._seen))
        return OverlapError(
            f"output '{where}' of {self._named(stage)} lies in output '{printable(shown(around, self._seen))}' of "
            f"{self._named(holder)}",
            path=where,
            hint="keep outputs in separate directories",
        )

    def _named(self, stage: Stage) -> str:
        return named(stage, self._seen)


def build(stages: Sequence[Stage], seen: Seen) -> Graph:
    """The graph of all stages. Raises OverlapError (outputs), InvalidFileError (a cycle)."""
    index = OutIndex(stages, seen)
    graph = Graph(list(stages), {stage: [] for stage in stages}, {stage: [] for stage in stages})
    for stage in stages:
        holder = index.around(stage.file)
        if holder is not None:
            where = printable(seen(stage.file))
            raise OverlapError(
                f"'{where}' lies in output '{holder[1].path}' of {named(holder[0], seen)}", path=where,
                hint="move it out of there",
            )  # fmt: skip
        edges: dict[Stage, None] = {}
        for dep in stage.deps:
            edges.update((other, None) for other, _ in index.touching(dep.key))
        for params in stage.params:
            edges.update((other, None) for other, _ in index.touching(params.place))
        graph.needs[stage] = list(edges)
        for other in edges:
            graph.needed[other].append(stage)
    _refuse_cycle(graph, seen)
    return graph


def named(stage: Stage, seen: Seen) -> str:
    """A stage as part of a sentence."""
    name = printable(address(stage, seen(stage.file)))
    return f"stage '{name}'" if stage.name else f"'{name}'"


def _refuse_cycle(graph: Graph, seen: Seen) -> None:
    waiting = {stage: len(needs) for stage, needs in graph.needs.items()}
    ready = [stage for stage, count in waiting.items() if not count]
    while ready:
        for stage in graph.needed[ready.pop()]:
            waiting[stage] -= 1
            if not waiting[stage]:
                ready.append(stage)
    stuck = {stage for stage, count in waiting.items() if count}
    if not stuck:
        return
    path = [next(iter(stuck))]
    while path[-1] not in path[:-1]:
        path.append(next(stage for stage in graph.needs[path[-1]] if stage in stuck))
    cycle = path[path.index(path[-1]) :][::-1]
    names = " -> ".join(f"'{printable(address(stage, seen(stage.file)))}'" for stage in cycle)
    where = printable(seen(cycle[0].file))
    raise InvalidFileError(
        f"stages need each other in a circle: {names}", path=where, hint="take one dependency or output out of it"
    )
