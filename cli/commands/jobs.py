"""jobs, job run, job remove, job prune, logs, attach, cancel."""

from __future__ import annotations

import json
import os
import time

import click

from millpond.cli import exits, render, text
from millpond.cli.connection import request, verb
from millpond.cli.console import Console
from millpond.cli.group import Group, Verb, json_option
from millpond.daemon import wirepath
from millpond.daemon.errors import JobError, UsageError

# Ended jobs that `jobs` shows without --all, and more than are ever kept.
SHOWN, ALL = 10, 1000


@click.command(
    cls=Verb,
    example="""
$ millpond jobs
JOB  NAME   STATE      SINCE         EXIT  COMMAND
7    train  running    3 min 20 s          python train.py --epochs 90
6           succeeded  12 min        0     python prepare.py
""",
)
@click.option("--all", "everything", is_flag=True, help=f"Every job that is kept, not only {SHOWN} that have ended.")
@json_option
@click.pass_obj
def jobs(console: Console, everything: bool, as_json: bool) -> None:
    """List jobs: those that run or wait, and the last ones that have ended.

    Only your own are shown. A job whose process is gone without a result is `lost`, never shown as running.
    """
    found = request(console, "jobs", {"limit": ALL if everything else SHOWN})["jobs"]
    if as_json:
        console.write(json.dumps(render.decoded(found, render.JOB_PATHS)))
        return
    # Jobs of other folders are told apart; with -v all say where they run.
    elsewhere = console.verbose or any(wirepath.decode(row["cwd"]) != os.path.realpath(os.getcwd()) for row in found)
    for line in render.job_lines(found, now=time.time(), paint=console.paint, folders=bool(elsewhere)):
        console.say(line)


@click.group(cls=Group)
def job() -> None:
    """Run commands as jobs, and remove those that have ended.

    A job runs in this directory, with this environment, and goes on when its terminal is closed, its client is killed, or
    the daemon is restarted. It has no standard input.
    """


