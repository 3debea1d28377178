"""fsck, `cache info`, `cache export`: the store as a whole, and beside DVC's cache."""

from __future__ import annotations

import json
import re

import click

from millpond.cli import exits, render, text
from millpond.cli.commands.settings import level_options
from millpond.cli.connection import request, verb
from millpond.cli.console import Console
from millpond.cli.group import Group, Verb, json_option
from millpond.daemon import wirepath
from millpond.daemon.errors import ObjectMissingError, UsageError


@click.command(
    cls=Verb,
    example="""
$ millpond fsck --deep
Checked 2,914 records in 1 segment, 1,800 objects, 1.41 MB, with every object's digest.
The store is clean.
""",
)
@click.option("--deep", is_flag=True, help="Read every object and check the digest it is named by.")
@click.option("--repair", is_flag=True, help="Mend what can be mended, set aside what cannot.")
@json_option
@click.pass_obj
def fsck(console: Console, deep: bool, repair: bool, as_json: bool) -> int:
    """Check the store: its structure and the checksum of every record.

    What is damaged is listed with the files that it hurts. The exit code is 0 for a clean store (also for one that was
    repaired as a whole), 6 for a damaged one. --repair takes damaged objects anew from the project's own DVC cache and
    workspace, where it is run.
    """
    report = verb(console, "fsck", {"deep": deep, "repair": repair})
    if as_json:
        console.write(json.dumps(report))
    else:
        for line in render.fsck_lines(report, deep=deep):
            console.say(line)
    return exits.OK if report["ok"] else exits.DAMAGED


@click.group(cls=Group)
def cache() -> None:
    """What the store holds."""


@cache.command(
    short_help="Bring objects into DVC's own cache.",
    example="""
$ millpond cache export data.dvc && dvc push data.dvc
""",
)
@click.argument("targets", nargs=-1, type=click.Path())
@click.option("-R", "--recursive", is_flag=True, help="Targets may be directories: all .dvc files below them.")
@click.option(
    "--rev", "revs", multiple=True, metavar="REV", help="Export this Git revision; may be given several times."
)
@click.option("-a", "--all-branches", is_flag=True, help="Export all branches.")
@click.option("-T", "--all-tags", is_flag=True, help="Export all tags.")
@click.option("-A", "--all-commits", is_flag=True, help="Export all commits.")
@json_option
@click.pass_obj
def export(
    console: Console,
    targets: tuple[str, ...],
    recursive: bool,
    revs: tuple[str, ...],
    all_branches: bool,
    all_tags: bool,
    all_commits: bool,
    as_json: bool,
) -> None:
    """Bring what TARGETS (by default all tracked data) consist of into DVC's own cache, where real `dvc` finds it."""
    params = {
        "targets": [wirepath.encode(target) for target in targets],
        "recursive": recursive,
        "revs": [wirepath.encode(rev) for rev in revs],
        "all_branches": all_branches,
        "all_tags": all_tags,
        "all_commits": all_commits,
    }
    result = verb(console, "export", params)
    missing = [wirepath.decode(path) for path in result["missing"]]
    folder = wirepath.decode(result["cache"])
    if as_json:
        console.write(json.dumps({**result, "missing": missing, "cache": folder}))
    else:
        size, count = text.size(result["bytes"]), text.plural(result["objects"], "object")
        console.say(f"Exported {count}, {size}, to {text.printable(folder)}")
    if missing:
        shown = ", ".join(f"'{text.printable(path)}'" for path in missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise ObjectMissingError(
            f"{text.plural(len(missing), 'object')} could not be exported, for nobody has them: {shown}",
            hint="fetch them first: dvc fetch",
        )


@cache.command(
    "dir",
    short_help="Show or set where DVC's own cache is.",
    example="""
$ millpond cache dir --local /mnt/big/dvc-cache
""",
)
@click.argument("path", required=False, type=click.Path())
@level_options
@click.option("-u", "--unset", is_flag=True, help="Unset option.")
@click.pass_obj
def cache_dir(console: Console, path: str | None, unset: bool, level: str | None = None) -> None:
    """Show, set or unset where DVC's own cache is. A relative PATH is from this directory.

    The objects in the old place are not moved.
    """
    if unset and path is not None:
        raise UsageError("-u/--unset takes no value")
    params = {"value": None if path is None else wirepath.encode(path), "unset": unset, "level": level}
    if found := verb(console, "cache.dir", params)["path"]:
        console.write(wirepath.decode(found))


@cache.command(
    short_help="Print what the store holds and saves.",
    example="""
$ millpond cache info
Store:        /home/alice/.cache/millpond
Objects:      3,601, 2.81 MB
...
""",
)
@json_option
@click.pass_obj
def info(console: Console, as_json: bool) -> None:
    """Print how much the store holds, how much deduplication and compression save, and which projects keep data in it."""
    stats = request(console, "store.stats")
    projects = request(console, "projects")["projects"]
    if as_json:
        shown = [{"path": wirepath.decode(row["path"]), "seen": row["seen"], "roots": row["roots"]} for row in projects]
        console.write(json.dumps({**stats, "projects": shown}))
        return
    for line in render.cache_lines(stats):
        console.say(line)
    for line in render.project_lines(projects):
        console.say(line)


@cache.command(
    short_help="Show or set the size that the store may have.",
    example="""
$ millpond cache limit 200GB
The store has 1.41 GB of at most 200 GB.
""",
)
@click.argument("size", required=False)
@json_option
@click.pass_obj
def limit(console: Console, size: str | None, as_json: bool) -> None:
    """Show or set (SIZE: 500MB, 200GB, 2TB, none) how large the store may become.

    Beyond it new data is refused, with exit code 7; nothing is removed by itself: see `millpond gc`.
    """
    result = request(console, "store.limit", {} if size is None else {"bytes": _bytes(size)})
    if as_json:
        console.write(json.dumps(result))
        return
    most = f"of at most {text.size(result['bytes'])}" if result["bytes"] else "and no limit but the disk's"
    console.say(f"The store has {text.size(result['stored'])} {most}.")


def _bytes(shown: str) -> int:
    """Bytes of `200GB`, `1.5 TB`, `none`. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", shown.strip(), re.IGNORECASE)
    if shown == "none":
        return 0
    if match is None or float(match[1]) == 0:
        raise UsageError(f"'{shown}' is no size like 200GB", hint="`none` takes the limit away")
    return int(float(match[1]) * 1000 ** "\0KMGT".index(match[2].upper() or "\0"))
