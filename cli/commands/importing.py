"""import, import-url, update: data from elsewhere with a pointer that says where from, with DVC's options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from millpond.cli import render
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import (
    Callback,
    Spread,
    Verb,
    json_option,
    repo_settings,
    settings_option,
    with_options,
)
from millpond.cli.place import config_file
from millpond.daemon import wirepath

_PATHS = frozenset({"source", "path", "pointer", "git_add"})


def _how(function: Callback) -> Callback:
    """What `import` and `import-url` have in common."""
    return with_options(
        function,
        click.option("--no-exec", is_flag=True, help="Write the .dvc file only; look at nothing."),
        click.option("--no-download", is_flag=True, help="Write the .dvc file, and bring no data."),
        click.option(
            "-j", "--jobs", type=click.IntRange(1), metavar="NUMBER", help="At most so many requests at once."
        ),
        click.option("-f", "--force", is_flag=True, help="Overwrite what is there."),
    )


@click.command(
    "import-url",
    cls=Spread,
    spread=("--fs-config",),
    example="""
$ millpond import-url s3://bucket/images
Importing 's3://bucket/images' -> 'images'
""",
)
@click.argument("url", type=click.Path())
@click.argument("out", required=False, type=click.Path())
@click.option("--to-remote", is_flag=True, help="Bring the data to the remote instead of here.")
@click.option("-r", "--remote", metavar="NAME", help="With --to-remote: this remote instead of the default one.")
@_how
@click.option(
    "--version-aware", is_flag=True, help="Of a bucket that keeps versions: note which version of each object this is."
)
@settings_option("--fs-config", "Settings of the url, as a remote has them; all words that follow.")
@json_option
@click.pass_obj
def import_url(console: Console, /, url: str, out: str | None, as_json: bool, **params: Any) -> None:
    """Bring the file or directory at URL into the project, and track it with a .dvc file that says where it is from.

    URL is a path, file://, s3://, http(s)://, or remote://NAME/path for what lies below a configured remote. `update` brings what has
    changed there. With --version-aware, or a url that ends in ?versionId=ID, the data can always be brought again from there, so it
    is not pushed.
    """
    wire = {"url": wirepath.encode(url), "out": None if out is None else wirepath.encode(out)}
    _tell(console, verb(console, "import-url", {**wire, **params}), as_json)


@click.command(
    "import",
    cls=Spread,
    spread=("--remote-config",),
    example="""
$ millpond import https://host/registry images/cats --rev v2
Importing 'images/cats (https://host/registry)' -> 'cats'
""",
)
@click.argument("url", type=click.Path())
@click.argument("path", type=click.Path())
@click.option("-o", "--out", metavar="PATH", type=click.Path(), help="Where it goes; by default its own name, here.")
@click.option("--rev", metavar="COMMIT", help="This revision of the repository instead of its default branch.")
@_how
@repo_settings
@json_option
@click.pass_obj
def import_(console: Console, /, url: str, path: str, out: str | None, as_json: bool, **params: Any) -> None:
    """Bring the file or directory at PATH of the repository at URL into the project, and track it.

    URL is a path, or what `git clone` takes. PATH may be Git's or tracked data; data comes from a cache or remote of that repository.
    `update` brings what has changed there.
    """
    wire = {
        "url": wirepath.encode(url),
        "source": wirepath.encode(path),
        "out": None if out is None else wirepath.encode(out),
    }
    _tell(console, verb(console, "import", {**wire, **params}), as_json)


@click.command(
    cls=Verb,
    example="""
$ millpond update images.dvc
Importing 's3://bucket/images' -> 'images'
""",
)
@click.argument("targets", nargs=-1, required=True, type=click.Path())
@click.option(
    "--rev",
    metavar="REV",
    help="Of imports from repositories: go to this revision, and follow it from now on; of a file by --version-aware: its version's id.",
)
@click.option("-R", "--recursive", is_flag=True, help="Targets may be directories: all imports below them.")
@click.option("--no-download", is_flag=True, help="Write the .dvc file, and bring no data.")
@click.option("--to-remote", is_flag=True, help="Bring the data to the remote instead of here.")
@click.option("-r", "--remote", metavar="NAME", help="With --to-remote: this remote instead of the default one.")
@click.option("-j", "--jobs", type=click.IntRange(1), metavar="NUMBER", help="At most so many requests at once.")
@json_option
@click.pass_obj
def update(console: Console, /, targets: tuple[str, ...], as_json: bool, **params: Any) -> None:
    """Bring what has changed at the sources of imports, or of data that a `worktree` remote holds, and record it.

    TARGETS are imports: their .dvc files, or their data. What is as it was is left alone.
    """
    result = verb(console, "update", {"targets": [wirepath.encode(each) for each in targets], **params})
    if as_json:
        console.write(json.dumps(render.decoded(result, _PATHS)))
        return
    for row in result["imports"]:
        if row["changed"]:
            console.say(f"Importing '{render.path(row['source'])}' -> '{render.path(row['path'])}'")
        else:
            console.say(f"'{render.path(row['pointer'])}' didn't change, skipping")


def _tell(console: Console, result: dict[str, Any], as_json: bool) -> None:
    for warning in result["warnings"]:
        console.warn(wirepath.decode(warning))
    if as_json:
        console.write(json.dumps(render.decoded(result, _PATHS)))
        return
    for line in _lines(result):
        console.say(line)


def _lines(result: dict[str, Any]) -> Iterator[str]:
    if result["executed"]:
        yield f"Importing '{render.path(result['source'])}' -> '{render.path(result['path'])}'"
    yield from render.add_lines(result, config=config_file())
