"""gc, pin, unpin, pins, forget-project: what is kept in the store, and what goes."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import click

from millpond.cli import render, storelines, text
from millpond.cli.connection import request, verb
from millpond.cli.console import Console
from millpond.cli.group import Verb, json_option
from millpond.cli.target import parse_target
from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError, UsageError

_PIN_PATHS = frozenset({"project", "target", "path"})


@click.command(
    cls=Verb,
    example="""
$ millpond gc --workspace
This keeps 1,804 objects (1.41 GB) and removes 312 objects (208 MB), of which 187 MB on disk:
	312 objects (208 MB) of /home/alice/images
Remove them? [y/N] y
Removed 312 objects (208 MB); 187 MB on disk are given back in the background.
""",
)
@click.option("-w", "--workspace", is_flag=True, help="Keep what the workspace names; all other options do so too.")
@click.option("--rev", "revs", metavar="COMMIT", multiple=True, help="Keep what this commit names.")
@click.option("-n", "--num", type=int, metavar="NUM", help="With --rev: and its NUM - 1 ancestors; -1 for all.")
@click.option("-a", "--all-branches", is_flag=True, help="Keep what the tips of all branches name.")
@click.option("-T", "--all-tags", is_flag=True, help="Keep what all tags name.")
@click.option("-A", "--all-commits", is_flag=True, help="Keep what any commit names.")
@click.option("--date", metavar="YYYY-MM-DD", help="Keep what the commits of this day and later name.")
@click.option("--all-experiments", is_flag=True, help="Keep what all experiments name, queued ones too.")
@click.option(
    "-p", "--projects", metavar="PATH", multiple=True, type=click.Path(), help="Apply these options to PATH as well."
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=24.0,
    metavar="HOURS",
    show_default=True,
    help="Keep what was stored in the last HOURS.",
)
@click.option("--dry", is_flag=True, help="Say what would go, and remove nothing.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("--not-in-remote", is_flag=True, help="Keep of these only what no remote has.")
@click.option("-c", "--cloud", is_flag=True, help="Remove from the remote, too, what these do not need.")
@click.option(
    "-r", "--remote", metavar="NAME", help="With -c or --not-in-remote: this remote instead of the default one."
)
@click.option("-j", "--jobs", type=click.IntRange(1), metavar="NUMBER", help="At most so many requests at once.")
@click.option("--skip-failed", is_flag=True, help="Pass over revisions that cannot be read: what only they name goes.")
@json_option
@click.pass_obj
def gc(console: Console, /, grace: float, dry: bool, force: bool, as_json: bool, **options: Any) -> None:
    """Remove from the store what this project does not need any more.

    The options say which of its revisions are kept. All other projects in which millpond was used keep all of their
    revisions, and so do pins, mounts, other users, and what was stored a moment ago. DVC's own cache is not touched.

    With --cloud the same goes from the remote. Projects that are not on this machine are not known: what only they need there goes
    too. What pushes to a directory that were killed more than a week ago left half-written there goes without a question.
    """
    params = _parameters(options, grace)
    if dry or force:
        report = verb(console, "gc", {**params, "dry": dry})
    else:
        plan = verb(console, "gc", {**params, "dry": True})
        for line in storelines.gc_lines(plan):
            console.say(line)
        goes = plan["removed"]["objects"] or plan["records"] or any(_goes(each) for each in plan["remotes"])
        if not goes and not any(each["left"]["files"] for each in plan["remotes"]):
            return
        if goes and not _agreed(console):
            raise ConflictError("nothing was removed", hint="say yes, or use --force")
        report = verb(console, "gc", {**params, "dry": False, "left_only": not goes})
        if not goes:  # what only killed pushes left is nobody's, and nobody is asked; nothing else was removed
            report = {**plan, "remotes": report["remotes"]}
    if as_json:
        console.write(json.dumps(_decoded(report)))
        return
    for line in storelines.gc_lines(report) if dry else storelines.gc_done_lines(report):
        console.say(line)


def _goes(remote: dict[str, Any]) -> bool:
    return bool(remote["removed"]["objects"])


def _parameters(options: dict[str, Any], grace: float) -> dict[str, Any]:
    date, num = options.pop("date"), options.pop("num")
    if num is not None and not options["revs"] and not options["all_branches"] and not options["all_tags"]:
        raise UsageError("-n/--num goes with --rev, --all-branches or --all-tags")
    if options["cloud"] and options["not_in_remote"]:
        raise UsageError("--cloud and --not-in-remote are not allowed together")
    if options["remote"] is not None and not options["cloud"] and not options["not_in_remote"]:
        raise UsageError("-r/--remote goes with -c/--cloud or --not-in-remote")
    if num is not None and num != -1 and num < 1:
        raise UsageError("-n/--num is a number of commits from 1, or -1 for all")
    since = None
    if date is not None:
        try:
            since = time.mktime(time.strptime(date, "%Y-%m-%d"))
        except (ValueError, OverflowError):
            raise UsageError(f"--date is '{date}', which is no day like 2024-05-31") from None
    projects = [wirepath.encode(path) for path in options.pop("projects")]
    return {**options, "num": num, "since": since, "projects": projects, "grace_s": grace * 3600}


def _agreed(console: Console) -> bool:
    if not sys.stdin or not sys.stdin.isatty():
        raise ConflictError("there is nobody to ask", hint="use --force to remove, or --dry to see what would go")
    console.flush()
    console.err.write("Remove them? [y/N] ")
    console.err.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _decoded(report: dict[str, Any]) -> dict[str, Any]:
    projects = {wirepath.decode(path): part for path, part in report["projects"].items()}
    remotes = [
        {
            **each,
            "shown": [[name, None if path is None else wirepath.decode(path)] for name, path in each["shown"]],
            "shared": [wirepath.decode(path) for path in each["shared"]],
        }
        for each in report["remotes"]
    ]
    return {**render.decoded(report, _PIN_PATHS), "projects": projects, "remotes": remotes}


@click.command(
    cls=Verb,
    example="""
