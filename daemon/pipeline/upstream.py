"""What outputs are made of: all that their stages need, as `--with-deps` of verbs that move data means it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from millpond.daemon.pipeline import graph, pipelines
from millpond.daemon.pipeline.pipelines import Content, Pipelines
from millpond.daemon.pipeline.places import Places
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.select import Choice


def with_needed(
    repo: Repo, files: Mapping[str, bytes], content: Content, outputs: Sequence[Output], chosen: Sequence[Choice]
) -> list[Choice]:
    """The choices, and the outputs of all stages and `.dvc` files that theirs depend on. `files` are the pointers of the same version, `content`
    its other files. Raises InvalidFileError, OverlapError, CycleError."""
    loaded = pipelines.fill(
        Pipelines(Places(repo.root, repo.config), content, repo.seen), files.items(), pipelines.style_of(repo)
    )
    places = {choice.output.path for choice in chosen}
    starts = [stage for stage in loaded.stages if any(out.place in places for out in stage.outs)]
    needed = {out.place for stage in graph.build(loaded.stages, repo.seen).above(starts) for out in stage.outs}
    return [*chosen, *(Choice(output) for output in outputs if output.path in needed - places)]
