"""fsck: the store as a whole."""

from __future__ import annotations

import json

import click

from millpond.cli import exits, storelines
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Verb, json_option


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
    workspace, where it is run; directories' lists of files from its remotes, too.
    """
    report = verb(console, "fsck", {"deep": deep, "repair": repair})
    if as_json:
        console.write(json.dumps(report))
    else:
        for line in storelines.fsck_lines(report, deep=deep):
            console.say(line)
    return exits.OK if report["ok"] else exits.DAMAGED
