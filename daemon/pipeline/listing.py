"""`stage list` and `dag`: the stages of a project, and how they hang together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import TargetError, UsageError
from millpond.daemon.pipeline import drawing, graph, pipelines, targets
from millpond.daemon.pipeline.drawing import Drawing
from millpond.daemon.pipeline.graph import Graph, OutIndex
from millpond.daemon.pipeline.places import shown
from millpond.daemon.pipeline.resolve import JOIN
from millpond.daemon.pipeline.stage import OUTS, Stage, StageOut, address
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.stages import STAGES_FILE

# Characters of a description, as in DVC.
_LONGEST = 80
_DRAWN: dict[str, Callable[[Drawing], str]] = {
    "ascii": drawing.ascii_art,
    "dot": drawing.dot,
    "mermaid": drawing.mermaid,
    "md": lambda drawn: drawing.mermaid(drawn, markdown=True),
}


def stage_list(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, all, fail, recursive} -> {stages: [{name, description, file, cmd, deps, params, outs}], failed}.

    `failed`: files that were left out because they cannot be read; with `fail` that is an error. Raises InvalidFileError,
    TargetError.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    names = [wirepath.decode(target) for target in params.get("targets") or []] or [STAGES_FILE]
    loaded = pipelines.load(repo, tolerant=not params.get("fail"))
    if params.get("all"):
        stages = loaded.stages
    else:
        stages = targets.meant(repo, loaded, names, recursive=bool(params.get("recursive")))
    return {
        "stages": [_shown(repo, stage) for stage in stages],
        "failed": {repo.wire(path): wirepath.encode(error.message) for path, error in loaded.failed.items()},
    }


def dag(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {target, full, outs, collapse, format} -> {nodes, edges: [[needed, who needs it]], text}; names as they are shown.

    Without `full` a target comes with all that it needs, with it with all that hangs together with it. `format` is one of
    ascii, dot, mermaid, md. Raises InvalidFileError, OverlapError, TargetError, UsageError.
    """
    drawn_as = str(params.get("format") or "ascii")
    if params.get("outs") and params.get("collapse"):
        raise UsageError("--outs and --collapse-foreach-matrix cannot be used together")
    if drawn_as not in _DRAWN:
        raise UsageError(f"'{drawn_as}' is none of {', '.join(_DRAWN)}")
    repo = Repo.open(os.getcwd(), os.environ)
    loaded = pipelines.load(repo)
    built = graph.build(loaded.stages, repo.seen)
    target = wirepath.decode(params["target"]) if params.get("target") else None
    starts = [] if target is None else targets.meant(repo, loaded, [target], outputs=True)
    if params.get("outs"):
        whole, names = _of_outs(repo, built), _out_names(repo, starts, target)
    else:
        whole, names = _of_stages(repo, built), [_name(repo, stage) for stage in starts]
    drawn = whole if target is None else _part(whole, names, full=bool(params.get("full")))
    if target is not None and not names:
        raise TargetError(f"'{printable(target)}' has no outputs", path=printable(target))
    if params.get("collapse"):
        drawn = _collapsed(drawn)
    return {
        "nodes": drawn.nodes,
        "edges": drawn.edges,
        "text": _DRAWN[drawn_as](drawn) if drawn.nodes else "",
    }


def description(stage: Stage) -> str:
    """What a stage is for, in a line: the first of its own description, else its outputs."""
    if stage.desc:
        found = stage.desc.strip().splitlines()[0]
    elif stage.outs:
        groups = {"Outputs": [out for out in stage.outs if out.kind == OUTS]}
        groups["Reports"] = [out for out in stage.outs if out.kind != OUTS]
        found = "; ".join(f"{name} {', '.join(out.path for out in outs)}" for name, outs in groups.items() if outs)
    elif stage.deps or stage.params:
        found = "Depends on " + ", ".join([*(dep.path for dep in stage.deps), *(each.path for each in stage.params)])
    else:
        found = "No outputs or dependencies"
    return found if len(found) <= _LONGEST else f"{found[: _LONGEST - 1]}…"


def _shown(repo: Repo, stage: Stage) -> dict[str, Any]:
    return {
        "name": wirepath.encode(address(stage, repo.seen(stage.file))),
        "description": wirepath.encode(description(stage)),
        "file": repo.wire(stage.file),
        "cmd": stage.cmd,
        "deps": [wirepath.encode(dep.path) for dep in stage.deps],
        "params": {wirepath.encode(params.path): list(params.keys) for params in stage.params},
        "outs": [wirepath.encode(out.path) for out in stage.outs],
    }


def _name(repo: Repo, stage: Stage) -> str:
    """A stage in a drawing."""
    return printable(address(stage, repo.seen(stage.file)))


def _of_stages(repo: Repo, built: Graph) -> Drawing:
    names = {stage: _name(repo, stage) for stage in built.stages}
    edges = [(names[other], names[stage]) for stage in built.stages for other in built.needs[stage]]
    return Drawing(list(names.values()), edges)


def _of_outs(repo: Repo, built: Graph) -> Drawing:
    index = OutIndex(built.stages, repo.seen)
    nodes: dict[str, None] = {}
    edges: dict[tuple[str, str], None] = {}
    for stage in built.stages:
        for out in stage.outs:
            nodes[_out_name(repo, out)] = None
            for dep in stage.deps:
                for _, needed in index.touching(dep.key):
                    edges[_out_name(repo, needed), _out_name(repo, out)] = None
    return Drawing(list(nodes), list(edges))


def _out_name(repo: Repo, out: StageOut) -> str:
    return printable(shown(out, repo.seen))


def _out_names(repo: Repo, stages: Iterable[Stage], target: str | None) -> list[str]:
    """The outputs of the stages; only the one that the target is, or lies in, if it is one."""
    outs = [out for stage in stages for out in stage.outs]
    relative = None if target is None else repo.relative(target)
    own = [out for out in outs if relative is not None and f"{relative}/".startswith(f"{out.place}/")]
    return [_out_name(repo, out) for out in own or outs]


def _part(whole: Drawing, names: Iterable[str], *, full: bool) -> Drawing:
    """What the named nodes need; with `full` all that hangs together with them."""
    near: dict[str, list[str]] = {node: [] for node in whole.nodes}
    for start, end in whole.edges:
        near[end].append(start)
        if full:
            near[start].append(end)
    found, waiting = set(names), list(names)
    while waiting:
        fresh = [node for node in near[waiting.pop()] if node not in found]
        found.update(fresh)
        waiting += fresh
    edges = [edge for edge in whole.edges if edge[0] in found and edge[1] in found]
    return Drawing([node for node in whole.nodes if node in found], edges)


def _collapsed(drawn: Drawing) -> Drawing:
    """With one node for all that a loop makes."""

    def base(node: str) -> str:
        return node if node.endswith(".dvc") else node.partition(JOIN)[0]

    edges = dict.fromkeys((base(start), base(end)) for start, end in drawn.edges)
    return Drawing(list(dict.fromkeys(map(base, drawn.nodes))), list(edges))
