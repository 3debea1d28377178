"""init, add, checkout, status, root: verbs of the workspace, with DVC's options and words."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from millpond.cli import exits, render, text
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Verb, json_option
from millpond.cli.place import config_file
from millpond.daemon import wirepath
from millpond.daemon.errors import ObjectMissingError, TargetError, UsageError

_ADD_PATHS = frozenset({"path", "pointer", "git_add"})
_CHECKOUT_PATHS = frozenset({"added", "modified", "deleted", "failed", "unchanged"})
_TARGETS = click.argument("targets", nargs=-1, type=click.Path())


@click.command(
    cls=Verb,
    example="""
$ git init && millpond init
$ git commit -m "Start with millpond"
""",
)
@click.argument("directory", required=False, type=click.Path(file_okay=False))
@click.option("--no-scm", is_flag=True, help="Make a repository without Git.")
@click.option("-f", "--force", is_flag=True, help="Overwrite an existing .dvc directory; its local cache is removed.")
@click.option("--subdir", is_flag=True, help="Make it inside a subdirectory of a Git repository.")
@click.pass_obj
def init(console: Console, directory: str | None, no_scm: bool, force: bool, subdir: bool) -> None:
    """Make DIRECTORY (by default this one) a DVC repository.

    It must be the root of a Git repository, unless --subdir or --no-scm is given. Writes .dvc/ and .dvcignore and stages
    them. Repositories made by DVC need no `init`.
    """
    if directory is not None:
        try:
            os.makedirs(directory, exist_ok=True)
            os.chdir(directory)
        except OSError as error:
            raise TargetError(f"cannot use directory '{directory}': {error.strerror}", path=directory) from error
    result = verb(console, "init", {"no_scm": no_scm, "subdir": subdir, "force": force})
    for line in render.init_lines(result, scm=not no_scm):
        console.say(line)


@click.command(
    cls=Verb,
    example="""
$ millpond add data
$ git add data.dvc .gitignore && git commit -m "Images of May"
""",
)
@click.argument("targets", nargs=-1, required=True, type=click.Path())
@click.option("--no-commit", is_flag=True, help="Write the .dvc files, but store nothing.")
@click.option("--glob", is_flag=True, help="TARGETS are shell patterns.")
@click.option(
    "-o", "--out", metavar="PATH", type=click.Path(), help="Copy or download the target to this path and add it there."
)
@click.option("-f", "--force", is_flag=True, help="With --out: overwrite what is there.")
@click.option("--no-relink", is_flag=True, help="Leave the files in the workspace as they are.")
@click.option("--to-remote", is_flag=True, help="Bring the data to the remote, and not into the store.")
@click.option("-r", "--remote", metavar="NAME", help="With --to-remote: this remote instead of the default one.")
@click.option(
    "--remote-jobs",
    type=click.IntRange(1),
    metavar="NUMBER",
    help="With --to-remote: at most so many requests at once.",
)
@json_option
@click.pass_obj
def add(
    console: Console,
    targets: tuple[str, ...],
    no_commit: bool,
    glob: bool,
    out: str | None,
    force: bool,
    no_relink: bool,
    to_remote: bool,
    remote: str | None,
    remote_jobs: int | None,
    as_json: bool,
) -> None:
    """Store files and directories, and write a .dvc file for each that Git can track.

    What is stored once is not stored again, whatever file or version it is part of. A file that changes while it is
    read is an error, and nothing of it is kept.
    """
    if out is not None and len(targets) > 1:
        raise UsageError("--out takes one target")
    params: dict[str, Any] = {
        "targets": _wire(targets),
        "glob": glob,
        "no_commit": no_commit,
        "force": force,
        "out": None if out is None else wirepath.encode(out),
        "no_relink": no_relink,
        "to_remote": to_remote,
        "remote": remote,
        "remote_jobs": remote_jobs,
    }
    result = verb(console, "add", params)
    for warning in result.get("warnings") or []:
        console.warn(wirepath.decode(str(warning)))
    if as_json:
        console.write(json.dumps(render.decoded(result, _ADD_PATHS)))
        return
    for line in render.add_lines(result, config=config_file(), verbose=console.verbose > 0):
        console.say(line)


@click.command(
    cls=Verb,
    example="""
