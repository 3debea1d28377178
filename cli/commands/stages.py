"""stage, dag: the stages of pipelines, with DVC's options and words."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import click

from millpond.cli import render, text
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Callback, Group, Verb, json_option, refused, with_options
from millpond.daemon import wirepath
from millpond.daemon.errors import UsageError

_WORDS = "millpond.words"
# Options of `run` that `stage add` has not.
_OURS = frozenset({"--no-exec", "--no-commit", "--no-run-cache"})


@click.group(cls=Group)
def stage() -> None:
    """Add and list stages."""


def _paths(*names: str, help: str) -> Callable[[Callback], Callback]:
    return click.option(*names, multiple=True, metavar="PATH", type=click.Path(), help=help)


def _stage_options(function: Callback) -> Callback:
    """What a stage is, as options of `stage add` and of its old name."""
    return with_options(
        function,
        _paths("-d", "--deps", help="A file or directory that the command reads."),
        click.option("-p", "--params", multiple=True, metavar="[FILE:]KEYS", help="Parameters that the command uses."),
        _paths("-o", "--outs", help="A file or directory that the command makes."),
        _paths("-O", "--outs-no-cache", help="As -o, kept by Git."),
        _paths("--outs-persist", help="As -o, not removed before the command runs."),
        _paths("--outs-persist-no-cache", help="As -O, not removed before the command runs."),
        _paths("-m", "--metrics", help="A file of metrics that the command makes."),
        _paths("-M", "--metrics-no-cache", help="As -m, kept by Git."),
        _paths("--plots", help="A file of plots that the command makes."),
        _paths("--plots-no-cache", help="As --plots, kept by Git."),
        click.option(
            "-w", "--wdir", metavar="PATH", type=click.Path(), help="The directory in which the command runs."
        ),
        click.option("--always-changed", is_flag=True, help="Have the stage run in every repro."),
        click.option("--desc", metavar="TEXT", help="What the stage is for."),
        click.option("-f", "--force", is_flag=True, help="Overwrite a stage of that name."),
    )


@stage.command(
    "add",
    short_help="Add a stage to dvc.yaml.",
    context_settings={"allow_interspersed_args": False, "help_option_names": []},
    example="""
$ millpond stage add -n train -d data -p lr -o model.pkl python train.py
Added stage 'train' in 'dvc.yaml'
""",
)
@click.option("-n", "--name", required=True, metavar="NAME", help="The stage's name.")
@_stage_options
@click.option("--run", is_flag=True, help="Run the stage at once.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def stage_add(console: Console, /, run: bool, **described: Any) -> None:
    """Add a stage to the dvc.yaml here, which is made when there is none.

    Paths are relative to the working directory of the stage. Options come before the command.
    """
    _add(console, described, run={} if run else None)


def _add(console: Console, described: dict[str, Any], *, run: dict[str, bool] | None) -> None:
    """Add the stage that `_stage_options`, a name and a command describe; run it, with these options of `repro`, unless None."""
    name, command = described["name"], described["command"]
    given = {
        option: [wirepath.encode(each) for each in value] if isinstance(value, tuple) else value
        for option, value in described.items()
        if option != "command"
    }
    wdir = described["wdir"]
    asked = {**given, "cmd": _joined(command), "wdir": None if wdir is None else wirepath.encode(wdir)}
    result = verb(console, "stage.add", asked)
    for warning in result["warnings"]:
        console.warn(wirepath.decode(warning))
    console.say(f"{'Modified' if result['changed'] else 'Added'} stage '{name}' in 'dvc.yaml'")
    if run is not None:
        from millpond.cli.commands.repro import reproduce

        wanted = {"targets": [wirepath.encode(name)], "single_item": True, "quiet": console.quiet, **run}
        reproduce(console, wanted)
    for line in render.add_lines(result, config=None):
        console.say(line)


class _OldRun(Verb):
    """Keeps its words as they were typed, to say what they are called now."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_WORDS] = list(args)
        return super().parse_args(ctx, args)


