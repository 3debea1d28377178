"""push, fetch, pull: tracked data to and from remotes, with DVC's options."""

from __future__ import annotations

import json
from typing import Any

import click

from millpond.cli import exits, render, text
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Callback, Verb, json_option, with_options
from millpond.daemon import wirepath
from millpond.daemon.errors import ObjectMissingError, StoreDamagedError

_CHECKOUT_PATHS = frozenset({"added", "modified", "deleted", "failed"})


_GLOB = click.option("--glob", is_flag=True, help="Targets are patterns, as in a shell; ** for any depth.")


def _common(function: Callback) -> Callback:
    """What the three have in common; a command gets it as `common`."""
    return with_options(
        function,
        click.argument("targets", nargs=-1, type=click.Path()),
        click.option("-r", "--remote", metavar="NAME", help="This remote instead of the default one."),
        click.option(
            "-j", "--jobs", type=click.IntRange(1), metavar="NUMBER", help="At most so many requests at once."
        ),
        click.option("-a", "--all-branches", is_flag=True, help="What all branches need."),
        click.option("-T", "--all-tags", is_flag=True, help="What all tags need."),
        click.option("-A", "--all-commits", is_flag=True, help="What all commits need."),
        click.option("-R", "--recursive", is_flag=True, help="Targets may be directories: all .dvc files below them."),
        click.option("-d", "--with-deps", is_flag=True, help="Also what is needed to make the targets."),
        click.option(
            "--run-cache/--no-run-cache", default=False, help="Also what stages made of what (not by default)."
        ),
    )


def _params(targets: tuple[str, ...], **rest: Any) -> dict[str, Any]:
    return {"targets": [wirepath.encode(target) for target in targets], **rest}


def _paths(found: list[list[str]]) -> str:
    """The first few objects with their paths, for a sentence."""
    return text.some([f"'{text.printable(wirepath.decode(path))}' ({name})" for name, path in found])


def _lists(result: dict[str, Any]) -> dict[str, Any]:
    lists: dict[str, Any] = {}
    for key in ("missing", "damaged"):
        if key in result:
            lists[key] = [[name, wirepath.decode(path)] for name, path in result[key]]
    if "pointers" in result:
        lists["pointers"] = [wirepath.decode(path) for path in result["pointers"]]
    return {**result, **lists}


def _where(result: dict[str, Any]) -> str:
    names = [f"'{name}'" for name in result["remotes"]]
    return f"remote {names[0]}" if len(names) == 1 else f"remotes {', '.join(names)}"


@click.command(
    cls=Verb,
    example="""
$ millpond push
1,798 files pushed (2.81 MB)
""",
)
@_common
@_GLOB
@json_option
@click.pass_obj
def push(console: Console, /, as_json: bool, **common: Any) -> int:
    """Bring what TARGETS (by default all tracked data) consist of to the remote.

    A directory's manifest goes last, so that who finds it there finds all that it names. What is on the remote already is not
    sent. To a remote that is version_aware or worktree each file goes to its own path, and .dvc files and dvc.lock are told its version:
    commit them then. Exit code 8 if data is neither here nor there.
    """
    result = verb(console, "push", _params(**common))
    if as_json:
        console.write(json.dumps(_lists(result)))
    elif result["objects"]:
        console.say(f"{text.plural(result['objects'], 'file')} pushed ({text.size(result['bytes'])})")
    elif not result["missing"]:
        console.say("Everything is up to date.")
    if result["missing"]:
        raise ObjectMissingError(
            f"{text.plural(len(result['missing']), 'object')} could not be pushed, neither here nor on {_where(result)}: "
            f"{_paths(result['missing'])}",
            hint="add the data again where it still is, then push",
        )
    return exits.OK


@click.command(
    cls=Verb,
    example="""
$ millpond fetch --all-tags
3,601 files fetched (5.63 MB)
""",
)
@_common
@click.option("--max-size", type=click.IntRange(0), metavar="BYTES", help="Leave larger files where they are.")
@click.option(
    "--type",
    "types",
    type=click.Choice(["metrics", "plots"]),
    multiple=True,
    help="Only what dvc.yaml says are metrics, or plots.",
)
@json_option
@click.pass_obj
def fetch(console: Console, /, as_json: bool, **common: Any) -> int:
    """Bring what TARGETS (by default all tracked data) consist of from the remote into the store.

    Every object is checked against its name. A fetch that was interrupted goes on where it was. Exit code 8 if data is neither here
    nor on the remote, 6 if the remote has other bytes than the name says.
    """
    result = verb(console, "fetch", _params(**common))
    return _tell_fetched(console, result, as_json)


