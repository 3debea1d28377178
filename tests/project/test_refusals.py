"""What `add` refuses: one clear sentence, the right class, and nothing changed."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project

from millpond.daemon.errors import (
    ConflictError,
    FileChangedError,
    InvalidFileError,
    MillpondError,
    NotARepoError,
    NotMountedError,
    OverlapError,
    TargetError,
    TrackedByGitError,
)
from millpond.daemon.mounts.place import MARKER
from millpond.daemon.objects import Put, Tick
from millpond.daemon.store.store import Store, StoreSettings


def refused(
    project: Project, error: type[MillpondError], *targets: str, needle: str = "", **params: object
) -> MillpondError:
    """`add` must fail with `error`, in one line that has `needle`, and leave every file of the project as it was."""
    before = project.snapshot()
    with pytest.raises(error) as caught:
        project.add(*targets, **params)
    assert type(caught.value) is error
    assert needle in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)
    str(caught.value).encode("utf-8")
    assert project.snapshot() == before
    assert not [name for name in os.listdir(project.root) if name.startswith(".millpond")]
    return caught.value


def make(root: Path, *things: str) -> None:
    """Files ("path: content"), folders ("path/"), links ("path -> target"), pipes ("path|"), sockets ("path=")."""
    for thing in things:
        path, arrow, target = thing.partition(" -> ")
        name, colon, content = thing.partition(": ")
        if arrow:
            (root / path).symlink_to(target)
        elif colon:
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(content)
        elif thing.endswith("/"):
            (root / thing).mkdir()
        elif thing.endswith("|"):
            os.mkfifo(root / thing[:-1])
        else:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(root / thing[:-1]))


OUTSIDE, GIT_IGNORED = "is outside of the project", "the pointer 'y1.dvc' would be ignored by Git"
NO_TEXT = os.fsdecode(b"\xff")
# what is made, the target, the error, a part of its sentence
CASES: dict[str, tuple[list[str], str, type[MillpondError], str]] = {
    "missing": ([], "nowhere", TargetError, "'nowhere' does not exist"),
    "below a file": (["f: x"], "f/x", TargetError, "'f/x' does not exist"),
    "outside": (["../o: x"], "../o", TargetError, OUTSIDE),
    "outside and missing": ([], "/nowhere", TargetError, OUTSIDE),
    "the root": ([], ".", TargetError, "is the project itself"),
    "ignored": ([".dvcignore: *.tmp\n", "x.tmp: x"], "x.tmp", TargetError, "'x.tmp' is ignored by .dvcignore:1:*.tmp"),
    "in git's folder": ([], ".git/config", TargetError, "built-in rule for '.git'"),
    "in dvc's folder": ([], ".dvc/config", TargetError, "is a file of DVC's own"),
    "a pointer": (["a.dvc: outs: []\n"], "a.dvc", TargetError, "is a file of DVC's own"),
    "dvc.yaml": (["dvc.yaml: stages: {}\n"], "dvc.yaml", TargetError, "is a file of DVC's own"),
    "socket": (["s="], "s", TargetError, "'s' is a socket"),
    "pipe": (["p|"], "p", TargetError, "'p' is a named pipe"),
    "device": (["null -> /dev/null"], "null", TargetError, "'null' is a device"),
    "loop": (["l1 -> l2", "l2 -> l1"], "l1", TargetError, "leads back to itself"),
    "dangling": (["l -> gone"], "l", TargetError, "'l' is a link to nothing"),
    "link to a folder": (["real/", "l -> real"], "l", TargetError, "is a link to a folder"),
    "behind a link": (["real/f: x", "l -> real"], "l/f", TargetError, "lies behind the link 'l'"),
    "pipe inside": (["d/f: x", "d/p|"], "d", TargetError, "cannot add 'd/p': it is a named pipe"),
    "socket inside": (["d/", "d/s="], "d", TargetError, "cannot add 'd/s': it is a socket"),
    "dangling inside": (["d/", "d/l -> gone"], "d", TargetError, "cannot add 'd/l': it is a link to nothing"),
    "loop inside": (["d/", "d/l -> l"], "d", TargetError, "cannot add 'd/l': it cannot be read: Too many levels"),
    "rules inside": (["d/.dvcignore: x\n"], "d", TargetError, "ignore rules"),
    "line break": (["a\nb: x"], "a\nb", TargetError, "'a\\nb'"),
    "no UTF-8": ([f"{NO_TEXT}: x"], NO_TEXT, TargetError, "is not UTF-8"),
    "name too long": ([f"{'n' * 252}: x"], "n" * 252, TargetError, "too long"),
    "ignored pointer": ([".gitignore: y*.dvc\n", "y1: x"], "y1", TargetError, GIT_IGNORED),
    "gitignore is a link": (["x: x", ".gitignore -> elsewhere"], "x", TargetError, "'.gitignore' is a symbolic link"),
    "not mounted": ([f"m/{MARKER}: x"], "m", NotMountedError, "not mounted now"),
    "bad rules": ([".dvcignore: ok\n!\n", "x: x"], "x", InvalidFileError, ".dvcignore' line 2"),
    "bad config": ([".dvc/config: [core]\nnonsense = 1\n", "x: x"], "x", InvalidFileError, "line 2"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(project: Project, case: str) -> None:
    things, target, error, needle = CASES[case]
    make(project.root, *things)
    refused(project, error, target, needle=needle)
    # Among good targets as well: all or nothing.
    if error is not InvalidFileError:
        project.write("good", "g")
        refused(project, error, "good", target, needle=needle)


@pytest.mark.parametrize(
    ("text", "needle", "line", "column"),
    [
        ("outs: [\n", "line 2, column 1", 2, 1),
        ("outs:\n- path: x\n  md5: [1\n", "line", 4, 1),
        ("outs:\n- md5: zz\n  path: x\n", "line 2, column 3: 'zz' is not an MD5", 2, 3),
        ("outs:\n- md5: d41d8cd98f00b204e9800998ecf8427e\n", "needs a path", 2, 3),
        ("cmd: rm\nouts:\n- path: x\n", "line 1, column 1", 1, 1),
        ("", "it is empty", 1, 1),
        ("- a\n", "not a mapping", 1, 1),
        ("a: 1\na: 2\n", "line 2, column 1", 2, 1),
    ],
)
def test_bad_pointer_names_file_line_and_column(
    project: Project, text: str, needle: str, line: int, column: int
) -> None:
    project.write("x", "x")
    project.write("z/bad.dvc", text)
    error = refused(project, InvalidFileError, "x", needle=needle)
    assert "z/bad.dvc" in str(error)
    assert (error.details["line"], error.details["column"]) == (line, column)


def test_tracked_by_git(project: Project) -> None:
    project.write("t", "x")
    project.write("d/x", "x")
    project.write("d/y", "y")
    project.git("add", "t", "d/x")
    refused(project, TrackedByGitError, "t", needle="'t' is already tracked by Git")
    error = refused(project, TrackedByGitError, "d", needle="'d' is already tracked by Git")
    assert "git rm" in (error.hint or "")


def test_overlaps(project: Project) -> None:
    project.write("p/q/a", "a")
    project.write("p/b", "b")
    project.add("p/q")
    refused(project, OverlapError, "p", needle="overlaps with 'p/q', which is tracked by 'p/q.dvc'")
    project.write("n/m/x", "x")
    refused(project, OverlapError, "n", "n/m", needle="'n/m' lies in 'n'")
    refused(project, OverlapError, "n/m", "n", needle="'n/m' lies in 'n'")
    refused(project, OverlapError, "p/b", out="p/q/new", needle="which is tracked")


def test_output_of_a_stage(project: Project) -> None:
    project.write("dvc.yaml", "stages:\n  s:\n    cmd: echo 1 > po\n    outs: [po]\n")
    project.dvc("repro")
    refused(project, OverlapError, "po", needle="it is an output of stage 's'")


def test_pointer_of_another_file_is_in_the_way(project: Project) -> None:
    project.write("a", "a")
    project.write("b", "b")
    project.add("b")
    (project.root / "b.dvc").rename(project.root / "a.dvc")
    refused(project, OverlapError, "a", needle="'a.dvc' exists and points to 'b'")


def test_missing_part_of_a_tracked_folder(project: Project) -> None:
    project.write("d/a", "a")
    project.add("d")
    refused(project, TargetError, "d/nope", needle="'d/nope' does not exist")


def test_out_refusals(project: Project) -> None:
    project.write("a", "a")
    project.write("b", "b")
    refused(project, TargetError, "a", out="b", needle="already exists locally")
    refused(project, TargetError, "a", out="../b", needle="is outside of the project")
    refused(project, TargetError, "nowhere", out="c", needle="'nowhere' does not exist")
    refused(project, TargetError, "nowhere*", glob=True, needle="has no matches")


def test_outside_of_any_repository(project: Project) -> None:
    with pytest.raises(NotARepoError, match="checked up to mount point"):
        project.add("x", cwd=Path("/"))


def as_nobody(base: Path, job: Callable[[Project], str]) -> str:
    """What `job` says when it runs in a process of another user, with a store of its own below `base`."""
    other = base / "other"
    other.mkdir()
    if os.getuid() == 0:
        subprocess.run(["chown", "-R", "65534:65534", str(base / "repo"), str(other)], check=True)
        above = base
        while above != above.parent and above.stat().st_uid == 0 and above != Path("/tmp"):
            above.chmod(above.stat().st_mode | 0o011)
            above = above.parent
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            store = Store.open(StoreSettings(path=other / "store", fsync=False, reserve_bytes=0))
            project = Project(base, store)
            project.environ |= {"XDG_CACHE_HOME": str(other / "cache"), "HOME": str(other)}
            said = job(project)
        except BaseException as error:
            said = repr(error)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return said


def test_unreadable(project: Project) -> None:
    project.write("secret", "x").chmod(0)
    project.write("d/f", "x")
    project.write("d/sub/g", "x")
    project.write("e/closed", "x").chmod(0)
    (project.root / "d" / "sub").chmod(0)

    def job(project: Project) -> str:
        said = []
        for target in ("secret", "d", "e"):
            try:
                project.add(target)
            except TargetError as error:
                said.append(error.message)
        return "\n".join(said)

    closed = str(project.root / "e" / "closed")
    assert as_nobody(project.base, job).splitlines() == [
        "cannot read 'secret': permission denied",
        "cannot add 'd/sub': it cannot be read: Permission denied",
        f"cannot read '{closed}': Permission denied",
    ]
    assert sorted(path.name for path in project.root.glob("*.dvc")) == [".dvc"]
    assert not (project.root / ".gitignore").exists()


class _Meddling:
    """An ObjectStore that writes to a file while it is being added: what a busy program beside us does."""

    def __init__(self, project: Project, path: Path) -> None:
        self._inner = project.store
        self._path = path

    def put_files(self, paths: Iterable[str], *, tick: Tick | None = None, store: bool = True) -> Iterator[Put]:
        def meddled() -> Iterator[str]:
            for path in paths:
                if path == str(self._path):
                    self._start(path)
                yield path

        return self._inner.put_files(meddled(), tick=tick, store=store)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def _start(self, path: str) -> None:
        def write() -> None:
            while not self.stop.is_set():
                with open(path, "r+b") as file:
                    file.seek(0, os.SEEK_END)
                    file.write(b"more")

        self.stop = threading.Event()
        self.thread = threading.Thread(target=write)
        self.thread.start()


def test_file_that_changes_while_it_is_added(project: Project) -> None:
    project.write("d/a", "a")
    path = project.write("d/busy", b"x" * 30_000_000)
    project.write("d/z", "z")
    meddling = _Meddling(project, path)
    project.context.store = meddling  # type: ignore[assignment]
    try:
        with pytest.raises(FileChangedError) as caught:
            project.add("d")
    finally:
        meddling.stop.set()
        meddling.thread.join()
    assert "busy' changed while it was read" in str(caught.value)
    assert not (project.root / "d.dvc").exists() and not (project.root / ".gitignore").exists()
    project.context.store = project.store
    project.add("d")
    assert project.status() == {}


def test_file_that_vanishes_while_it_is_added(project: Project) -> None:
    path = project.write("d/gone", "x")
    project.write("d/z", "z")

    class Vanishing(_Meddling):
        def _start(self, path: str) -> None:
            os.unlink(path)

    project.context.store = Vanishing(project, path)  # type: ignore[assignment]
    with pytest.raises(TargetError, match="gone"):
        project.add("d")
    assert not (project.root / "d.dvc").exists()


def test_checkout_refuses_to_lose_data(project: Project) -> None:
    project.write("d/a", "a")
    project.write("f", "f")
    project.add("d", "f")
    project.write("d/new", "n")
    project.write("f", "changed")
    (project.root / "d" / "a").unlink()
    before = project.snapshot()
    with pytest.raises(ConflictError) as caught:
        project.checkout()
    assert str(caught.value).startswith("files that are saved nowhere would be lost: 'd/new', 'f'")
    assert caught.value.details["paths"] == ["d/new", "f"]
    assert project.snapshot() == before


@pytest.mark.parametrize(
    ("extra", "needle"),
    [
        ("other.dvc", "'f' is tracked by 'f.dvc' and by 'other.dvc'"),
        ("z.dvc", "'d/a' of 'z.dvc' lies in 'd' of 'd.dvc'"),
        ("dvc.yaml", "'f' is tracked by 'dvc.yaml:s' and by 'f.dvc'"),
    ],
)
def test_two_pointers_for_one_path(project: Project, extra: str, needle: str) -> None:
    """DVC refuses the same in `add` and `move`; what only looks goes on, and `remove` mends it."""
    project.write("d/a", "a")
    project.write("f", "f")
    project.add("d", "f")
    if extra == "dvc.yaml":
        project.write("dvc.yaml", "stages:\n  s:\n    cmd: x\n    outs:\n    - f\n")
        project.write("dvc.lock", "schema: '2.0'\nstages:\n  s:\n    cmd: x\n    outs:\n    - path: f\n")
    else:
        project.write(extra, project.read("f.dvc").replace("path: f", "path: d/a" if extra == "z.dvc" else "path: f"))
    (project.root / "d/a").write_text("changed")
    before = project.snapshot()
    for verb, targets in (("add", ["d"]), ("commit", []), ("checkout", [])):
        if (verb, extra) == ("checkout", "other.dvc"):  # both say the same
            continue
        with pytest.raises(OverlapError, match=needle):
            project.run(verb, *targets, force=True)
    with pytest.raises(OverlapError, match=needle):
        project.run("move", source="f", target="g")
    assert project.snapshot() == before
    for words in (["add", "f"], ["move", "f", "g"]):
        assert real_dvc().run(*words, cwd=project.root).code != 0
    project.run("status")
    project.run("diff")
    project.run("remove", "s" if extra == "dvc.yaml" else extra)
    project.add("d")
    assert project.status() == {}


LOOKING = ("status", "diff", "data.status", "export", "du")
CHANGING = ("add", "commit", "checkout", "remove", "destroy", "freeze", "move")


@pytest.mark.parametrize("verb", [*LOOKING, *CHANGING])
def test_conflict_markers_in_a_pointer(project: Project, verb: str) -> None:
    project.write("f", "f")
    project.write("g", "g")
    project.add("f", "g")
    project.commit()
    text = project.read("f.dvc")
    project.write("f.dvc", f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> theirs\n")
    before = project.snapshot()
    targets = {"add": ["g"], "remove": ["f.dvc"], "freeze": ["g.dvc", "f.dvc"]}.get(verb, [])
    more: dict[str, Any] = {"move": {"source": "g", "target": "h"}, "du": {"url": "."}}.get(verb, {})
    with pytest.raises(InvalidFileError, match=r"f\.dvc' line 1, column 1: it has Git conflict markers"):
        project.run(verb, *targets, frozen=True, **more)
    assert project.snapshot() == before
