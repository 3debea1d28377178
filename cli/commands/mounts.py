"""mount, umount, mounts."""

from __future__ import annotations

import json
import os
import time

import click

from millpond.cli import exits, mountlines, render, text
from millpond.cli.complete import mountpoints, targets
from millpond.cli.connection import request, verb
from millpond.cli.console import Console
from millpond.cli.group import Verb, json_option
from millpond.cli.target import parse_target
from millpond.daemon import wirepath
from millpond.daemon.errors import MillpondError, UsageError
from millpond.daemon.mounts import engines
from millpond.daemon.mounts.engines import MOST_SERVING

_PATHS = frozenset({"mountpoint", "stands_in", "target", "unmounted", "emptied", "restored"})


@click.command(
    cls=Verb,
    options_metavar="[OPTIONS] [TARGET[@REV]]",
    example="""
$ millpond mount data@v1 /mnt/data-v1
Mounted data@4ea37bc45a46 on /mnt/data-v1 (1,401 files, 512 kB)
$ millpond mount --versions /mnt/versions && ls /mnt/versions/v1/data
$ millpond mount --diff v1 HEAD data /mnt/changes && ls /mnt/changes/added
""",
)
@click.argument("places", metavar="MOUNTPOINT", nargs=-1, required=True, shell_complete=targets)
@click.option("--rev", metavar="REV", help="The revision, where TARGET itself holds an @.")
@click.option("--versions", is_flag=True, help="Every revision as a directory: branches, tags, any revision by name.")
@click.option(
    "--diff",
    nargs=2,
    metavar="A B",
    help="What differs between two revisions: added/, deleted/, modified/before/ and modified/after/.",
)
@click.option(
    "--engine",
    type=click.Choice(engines.NAMES),
    help="What serves the mount: direct; pyfuse3, the portable one; erofs, by which what is cached is as fast as on a disk (root, "
    "Linux 6.12); or auto (default): direct where it runs.",
)
@click.option("--allow-other", is_flag=True, help="Let other users read it (needs user_allow_other in /etc/fuse.conf).")
@click.option(
    "--materialize",
    metavar="SIZE",
    help="Large files that are opened again are written out, up to SIZE (20GB), for the kernel to read as fast as others.",
)
@click.option(
    "--verify",
    type=click.Choice(["blocks", "whole"]),
    default="blocks",
    help="Large files that only a remote has: read as their blocks come, and checked when all are here (blocks, the default), "
    "or brought and checked before their first byte is read (whole).",
)
@click.option(
    "--serving",
    type=click.IntRange(1, MOST_SERVING),
    metavar="N",
    help="N processes serve it. By default as many as load has it, half the cores at most (MILLPOND_SERVING).",
)
@click.option("--xattrs", is_flag=True, help="Tell each file's digest as an extended attribute, user.millpond.md5.")
@json_option
@click.pass_obj
def mount(
    console: Console,
    places: tuple[str, ...],
    rev: str | None,
    versions: bool,
    diff: tuple[str, str] | None,
    engine: str | None,
    allow_other: bool,
    materialize: str | None,
    serving: int | None,
    verify: str,
    xattrs: bool,
    as_json: bool,
) -> None:
    """Show a version of the data as a read-only directory, at MOUNTPOINT, an empty directory.

    TARGET is a tracked file or directory, a path inside one, or any directory of the repository; without it the whole
    tree is mounted, Git's files and the data. REV is any name that Git knows (v1, main, HEAD~3, a commit); without it
    the .dvc files in the workspace say which version. The mount stays at that version and outlives the daemon.
    """
    if len(places) > 2:
        raise UsageError(f"`mount` takes a target and a mountpoint, {len(places)} arguments were given")
    if versions and (len(places) > 1 or rev is not None):
        raise UsageError("`mount --versions` shows all revisions: it takes a mountpoint only")
    if diff and (versions or rev is not None):
        raise UsageError("`mount --diff` names its two revisions itself: it goes with neither --rev nor --versions")
    target, revision = parse_target(places[0], rev) if len(places) == 2 else (None, rev)
    if diff and revision is not None:
        raise UsageError(f"`mount --diff` names its two revisions itself: give '{target or '.'}' without @")
    if any(not each.isprintable() for each in (revision or "", *(diff or ()))):
        raise UsageError("the revision's name is not printable text")
    params = {
        "target": None if target is None else wirepath.encode(target),
        "rev": revision,
        "versions": versions,
        "engine": engine,
        "options": {
            "allow_other": allow_other,
            "xattrs": xattrs,
            "verify": verify,
            "diff": list(diff) if diff else None,
            "materialize": 0 if materialize is None else text.parsed_size(materialize),
            "serving": serving or 0,
        },
        "mountpoint": wirepath.encode(os.path.abspath(places[-1])),
    }
    result = verb(console, "mount", params)
    if as_json:
        console.write(json.dumps(render.decoded(result, _PATHS)))
    else:
        console.say(mountlines.mount_line(result))
    if materialize is not None and os.geteuid() != 0:
        console.warn(
            "--materialize does nothing here: only what root mounts may be read from such copies; reads go through millpond"
        )