@click.command(
    cls=Verb,
    example="""
$ millpond warm data@v1
1,402 files fetched (435 kB)
""",
)
@click.argument("targets", nargs=-1, metavar="[TARGET[@REV]]...", type=click.Path())
@click.option("-r", "--remote", metavar="NAME", help="This remote instead of the default one.")
@click.option("-j", "--jobs", type=click.IntRange(1), metavar="NUMBER", help="At most so many requests at once.")
@json_option
@click.pass_obj
def warm(console: Console, targets: tuple[str, ...], remote: str | None, jobs: int | None, as_json: bool) -> int:
    """Bring what a mount of each TARGET (by default all tracked data), at REV or as the workspace has it, would show into the store.

    Then it is read without waiting, also in mounts that are there already. As `fetch`, with mount's way to name versions.
    """
    result = verb(console, "warm", _params(targets, remote=remote, jobs=jobs))
    return _tell_fetched(console, result, as_json)


@click.command(
    cls=Verb,
    example="""
$ git pull && millpond pull
A       data/
1,798 files fetched (2.81 MB), 1,797 added
""",
)
@_common
@_GLOB
@click.option("-f", "--force", is_flag=True, help="Overwrite and remove changed files that are not stored.")
@click.option("--allow-missing", is_flag=True, help="Pass over what is neither here nor on the remote.")
@json_option
@click.pass_obj
def pull(console: Console, /, as_json: bool, allow_missing: bool, **common: Any) -> int:
    """Bring TARGETS (by default all tracked data) from the remote, then bring the workspace to what their .dvc files name.

    `fetch`, then `checkout`. When data is missing the workspace stays as it is, unless --allow-missing is given.
    """
    result = verb(console, "pull", _params(**common, allow_missing=allow_missing))
    done = result["checkout"]
    if as_json:
        shown = None if done is None else render.decoded(done, _CHECKOUT_PATHS)
        console.write(json.dumps({**_lists(result), "checkout": shown}))
    else:
        if done is not None:
            for line in render.checkout_lines(done, summary=False, paint=console.paint):
                console.say(line)
        changed = done is not None and any(done[key] for key in ("added", "modified", "deleted"))
        if result["objects"] or not changed:
            _say_fetched(console, result)
    if not allow_missing or result["damaged"]:
        _raise_lacking(result)
    return exits.OK


def _tell_fetched(console: Console, result: dict[str, Any], as_json: bool) -> int:
    """The end of `fetch` and `warm`: what came, then an error for what did not."""
    if as_json:
        console.write(json.dumps(_lists(result)))
    else:
        _say_fetched(console, result)
    _raise_lacking(result)
    return exits.OK


def _say_fetched(console: Console, result: dict[str, Any]) -> None:
    if result["objects"]:
        console.say(f"{text.plural(result['objects'], 'file')} fetched ({text.size(result['bytes'])})")
    elif not (result["missing"] or result["damaged"] or result["runs"]):
        console.say("Everything is up to date.")
    if result["runs"]:
        entries = "1 entry" if result["runs"] == 1 else f"{text.count(result['runs'])} entries"
        console.say(f"{entries} of the run cache fetched")
    if result["beyond"]:
        console.say(f"{text.plural(result['beyond'], 'file')} larger than --max-size left on {_where(result)}")


def _raise_lacking(result: dict[str, Any]) -> None:
    """Raise for all that could not be had. Data that is damaged decides the kind of the error."""
    damaged, missing, where = result["damaged"], result["missing"], _where(result)
    absent = (
        f"{text.plural(len(missing), 'object')} {'is' if len(missing) == 1 else 'are'} neither here nor on {where}: "
        f"{_paths(missing)}"
    )
    again = f"push {text.them(len(missing))} from where {text.they_are(len(missing))} still"
    if damaged:
        wrong = "is not what its name says" if len(damaged) == 1 else "are not what their names say"
        them = text.them(len(damaged))
        raise StoreDamagedError(
            f"{text.plural(len(damaged), 'object')} on {where} {wrong}: {_paths(damaged)}"
            + (f"; {absent}" if missing else ""),
            hint=f"remove {them} there, and push {them} again from where {text.they_are(len(damaged))} whole"
            + (f"; {again}" if missing else ""),
        )
    if missing:
        raise ObjectMissingError(absent, hint=f"{again}, or take another remote with -r")
