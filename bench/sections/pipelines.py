"""Pipelines beside DVC: a repro that finds nothing to do, one that runs a stage, a loop run whole, a large matrix read, and stages at
once.

Commands are as small as they can be: what is measured is what the tool adds to them. The same words must be printed and the same
files made by both. The matrix is committed by millpond and copied to DVC, which must find it up to date; with DVC it would take hours.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.context import Context
from bench.figures import OURS
from bench.host import BenchError, run
from bench.projects import Dvc, Millpond

SECTION = "pipelines"
# Stages of the chain, of the loop, and of the matrix by its two axes, at scale 1.
CHAIN, LOOP, AXES = 10, 300, (60, 50)
MATRIX = AXES[0] * AXES[1]
NOTHING, NOTHING_LARGE = f"repro of nothing, {CHAIN} stages", f"repro of nothing, {MATRIX:,} stages"
ONE, FOREACH = f"repro of 1 of {CHAIN} stages", f"repro of a loop of {LOOP} stages"
OVERHEAD = "a stage beyond its command"
LIST, STATUS = f"stage list, {MATRIX:,} stages", f"status, {MATRIX:,} stages"
SERIAL, PARALLEL = "2 stages of work, one after the other", "2 stages of work at once"
# Turns of a loop of Python's that take a second or two.
TURNS = 60_000_000
Tool = Millpond | Dvc


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A dvc.yaml, and the outputs that its stages copy from `src`."""

    text: str
    outs: Sequence[str]

    def check(self, repo: Path, wanted: str) -> int:
        """How many bytes of outputs are as they must be. Raises BenchError."""
        for out in self.outs:
            if (repo / out).read_text() != wanted:
                raise BenchError(f"'{out}' is not what its stage makes")
        return len(self.outs) * len(wanted)


def measure(context: Context) -> None:
    """One pipeline after the other, each with repositories of its own."""
    _chain(context)
    _loop(context)
    _matrix(context)
    _at_once(context)


def chain() -> Pipeline:
    """Each stage needs the one before it; the last needs `last`, too."""
    names = ["src", *(f"o{number}" for number in range(CHAIN))]
    stages = {
        made: {"cmd": f"cat {needed} > {made}", "deps": [needed, *(["last"] if made == names[-1] else [])], "outs": [made]}
        for needed, made in zip(names, names[1:], strict=False)
    }  # fmt: skip
    return Pipeline(json.dumps({"stages": stages}), names[1:])


def loop(stages: int) -> Pipeline:
    """A foreach."""
    do = {"cmd": "cat src > o${item}", "deps": ["src"], "outs": ["o${item}"]}
    text = json.dumps({"stages": {"each": {"foreach": list(range(stages)), "do": do}}})
    return Pipeline(text, [f"o{number}" for number in range(stages)])


def matrix(rows: int, columns: int) -> Pipeline:
    """A matrix of two axes."""
    each = {
        "matrix": {"a": list(range(rows)), "b": list(range(columns))},
        "cmd": "cat src > o${item.a}-${item.b}",
        "deps": ["src"],
        "outs": ["o${item.a}-${item.b}"],
    }
    text = json.dumps({"stages": {"each": each}})
    return Pipeline(text, [f"o{row}-{column}" for row in range(rows) for column in range(columns)])


def _tools(context: Context, name: str, pipeline: Pipeline) -> list[Tool]:
    """Both, each in a repository in which nothing has run."""
    folder = context.folder / name
    tools: list[Tool] = [Millpond(folder / "m"), Dvc(folder / "d")]
    for tool in tools:
        context.stack.callback(tool.close)
        tool.init()
        for path, text in {"dvc.yaml": pipeline.text, "src": "first\n", "last": "first\n"}.items():
            (tool.repo / path).write_text(text)
    return tools


def _chain(context: Context) -> None:
    pipeline = chain()
    tools = _tools(context, "chain", pipeline)
    for tool in tools:
        tool.command("repro", "-q")
        pipeline.check(tool.repo, "first\n")
    said: set[str] = set()
    for number, tool in enumerate(context.rounds(tools)):
        ran = tool.command("repro")
        context.figures.tell(SECTION, NOTHING, tool.name, ran.seconds, checked=len(ran.stdout))
        said.add(ran.stdout)
        (tool.repo / "last").write_text(f"{number}\n")
        ran = tool.command("repro")
        if ran.stdout.count("Running stage") != 1:
            raise BenchError(f"{tool.name} has not run one stage: {ran.stdout}")
        checked = pipeline.check(tool.repo, "first\n")
        context.figures.tell(SECTION, ONE, tool.name, ran.seconds, checked=checked)
    _alike("repro", said)


def _loop(context: Context) -> None:
    stages = max(3, round(LOOP * context.scale))
    pipeline = loop(stages)
    tools = _tools(context, "loop", pipeline)
    for number, tool in enumerate(context.rounds(tools)):
        source = f"{number}\n"
        (tool.repo / "src").write_text(source)
        script = "; ".join(f"sh -c 'cat src > {out}'" for out in pipeline.outs)
        bare = run(["sh", "-c", script], cwd=tool.repo, env=tool.env)
        for out in pipeline.outs:
            (tool.repo / out).unlink()
        ran = tool.command("repro", "-f")
        checked = pipeline.check(tool.repo, source)
        context.figures.tell(SECTION, FOREACH, tool.name, ran.seconds, checked=checked)
        beyond = max(0.0, ran.seconds - bare.seconds) / stages
        context.figures.tell(SECTION, OVERHEAD, tool.name, beyond, checked=checked)


def _matrix(context: Context) -> None:
    pipeline = matrix(*(max(2, round(axis * context.scale**0.5)) for axis in AXES))
    tools = _tools(context, "matrix", pipeline)
    first, second = (tool.repo for tool in tools)
    for out in pipeline.outs:
        (first / out).write_text("first\n")
    tools[0].command("commit", "-f", "-q")
    tools[0].command("cache", "export", "-q")
    shutil.rmtree(second)
    shutil.copytree(first, second, symlinks=True, ignore=shutil.ignore_patterns("tmp"))
    for tool in tools:
        tool.command("status", "-q")
    context.host.settle()
    works = {LIST: ("stage", "list", "--name-only"), STATUS: ("status",), NOTHING_LARGE: ("repro",)}
    for work, command in works.items():
        said: set[str] = set()
        for tool in context.rounds(tools):
            ran = tool.command(*command)
            context.figures.tell(SECTION, work, tool.name, ran.seconds, checked=len(ran.stdout))
            said.add(ran.stdout)
        _alike(" ".join(command), said)


def _at_once(context: Context) -> None:
    work = f"python3 -c 'for _ in range({round(TURNS * context.scale)}): pass'"
    stages = {name: {"cmd": f"{work}; cat src > {name}", "deps": ["src"], "outs": [name]} for name in ("o1", "o2")}
    pipeline = Pipeline(json.dumps({"stages": stages}), list(stages))
    tools = _tools(context, "at-once", pipeline)
    for tool in context.rounds(tools):
        for name, options in {SERIAL: (), PARALLEL: ("-j", "2")}.items():
            if options and tool.name != OURS:  # DVC has no such option
                continue
            ran = tool.command("repro", "-f", *options)
            context.figures.tell(SECTION, name, tool.name, ran.seconds, checked=pipeline.check(tool.repo, "first\n"))


def _alike(command: str, said: set[str]) -> None:
    if len(said) != 1:
        raise BenchError(f"`{command}`: the tools do not say the same: {[text[:200] for text in said]}")
