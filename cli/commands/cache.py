"""cache: what the store holds, beside DVC's own cache, with DVC's options where it has them."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from millpond.cli import exits, storelines, text
from millpond.cli.commands.settings import level_options
from millpond.cli.connection import request, verb
from millpond.cli.console import Console
from millpond.cli.group import Callback, Group, json_option, with_options
from millpond.daemon import wirepath
from millpond.daemon.errors import ObjectMissingError, UsageError

Rows = list[tuple[str, str]]


def _versions(function: Callback) -> Callback:
    """TARGETS and the options that say of which versions; a command gets them as `versions`, its request's parameters."""
    return with_options(
        function,
        click.argument("targets", nargs=-1, type=click.Path()),
        click.option("-R", "--recursive", is_flag=True, help="Targets may be directories: all .dvc files below them."),
        click.option(
            "--rev", "revs", multiple=True, metavar="REV", help="This Git revision; may be given several times."
        ),
        click.option("-a", "--all-branches", is_flag=True, help="All branches."),
        click.option("-T", "--all-tags", is_flag=True, help="All tags."),
        click.option("-A", "--all-commits", is_flag=True, help="All commits."),
    )


def _params(targets: tuple[str, ...], revs: tuple[str, ...], **flags: bool) -> dict[str, Any]:
    """A request's parameters of `_versions`."""
    named = {"targets": [wirepath.encode(each) for each in targets], "revs": [wirepath.encode(rev) for rev in revs]}
    return {**named, **flags}


def _rows(found: list[list[str]]) -> Rows:
    return [(name, wirepath.decode(path)) for name, path in found]


def _some(paths: list[str]) -> str:
    """The first few of many paths, for a sentence."""
    return ", ".join(f"'{text.printable(path)}'" for path in paths[:5]) + (" ..." if len(paths) > 5 else "")


@click.group(cls=Group)
def cache() -> None:
    """What the store holds."""


@cache.command(
    short_help="Bring objects into DVC's own cache.",
    example="""
$ millpond cache export data.dvc && dvc push data.dvc
""",
)
@_versions
@json_option
@click.pass_obj
def export(console: Console, /, as_json: bool, **versions: Any) -> None:
    """Bring what TARGETS (by default all tracked data) consist of into DVC's own cache, where real `dvc` finds it."""
    result = verb(console, "export", _params(**versions))
    missing = [wirepath.decode(path) for path in result["missing"]]
    folder = wirepath.decode(result["cache"])
    if as_json:
        console.write(json.dumps({**result, "missing": missing, "cache": folder}))
    else:
        size, count = text.size(result["bytes"]), text.plural(result["objects"], "object")
        console.say(f"Exported {count}, {size}, to {text.printable(folder)}")
    if missing:
        raise ObjectMissingError(
            f"{text.plural(len(missing), 'object')} could not be exported, for nobody has them: {_some(missing)}",
            hint="fetch them first: millpond fetch",
        )


@cache.command(
    "import",
    short_help="Bring objects of DVC's own cache into the store.",
    example="""
$ millpond cache import -A
Imported 3,601 objects, 2.81 MB, from /home/alice/project/.dvc/cache
""",
)
@_versions
@click.option("--everything", is_flag=True, help="All that is in DVC's cache, whatever names it.")
@json_option
@click.pass_context
def import_(ctx: click.Context, /, everything: bool, as_json: bool, **versions: Any) -> None:
    """Bring what TARGETS (by default all tracked data) consist of from DVC's own cache into the store.

    Every object is checked against its name. An import that was interrupted goes on where it was. DVC's cache stays as it is:
    `dvc gc`, or removing it, is up to you. Exit code 6 if an object there is damaged.
    """
    console: Console = ctx.obj
    result = verb(console, "cache.import", {**_params(**versions), "everything": everything})
    lists = {key: _rows(result[key]) for key in ("missing", "damaged", "kept")}
    folder = wirepath.decode(result["cache"])
    if as_json:
        console.write(json.dumps({**result, **lists, "cache": folder}))
    else:
        size, count = text.size(result["bytes"]), text.plural(result["objects"], "object")
        there = f"; {text.plural(result['there'], 'object')} were there already" if result["there"] else ""
        console.say(f"Imported {count}, {size}, from {text.printable(folder)}{there}")
    if kept := [path for _, path in lists["kept"]]:
        console.warn(f"only DVC's cache can keep what DVC 2 has named so: {_some(kept)}; see `millpond cache migrate`")
    _tell_damaged(console, lists["damaged"])
    _tell_missing(lists["missing"], hint="fetch them first: millpond fetch")
    ctx.exit(exits.DAMAGED if lists["damaged"] else exits.OK)


@cache.command(
    short_help="Read all that a version consists of, and check it.",
    example="""
$ millpond cache verify data.dvc --rev v1.0
Verified 1,798 objects, 1.41 MB: all of them are what their names say
""",
)
@_versions
@click.option("--everything", is_flag=True, help="All that is in the store: as `fsck --deep`.")
@json_option
@click.pass_context
def verify(ctx: click.Context, /, everything: bool, as_json: bool, **versions: Any) -> None:
    """Read every byte of what TARGETS (by default all tracked data) consist of, and compare it with its name.

    What is damaged is listed with the files that it hurts: exit code 6. See `millpond fsck --repair`.
    """
    console: Console = ctx.obj
    if everything:
        report = verb(console, "fsck", {"deep": True, "repair": False})
        for line in [json.dumps(report)] if as_json else storelines.fsck_lines(report, deep=True):
            console.say(line)
        ctx.exit(exits.OK if report["ok"] else exits.DAMAGED)
    result = verb(console, "cache.verify", _params(**versions))
    damaged, missing = _rows(result["damaged"]), _rows(result["missing"])
    if as_json:
        console.write(json.dumps({**result, "damaged": damaged, "missing": missing}))
    elif not damaged:
        count, size = text.plural(result["objects"], "object"), text.size(result["bytes"])
        console.say(f"Verified {count}, {size}: all of them are what their names say")
    _tell_damaged(console, damaged)
    if not damaged:
        _tell_missing(missing, hint="fetch them first: millpond fetch")
    ctx.exit(exits.DAMAGED if damaged else exits.OK)


