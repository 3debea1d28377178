"""repro, why: running what is out of date, with DVC's options and words, and the reasons for it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import click

from millpond.cli import exits, history, render, text
from millpond.cli.connection import running_verb, verb
from millpond.cli.console import Console
from millpond.cli.group import Verb, json_option
from millpond.daemon import wirepath
from millpond.daemon.errors import StageFailedError, UsageError

_FLAGS = (
    "force", "force_downstream", "single_item", "pipeline", "all_pipelines", "recursive", "downstream", "glob", "dry",
    "pull", "allow_missing", "no_commit", "no_run_cache", "interactive",
)  # fmt: skip


@click.command(
    cls=Verb,
    example="""
$ millpond repro
Running stage 'train':
> python train.py
Updating lock file 'dvc.lock'
Use `millpond push` to send your updates to remote storage.
""",
)
@click.argument("targets", nargs=-1, type=click.Path())
@click.option("-f", "--force", is_flag=True, help="Run stages that are not out of date, too.")
@click.option("-i", "--interactive", is_flag=True, help="Ask before each stage.")
@click.option("-s", "--single-item", is_flag=True, help="Only the targets, not what they need.")
@click.option("-p", "--pipeline", is_flag=True, help="The whole pipelines that the targets belong to.")
@click.option("-P", "--all-pipelines", is_flag=True, help="All stages of the project.")
@click.option("-R", "--recursive", is_flag=True, help="Targets may be directories: all stages below them.")
@click.option("--downstream", is_flag=True, help="The targets and all that needs them.")
@click.option("--force-downstream", is_flag=True, help="Run all that needs a stage that ran.")
@click.option("--pull", is_flag=True, help="Bring missing data from the remote.")
@click.option(
    "--mount/--no-mount",
    default=None,
    help="Mount the data that stages need and that is not here, instead of bringing it; it goes when no stage needs it any more.",
)
@click.option("--allow-missing", is_flag=True, help="Leave alone what only lacks data.")
@click.option("--dry", is_flag=True, help="Only print what would be run.")
@click.option(
    "-k", "--keep-going", "on_error", flag_value="keep-going", help="Go on with what does not need a stage that failed."
)
@click.option("--ignore-errors", "on_error", flag_value="ignore", help="Go on as if no stage had failed.")
@click.option("--glob", is_flag=True, help="Names of targets are patterns.")
@click.option("--no-commit", is_flag=True, help="Do not store what the stages make.")
@click.option("--no-run-cache", is_flag=True, help="Run commands that were run before with the same inputs, too.")
@click.option("-j", "--jobs", type=click.IntRange(1), default=1, metavar="NUMBER", help="Run so many stages at once.")
@click.option("--why", "explain", is_flag=True, help="Print the reasons of each stage.")
@click.option("--check", is_flag=True, help="Run nothing: exit with 1 if anything is out of date, and say what.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait: it goes on as a job.")
@json_option
@click.pass_obj
def repro(
    console: Console,
    /,
    targets: tuple[str, ...],
    on_error: str | None,
    jobs: int,
    explain: bool,
    check: bool,
    detach: bool,
    as_json: bool,
    mount: bool | None,
    **flags: bool,
) -> int:
    """Run the stages that are out of date, what they need first, and record what they made in dvc.lock.

    Targets are stages (NAME, FILE:NAME), loops, dvc.yaml and .dvc files; the dvc.yaml here by default. What a stage made before
    from the same inputs is brought back instead. With -j output lines begin with their stage.

    With --mount data that is only missing here, and in the store or on a remote, counts as there. What a stage needs of it is
    mounted before its first command, read as the commands read it, and gone when no stage needs it any more; single files below
    16 MB are brought. `.dvc/config.millpond` may say so for each repro: `mount = auto` in the section [repro].

    What there is to run is run as a job (see `jobs`): it goes on when this command is killed, its terminal closed, or the daemon
    restarted. Ctrl-C cancels it.
    """
    if detach and (other := next((name for name in ("dry", "interactive") if flags[name]), "check" if check else None)):
        raise UsageError(f"--detach and --{other} exclude each other: with --{other} there is nothing to leave running")
    params: dict[str, Any] = {
        **{name: flags[name] for name in _FLAGS},
        "targets": [wirepath.encode(target) for target in targets],
        "on_error": on_error,
        "jobs": jobs,
        "mount": mount,
        "quiet": console.quiet or check,
        "explain": explain,
    }
    if check:
        return _check(console, {**params, "dry": True}, as_json)
    if flags["dry"] or flags["interactive"]:
        result = _asking(console, params, as_json=as_json)
    else:
        found = reproduce(console, params, detach=detach, as_json=as_json)
        if found is None:
            return exits.INTERRUPTED if console.interrupted else exits.OK
        result = found
    rows = [_decoded(row, dry=flags["dry"]) for row in result["stages"]]
    if as_json:
        console.write(json.dumps({"stages": rows}))
        return exits.OK
    if explain:
        # One that ran has said already which earlier run it is nearest to.
        for line in _why_lines(rows if flags["dry"] else [{**row, "nearest": None} for row in rows]):
            console.say(line)
    for line in render.add_lines(result, config=None):
        console.say(line)
    if result["ran"]:
        console.say("Use `millpond push` to send your updates to remote storage.")
    else:
        console.say("Data and pipelines are up to date.")
    return exits.OK


def reproduce(
    console: Console, params: dict[str, Any], *, detach: bool = False, as_json: bool = False
) -> dict[str, Any] | None:
    """Run what is out of date as a job; when nothing is, or the daemon can have none, there is none. Its result; None when it was
    left running.

    Raises what the verb raises.
    """

    def here(**more: bool) -> dict[str, Any]:
        return _here(console, {**params, **more}, as_json=as_json)

    if not detach and not params.get("force"):
        looked = here(look=True)
        if looked["ask"] is None:
            return looked
    from millpond.cli.jobs import as_job

    return as_job(console, "repro", params, detach=detach, title=_title(params), err=as_json, otherwise=here)


def _title(params: dict[str, Any]) -> str:
    """What `jobs` calls it: the command with what it was asked for."""
    words = [f"--{name.replace('_', '-')}" for name in _FLAGS if params.get(name)]
    words += (
        [{"keep-going": "--keep-going", "ignore": "--ignore-errors"}[params["on_error"]]]
        if params.get("on_error")
        else []
    )
    words += ["-j", str(params["jobs"])] if params.get("jobs", 1) > 1 else []
    return shlex.join(["repro", *words, *(text.printable(wirepath.decode(target)) for target in params["targets"])])


def _here(console: Console, params: dict[str, Any], *, as_json: bool) -> dict[str, Any]:
    """The repro as a request, which ends with this command."""
    out = sys.stderr if as_json else sys.stdout
    return running_verb(console, "repro", params, out.fileno(), sys.stderr.fileno())


def _asking(console: Console, params: dict[str, Any], *, as_json: bool) -> dict[str, Any]:
    """The repro; an interactive one stops at each stage, and goes on from there when the person agrees."""
    approved: list[str] = []
    while True:
        result = _here(console, {**params, "approved": approved}, as_json=as_json)
        asked = result.get("ask")
        if asked is None:
            return result
        name = text.printable(wirepath.decode(asked))
        if not sys.stdin.isatty():
            raise UsageError("--interactive asks a person, and there is no terminal")
        if not click.confirm(f"Going to reproduce stage '{name}'. Are you sure you want to continue?", err=True):
            raise StageFailedError(f"failed to reproduce '{name}': it was not agreed to")
        approved.append(asked)


def _check(console: Console, params: dict[str, Any], as_json: bool) -> int:
    result = verb(console, "repro", params)
    rows = [_decoded(row, dry=True) for row in result["stages"]]
    if as_json:
        console.write(json.dumps({"stages": rows}))
    else:
        for line in _why_lines([row for row in rows if row["outcome"] != "unchanged"]):
            console.say(line)
        if not result["ran"]:
            console.say("Data and pipelines are up to date.")
    return exits.DIFFERENT if result["ran"] else exits.OK


@click.command(
    cls=Verb,
    example="""
