"""What it costs to start: commands that do nearly nothing beside a bare interpreter and DVC, and the daemon itself."""

from __future__ import annotations

import sys

from bench.context import Context
from bench.host import BenchError, memory, run
from bench.projects import Dvc, Millpond

SECTION = "start-up"
BARE = "the bare interpreter"
# Figures of milliseconds need more runs than the rest.
TIMES = 5
# What each must print, or begin with.
VERBS = {"root": ".\n", "version": "", "status": "Data and pipelines are up to date.\n"}


def measure(context: Context) -> None:
    """A repository with one file. The daemon runs, except for its own start."""
    millpond, dvc = Millpond(context.folder / "start-millpond"), Dvc(context.folder / "start-dvc")
    context.stack.callback(millpond.close)
    projects: list[Millpond | Dvc] = [millpond, dvc]
    for project in projects:
        project.init()
        (project.repo / "data").mkdir()
        (project.repo / "data" / "one").write_text("one\n")
        project.command("add", "-q", "data")
    for project in context.rounds(projects):
        if isinstance(project, Dvc):
            _verbs(context, project)
            continue
        for _ in range(TIMES):
            bare_s = _bare(context, project)
            _verbs(context, project, bare_s)
        _daemon(context, project)


def _bare(context: Context, project: Millpond) -> float:
    # It prints, so that its output can be checked as that of the others.
    ran = run([sys.executable, "-c", "print('.')"], cwd=project.repo, env=project.env)
    context.figures.tell(SECTION, BARE, "python", ran.seconds, checked=len(ran.stdout))
    return ran.seconds


def _verbs(context: Context, project: Millpond | Dvc, bare_s: float | None = None) -> None:
    tell = context.figures.tell
    for verb, expected in VERBS.items():
        ran = project.command(verb)
        if not ran.stdout.startswith(expected) or not ran.stdout:
            raise BenchError(f"`{project.name} {verb}` printed {ran.stdout!r}")
        tell(SECTION, verb, project.name, ran.seconds, checked=len(ran.stdout))
        if bare_s is not None:
            beyond = max(0.0, ran.seconds - bare_s)
            tell(SECTION, f"{verb} beyond {BARE}", project.name, beyond, checked=len(ran.stdout))


def _daemon(context: Context, project: Millpond) -> None:
    """Its start when asked for, a command that has to start it, and its memory after that."""
    tell = context.figures.tell
    project.stop()
    started = project.command("daemon", "start", "-q")
    said = project.command("daemon", "status", "--json").stdout
    tell(SECTION, "daemon start", project.name, started.seconds, checked=len(said))
    project.stop()
    ran = project.command("status")
    if ran.stdout != VERBS["status"]:
        raise BenchError(f"`millpond status` printed {ran.stdout!r}")
    tell(SECTION, "status, daemon not running", project.name, ran.seconds, checked=len(ran.stdout))
    rss = memory(project.daemon())["rss"]
    tell(SECTION, "memory of the idle daemon", project.name, rss / 2**20, checked=len(said), unit="MiB")
