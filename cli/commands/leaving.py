"""unprotect, purge, destroy: verbs that let a project's data go its own way, with DVC's options and words."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from millpond.cli import render, storelines, text
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


@click.command(
    cls=Verb,
    example="""
$ millpond purge --recursive old
From the workspace: 'old/train', 'old/labels.csv'
From the store: 312 objects (208 MB), of which 187 MB on disk
DVC's cache has all of it.
Are you sure you want to continue? [y/n] y
""",
)
@click.argument("targets", nargs=-1, type=click.Path())
@click.option("-r", "-R", "--recursive", is_flag=True, help="Targets may be directories: all tracked data below them.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option(
    "-f", "--force", is_flag=True, help="Also what would be lost: changes that are stored nowhere, and the last copy."
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def purge(
    console: Console, targets: tuple[str, ...], recursive: bool, dry_run: bool, force: bool, yes: bool, as_json: bool
) -> None:
    """Remove the data of TARGETS (by default all tracked data) from the workspace and from the store; the .dvc files stay.

    Refused for what would be lost, unless --force is given: what DVC's cache does not have is in no other place that is
    known here. What other versions, projects, pins or mounts need stays in the store.
    """
    params = {"targets": [wirepath.encode(target) for target in targets], "recursive": recursive, "force": force}
    if dry_run or not yes:
        found = verb(console, "purge", {**params, "dry": True})
        for line in [] if as_json and dry_run else _purge_lines(found):
            console.say(line) if dry_run else console.tell(line)
        if not dry_run and not agreed(console, "Are you sure you want to continue?"):
            raise ConflictError(
                "cannot purge without a confirmation from the user", hint="use `-y`; nothing was changed"
            )
    if not dry_run:
        found = verb(console, "purge", {**params, "dry": False})
    if as_json:
        console.write(json.dumps(render.decoded(found, frozenset({"path", "outs"}))))


def _purge_lines(found: dict[str, Any]) -> Iterator[str]:
    removed, lost = found["removed"], found["lost"]
    yield from storelines.unreadable_lines(found)
    yield "From the workspace: " + (", ".join(f"'{render.path(path)}'" for path in found["outs"]) or "nothing")
    if not removed["objects"]:
        needed = "what is there is needed by others" if found["stored"] else "it has none of it"
        yield f"From the store: nothing; {needed}."
        return
    objects = f"{text.plural(removed['objects'], 'object')} ({text.size(removed['bytes'])})"
    yield f"From the store: {objects}, of which {text.size(found['freed'])} on disk"
    gone = f"{text.plural(lost['objects'], 'object')} ({text.size(lost['bytes'])})"
    yield f"Lost, as nothing else is known to have it: {gone}" if lost["objects"] else "DVC's cache has all of it."


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