@click.command(
    cls=Verb,
    example="""
$ millpond umount /mnt/data-v1
$ millpond umount --all
""",
)
@click.argument("mountpoint", required=False, type=click.Path(), shell_complete=mountpoints)
@click.option("--all", "all_mounts", is_flag=True, help="End all of your mounts.")
@click.option("--lazy", is_flag=True, help="Detach it now, end it when nobody uses it any more.")
@json_option
@click.pass_obj
def umount(console: Console, mountpoint: str | None, all_mounts: bool, lazy: bool, as_json: bool) -> None:
    """End the mount at MOUNTPOINT, or all of your mounts.

    A mount that somebody uses is not ended: the error names the processes.
    """
    if (mountpoint is None) != all_mounts:
        raise UsageError("`umount` takes either a mountpoint or --all")
    params = {
        "mountpoint": None if mountpoint is None else wirepath.encode(os.path.abspath(mountpoint)),
        "all": all_mounts,
        "lazy": lazy,
    }
    try:
        result = verb(console, "umount", params)
    except MillpondError as error:
        # With --all those that could be ended are.
        for name in error.details.get("unmounted") or []:
            console.say(mountlines.unmounted_line(name))
        raise
    if as_json:
        console.write(json.dumps(render.decoded(result, _PATHS)))
        return
    for line in mountlines.umount_lines(result):
        console.say(line)


@click.command(
    cls=Verb,
    example="""
$ millpond mounts
MOUNTPOINT    VERSION            STATE    ENGINE  PID   SINCE  READ
/mnt/data-v1  data@4ea37bc45a46  mounted  direct  4711  2 min  512 kB
""",
)
@click.option("--restore", is_flag=True, help="Mount again what should be mounted and is not.")
@json_option
@click.pass_obj
def mounts(console: Console, restore: bool, as_json: bool) -> int:
    """List your mounts: what is where, whether it lives, what serves it (with -v: why), how much was read through it.

    A mount that is gone (a killed process, a reboot) is listed as dead until it is restored or given up by `umount`.
    """
    if restore:
        result = request(console, "mounts.restore")
        if as_json:
            console.write(json.dumps(render.decoded(result, _PATHS)))
        else:
            for line in mountlines.restore_lines(result):
                console.say(line)
        return exits.DIFFERENT if result.get("failed") else exits.OK
    result = request(console, "mounts")
    if as_json:
        console.write(json.dumps(render.decoded(result, _PATHS)))
    else:
        for line in mountlines.mounts_lines(
            result["mounts"], now=time.time(), paint=console.paint, verbose=bool(console.verbose)
        ):
            console.say(line)
    return exits.OK