@job.command(
    "run",
    short_help="Run a command as a job.",
    options_metavar="[OPTIONS] --",
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    example="""
$ millpond job run --name train --detach -- python train.py --epochs 90
Job 7 runs: `millpond attach 7` follows it
$ millpond job run 'python prepare.py | tee prepared.txt'
""",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-n", "--name", help="A name for the job.")
@click.option("-d", "--detach", is_flag=True, help="Do not follow it: return when it has been begun.")
@click.option(
    "--grace", type=click.FloatRange(0, 86400), default=10.0, show_default=True, metavar="SECONDS",
    help="How long it has to end when it is cancelled, before it is killed.",
)  # fmt: skip
@click.option(
    "--log-size",
    metavar="SIZE",
    help="How large its log may become, as 500MB, with 47 bytes beside each line that say when it was written; at least the later "
    "half of it is kept. By default 32 MiB.",
)
@json_option
@click.pass_obj
def run(
    console: Console,
    command: tuple[str, ...],
    name: str | None,
    detach: bool,
    grace: float,
    log_size: str | None,
    as_json: bool,
) -> int:
    """Run COMMAND as a job and follow it: its exit code is this command's. Ctrl-C cancels it.

    One word is a line for your shell ($SHELL), several are a program and its arguments. With a terminal here it has one there.
    """
    from millpond.cli import jobs as client

    if as_json and not detach:
        raise UsageError("`job run --json` is for --detach: without it the output is the command's")
    what = {"argv": [wirepath.encode(word) for word in command]}
    part_bytes = None if log_size is None else text.parsed_size(log_size) // 2
    row = client.start(console, what, name=name, grace_s=grace, log_bytes=part_bytes)
    if detach:
        client.tell_begun(console, row, as_json=as_json)
        return exits.OK
    ended = client.follow(console, row, cancel=True)
    return exits.INTERRUPTED if ended is None else client.exit_code(ended)


@job.command("remove", short_help="Remove jobs that have ended.", example="$ millpond job remove 5 6")
@click.argument("names", metavar="JOB...", nargs=-1, required=True)
@click.pass_obj
def remove(console: Console, names: tuple[str, ...]) -> None:
    """Remove jobs that have ended, with their logs."""
    console.say(_removed(verb(console, "job.remove", {"jobs": list(names), "keep": None})))


@job.command("prune", short_help="Remove old jobs.", example="$ millpond job prune --keep 20")
@click.option("--keep", type=click.IntRange(min=0), required=True, help="How many of the newest stay.")
@click.pass_obj
def prune(console: Console, keep: int) -> None:
    """Remove jobs that have ended, with their logs, all but the newest.

    At most 200 are kept in any case: older ones go by themselves.
    """
    console.say(_removed(verb(console, "job.remove", {"jobs": [], "keep": keep})))


@click.command(
    cls=Verb,
    example="""
$ millpond logs -n 50 train
$ millpond logs -f 7
""",
)
@click.argument("name", metavar="[JOB]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on printing what it writes, until it has ended or Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Only that many of the last lines.")
@click.option("-t", "--timestamps", is_flag=True, help="When each line was written.")
@click.pass_obj
def logs(console: Console, name: str | None, follow: bool, lines: int | None, timestamps: bool) -> None:
    """Print what a job has written: JOB is its number, its name, or the beginning of that; without it, the newest that runs, else the newest.

    Lines of [millpond] are not the job's own: they say what was done to it.
    """
    from millpond.cli.joblog import JobLog, Printer, Watch, last
    from millpond.cli.jobs import await_job, folder_of, pidfd_of

    row = request(console, "jobs.find", {"job": name})["job"]
    folder = folder_of(row)
    if not folder.is_dir():
        raise JobError(f"the log of job {row['number']} is gone: there is no '{folder}'", path=str(folder))
    log, printer = JobLog(folder), Printer(console, timestamps=timestamps)
    records = log.read()
    printer.show(records if lines is None else last(records, lines))
    if follow:
        row = await_job(console, row, "begun")
        watch = Watch(folder, pidfd_of(row), -1)
        ended = False
        while not ended:
            ended = watch.wait()
            printer.show(log.read())


@click.command(
    cls=Verb,
    example="$ millpond attach train",
)
@click.argument("name", metavar="[JOB]", required=False)
@click.option("--cancel-on-interrupt", is_flag=True, help="Have Ctrl-C cancel the job, instead of leaving it alone.")
@click.pass_obj
def attach(console: Console, name: str | None, cancel_on_interrupt: bool) -> int:
    """Print what a job has written and follow it to its end, with its exit code: JOB is its number, its name, or the beginning
    of that; without it, the newest that runs, else the newest.

    Ctrl-C leaves the job running.
    """
    from millpond.cli import jobs as client

    row = request(console, "jobs.find", {"job": name})["job"]
    ended = client.follow(console, row, cancel=cancel_on_interrupt)
    return exits.INTERRUPTED if ended is None else client.exit_code(ended)


@click.command(
    cls=Verb,
    example="""
$ millpond cancel train
Job 7 was cancelled.
""",
)
@click.argument("names", metavar="JOB...", nargs=-1, required=True)
@click.option("--now", is_flag=True, help="Kill them at once.")
@click.option("--no-wait", is_flag=True, help="Do not wait until they have ended.")
@click.pass_obj
def cancel(console: Console, names: tuple[str, ...], now: bool, no_wait: bool) -> None:
    """End jobs, with all that they have started: they are told (SIGTERM), and killed after the time that they were given."""
    result = verb(console, "job.cancel", {"jobs": list(names), "now": now, "wait": not no_wait})
    for row in result["jobs"]:
        console.say(f"Job {row['number']} {_FATES.get(row['state'], 'is being cancelled')}.")


_FATES = {"succeeded": "had succeeded", "failed": "had failed", "cancelled": "was cancelled", "lost": "is lost"}


def _removed(result: dict[str, list[int]]) -> str:
    numbers = result["removed"]
    if not numbers:
        return "Nothing to remove."
    return f"Removed {text.plural(len(numbers), 'job')}: {', '.join(map(str, sorted(numbers)))}"