def _tell_damaged(console: Console, damaged: Rows) -> None:
    for name, path in damaged:
        console.error(f"'{path}' is damaged: its object {name} is not what its name says")


def _tell_missing(missing: Rows, *, hint: str) -> None:
    """Raise ObjectMissingError if anything is nowhere."""
    if missing:
        shown = _some([path for _, path in missing])
        count = text.plural(len(missing), "object")
        raise ObjectMissingError(f"{count} {'is' if len(missing) == 1 else 'are'} nowhere: {shown}", hint=hint)


@cache.command(
    short_help="Give objects of DVC 2's cache their names of DVC 3.",
    example="""
$ millpond cache migrate --dvc-files
Migrated 12 files to DVC 3.0 cache location.
Updating DVC file 'data.dvc'
""",
)
@click.option("--dvc-files", is_flag=True, help="Rewrite .dvc files to the format of DVC 3, too.")
@click.option("--dry", is_flag=True, help="Say what would be done.")
@json_option
@click.pass_obj
def migrate(console: Console, dvc_files: bool, dry: bool, as_json: bool) -> None:
    """Give objects in the layout of DVC 1 and 2 their names of DVC 3, in DVC's own cache. Nothing is removed."""
    result = verb(console, "cache.migrate", {"dvc_files": dvc_files, "dry": dry})
    pointers, skipped = ([wirepath.decode(file) for file in result[key]] for key in ("pointers", "skipped"))
    if as_json:
        console.write(json.dumps({**result, "pointers": pointers, "skipped": skipped}))
        return
    if dry:
        count = result["objects"]
        console.say(f"{count} files will be re-hashed and migrated to the DVC 3.0 cache location.")
    else:
        console.say(f"Migrated {result['migrated']} files to DVC 3.0 cache location.")
    if dvc_files and not pointers:
        console.say("No DVC files in the repo to migrate to the 3.0 format.")
    elif pointers and dry:
        console.say("Entries in following DVC files will be migrated to the 3.0 format:")
    for file in pointers:
        console.say(f"\t{text.printable(file)}" if dry else f"Updating DVC file '{text.printable(file)}'")
    for file in skipped:
        console.warn(f"'{file}' is left as it is: its stages record themselves when they run; or `dvc cache migrate`")


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
    """Print how much the store holds, how much deduplication and compression save, which projects keep what in it, and how
    much of that is the only copy that this machine has; and what `cache evict` might remove, and what not, and why.

    The daemon reads all of the store again when it has nothing else to do; what it found damaged is told here.
    """
    stats = request(console, "store.stats")
    result = verb(console, "cache.info", {})
    projects, eviction = result["projects"], result["eviction"]
    if as_json:
        console.write(json.dumps({**stats, "projects": _decoded(projects), "eviction": _shown(eviction)}))
        return
    for line in storelines.cache_lines(stats, now=time.time()):
        console.say(line)
    for line in [*storelines.project_lines(projects), *storelines.evictable_lines(eviction)]:
        console.say(line)


def _decoded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "path": wirepath.decode(row["path"])} for row in rows]


def _shown(report: dict[str, Any]) -> dict[str, Any]:
    """A report of eviction as JSON."""
    return {**report, "projects": _decoded(report["projects"])}


@cache.command(
    short_help="Remove what the projects' remotes hold, to make room.",
    example="""
$ millpond cache evict --to 100GB
Evicted 4,802 objects, 21.3 GB; the store has 98.7 GB
""",
)
@click.option("--to", "size", metavar="SIZE", help="Until the store has SIZE (500MB, 200GB; 0: all that may go).")
@click.option("--dry", is_flag=True, help="Say what would go.")
@json_option
@click.pass_obj
def evict(console: Console, size: str | None, dry: bool, as_json: bool) -> None:
    """Remove what was used longest ago of the data that every project that needs it has on a remote of its own. Each
    remote is asked just before. It stays in listings and mounts: what is read comes from the remote again.

    With a limit (`cache limit`) it happens by itself when the limit is reached. Without --to it goes down to nine
    tenths of the limit.
    """
    to = None if size is None else 0 if size == "0" else text.parsed_size(size)
    result = verb(console, "cache.evict", {"to": to, "dry": dry})
    if as_json:
        console.write(json.dumps(_shown(result)))
        return
    for line in storelines.evict_lines(result):
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

    Beyond it what every project has on its remotes makes room, see `cache evict`; where that is not enough new data is
    refused, with exit code 7.
    """
    result = request(console, "store.limit", {} if size is None else {"bytes": text.parsed_size(size)})
    if as_json:
        console.write(json.dumps(result))
        return
    most = f"of at most {text.size(result['bytes'])}" if result["bytes"] else "and no limit but the disk's"
    console.say(f"The store has {text.size(result['stored'])} {most}.")