$ git checkout v1 && millpond checkout
M       data/
""",
)
@_TARGETS
@click.option("--summary", is_flag=True, help="Print how much changed instead of what.")
@click.option("-d", "--with-deps", is_flag=True, help="Also what is needed to make the targets.")
@click.option("-R", "--recursive", is_flag=True, help="Targets may be directories: all .dvc files below them.")
@click.option("-f", "--force", is_flag=True, help="Overwrite and remove changed files that are not stored.")
@click.option("--relink", is_flag=True, help="As in DVC; files are copies or clones here, so there is nothing to do.")
@click.option("--allow-missing", is_flag=True, help="Pass over what is neither in the store nor in a cache.")
@click.option("--mount", is_flag=True, help="Mount the data, read-only, where it would be copied to.")
@json_option
@click.pass_obj
def checkout(
    console: Console,
    targets: tuple[str, ...],
    summary: bool,
    with_deps: bool,
    recursive: bool,
    force: bool,
    relink: bool,
    allow_missing: bool,
    mount: bool,
    as_json: bool,
) -> int:
    """Bring files and directories in the workspace to what their .dvc files name.

    Files that were changed and are stored nowhere are never overwritten without --force. Data that only an existing
    .dvc/cache holds is taken from there.
    """
    params: dict[str, Any] = {
        "targets": _wire(targets),
        "force": force,
        "recursive": recursive,
        "with_deps": with_deps,
        "summary": summary,
        "relink": relink,
        "allow_missing": allow_missing,
        "mount": mount,
    }
    result = verb(console, "checkout", params)
    if as_json:
        console.write(json.dumps(render.decoded(result, _CHECKOUT_PATHS)))
    else:
        for line in render.checkout_lines(result, summary=summary, paint=console.paint):
            console.say(line)
    failed = result.get("failed") or []
    if failed and not allow_missing:
        raise ObjectMissingError(
            f"checkout failed for {text.plural(len(failed), 'target')}, whose data is neither in the store nor in a cache: "
            + text.some([f"'{text.printable(wirepath.decode(path))}'" for path in failed]),
            hint="bring it from the remote: millpond pull",
            details={"paths": failed},
        )
    return exits.OK


@click.command(
    cls=Verb,
    example="""
$ millpond status
data.dvc:
        changed outs:
                modified:           data
""",
)
@_TARGETS
@click.option("-d", "--with-deps", is_flag=True, help="Also all that the targets need.")
@click.option("-R", "--recursive", is_flag=True, help="Targets may be directories: all .dvc files below them.")
@click.option("--no-updates", is_flag=True, help="Do not look for newer versions of imports from repositories.")
@click.option("-c", "--cloud", is_flag=True, help="Compare what is here with the remote instead.")
@click.option("-r", "--remote", metavar="NAME", help="With -c: this remote instead of the default one.")
@click.option("-a", "--all-branches", is_flag=True, help="With -c: what all branches need.")
@click.option("-T", "--all-tags", is_flag=True, help="With -c: what all tags need.")
@click.option("-A", "--all-commits", is_flag=True, help="With -c: what all commits need.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1), metavar="NUMBER", help="With -c: at most so many requests at once."
)
@json_option
@click.pass_obj
def status(
    console: Console,
    /,
    targets: tuple[str, ...],
    with_deps: bool,
    recursive: bool,
    no_updates: bool,
    as_json: bool,
    cloud: bool,
    **sharing: Any,
) -> int:
    """Show what differs between the workspace, the .dvc files and the stages of pipelines, or with -c between this machine and the remote.

    With -q nothing is printed: the exit code is 0 when nothing differs, else 1. With -c, `new` is what is here and not on the remote,
    `deleted` the reverse, `missing` what is in neither place.
    """
    params = {"targets": _wire(targets), "recursive": recursive}
    if cloud or any(sharing.values()):  # as in DVC, each of these means -c
        return _cloud_status(console, {**params, "with_deps": with_deps, **sharing}, as_json)
    result = verb(console, "status", {**params, "with_deps": with_deps, "updates": not no_updates})
    for name in result["frozen"]:
        console.warn(f"'{wirepath.decode(name)}' is frozen: what it depends on is not shown")
    found: dict[str, Any] = result["status"]
    for path in result["unseen"]:
        console.warn(f"'{wirepath.decode(path)}' is of a kind that only DVC follows: it was not looked at")
    if console.quiet:
        return exits.DIFFERENT if found else exits.OK
    if as_json:
        console.write(json.dumps(render.status_json(found)))
    else:
        for line in render.status_lines(found, tracked=result.get("tracked")):
            console.say(line)
    return exits.OK


def _cloud_status(console: Console, params: dict[str, Any], as_json: bool) -> int:
    result = verb(console, "status.cloud", params)
    found = {wirepath.decode(path): state for path, state in result["status"].items()}
    if console.quiet:
        return exits.DIFFERENT if found else exits.OK
    if as_json:
        console.write(json.dumps(found))
        return exits.OK
    for path, state in found.items():
        console.say(f"\t{state + ':':<20}{text.printable(path)}")
    if not found:
        names = ", ".join(f"'{name}'" for name in result["remotes"])
        console.say(f"Cache and remote {names} are in sync.")
    return exits.OK


@click.command(
    cls=Verb,
    example="""
$ cd data/images && millpond root
../..
""",
)
@json_option
@click.pass_obj
def root(console: Console, as_json: bool) -> None:
    """Print the path from here to the root of the DVC repository."""
    result = verb(console, "root", {})
    if as_json:
        console.write(json.dumps(render.decoded(result, frozenset({"root", "relative"}))))
    else:
        # As the path is: it is meant for `cd "$(millpond root)"`.
        console.say(wirepath.decode(result["relative"]))


def _wire(paths: tuple[str, ...]) -> list[str]:
    return [wirepath.encode(path) for path in paths]
