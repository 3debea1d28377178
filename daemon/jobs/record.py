"""A job as the daemon knows it, and how a person names one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.errors import JobError, UsageError
from millpond.daemon.jobs.states import ENDED, State

MAX_TITLE = 2000
# The daemon's word to a shim: its pid is written down, the job may begin.
GO = b"go\n"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One row of the table. `cwd` and `folder` are absolute, in wire form; times are seconds since the epoch.

    `pid` and `start` (ticks since boot) and `boot` (the kernel's boot id) tell the shim apart from any other process;
    `outcome` is what its result says beyond these fields: rusage, log sizes, what was left running, mounts read.
    """

    number: int
    uid: int
    state: State
    kind: str
    title: str
    cwd: str
    folder: str
    name: str | None = None
    resources: dict[str, Any] = field(default_factory=dict)
    pid: int = 0
    start: int = 0
    boot: str = ""
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    outcome: dict[str, Any] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.state in ENDED


def checked_name(name: str | None) -> str | None:
    """A name that can be told from a number and typed without quotes. Raises UsageError."""
    if name is not None and not _NAME.match(name):
        raise UsageError(
            f"'{name}' is no name for a job",
            hint="it begins with a letter, and has at most 64 letters, digits, `.`, `_` and `-`",
        )
    return name


def chosen(jobs: Iterable[JobRecord], word: str | None, *, exact: bool = False) -> JobRecord:
    """The job that `word` means among a caller's: its number, its name, unless `exact` the beginning of one name; None: the newest that
    has not ended, else the newest.

    Of several jobs with one name it is the newest. Raises JobError.
    """
    newest = sorted(jobs, key=lambda job: -job.number)
    if word is None:
        if newest:
            return next((job for job in newest if not job.over), newest[0])
        raise JobError("there are no jobs of yours", hint="run one: millpond job run -- COMMAND")
    if word.isascii() and word.isdecimal():
        found = [job for job in newest if job.number == int(word)]
    else:
        found = [job for job in newest if job.name == word]
        if not found:
            begun = [job for job in newest if (job.name or "").startswith(word)]
            if exact and begun:
                raise JobError(
                    f"there is no job '{word}' of yours", hint=f"did you mean '{begun[0].name}'? Write all of the name"
                )
            found = begun
            names = sorted({str(job.name) for job in found})
            if len(names) > 1:
                shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise JobError(f"'{word}' may be any of the jobs {shown}", hint="write more of its name, or its number")
    if not found:
        raise JobError(f"there is no job '{word}' of yours", hint="see `millpond jobs --all`")
    return found[0]
