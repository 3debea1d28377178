"""The verbs that write, each with a project in which it has something to do. A new verb is one more row of CASES."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.project.verbhelp import Project
from tests.store.helpers import sample, settings

from millpond.daemon import wirepath
from millpond.daemon.store.files import Files
from millpond.daemon.store.local import LocalObjectStore
from millpond.daemon.store.store import Store

# The folder of a project that is its remote, in some cases.
REMOTE = "the-remote"
# Content of an entry of the workspace: mode, and bytes or the target of a link.
Tree = dict[str, tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Case:
    """`prepare` brings the project to where `verb` with `params` (in wire form) has something to do.

    `pieces`: its result comes in steps, so an error may leave some of them done; else an error leaves everything as it was,
    but for DVC's cache. `again`: it may be run a second time when it was done; else with those targets that are still there.
    """

    verb: str
    prepare: Callable[[Project], None] = lambda project: None
    params: dict[str, Any] = field(default_factory=dict)
    pieces: bool = False
    again: bool = True


def _edit(project: Project) -> None:
    """The second version: a file edited, one added, one gone, one renamed; in the workspace, stored nowhere."""
    project.write("data/a", sample(21, 3000))
    project.write("data/new/n", sample(22, 90_000))
    (project.root / "data" / "sub" / "c").unlink()
    (project.root / "data" / "b").rename(project.root / "data" / "sub" / "b2")
    project.write("one.csv", "one, edited\n")


def _second(project: Project) -> None:
    """The second version stored, and its pointers; the workspace has it."""
    _edit(project)
    project.add("data", "one.csv")


def _back(project: Project) -> None:
    """The workspace has the second version, the pointers name the first."""
    _second(project)
    project.commit("second")
    project.git("checkout", "-q", "HEAD~1", "--", ".")


def _more(project: Project) -> None:
    _edit(project)
    project.write("fresh.bin", sample(23, 70_000))


def _exported(project: Project) -> None:
    _second(project)
    project.run("export")


def _beside_dvc(project: Project) -> None:
    """DVC's cache is in use, so what is added comes there too."""
    _exported(project)
    project.write("one.csv", "one, edited again\n")
    project.write("fresh.bin", sample(24, 40_000))


def _linked(project: Project) -> None:
    """Links into DVC's cache, as DVC makes them."""
    _exported(project)
    project.dvc("config", "cache.type", "symlink")
    project.dvc("checkout", "--relink", "-q")


def _only_dvcs(project: Project) -> None:
    """DVC's cache has everything, the store nothing."""
    _exported(project)
    _empty_store(project)


def _empty_store(project: Project) -> None:
    store = project.store._store
    path = store.path
    store.close()
    shutil.rmtree(path)
    project.store = LocalObjectStore(Store.open(settings(path)), os.getuid())
    project.context.store = project.store


def away(project: Project) -> None:
    """What is tracked is on a remote, a folder of the project, and nowhere else."""
    project.write(".dvc/config", f"[core]\n    remote = r\n['remote \"r\"']\n    url = ../{REMOTE}\n")
    project.run("push")
    for output in project.open().outputs():
        path = project.root / output.path
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _empty_store(project)


def _of_dvc_2(project: Project) -> None:
    """Two files as DVC 2 kept them."""
    for name, data in (("old.txt", b"text\n"), ("old.bin", sample(31, 4000))):
        md5 = hashlib.md5(data).hexdigest()
        project.write(name, data)
        project.write(f"{name}.dvc", f"outs:\n- md5: {md5}\n  size: {len(data)}\n  path: {name}\n")
        project.write(f".dvc/cache/{md5[:2]}/{md5[2:]}", data).chmod(0o444)


def _diverged(project: Project) -> None:
    """Two versions of a folder and what they come from, as Git gives them to the merge driver; DVC's cache is in use."""
    project.run("export")
    first = project.write("O", project.read("data.dvc"))
    for side, path in (("A", "data/ours"), ("B", "data/sub/theirs")):
        project.write(path, side)
        project.add("data")
        project.write(side, project.read("data.dvc"))
        (project.root / path).unlink()
    (project.root / "data.dvc").write_bytes(first.read_bytes())


def _source(project: Project) -> None:
    """Something to import, beside the project."""
    for number, path in enumerate(("a", "sub/b", "sub/c")):
        place = project.base / "source" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(sample(40 + number, 30_000 * number))


def _imported(project: Project) -> None:
    """An import whose source has something else now."""
    _source(project)
    project.run("import-url", url=wirepath.encode("../source"))
    (project.base / "source/a").write_bytes(sample(49, 50_000))
    (project.base / "source/sub/c").unlink()