$ millpond why train
train  would run  params.yaml: lr changed from 0.1 to 0.2
""",
)
@click.argument("targets", nargs=-1, required=True, type=click.Path())
@click.option("--last", is_flag=True, help="Say what its last turn in a repro came to, and why.")
@json_option
@click.pass_obj
def why(console: Console, targets: tuple[str, ...], last: bool, as_json: bool) -> None:
    """Say all reasons for which stages would run now, or for which they ran last. `runs` lists all runs that were recorded."""
    result = verb(console, "why", {"targets": [wirepath.encode(target) for target in targets], "last": last})
    rows = [_decoded(row, dry=False) for row in result["stages"]]
    if as_json:
        for row in rows:
            if row.get("run") is not None:
                row["run"] = history.record(row["run"])
        console.write(json.dumps({"stages": rows}))
    else:
        for line in _why_lines(rows):
            console.say(line)


def _decoded(row: dict[str, Any], *, dry: bool) -> dict[str, Any]:
    reasons = [
        {**reason, "path": wirepath.decode(reason["path"])} if "path" in reason else reason for reason in row["reasons"]
    ]
    outcome = "would run" if dry and row["outcome"] == "ran" else row["outcome"]
    found = {**row, "name": wirepath.decode(row["name"]), "outcome": outcome, "reasons": reasons}
    near = row.get("nearest")
    if near is not None:
        rows = [
            {**each, "path": wirepath.decode(each["path"])} if "path" in each else each for each in near["differences"]
        ]
        found["nearest"] = {**near, "differences": rows, "text": wirepath.decode(near["text"])}
    return found


def _why_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line a reason: stage, outcome, reason; below them the earlier run that is nearest."""
    cells = []
    for row in rows:
        name, outcome = text.printable(row["name"]), row["outcome"] or "never ran"
        for reason in row["reasons"] or [None]:
            cells.append((name, outcome, "" if reason is None else reason_text(reason)))
            name = outcome = ""
        if row.get("nearest") is not None:
            cells.append(("", "", text.printable(row["nearest"]["text"])))
    widths = [max((len(row[column]) for row in cells), default=0) for column in (0, 1)]
    for name, outcome, reason in cells:
        yield f"{name:<{widths[0]}}  {outcome:<{widths[1]}}  {reason}".rstrip()


def reason_text(reason: dict[str, Any]) -> str:
    """A reason as part of a line."""
    kind, state = reason["kind"], reason.get("state")
    path = text.printable(reason.get("path", ""))
    if kind == "param" and "key" in reason:
        key = text.printable(reason["key"])
        if state == "modified":
            return f"{path}: {key} changed from {json.dumps(reason.get('old'))} to {json.dumps(reason.get('new'))}"
        return f"{path}: {key} is {'not there' if state == 'deleted' else 'new'}"
    if kind in ("dep", "param"):
        return f"dependency {path} is {state}"
    if kind == "out":
        return f"output {path} is {state}"
    told = {"command": "its command changed", "always": "it always runs", "forced": "it was forced to"}
    return told.get(str(kind), str(kind))
