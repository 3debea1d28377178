"""Work with two versions of a directory in a Git repository, beside DVC: what changed, listings, checkout of one version over
the other, garbage. At 10,000 and 100,000 files (times the scale), to see how it grows.

Both tools print DVC's JSON; it must be the same, so nobody is quick by saying less. The figures of `gc` are of one run: what
it removes must be stored again first.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.context import Context
from bench.data import DataSet, examine
from bench.host import BenchError, run
from bench.projects import Dvc, Millpond, Project
from bench.reading import check

SECTION = "versions"
TARGET = "data"
SIZES = (10_000, 100_000)
A_FOLDER = 100
# Per cent of the files that are changed, removed and renamed in the second version, and added to it.
CHANGED, REMOVED, RENAMED, ADDED = 1.0, 0.2, 0.2, 0.2
# Work -> the command that does it, and whether one file in a hundred was changed in the workspace before it.
COMPARED: dict[str, tuple[Sequence[str], bool]] = {
    "status, nothing changed": (["status", "--json"], False),
    "data status, nothing changed": (["data", "status", "--granular", "--json"], False),
    "diff of two revisions": (["diff", "v1", "v2", "--json"], False),
    "list -R": (["list", ".", "-R", "--json"], False),
    "diff with the workspace": (["diff", "--json"], True),
    "data status": (["data", "status", "--granular", "--json"], True),
}
Tool = Millpond | Dvc


def work(name: str, files: int) -> str:
    """The row's name; `files` is that of scale 1."""
    return f"{name}, {files:,} files"


def measure(context: Context) -> None:
    """One size after the other, each in new repositories."""
    context = replace(context, share_s=context.share_s / len(SIZES) / (len(COMPARED) + 1))
    for files in SIZES:
        folder = context.folder / f"versions-{files}"
        first = _first(folder / "v1", max(200, round(files * context.scale)))
        second = _second(first, folder / "v2")
        tools: list[Tool] = [Millpond(folder / "m"), Dvc(folder / "d")]
        for tool in tools:
            context.stack.callback(tool.close)
            _prepare(tool, first, second)
        context.host.settle()
        for name, (command, edited) in COMPARED.items():
            _compared(context, tools, work(name, files), command, second if edited else None)
        for tool in context.rounds(tools):
            _switched(context, tool, files, first, second)
        for tool in tools:
            _collected(context, tool, files, first, second)
            tool.close()


def _first(root: Path, files: int) -> DataSet:
    """Files of 0.2 to 2 KB: here it is their number that counts."""
    rng = random.Random(SECTION)
    for number in range(files):
        path = root / f"class-{number // A_FOLDER:04d}" / f"{number:06d}.bin"
        if not number % A_FOLDER:
            path.parent.mkdir(parents=True)
        path.write_bytes(rng.randbytes(rng.randrange(200, 2_000)))
    return examine(SECTION, root)


def _second(made: DataSet, root: Path) -> DataSet:
    shutil.copytree(made.root, root)
    rng = random.Random(f"second {SECTION}")
    amounts = [max(1, round(len(made.files) * part / 100)) for part in (CHANGED, REMOVED, RENAMED, ADDED)]
    touched = iter(rng.sample(made.paths, sum(amounts)))
    changes: tuple[Callable[[Path], None], ...] = (_rewrite, Path.unlink, _rename, _add)
    for amount, change in zip(amounts, changes, strict=True):
        for _ in range(amount):
            change(root / next(touched))
    return examine(SECTION, root)


def _rewrite(path: Path) -> None:
    path.write_bytes(f"{path.name} changed\n".encode() + path.read_bytes())


def _rename(path: Path) -> None:
    path.rename(path.with_suffix(".renamed"))


def _add(path: Path) -> None:
    path.with_suffix(".added").write_bytes(f"{path.name} added\n".encode() + path.read_bytes())


def _git(project: Project, *words: str) -> None:
    run(["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", *words], cwd=project.repo, env=project.env)


def _prepare(tool: Tool, first: DataSet, second: DataSet) -> None:
    """Both versions added and committed as the tags v1 and v2; the workspace has the second."""
    _git(tool, "init", "-q")
    tool.command("init", "-q")
    for tag, made in (("v1", first), ("v2", second)):
        tool.take(made.root, TARGET)
        tool.command("add", "-q", TARGET)
        _git(tool, "add", "-A")
        _git(tool, "commit", "-q", "-m", tag)
        _git(tool, "tag", tag)
    # The first one may still have to look at files that were written in the clock tick of `add`.
    tool.command("status", "-q")


def _compared(context: Context, tools: list[Tool], name: str, command: Sequence[str], edited: DataSet | None) -> None:
    """Time a command that only looks; all tools must say the same. Each run has other edits, so none knows them already."""
    said: dict[int, str] = {}
    for number, tool in enumerate(context.rounds(tools)):
        turn = number // len(tools)
        changed = edited.paths[turn::100] if edited else []
        for path in changed:
            (tool.repo / TARGET / path).write_bytes(f"{path} edited\n".encode())
        ran = tool.command(*command)
        context.figures.tell(SECTION, name, tool.name, ran.seconds, checked=len(ran.stdout))
        words = _in_order(json.loads(ran.stdout))
        if said.setdefault(turn, words) != words:
            raise BenchError(f"`{' '.join(command)}`: the tools do not say the same")
        if edited:
            for path in changed:
                (tool.repo / TARGET / path).write_bytes((edited.root / path).read_bytes())
            tool.command("status", "-q")


def _in_order(value: object) -> str:
    """JSON whose lists are sorted: DVC's have no order that it promises."""
    if isinstance(value, dict):
        return json.dumps({key: _in_order(value[key]) for key in sorted(value)})
    return json.dumps(sorted(map(_in_order, value)) if isinstance(value, list) else value)


def _switched(context: Context, tool: Tool, files: int, first: DataSet, second: DataSet) -> None:
    """The first version comes back over the second, then the second over the first, which is timed."""
    _git(tool, "checkout", "-q", "v1")
    tool.command("checkout", "-q")
    checked = check(tool.repo / TARGET, first)
    _git(tool, "checkout", "-q", "v2")
    context.host.settle()
    ran = tool.command("checkout", "-q")
    checked += check(tool.repo / TARGET, second)
    context.figures.tell(SECTION, work("checkout of v2 over v1", files), tool.name, ran.seconds, checked=checked)


def _collected(context: Context, tool: Tool, files: int, first: DataSet, second: DataSet) -> None:
    """What only the first version needs goes, then all the rest."""
    options = ["--grace", "0"] if isinstance(tool, Millpond) else []
    context.host.settle()
    ran = tool.command("gc", "-w", "-f", "-q", *options)
    tool.drop(TARGET)
    tool.command("checkout", "-q")
    checked = check(tool.repo / TARGET, second)
    context.figures.tell(SECTION, work("gc of the first version", files), tool.name, ran.seconds, checked=checked)
    # From Git's index, too: what it names millpond keeps.
    _git(tool, "rm", "-q", f"{TARGET}.dvc")
    context.host.settle()
    ran = tool.command("gc", "-w", "-f", "-q", *options)
    if left := _objects(tool):
        raise BenchError(f"{left} objects are left after `{tool.name} gc`")
    context.figures.tell(SECTION, work("gc of everything", files), tool.name, ran.seconds, checked=first.size)


def _objects(tool: Tool) -> int:
    if isinstance(tool, Millpond):
        return int(json.loads(tool.command("cache", "info", "--json").stdout)["objects"])
    return sum(1 for path in (tool.repo / ".dvc/cache/files/md5").rglob("*") if path.is_file())