def _wire(*paths: str) -> list[str]:
    return [wirepath.encode(path) for path in paths]


CASES: dict[str, Case] = {
    "add": Case("add", _more, {"targets": _wire("data", "one.csv", "fresh.bin")}),
    "add beside DVC": Case("add", _beside_dvc, {"targets": _wire("one.csv", "fresh.bin")}),
    "commit": Case("commit", _edit, {"force": True}),
    "checkout": Case("checkout", _back, {"force": True}, pieces=True),
    "pull": Case("pull", away, pieces=True),
    "remove": Case("remove", params={"targets": _wire("data.dvc", "one.csv.dvc")}, pieces=True, again=False),
    "remove --outs": Case(
        "remove", params={"targets": _wire("data.dvc", "one.csv.dvc"), "outs": True}, pieces=True, again=False
    ),
    "move": Case("move", params={"source": "data", "target": "moved"}, pieces=True, again=False),
    "config": Case("config", params={"name": "core.autostage", "value": "true", "level": None}),
    "freeze": Case("freeze", params={"targets": _wire("data.dvc", "one.csv.dvc"), "frozen": True}),
    "cache export": Case("export", _second, pieces=True),
    "cache import": Case("cache.import", _only_dvcs, {"everything": True}),
    "cache migrate": Case("cache.migrate", _of_dvc_2, {"dvc_files": True}, pieces=True),
    "merge": Case("merge-driver", _diverged, {"ancestor": "O", "our": "A", "their": "B", "path": "data.dvc"}),
    "import-url": Case("import-url", _source, {"url": wirepath.encode("../source"), "force": True}, pieces=True),
    "update": Case("update", _imported, {"targets": _wire("source.dvc")}, pieces=True),
    "install": Case("install", params={"pre_commit": False}),
    "unprotect": Case("unprotect", _linked, {"targets": _wire("data", "one.csv")}, pieces=True),
    "destroy": Case("destroy", _linked, pieces=True, again=False),
}


def left(case: Case, root: Path) -> dict[str, Any]:
    """The parameters to finish a verb that was cut short."""
    if case.again or "targets" not in case.params:
        return case.params
    return case.params | {"targets": [each for each in case.params["targets"] if (root / each).exists()]}


@contextmanager
def opened(base: Path, files: Files | None = None) -> Iterator[Project]:
    """The project below `base`, its store open."""
    store = Store.open(settings(base / "store"), files or Files())
    project = Project(base, store)
    try:
        yield project
    finally:
        project.store._store.close()


def build(base: Path, case: Case) -> None:
    """A project with a committed first version of a folder and two files, made ready for the case."""
    base.mkdir()
    with opened(base) as project:
        project.root.mkdir()
        project.git("init", "-q", "--template=")
        project.run("init")
        for number, path in enumerate(("data/a", "data/b", "data/sub/c", "data/sub/d", "two.bin")):
            project.write(path, sample(number, 20_000 * number + 100))
        project.write("one.csv", "one\n")
        project.add("data", "one.csv", "two.bin")
        project.commit("first")
        case.prepare(project)


def tree(root: Path) -> Tree:
    """All of a project but what Git has, hooks aside, and DVC's folder for temporary files."""
    found: Tree = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not (name == "tmp" and folder.endswith("/.dvc"))]
        if folder == os.path.join(root, ".git"):
            folders[:], files = ["hooks"], []
        for name in [*files, *(each for each in folders if os.path.islink(os.path.join(folder, each)))]:
            path = os.path.join(folder, name)
            mode = stat.S_IMODE(os.lstat(path).st_mode)
            data = os.fsencode(os.readlink(path)) if os.path.islink(path) else Path(path).read_bytes()
            found[os.path.relpath(path, root)] = (mode, data)
    return found


def differs(one: Tree, other: Tree) -> list[str]:
    return sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))


def is_one_of_two(now: Tree, before: Tree, after: Tree, what: str) -> None:
    """Each file is the old one or the new one. Of `.gitignore` that is true line by line."""
    for path in now.keys() | before.keys() | after.keys():
        found = [each.get(path) for each in (now, before, after)]
        if os.path.basename(path) == ".gitignore":
            is_now, was, will_be = (set(each[1].split()) if each else set() for each in found)
            assert was & will_be <= is_now <= was | will_be, f"{what}: '{path}'"
        else:
            assert found[0] in found[1:], f"{what}: '{path}' is neither the old nor the new"
