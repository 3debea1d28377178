"""diff, data status: what differs between versions, with DVC's options and words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from millpond.cli import text
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Group, Spread, json_option
from millpond.daemon import wirepath

# In the order in which they are shown, with their colours.
_STATES = {"added": "green", "deleted": "red", "renamed": "green", "modified": "yellow", "not in cache": "yellow"}
Found = dict[str, list[dict[str, Any]]]
# Sections of `data status`: label, hints, colour.
_SECTIONS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "not_in_cache": ("Not in cache", ('use "dvc fetch <file>..." to download files',), "red"),
    "not_in_remote": ("Not in remote", ('use "millpond push <file>..." to upload files',), "red"),
    "committed": (
        "DVC committed changes",
        ("git commit the corresponding dvc files to update the repo",),
        "green",
    ),
    "uncommitted": (
        "DVC uncommitted changes",
        (
            'use "millpond commit <file>..." to track changes',
            'use "millpond checkout <file>..." to discard changes',
        ),
        "yellow",
    ),
    "untracked": (
        "Untracked files",
        ('use "git add <file> ..." or "millpond add <file>..." to commit to git or to dvc',),
        "cyan",
    ),
    "unchanged": ("DVC unchanged files", (), ""),
}


@click.command(
    cls=Spread,
    spread=("--targets",),
    example="""
$ millpond diff v1 v2
Modified:
    data/
    data/labels.csv

files summary: 1 modified
""",
)
@click.argument("a_rev", required=False, default="HEAD")
@click.argument("b_rev", required=False)
@click.option(
    "--targets",
    multiple=True,
    metavar="PATH",
    type=click.Path(),
    help="Compare these only: all words that follow.",
)
@click.option("--show-hash", is_flag=True, help="Show the hash of each entry.")
@click.option("--md", "markdown", is_flag=True, help="Show a Markdown table.")
@click.option("--hide-missing", is_flag=True, help='Do not show what is "not in cache".')
@json_option
@click.pass_obj
def diff(
    console: Console,
    a_rev: str,
    b_rev: str | None,
    targets: tuple[str, ...],
    show_hash: bool,
    markdown: bool,
    hide_missing: bool,
    as_json: bool,
) -> None:
    """Show tracked files that were added, modified, deleted or renamed between A_REV and B_REV.

    A_REV is HEAD by default, B_REV the workspace.
    """
    params = {"a_rev": a_rev, "b_rev": b_rev, "targets": [wirepath.encode(target) for target in targets]}
    found: Found = verb(console, "diff", params)["diff"]
    if b_rev or hide_missing:
        found.pop("not in cache", None)
    for rows in found.values():
        for row in rows:
            row["path"] = _decoded(row["path"])
            if not show_hash:
                del row["hash"]
    if as_json:
        console.write(json.dumps(found))
    else:
        for line in _table(found, show_hash) if markdown else _lines(console, found):
            console.write(line)


def _decoded(path: Any) -> Any:
    if isinstance(path, dict):
        return {key: wirepath.decode(value) for key, value in path.items()}
    return wirepath.decode(path)


def _lines(console: Console, found: Found) -> Iterator[str]:
    summary = {}
    for state, style in _STATES.items():
        rows = found.get(state)
        if not rows:
            continue
        yield console.paint(state.capitalize(), style) + ":"
        for row in rows:
            digest = f"{_digest(row['hash'])}  " if "hash" in row else ""
            yield f"    {digest}{_shown(row['path'])}"
        yield ""
        summary[state] = sum(not _shown(row["path"]).endswith("/") for row in rows)
    if any(summary.values()):
        yield "files summary: " + ", ".join(f"{count} {state}" for state, count in summary.items() if count)


def _table(found: Found, show_hash: bool) -> Iterator[str]:
    """As GitHub's Markdown has tables."""
    rows = [["Status", *(["Hash"] if show_hash else []), "Path"]]
    for state in _STATES:
        for row in found.get(state, []):
            rows.append([state, *([_digest(row["hash"])] if show_hash else []), _shown(row["path"])])
    yield from text.markdown(rows[0], rows[1:])
    yield ""


