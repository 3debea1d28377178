"""install, and git-hook: what the hooks and the merge driver run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import click

from millpond.cli import exits, text
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Group, Verb, json_option
from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError, MillpondError, RemoteConfigError

# Git that answers later than this (s) is taken for one that does not.
_GIT_S = 60.0
_ATTRIBUTES = "*.dvc merge=dvc"
# The kind of checkout as the pre-commit tool passes it: "1" for a branch, "0" for files.
_CHECKOUT_TYPE = "PRE_COMMIT_CHECKOUT_TYPE"


@click.command(
    cls=Verb,
    example="""
$ millpond install
Installed .git/hooks/post-checkout, .git/hooks/pre-commit, .git/hooks/pre-push
""",
)
@click.option("--use-pre-commit-tool", is_flag=True, help="Put the hooks into .pre-commit-config.yaml instead.")
@json_option
@click.pass_obj
def install(console: Console, use_pre_commit_tool: bool, as_json: bool) -> None:
    """Install Git hooks: data follows a `git checkout`, `git commit` shows its status, `git push` pushes it.

    Also the merge driver `dvc`, which merges .dvc files of directories file by file. DVC's own hooks are replaced; those of
    other tools are kept, and nothing is installed then. Work trees share their hooks; core.hooksPath counts.
    """
    found = verb(console, "install", {"pre_commit": use_pre_commit_tool})
    hooks, replaced = ([wirepath.decode(path) for path in found[key]] for key in ("hooks", "replaced"))
    if as_json:
        console.write(json.dumps({"hooks": hooks, "replaced": replaced, "attributes": found["attributes"]}))
        return
    console.say(f"Installed {', '.join(map(text.printable, hooks))}")
    if replaced:
        console.say(f"They replace DVC's own: {', '.join(map(text.printable, replaced))}")
    if use_pre_commit_tool:
        console.say("Have the tool run them:\n\n\tpre-commit install -t pre-commit -t post-checkout -t pre-push\n")
    if not found["attributes"]:
        console.say(f"To have .dvc files of directories merged:\n\n\techo '{_ATTRIBUTES}' >> .gitattributes\n")


@click.group(
    "git-hook",
    cls=Group,
)
def git_hook() -> None:
    """What the hooks that `millpond install` makes run. In a Git repository without tracked data they do nothing."""


@git_hook.command(
    "post-checkout",
    example="""
$ millpond git-hook post-checkout 4d3c26a 9f1b2e7 1
""",
)
@click.argument("args", nargs=-1)
@click.pass_obj
def post_checkout(console: Console, args: tuple[str, ...]) -> int:
    """After `git checkout` of a branch: bring the data along. Not while a rebase is under way."""
    kind = os.environ.get(_CHECKOUT_TYPE, args[2] if len(args) > 2 else None)
    if kind != "1" or _is_rebasing():
        return exits.OK
    return _in_projects(console, lambda: _run(console, ["checkout"]))


@git_hook.command(
    "pre-commit",
    example="""
$ millpond git-hook pre-commit
""",
)
@click.argument("args", nargs=-1)
@click.pass_obj
def pre_commit(console: Console, args: tuple[str, ...]) -> int:
    """Before `git commit`: show what of the data is not in the .dvc files."""
    return _in_projects(console, lambda: _run(console, ["status"]))


@git_hook.command(
    "pre-push",
    example="""
$ millpond git-hook pre-push origin git@example.org:team/data.git
""",
)
@click.argument("args", nargs=-1)
@click.pass_obj
def pre_push(console: Console, args: tuple[str, ...]) -> int:
    """Before `git push`: push the data to the default remote. Without such a remote there is nothing to do."""
    return _in_projects(console, lambda: _push(console))


@git_hook.command(
    "merge-driver",
    example="""
$ millpond git-hook merge-driver --ancestor O --our A --their B --path data.dvc
""",
)
@click.option("--ancestor", required=True, type=click.Path(), help="The common ancestor's version.")
@click.option("--our", required=True, type=click.Path(), help="Our version, which becomes the merged one.")
@click.option("--their", required=True, type=click.Path(), help="The other branch's version.")
@click.option("--path", type=click.Path(), help="Where the file belongs; the directory's data is found from there.")
@click.pass_obj
def merge_driver(console: Console, ancestor: str, our: str, their: str, path: str | None) -> int:
    """Merge two versions of a .dvc file of a directory, file by file.

    Exit code 1 when they do not fit: the file has Git's conflict markers then, as without the driver.
    """
    sides = {"ancestor": ancestor, "our": our, "their": their}
    params = {key: wirepath.encode(value) for key, value in (sides | {"path": path or our}).items()}
    try:
        verb(console, "merge-driver", params)
    except MillpondError as error:
        from millpond.cli.failure import show_error

        show_error(console, error)
        names = [word for label in ("ours", "ancestor", "theirs") for word in ("-L", label)]
        _git("merge-file", "-q", *names, our, ancestor, their)
        # Git takes more than 128 for a driver that broke down, and stops in the middle of the merge.
        return ConflictError.exit_code
    return exits.OK


def _push(console: Console) -> int:
    """Push the workspace's data; to a kind of remote that only DVC has, by DVC."""
    if not verb(console, "config", {"name": "core.remote"})["rows"]:
        return exits.OK
    try:
        return _run(console, ["push"])
    except RemoteConfigError:
        if shutil.which("dvc") is None:
            raise
    verb(console, "export", {})
    return subprocess.run(["dvc", "push"], check=False).returncode


def _run(console: Console, words: Sequence[str]) -> int:
    """A command of this program, in this process."""
    from millpond.cli.program import PROGRAM, cli

    with cli.make_context(PROGRAM, list(words), obj=console) as ctx:
        result = cli.invoke(ctx)
    return result if isinstance(result, int) else exits.OK


def _in_projects(console: Console, action: Callable[[], int]) -> int:
    """Do it in the root of each DVC project of this work tree; the first exit code that is not 0. One that fails does not
    keep the others from theirs."""
    codes = []
    before = os.getcwd()
    for root in _projects():
        os.chdir(os.path.join(before, root))
        try:
            codes.append(action())
        except MillpondError as error:
            from millpond.cli.failure import show_error

            show_error(console, error)
            codes.append(error.exit_code)
        finally:
            os.chdir(before)
    return next((code for code in codes if code), exits.OK)


def _projects() -> list[str]:
    """The roots of the DVC projects that Git's index has and that are there, from this folder."""
    listed = _git("ls-files", "-z", "--", ":(top,glob)**/.dvc/config")
    roots = (os.path.dirname(os.path.dirname(os.fsdecode(path))) for path in listed.split(b"\0") if path)
    return [root or "." for root in roots if os.path.isdir(os.path.join(root, ".dvc"))]


def _is_rebasing() -> bool:
    """Whether Git replays commits now: a checkout that fails would break that off."""
    names = [word for name in ("rebase-merge", "rebase-apply") for word in ("--git-path", name)]
    folders = _git("rev-parse", *names).splitlines()
    return any(os.path.isdir(folder) for folder in folders)


def _git(*argv: str) -> bytes:
    """What Git prints; nothing when it fails or is not there."""
    try:
        done: subprocess.CompletedProcess[Any] = subprocess.run(
            ["git", *argv], capture_output=True, timeout=_GIT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return b""
    return bytes(done.stdout)
