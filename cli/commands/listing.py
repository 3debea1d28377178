"""list, du: what a repository holds, with DVC's options and words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from millpond.cli import text
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Spread, json_option, repo_settings
from millpond.daemon import wirepath
from millpond.daemon.errors import ObjectMissingError, UsageError

# What stands before an entry in a tree, by whether it is the last of its folder; and before what is below it.
_EDGES = {False: "├── ", True: "└── "}
_LINES = {False: "│   ", True: "    "}


@click.command(
    "list",
    cls=Spread,
    spread=("--remote-config",),
    example="""
$ millpond list . data --size
4.00k  labels.csv
       train
$ millpond ls . -T -L 2
""",
)
@click.argument("url", type=click.Path())
@click.argument("path", required=False, type=click.Path())
@click.option("-R", "--recursive", is_flag=True, help="List the files in folders, too.")
@click.option("-T", "--tree", is_flag=True, help="Draw a tree.")
@click.option("-L", "--level", type=click.IntRange(0), metavar="DEPTH", help="With -R or -T: no deeper than this.")
@click.option("--dvc-only", is_flag=True, help="List tracked data only.")
@click.option("--rev", metavar="COMMIT", help="List what this revision holds.")
@click.option("--size", is_flag=True, help="Show sizes.")
@click.option("--show-hash", is_flag=True, help="Show hashes of tracked data.")
@repo_settings
@json_option
@click.pass_obj
def list_(
    console: Console,
    /,
    url: str,
    path: str | None,
    recursive: bool,
    tree: bool,
    level: int | None,
    dvc_only: bool,
    rev: str | None,
    size: bool,
    show_hash: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """List what the repository at URL (a path, `.` for this one, or what `git clone` takes) holds: files of Git and tracked data.

    PATH is a folder or file in it.
    """
    if tree and as_json:
        raise UsageError("--tree and --json do not go together")
    params: dict[str, Any] = {
        "url": wirepath.encode(url),
        "path": None if path is None else wirepath.encode(path),
        "rev": rev,
        "recursive": recursive,
        "level": level,
        "tree": tree,
        "dvc_only": dvc_only,
        "detail": size or as_json,
        **settings,
    }
    found = verb(console, "list", params)
    rows = [[wirepath.decode(row[0]), *row[1:]] for row in found["rows"]]
    if as_json:
        console.write(json.dumps([_entry(row) for row in rows]))
    else:
        for line in drawn(console, rows, tree=tree, with_size=size, with_hash=show_hash):
            console.write(line)
    _tell_missing(console, [wirepath.decode(each) for each in found["missing"]])


def drawn(console: Console, rows: list[list[Any]], *, tree: bool, with_size: bool, with_hash: bool) -> Iterator[str]:
    """The lines of a listing."""
    names = list(_drawn(console, rows)) if tree else [_painted(console, row, row[0]) for row in rows]
    return _lines(rows, names, with_size=with_size, with_hash=with_hash)


def _entry(row: list[Any]) -> dict[str, Any]:
    """DVC's JSON of an entry."""
    path, _, is_out, is_dir, is_exec, size, value = row
    return {"isout": is_out, "isdir": is_dir, "isexec": is_exec, "size": size, "md5": value, "path": path}


def _painted(console: Console, row: list[Any], name: str) -> str:
    shown = text.printable(name)
    return console.paint(shown, "bold" if row[3] else "green" if row[4] else "") if row[3] or row[4] else shown


def _drawn(console: Console, rows: list[list[Any]]) -> Iterator[str]:
    """Names of rows that are in a tree's order, with its lines before them."""
    lasts = [False] * len(rows)
    open_at: set[int] = set()
    for at in range(len(rows) - 1, -1, -1):
        depth = rows[at][1]
        lasts[at] = depth not in open_at
        open_at = {each for each in open_at if each < depth} | {depth}
    above: list[str] = []
    for row, last in zip(rows, lasts, strict=True):
        depth, path = row[1], row[0]
        del above[max(0, depth - 1) :]
        name = path if depth == 0 else path.rpartition("/")[2]
        edge = _EDGES[last] if depth else ""
        yield f"{''.join(above)}{edge}{_painted(console, row, name)}"
        if depth:
            above.append(_LINES[last])


def _lines(rows: list[list[Any]], names: list[str], *, with_size: bool, with_hash: bool) -> Iterator[str]:
    sizes = ["" if row[5] is None or (row[3] and not row[5]) else text.binary_size(row[5]) for row in rows]
    width = max(map(len, sizes), default=0)
    digests = [row[6] or "-" for row in rows]
    digest_width = max(map(len, digests), default=0)
    for size, digest, name in zip(sizes, digests, names, strict=True):
        cells = [size.rjust(width)] if with_size else []
        cells += [digest.ljust(digest_width)] if with_hash else []
        yield "  ".join([*cells, name])


def _tell_missing(console: Console, missing: list[str]) -> None:
    """Say which folders' files are not listed. Raises ObjectMissingError when there are any: the list is not whole."""
    for path in missing[:-1]:
        console.warn(f"the files of '{path}' are not listed: its manifest is neither in the store nor in DVC's cache")
    if missing:
        raise ObjectMissingError(
            f"the files of '{text.printable(missing[-1])}' are not listed: "
            "its manifest is neither in the store nor in DVC's cache",
            hint="fetch it first: millpond fetch",
        )


@click.command(
    cls=Spread,
    spread=("--remote-config",),
    example="""
$ millpond du . data
1.02k  data/labels.csv
20.5M  data/train
20.5M  data
""",
)
@click.argument("url", type=click.Path())
@click.argument("path", required=False, type=click.Path())
@click.option("--rev", metavar="COMMIT", help="Of this revision.")
@click.option("-s", "--summarize", is_flag=True, help="Show the sum only.")
@repo_settings
@json_option
@click.pass_obj
def du(
    console: Console, /, url: str, path: str | None, rev: str | None, summarize: bool, as_json: bool, **settings: Any
) -> None:
    """Show how much the entries of a folder take, and all of it: files of Git and tracked data, checked out or not."""
    params: dict[str, Any] = {
        "url": wirepath.encode(url),
        "path": None if path is None else wirepath.encode(path),
        "rev": rev,
        "summarize": summarize,
        **settings,
    }
    rows = [(wirepath.decode(name), size) for name, size in verb(console, "du", params)["rows"]]
    if as_json:
        console.write(json.dumps([{"path": name, "size": size} for name, size in rows]))
        return
    width = max(len(text.binary_size(size)) for _, size in rows)
    for name, size in rows:
        console.write(f"{text.binary_size(size).ljust(width)}  {text.printable(name)}".rstrip())