$ millpond pin data@v1
Pinned data@f14272cab9a5
""",
)
@click.argument("target", required=False)
@click.option("--rev", metavar="COMMIT", help="The revision.")
@json_option
@click.pass_obj
def pin(console: Console, target: str | None, rev: str | None, as_json: bool) -> None:
    """Keep the data of TARGET[@REV] until `unpin`, whatever happens to its project and its revisions.

    Without a target: of all that is tracked.
    """
    made = verb(console, "pin", _version(target, rev))
    if as_json:
        console.write(json.dumps(render.decoded(made, _PIN_PATHS)))
    else:
        console.say(f"Pinned {storelines.pin_name(made)}")


@click.command(cls=Verb, example="\n$ millpond unpin data@v1\nUnpinned data@f14272cab9a5\n")
@click.argument("target", required=False)
@click.option("--rev", metavar="COMMIT", help="The revision.")
@click.option("--all", "all_", is_flag=True, help="All pins of this project.")
@json_option
@click.pass_obj
def unpin(console: Console, target: str | None, rev: str | None, all_: bool, as_json: bool) -> None:
    """Let the data of TARGET[@REV] go with its project's revisions again."""
    if all_ and (target or rev):
        raise UsageError("--all takes no target")
    result = verb(console, "unpin", {**_version(target, rev), "all": all_})
    if as_json:
        console.write(json.dumps(render.decoded(result, _PIN_PATHS)))
        return
    for row in result["removed"]:
        console.say(f"Unpinned {storelines.pin_name(row)}")


@click.command(cls=Verb, example="\n$ millpond pins\nPROJECT             VERSION            OUTPUTS\n")
@json_option
@click.pass_obj
def pins(console: Console, as_json: bool) -> None:
    """List your pinned versions, of all projects, with how many tracked files and directories each keeps."""
    result = request(console, "pins")
    if as_json:
        console.write(json.dumps(render.decoded(result, _PIN_PATHS)))
        return
    if not result["pins"]:
        console.say("Nothing is pinned.")
        return
    rows = [[render.path(row["project"]), storelines.pin_name(row), text.count(row["roots"])] for row in result["pins"]]
    for line in text.table(["PROJECT", "VERSION", "OUTPUTS"], rows):
        console.say(line)


@click.command(cls=Verb, example="\n$ millpond forget-project /mnt/gone/images\n")
@click.argument("path", type=click.Path())
@click.pass_obj
def forget_project(console: Console, path: str) -> None:
    """Have the project at PATH keep nothing any more: its data may go with the next `gc`.

    A project keeps what it was last known to need, also when it is deleted, until this is run. A verb that stores or
    uses data in it registers it again.
    """
    result = verb(console, "forget-project", {"path": wirepath.encode(os.fspath(path))})
    console.say(f"Forgot {render.path(result['path'])}")


def _version(target: str | None, rev: str | None) -> dict[str, Any]:
    if target is not None:
        target, rev = parse_target(target, rev)
    return {"target": wirepath.encode(target) if target else None, "rev": rev}