@click.command(
    "run",
    cls=_OldRun,
    context_settings={"allow_interspersed_args": False, "help_option_names": []},
    example="""
$ millpond run -n train -d data -o model.pkl python train.py
`run` is an old name: this is `millpond stage add --run -n train -d data -o model.pkl python train.py`
Added stage 'train' in 'dvc.yaml'
Running stage 'train':
> python train.py
""",
)
@click.option("-n", "--name", metavar="NAME", help="The stage's name.")
@_stage_options
@click.option("--no-exec", is_flag=True, help="Only add the stage.")
@click.option("--no-commit", is_flag=True, help="Do not store what the stage makes.")
@click.option("--no-run-cache", is_flag=True, help="Run the command though it was run before with the same inputs.")
@refused("--single-stage", reason="stages have names, in dvc.yaml", is_flag=True)
@refused("--external", reason="outputs elsewhere are named by -O URL", is_flag=True)
@refused("-c", "--checkpoints", reason="checkpoints are no part of DVC 3", multiple=True)
@refused("--live", reason="it is no part of DVC 3", multiple=True)
@refused("--file", reason="stages stand in the dvc.yaml of the directory where `run` is typed; use --cd")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, /, no_exec: bool, no_commit: bool, no_run_cache: bool, **described: Any) -> None:
    """DVC 2's name for `stage add --run`, and with --no-exec for `stage add`: add a stage to dvc.yaml and run it."""
    if not described["name"]:
        raise UsageError(
            "a stage needs a name", hint="`millpond stage add --run -n NAME ...` is what `run` is called now"
        )
    words: list[str] = ctx.meta[_WORDS]
    options = [word for word in words[: len(words) - len(described["command"])] if word not in _OURS]
    now = ["millpond", "stage", "add", *([] if no_exec else ["--run"]), *options, *described["command"]]
    ctx.obj.warn(f"`run` is an old name: this is `{text.printable(shlex.join(now))}`")
    _add(ctx.obj, described, run=None if no_exec else {"no_commit": no_commit, "no_run_cache": no_run_cache})


def _joined(words: tuple[str, ...]) -> str:
    """The command as DVC puts words together: those with spaces in double quotes."""
    if len(words) < 2:
        return " ".join(words)
    return " ".join('""' if not word else f'"{word}"' if " " in word and '"' not in word else word for word in words)


@stage.command(
    "list",
    short_help="List stages.",
    example="""
$ millpond stage list
prepare  Outputs data/prepared
train    Outputs model.pkl; Reports scores.json
""",
)
@click.argument("targets", nargs=-1, type=click.Path())
@click.option("--all", "everything", is_flag=True, help="List the stages of the whole project.")
@click.option("--fail", is_flag=True, help="Fail at the first file that cannot be read.")
@click.option("-R", "--recursive", is_flag=True, help="Targets may be directories: all stages below them.")
@click.option("--name-only", "--names-only", is_flag=True, help="Print names only.")
@json_option
@click.pass_obj
def stage_list(
    console: Console,
    targets: tuple[str, ...],
    everything: bool,
    fail: bool,
    recursive: bool,
    name_only: bool,
    as_json: bool,
) -> None:
    """List the stages of dvc.yaml files and .dvc files; those of the dvc.yaml here by default.

    With --all, files that cannot be read are passed over, unless --fail is given; -v names them.
    """
    params = {
        "targets": [wirepath.encode(target) for target in targets],
        "all": everything,
        "fail": fail,
        "recursive": recursive,
    }
    result = verb(console, "stage.list", params)
    for message in result["failed"].values():
        console.debug(wirepath.decode(message))
    rows = [_decoded(row) for row in result["stages"]]
    if as_json:
        console.write(json.dumps({"stages": rows}))
        return
    for line in [text.printable(row["name"]) for row in rows] if name_only else _table(rows):
        console.say(line)


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **row,
        **{key: wirepath.decode(row[key]) for key in ("name", "description", "file")},
        **{key: [wirepath.decode(path) for path in row[key]] for key in ("deps", "outs")},
        "params": {wirepath.decode(path): keys for path, keys in row["params"].items()},
    }


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    names = [text.printable(row["name"]) for row in rows]
    width = max(map(len, names), default=0)
    for name, row in zip(names, rows, strict=True):
        yield f"{name:<{width}}  {text.printable(row['description'])}".rstrip()


@click.command(
    cls=Verb,
    example="""
$ millpond dag --dot train
strict digraph {
"prepare";
"train";
"prepare" -> "train";
}
""",
)
@click.argument("target", required=False, type=click.Path())
@click.option("--dot", "drawn_as", flag_value="dot", help="As a graph for Graphviz.")
@click.option("--mermaid", "drawn_as", flag_value="mermaid", help="As a graph for Mermaid.")
@click.option("--md", "drawn_as", flag_value="md", help="As --mermaid, in a block for Markdown.")
@click.option("--full", is_flag=True, help="With TARGET: all that hangs together with it, not only what it needs.")
@click.option("-o", "--outs", is_flag=True, help="Show outputs instead of stages.")
@click.option("--collapse-foreach-matrix", "collapse", is_flag=True, help="Show all that a loop makes as one.")
@json_option
@click.pass_obj
def dag(
    console: Console, target: str | None, drawn_as: str | None, full: bool, outs: bool, collapse: bool, as_json: bool
) -> None:
    """Show how the stages and .dvc files of a project hang together: what is needed above what needs it."""
    if as_json and drawn_as:
        raise UsageError(f"--json cannot be used with --{drawn_as}")
    params = {
        "target": None if target is None else wirepath.encode(target),
        "full": full,
        "outs": outs,
        "collapse": collapse,
        "format": drawn_as,
    }
    result = verb(console, "dag", params)
    if as_json:
        console.write(json.dumps({"nodes": result["nodes"], "edges": result["edges"]}))
    elif result["text"]:
        console.say(result["text"].rstrip("\n"))
    else:
        console.say("There are no stages in this project.")