def _shown(path: Any) -> str:
    if isinstance(path, dict):
        return f"{text.printable(path['old'])} -> {text.printable(path['new'])}"
    return text.printable(path)


def _digest(value: Any) -> str:
    """The first digits of a hash, or of two."""
    if isinstance(value, dict):
        return f"{value['old'][:8]}..{value['new'][:8]}"
    return str(value)[:8]


@click.group(cls=Group)
def data() -> None:
    """Compare the last commit, the .dvc files and the workspace."""


@data.command(
    "status",
    short_help="Show what changed since the last commit, and since the .dvc files were written.",
    example="""
$ millpond data status --granular
DVC uncommitted changes:
  (use "millpond commit <file>..." to track changes)
  (use "millpond checkout <file>..." to discard changes)
        modified: data/
        modified: data/labels.csv
""",
)
@click.argument("targets", nargs=-1, type=click.Path())
@click.option("--granular", is_flag=True, help="Show files inside tracked directories.")
@click.option("--unchanged", is_flag=True, help="Show what did not change, too.")
@click.option(
    "--untracked-files",
    type=click.Choice(["no", "all"]),
    is_flag=False,
    flag_value="all",
    default="no",
    help="Show files that neither Git nor a .dvc file tracks.",
)
@click.option("--not-in-remote", is_flag=True, help="Show what is not on the remote.")
@click.option("-r", "--remote", metavar="NAME", help="With --not-in-remote: this remote instead of the default one.")
@click.option(
    "--remote-refresh/--no-remote-refresh",
    "refresh",
    default=True,
    help="Ask the remote, or go by what was seen there last.",
)
@json_option
@click.pass_obj
def data_status(
    console: Console,
    targets: tuple[str, ...],
    granular: bool,
    unchanged: bool,
    untracked_files: str,
    not_in_remote: bool,
    remote: str | None,
    refresh: bool,
    as_json: bool,
) -> None:
    """Show tracked data that changed: committed, with the .dvc files, since the last Git commit, and uncommitted, in the
    workspace since the .dvc files were written."""
    untracked = untracked_files == "all"
    params = {
        "targets": [wirepath.encode(target) for target in targets],
        "granular": granular,
        "untracked": untracked,
        "unchanged": unchanged,
        "not_in_remote": not_in_remote,
        "remote": remote,
        "refresh": refresh,
    }
    found = verb(console, "data.status", params)
    git = found.pop("git")
    if not unchanged:
        del found["unchanged"]
    if not untracked:
        del found["untracked"]
    told = {key: _decoded_all(value) for key, value in found.items() if value}
    if as_json:
        console.write(json.dumps(told))
        return
    for line in _status_lines(console, told, git):
        console.say(line)


def _decoded_all(value: Any) -> Any:
    if isinstance(value, dict):
        return {state: [_decoded(path) for path in paths] for state, paths in value.items()}
    return [_decoded(path) for path in value]


def _status_lines(console: Console, told: dict[str, Any], git: dict[str, bool]) -> Iterator[str]:
    if not told:
        yield "No changes in an empty git repo." if git["is_empty"] else "No changes."
    for number, (section, found) in enumerate(told.items()):
        label, hints, style = _SECTIONS[section]
        if number:
            yield ""
        yield f"{label}:"
        yield from (f"  ({hint})" for hint in hints)
        rows = (
            [(f"{state}: ", path) for state, paths in found.items() for path in paths]
            if isinstance(found, dict)
            else [("", path) for path in found]
        )
        for head, path in rows:
            line = f"{' ' * 8}{head}{_shown(path)}"
            yield console.paint(line, style) if style else line
    if git["is_dirty"]:
        yield f'(there are {"other " if told else ""}changes not tracked by dvc, use "git status" to see)'
