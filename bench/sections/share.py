"""Data to and from a remote that is a directory, beside DVC: pushed, pushed again, pulled by somebody else.

Each run has a remote of its own, and each pull a user of his own: an empty cache, an empty workspace. What was pulled is compared
with what was pushed. DVC does not sync what it writes; millpond does. Nothing is removed until the end: for minutes after many files
were removed ext4 looks for inodes that are not theirs, and making files takes whoever does it several times as long.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from bench.context import Context
from bench.data import DataSet
from bench.projects import Dvc, Millpond
from bench.reading import check

SECTION = "push, pull"
TARGET = "data"
PUSH, AGAIN, PULL = "push of small files", "the same push again", "pull of small files"
Tool = Millpond | Dvc
_MAKERS: dict[str, Callable[[Path], Tool]] = {Millpond.name: Millpond, Dvc.name: Dvc}


def measure(context: Context) -> None:
    """Both tools in turn, each with a remote of its own."""
    made = context.data["small"]
    folder = context.folder / "share"
    tools = [make(folder / name) for name, make in _MAKERS.items()]
    for tool in tools:
        context.stack.callback(tool.close)
        tool.init()
        tool.take(made.root, TARGET)
        tool.command("add", "-q", TARGET)
    for number, tool in enumerate(context.rounds(tools)):
        remote = folder / f"remote-{number}"
        _point(tool, remote)
        for work in (PUSH, AGAIN):
            # A push that syncs would write back what was left dirty before it, by the other tool too.
            context.host.settle()
            ran = tool.command("push")
            context.figures.tell(SECTION, work, tool.name, ran.seconds, checked=len(ran.stdout))
        _pull(context, tool, folder / f"user-{number}", made)


def _point(tool: Tool, remote: Path) -> None:
    (tool.repo / ".dvc/config").write_text(
        f"[core]\n    remote = r\n    no_scm = True\n['remote \"r\"']\n    url = {remote}\n"
    )


def _pull(context: Context, tool: Tool, folder: Path, made: DataSet) -> None:
    """By somebody who has the pointer and the config."""
    user = _MAKERS[tool.name](folder)
    try:
        user.init()
        for name in (f"{TARGET}.dvc", ".dvc/config"):
            shutil.copy(tool.repo / name, user.repo / name)
        ran = user.command("pull")
        context.figures.tell(SECTION, PULL, tool.name, ran.seconds, checked=check(user.repo / TARGET, made))
    finally:
        user.close()
