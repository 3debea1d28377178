"""get, get-url, list-url: data from elsewhere that is not tracked, with DVC's options."""

from __future__ import annotations

import json
from typing import Any

import click

from millpond.cli import render, text
from millpond.cli.commands.listing import drawn
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Callback, Spread, json_option, repo_settings, settings_option
from millpond.daemon import wirepath
from millpond.daemon.errors import UsageError

_PATHS = frozenset({"path", "storage"})


def _jobs_and_force(function: Callback) -> Callback:
    jobs = click.option(
        "-j", "--jobs", type=click.IntRange(1), metavar="NUMBER", help="At most so many requests at once."
    )
    return jobs(click.option("-f", "--force", is_flag=True, help="Overwrite what is there.")(function))


@click.command(
    cls=Spread,
    spread=("--remote-config",),
    example="""
$ millpond get https://host/registry images/cats --rev v2
""",
)
@click.argument("url", type=click.Path())
@click.argument("path", type=click.Path())
@click.option("-o", "--out", metavar="PATH", type=click.Path(), help="Where it goes; by default its own name, here.")
@click.option("--rev", metavar="COMMIT", help="This revision of the repository instead of its default branch.")
@click.option("--show-url", is_flag=True, help="Print where the data is stored, and bring nothing.")
@_jobs_and_force
@repo_settings
@json_option
@click.pass_obj
def get(console: Console, /, url: str, path: str, out: str | None, as_json: bool, **params: Any) -> None:
    """Bring the file or directory at PATH of the repository at URL here. Nothing is tracked.

    URL is a path, or what `git clone` takes. PATH may be Git's or tracked data; data comes from a cache or remote of that repository,
    and is checked on arrival.
    """
    wire = {
        "url": wirepath.encode(url),
        "source": wirepath.encode(path),
        "out": None if out is None else wirepath.encode(out),
    }
    result = verb(console, "get", {**wire, **params})
    if params["show_url"] and not as_json:
        console.write(wirepath.decode(result["storage"]))
    else:
        _tell(console, result, as_json)


@click.command(
    "get-url",
    cls=Spread,
    spread=("--fs-config",),
    example="""
$ millpond get-url s3://bucket/images/cats.zip
""",
)
@click.argument("url", type=click.Path())
@click.argument("out", required=False, type=click.Path())
@_jobs_and_force
@settings_option("--fs-config", "Settings of the url, as a remote has them; all words that follow.")
@json_option
@click.pass_obj
def get_url(console: Console, /, url: str, out: str | None, as_json: bool, **params: Any) -> None:
    """Bring the file or directory at URL here. Nothing is tracked.

    URL is a path, file://, s3://, http(s)://, or remote://NAME/path for what lies below a configured remote.
    """
    wire = {"url": wirepath.encode(url), "out": None if out is None else wirepath.encode(out)}
    _tell(console, verb(console, "get-url", {**wire, **params}), as_json)


def _tell(console: Console, result: dict[str, Any], as_json: bool) -> None:
    for warning in result.get("warnings") or []:
        console.warn(wirepath.decode(warning))
    if as_json:
        console.write(json.dumps(render.decoded(result, _PATHS)))
    elif console.verbose:
        files, size = text.plural(result["files"], "file"), text.size(result["bytes"])
        console.say(f"{render.path(result['path'])}: {files}, {size}")


@click.command(
    "list-url",
    cls=Spread,
    spread=("--fs-config",),
    example="""
$ millpond list-url s3://bucket/images --size
12.0M  cats.zip
       dogs
$ millpond ls-url remote://team/images -T
""",
)
@click.argument("url", type=click.Path())
@click.option("-R", "--recursive", is_flag=True, help="List the files in folders, too.")
@click.option("-T", "--tree", is_flag=True, help="Draw a tree.")
@click.option("-L", "--level", type=click.IntRange(0), metavar="DEPTH", help="With -R or -T: no deeper than this.")
@click.option("--size", is_flag=True, help="Show sizes.")
@settings_option("--fs-config", "Settings of the url, as a remote has them; all words that follow.")
@json_option
@click.pass_obj
def list_url(console: Console, /, url: str, size: bool, as_json: bool, **params: Any) -> None:
    """List what lies at URL: see get-url for what it may be."""
    if params["tree"] and as_json:
        raise UsageError("--tree and --json do not go together")
    found = verb(console, "list-url", {"url": wirepath.encode(url), **params})["rows"]
    rows = [[wirepath.decode(row[0]), *row[1:]] for row in found]
    if as_json:
        console.write(json.dumps([{"path": path, "isdir": is_dir, "size": each} for path, _, is_dir, each in rows]))
        return
    # As `list` has rows: nothing of it is tracked.
    shown = [[path, depth, False, is_dir, False, each, None] for path, depth, is_dir, each in rows]
    for line in drawn(console, shown, tree=params["tree"], with_size=size, with_hash=False):
        console.write(line)
