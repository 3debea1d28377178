"""commit, remove, move, freeze, unfreeze: verbs that change what is tracked, with DVC's options and words."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from millpond.cli import text
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Verb, json_option
from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError, UsageError


@click.command(
    cls=Verb,
    example="""
$ echo 200001 >> data/labels.csv
$ millpond commit --force data.dvc
""",
)
@click.argument("targets", nargs=-1, type=click.Path())
@click.option("-f", "--force", is_flag=True, help="Record changed data without asking.")
@click.option("-d", "--with-deps", is_flag=True, help="Also all that the targets need.")
@click.option("-R", "--recursive", is_flag=True, help="Targets may be directories: all .dvc files below them.")
@click.option("--no-relink", is_flag=True, help="Leave the files in the workspace as they are.")
@json_option
@click.pass_obj
def commit(
    console: Console,
    targets: tuple[str, ...],
    force: bool,
    with_deps: bool,
    recursive: bool,
    no_relink: bool,
    as_json: bool,
) -> None:
    """Store what tracked files and directories and outputs of stages hold now, and record it in .dvc files and dvc.lock.

    What was added with --no-commit is stored at once; data that differs from its .dvc file needs your word, or --force.
    """
    params: dict[str, Any] = {
        "targets": [wirepath.encode(target) for target in targets],
        "force": force,
        "with_deps": with_deps,
        "recursive": recursive,
        "no_relink": no_relink,
    }
    result = verb(console, "commit", params)
    if unconfirmed := result.get("unconfirmed"):
        _confirm(console, unconfirmed)
        result = verb(console, "commit", {**params, "force": True})
    for warning in result.get("warnings") or []:
        console.warn(wirepath.decode(str(warning)))
    if as_json:
        paths = [{**row, **{key: wirepath.decode(row[key]) for key in ("path", "pointer")}} for row in result["added"]]
        console.write(json.dumps({"committed": paths}))


@click.command(
    cls=Verb,
    example="""
$ millpond remove data.dvc
$ millpond rm --outs old.dvc train
""",
)
@click.argument("targets", nargs=-1, required=True, type=click.Path())
@click.option("--outs", is_flag=True, help="Remove the data from the workspace too.")
@click.option("-f", "--force", is_flag=True, help="With --outs: also data that is stored nowhere.")
@json_option
@click.pass_obj
def remove(console: Console, targets: tuple[str, ...], outs: bool, force: bool, as_json: bool) -> None:
    """Stop tracking what these .dvc files track, and remove stages from dvc.yaml: with their lines in .gitignore.

    Targets are .dvc files, stages (STAGE, FILE:STAGE) and dvc.yaml files (all of their stages). The data stays in the workspace, unless --outs is given, and in the store.
    """
    if force and not outs:
        raise UsageError("--force goes with --outs")
    params = {"targets": [wirepath.encode(target) for target in targets], "outs": outs, "force": force}
    result = verb(console, "remove", params)
    if as_json:
        found = {key: [wirepath.decode(path) for path in result[key]] for key in ("removed", "outs")}
        console.write(json.dumps(found))


@click.command(
    cls=Verb,
    example="""
$ millpond move data.csv tables/
To track the changes with git, run:
    git add .gitignore data.csv.dvc tables/.gitignore tables/data.csv.dvc
$ millpond mv tables/data.csv tables/all.csv
""",
)
@click.argument("source", type=click.Path())
@click.argument("target", type=click.Path())
@json_option
@click.pass_obj
def move(console: Console, source: str, target: str, as_json: bool) -> None:
    """Rename tracked data, or move it into another directory, with its .dvc file and its line in .gitignore.

    Nothing is overwritten. Data that changed since it was added stays as changed as it is.
    """
    params = {"source": wirepath.encode(source), "target": wirepath.encode(target)}
    found = verb(console, "move", params)
    files = [wirepath.decode(file) for file in found["git_add"]]
    if found["missing"]:
        console.warn(f"'{text.printable(source)}' is not in the workspace: its .dvc file was moved alone")
    if as_json:
        paths = {key: wirepath.decode(found[key]) for key in ("path", "pointer")}
        console.write(json.dumps({**paths, "git_add": files}))
    elif files:
        console.say("To track the changes with git, run:")
        console.say("    git add " + " ".join(text.shell_quoted(file) for file in files))


@click.command(
    cls=Verb,
    example="""
$ millpond freeze model.bin.dvc train
""",
)
@click.argument("targets", nargs=-1, required=True, type=click.Path())
@json_option
@click.pass_obj
def freeze(console: Console, targets: tuple[str, ...], as_json: bool) -> None:
    """Have stages and .dvc files keep what they have: `repro` and `update` leave them alone until `unfreeze`."""
    _set_frozen(console, targets, as_json, frozen=True)


@click.command(
    cls=Verb,
    example="""
$ millpond unfreeze model.bin.dvc train
""",
)
@click.argument("targets", nargs=-1, required=True, type=click.Path())
@json_option
@click.pass_obj
def unfreeze(console: Console, targets: tuple[str, ...], as_json: bool) -> None:
    """Let frozen stages and .dvc files be updated again."""
    _set_frozen(console, targets, as_json, frozen=False)


def _set_frozen(console: Console, targets: tuple[str, ...], as_json: bool, *, frozen: bool) -> None:
    found = verb(console, "freeze", {"targets": [wirepath.encode(target) for target in targets], "frozen": frozen})
    changed = [wirepath.decode(file) for file in found["changed"]]
    if as_json:
        console.write(json.dumps({"changed": changed}))


def _confirm(console: Console, unconfirmed: list[dict[str, Any]]) -> None:
    """Ask for each pointer's changed data; raise ConflictError without a yes."""
    for each in unconfirmed:
        pointer = text.printable(wirepath.decode(each["pointer"]))
        outs = ", ".join(f"'{text.printable(wirepath.decode(out))}'" for out in each["outs"])
        if sys.stdin.isatty():
            console.tell(f"outputs [{outs}] of '{pointer}' changed. Are you sure you want to commit it? [y/n] ")
            if sys.stdin.readline().strip().lower() in ("y", "yes"):
                continue
        raise ConflictError(f"unable to commit changed '{pointer}'", hint="use `-f|--force` to force")
