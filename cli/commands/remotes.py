"""remote: the remotes of a project's config, with DVC's options and words."""

from __future__ import annotations

import json
from typing import Any

import click

from millpond.cli import exits, render, text
from millpond.cli.commands.settings import level_options
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Group, json_option
from millpond.daemon import wirepath
from millpond.daemon.errors import UsageError, from_wire


@click.group(cls=Group)
def remote() -> None:
    """Where data is shared: directories, s3://bucket/path, ssh://user@host/path, and to read from https://host/path."""


def _ask(console: Console, action: str, level: str | None, **params: Any) -> dict[str, Any]:
    wired = {key: wirepath.encode(value) if isinstance(value, str) else value for key, value in params.items()}
    return verb(console, "remote", {"action": action, "level": level, **wired})


@remote.command(
    short_help="Add a remote.",
    example="""
$ millpond remote add -d team s3://datasets/vision
Setting 'team' as a default remote.
""",
)
@click.argument("name")
@click.argument("url")
@level_options
@click.option("-d", "--default", is_flag=True, help="Make it the default remote.")
@click.option("-f", "--force", is_flag=True, help="Overwrite a remote of that name.")
@click.pass_obj
def add(console: Console, name: str, url: str, default: bool, force: bool, level: str | None = None) -> None:
    """Add the remote NAME at URL: a directory (relative ones are seen from the config file's folder), s3://bucket/path, ssh://user@host/path, https://host/path, remote://OTHER/path."""
    _ask(console, "add", level, name=name, url=url, default=default, force=force)
    if default:
        console.say(f"Setting '{name.lower()}' as a default remote.")


@remote.command(
    "list",
    short_help="List remotes.",
    example="""
$ millpond remote list
team    s3://datasets/vision    (default)
""",
)
@level_options
@json_option
@click.pass_obj
def list_(console: Console, as_json: bool, level: str | None = None) -> None:
    """List all remotes with their urls."""
    rows = _ask(console, "list", level)["rows"]
    found = [{**row, "name": wirepath.decode(row["name"]), "url": wirepath.decode(row["url"])} for row in rows]
    if as_json:
        console.write(json.dumps({"remotes": found}))
        return
    for row in found:
        console.write(f"{row['name']}\t{row['url']}" + ("\t(default)" if row["default"] else ""))


@remote.command(
    short_help="Show, set or unset the default remote.",
    example="""
$ millpond remote default team
""",
)
@click.argument("name", required=False)
@level_options
@click.option("-u", "--unset", is_flag=True, help="Have no default remote any more.")
@click.pass_obj
def default(console: Console, name: str | None, unset: bool, level: str | None = None) -> int:
    """Make NAME the remote that push, pull and fetch use; without NAME print which it is. Exit code 1 if there is none."""
    if unset and name is not None:
        raise UsageError("-u/--unset takes no name")
    found = _ask(console, "default", level, name=name, unset=unset)["name"]
    if name is None and not unset:
        console.write("No default remote set" if found is None else wirepath.decode(found))
        return exits.OK if found is not None else 1
    return exits.OK


@remote.command(
    short_help="Change a remote's settings.",
    example="""
$ millpond remote modify --local team profile alice
""",
)
@click.argument("name")
@click.argument("option")
@click.argument("value", required=False)
@level_options
@click.option("-u", "--unset", is_flag=True, help="Unset the option.")
@click.pass_obj
def modify(console: Console, name: str, option: str, value: str | None, unset: bool, level: str | None = None) -> None:
    """Set OPTION of the remote NAME to VALUE. Secrets belong into --local, which is not committed."""
    if (value is None) != unset:
        raise UsageError("-u/--unset takes no value" if unset else "VALUE is required, or -u/--unset")
    _ask(console, "modify", level, name=name, option=option, value=value)


@remote.command(
    short_help="Try what a remote lets you do.",
    example="""
$ millpond remote check team
ok    reach      answers in 14 ms
ok    list       1000 or more objects
...
""",
)
@click.argument("name", required=False)
@click.option("--read-only", is_flag=True, help="Write nothing there.")
@json_option
@click.pass_obj
def check(console: Console, name: str | None, read_only: bool, as_json: bool) -> None:
    """Try what can be done with the remote NAME, or with the default one: reach it, list, read, write, create, delete.

    What is written is two small objects, which are removed again. The exit code is 0, or that of the first trial that failed;
    `no` is what cannot be done and hurts nothing.
    """
    found = verb(
        console, "remote.check", {"name": None if name is None else wirepath.encode(name), "read_only": read_only}
    )
    checks = [each | {"detail": wirepath.decode(each["detail"])} for each in found["checks"]]
    if as_json:
        console.write(json.dumps(found | {"url": wirepath.decode(found["url"]), "checks": checks}))
    else:
        for line in render.check_lines(checks, paint=console.paint):
            console.write(line)
    if found["error"] is not None:
        raise from_wire(found["error"])


@remote.command(
    short_help="Remove a remote.",
    example="""
$ millpond remote remove team
""",
)
@click.argument("name")
@level_options
@click.pass_obj
def remove(console: Console, name: str, level: str | None = None) -> None:
    """Remove the remote NAME from the config. The data there stays."""
    _ask(console, "remove", level, name=name)


@remote.command(
    short_help="Rename a remote.",
    example="""
$ millpond remote rename team datasets
""",
)
@click.argument("name")
@click.argument("new")
@level_options
@click.pass_obj
def rename(console: Console, name: str, new: str, level: str | None = None) -> None:
    """Rename the remote NAME to NEW; a default remote stays the default one."""
    _ask(console, "rename", level, name=name, new=new)


@remote.command(
    short_help="Give mounts the credentials of now.",
    example="""
$ aws sso login && millpond remote login
Remote 'team' lets you in.
1 mount has these credentials now: /mnt/data
""",
)
@click.argument("name", required=False)
@json_option
@click.pass_obj
def login(console: Console, name: str | None, as_json: bool) -> int:
    """Ask the remote NAME (the default one) whether it lets you in, and have your mounts of this project use what it let in: the
    environment of this command, and the files that it names. Nothing is kept but in the memory of the mounts' own processes.

    A mount that says `needs-credentials` is revived like this; any other command in the project does so too.
    """
    result = verb(console, "remote.login", {"name": None if name is None else wirepath.encode(name)})
    mounts = [wirepath.decode(each) for each in result["mounts"]]
    failed = [{**each, "mountpoint": wirepath.decode(each["mountpoint"])} for each in result["failed"]]
    if as_json:
        console.write(json.dumps({"remote": wirepath.decode(result["remote"]), "mounts": mounts, "failed": failed}))
        return exits.DIFFERENT if failed else exits.OK
    console.say(f"Remote '{text.printable(wirepath.decode(result['remote']))}' lets you in.")
    if mounts:
        have = "mount has" if len(mounts) == 1 else "mounts have"
        console.say(f"{len(mounts)} {have} these credentials now: {', '.join(map(text.printable, mounts))}")
    for each in failed:
        console.say(f"{text.printable(each['mountpoint'])}: {text.printable(each['error'])}")
    return exits.DIFFERENT if failed else exits.OK
