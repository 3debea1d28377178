"""unprotect, destroy: verbs that let a project's data go its own way, with DVC's options and words."""

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
from millpond.daemon.errors import ConflictError


@click.command(
    cls=Verb,
    example="""
$ millpond unprotect data/labels.csv
$ echo 200001 >> data/labels.csv
""",
)
@click.argument("targets", nargs=-1, required=True, type=click.Path())
@json_option
@click.pass_obj
def unprotect(console: Console, targets: tuple[str, ...], as_json: bool) -> None:
    """Have files share nothing with DVC's cache, so that they can be changed: links become copies, writable ones.

    What millpond checks out needs no such thing; DVC with `cache.type` hardlink or symlink makes such links.
    """
    found = verb(console, "unprotect", {"targets": [wirepath.encode(target) for target in targets]})
    if as_json:
        console.write(json.dumps(found))


@click.command(
    cls=Verb,
    example="""
$ millpond destroy
This removes 3 files (.dvc files, dvc.yaml, dvc.lock, .dvcignore) and `.dvc` with its cache: 312 objects, 208 MB.
The data in the workspace and what is in millpond's store stay.
Are you sure you want to continue? [y/n] y
""",
)
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def destroy(console: Console, force: bool, as_json: bool) -> None:
    """Remove all of DVC's files from this project: .dvc files, stages, `.dvc` with its configuration and cache.

    Data in the workspace stays: links into the cache become copies first. The store keeps what it has until
    `forget-project` and `gc`.
    """
    if not force:
        for line in _destroy_lines(verb(console, "destroy", {"dry": True})):
            console.tell(line)
        if not agreed(console, "Are you sure you want to continue?"):
            raise ConflictError(
                "cannot destroy without a confirmation from the user", hint="use `-f` to force; nothing was changed"
            )
    found = verb(console, "destroy", {})
    if as_json:
        console.write(
            json.dumps({"files": [wirepath.decode(file) for file in found["files"]], "cache": found["cache"]})
        )


def agreed(console: Console, question: str) -> bool:
    """Whether a person says yes; False where there is nobody to ask."""
    if not sys.stdin or not sys.stdin.isatty():
        return False
    console.flush()
    console.err.write(f"{question} [y/n] ")
    console.err.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _destroy_lines(found: dict[str, Any]) -> list[str]:
    cache, files = found["cache"], len(found["files"])
    removed = f"This removes {text.count(files)} files (.dvc files, dvc.yaml, dvc.lock, .dvcignore) and `.dvc`"
    objects = f"{text.count(cache['objects'])} objects, {text.size(cache['bytes'])}"
    lines = [f"{removed} with its cache: {objects}." if cache["objects"] else f"{removed}."]
    if cache["unstored"]:
        lost = f"{text.count(cache['unstored'])} of these objects ({text.size(cache['unstored_bytes'])})"
        lines.append(f"{lost} are not in millpond's store.")
    return [*lines, "The data in the workspace and what is in millpond's store stay."]
