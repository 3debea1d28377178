"""What a repro claims of the project and when it lets go of it; what it records of files that change while it runs."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.running import Pipe
from tests.project.verbhelp import Project, opened

from millpond.daemon.errors import BusyError, CancelledError, DiskFullError, InvalidFileError, MillpondError
from millpond.daemon.pipeline import pipelines
from millpond.daemon.pipeline.memory import Memory
from millpond.daemon.project import running, rwlock, yamlio
from millpond.daemon.project.context import LocalContext
from millpond.daemon.project.running import Running

# A process that is not this one, and lives.
OTHER = 1


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with opened(tmp_path) as made:
        yield made


def claimed(project: Project) -> list[str]:
    folder = project.root / ".dvc/tmp/millpond/running"
    return os.listdir(folder) if folder.exists() else []


def shared(project: Project) -> Any:
    path = project.root / ".dvc/tmp/rwlock"
    return json.loads(path.read_text()) if path.exists() else {}


def entry(pipe: Pipe, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = yamlio.load(pipe.lock(), "dvc.lock")["stages"][stage]
    return found


def repro(project: Project, progress: Callable[[str], None], **params: Any) -> dict[str, Any]:
    """With something that happens while it tells how far it is."""
    before = project.context
    project.context = LocalContext(project.store, os.getuid(), lambda phase, files, done: progress(phase))
    try:
        return project.run("repro", **params)
    finally:
        project.context = before


def test_what_is_cancelled_stays_claimed_until_its_commands_have_ended(project: Project) -> None:
    text = """
stages:
  quick: {cmd: 'until test -e ../trapped; do sleep 0.02; done; cat src > quick', deps: [src], outs: [quick]}
  slow:
    cmd: trap 'sleep 0.2; ls .dvc/tmp/millpond/running > ../seen; exit 3' TERM; touch ../trapped; while true; do sleep 0.02; done
    deps: [src]
    outs: [slow]
"""
    Pipe(project, {"dvc.yaml": text, "src": "1"})

    def cancel(phase: str) -> None:
        if phase.startswith("stage 2 of 2"):
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        repro(project, cancel, jobs=2)
    assert (project.base / "seen").read_text().startswith("slow-")
    assert claimed(project) == [] and shared(project) == {}


def test_what_cannot_be_brought_into_dvc_s_cache_is_not_claimed_any_more(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "stages: {one: {cmd: cat src > one, deps: [src], outs: [one]}}"
    pipe = Pipe(project, {"dvc.yaml": text, "src": "1", ".dvc/cache/files/md5": "no folder"})
    monkeypatch.setenv("MILLPOND_EXPORT", "always")
    with pytest.raises(MillpondError):
        pipe.repro(on_error="keep-going")
    assert claimed(project) == [] and shared(project) == {}
    (project.root / ".dvc/cache/files/md5").unlink()
    assert pipe.outcomes() == {"one": "unchanged"}


@pytest.mark.parametrize("end", ["true", "false"])
def test_what_begins_after_a_wait_is_recorded_with_what_it_finds(project: Project, end: str) -> None:
    text = f"""
stages:
  long: {{cmd: 'until test -e ../go; do sleep 0.02; done; cat src > long', deps: [src], outs: [long]}}
  quick: {{cmd: 'echo a: 2 > params.yaml; echo 2 > other; cat src > quick; {end}', deps: [src], outs: [quick]}}
  then: {{cmd: 'cat params.yaml other > then; touch ../go', deps: [other], params: [a], outs: [then]}}
"""
    pipe = Pipe(project, {"dvc.yaml": text, "src": "1", "params.yaml": "a: 1\n", "other": "1\n"})
    with pytest.raises(MillpondError) if end == "false" else _nothing():
        pipe.repro(jobs=2, on_error="keep-going")
    assert project.read("then") == "a: 2\n2\n"
    assert entry(pipe, "then")["params"] == {"params.yaml": {"a": 2}}
    record = _last_record(project, "then")
    assert record["changed_meanwhile"] == [] and record["params_changed"] is False


def test_outputs_that_are_brought_back_are_recorded_with_what_made_them(project: Project) -> None:
    text = "stages: {one: {cmd: cat src > one, deps: [src], params: [a], outs: [one]}}"
    pipe = Pipe(project, {"dvc.yaml": text, "src": "1", "params.yaml": "a: 1\n"})
    pipe.repro()
    before = entry(pipe, "one")
    project.write("src", "2")
    pipe.repro()
    project.write("src", "1")

    def edit(phase: str) -> None:
        if phase == "checking out":
            project.write("src", "3")

    assert repro(project, edit)["stages"][0]["outcome"] == "cached"
    assert project.read("src") == "3" and project.read("one") == "1"
    assert entry(pipe, "one") == before
    assert pipe.outcomes() == {"one": "ran"}
    assert entry(pipe, "one")["deps"][0]["md5"] == hashlib.md5(b"3").hexdigest()


def test_single_items_at_once_wait_for_each_other(project: Project) -> None:
    text = """
stages:
  first: {cmd: sleep 0.2; cat src > mid; echo first >> ../ran, deps: [src], outs: [mid]}
  second: {cmd: cat mid > end; echo second >> ../ran, deps: [mid], outs: [end]}
"""
    pipe = Pipe(project, {"dvc.yaml": text, "src": "1"})
    pipe.repro()
    project.write("src", "2")
    pipe.ran()
    pipe.repro("second", "first", single_item=True, jobs=2)
    assert pipe.ran() == ["first", "second"] and project.read("end") == "2"


def test_a_frozen_stage_does_not_wait_for_what_it_does_not_look_at(project: Project) -> None:
    text = "stages: {one: {cmd: cat src > one, deps: [src], outs: [one], frozen: true}}"
    pipe = Pipe(project, {"dvc.yaml": text, "src": "1", "one": "made by hand"})
    with claim(project, "other", writes=("src",)):
        assert pipe.outcomes() == {"one": "ran"}
    with claim(project, "other", writes=("one",)), pytest.raises(BusyError):
        project.write("one", "anew")
        pipe.repro()


def test_what_others_run_is_no_failure_to_be_mended(project: Project) -> None:
    text = """
stages:
  one: {cmd: cat src > one, deps: [src], outs: [one]}
  two: {cmd: cat src > two, deps: [src], outs: [two]}
"""
    pipe = Pipe(project, {"dvc.yaml": text, "src": "1"})
    with claim(project, "other", writes=("src",)), pytest.raises(BusyError, match="'one', 'two'") as caught:
        pipe.repro(on_error="keep-going")
    assert caught.value.details["failed"] == ["one", "two"]


@pytest.mark.parametrize("where", ["src", "/outside"])
def test_what_stages_need_is_never_taken_for_data_that_nobody_tracks_any_more(project: Project, where: str) -> None:
    """Its content is in the store, for it is that of an output, too; it is the person's own file all the same."""
    where = where if where == "src" else str(project.base / "outside")
    text = f"""
stages:
  one: {{cmd: 'cat {where} > one; cp -r folder two', deps: [{where}, folder], outs: [one, two]}}
"""
    pipe = Pipe(project, {"dvc.yaml": text, "folder/f": "2"})
    (project.root / where).write_text("1")
    pipe.repro()
    assert pipe.outcomes() == {"one": "unchanged"}
    project.settle()
    pipe.repro()
    project.checkout()
    assert (project.root / where).read_text() == "1" and project.read("folder/f") == "2"
    project.write("dvc.yaml", "stages: {}")
    (project.root / "dvc.lock").unlink()
    assert sorted(project.checkout(force=True)["deleted"]) == ["one", "two/"]
    assert (project.root / where).read_text() == "1" and project.read("folder/f") == "2"


def test_without_git_nobody_is_told_to_use_it(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with opened(tmp_path / "plain", git=False) as project:
        pipe = Pipe(project, {"dvc.yaml": "stages: {one: {cmd: cat src > one, outs: [one]}}", "src": "1", "data": "1"})
        assert pipe.repro()["git_add"] == []
        assert project.add("data")["git_add"] == []
        assert project.run("move", source="data", target="moved")["git_add"] == []


def test_a_claim_is_written_whole_or_not_at_all(project: Project) -> None:
    theirs = json.dumps({"write": {"/somewhere": {"pid": OTHER, "cmd": "dvc repro"}}})
    project.write(".dvc/tmp/rwlock", theirs)
    with most_bytes(40), pytest.raises(InvalidFileError, match=r"cannot write '.*running/one\.json': File too large"):
        running.claim(project.open(), "one", told("one", writes=("out",)))
    assert running.others(project.open())[0].writes == ("/somewhere",)
    repo = project.open()
    with most_bytes(len(theirs) + 40):
        rwlock.add(repo.temporary, os.getpid(), "millpond repro one", reads=["/a" * 40], writes=["/b" * 40])
    assert shared(project) == json.loads(theirs)
    assert sorted(name for name in os.listdir(repo.temporary) if name.startswith("rwlock")) == ["rwlock", "rwlock.lock"]


@pytest.mark.root
def test_a_full_disk_is_said_as_one(project: Project) -> None:
    repo = project.open()
    folder = Path(repo.temporary) / "millpond/running"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(folder)], check=True)
    try:
        long = told("one", writes=("out" * 10_000,))
        with pytest.raises(DiskFullError, match="no room left to write"):
            running.claim(repo, "one", long)
        assert running.others(repo) == [] and shared(project) == {}
        running.claim(repo, "one", told("one")).release()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_link_is_no_claim(project: Project) -> None:
    precious = project.write("precious", "mine")
    folder = project.root / ".dvc/tmp/millpond/running"
    folder.mkdir(parents=True)
    (folder / "one.json").symlink_to(precious)
    with pytest.raises(InvalidFileError):
        running.claim(project.open(), "one", told("one"))
    assert precious.read_text() == "mine"


def test_a_file_system_without_locks_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    pipe = Pipe(project, {"dvc.yaml": "stages: {one: {cmd: touch one, outs: [one], deps: [src]}}", "src": "1"})
    project.write("one", "old")
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", flock)
        with pytest.raises(MillpondError, match=r"cannot lock '.*No locks available.*flock"):
            pipe.repro()
    assert project.read("one") == "old"


def test_a_process_of_another_container_is_never_this_one(project: Project) -> None:
    elsewhere = Running("other", None, os.getpid(), (), ("made",), "another boot, another container")
    made = running.claim(project.open(), "other", elsewhere)
    try:
        with pytest.raises(BusyError, match=r"process \d+ of another machine or container") as caught:
            running.refuse(project.open(), reads=["made"])
        assert caught.value.hint == "wait until it is done there"
    finally:
        made.release()


def test_a_process_that_nobody_waited_for_is_gone(project: Project) -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    repo = project.open()
    try:
        rwlock.add(repo.temporary, process.pid, "dvc repro", reads=[], writes=[str(project.root / "made")])
        assert running.others(repo) == []
    finally:
        process.wait()


def test_what_millpond_says_to_dvc_holds_while_it_is_claimed(project: Project) -> None:
    """A killed repro's entry stays, and its number may be another process's by now."""
    repo = project.open()
    rwlock.add(repo.temporary, OTHER, f"{rwlock.OURS}make", reads=[], writes=[str(project.root / "made")])
    assert running.others(repo) == []
    rwlock.add(repo.temporary, OTHER, "dvc repro", reads=[], writes=[str(project.root / "other")])
    assert [each.writes for each in running.others(repo)] == [("other",)]


def test_readers_that_were_killed_do_not_gather(project: Project) -> None:
    gone = 2**22 + 1  # no process has such a number
    repo = project.open()
    for number in range(200):
        rwlock.add(repo.temporary, gone, f"run {number}", reads=["/data"], writes=[])
    rwlock.add(repo.temporary, OTHER, "run", reads=["/data"], writes=[])
    assert len(shared(project)["read"]["/data"]) < 100
    assert {"pid": OTHER, "cmd": "run"} in shared(project)["read"]["/data"]


def test_two_repros_at_once_forget_nothing_of_each_other(project: Project) -> None:
    text = """
stages:
  one: {cmd: cat src > one, deps: [src], outs: [one]}
  two: {cmd: cat src > two, deps: [src], outs: [two]}
"""
    pipe = Pipe(project, {"dvc.yaml": text, "src": "1"})
    first = Memory.load(project.open().temporary)
    pipe.repro("two")
    stages = {stage.name: stage for stage in pipelines.load(project.open()).stages}
    first.note(stages["one"], seconds=7.0)
    first.save()
    again = Memory.load(project.open().temporary)
    assert again.seconds(stages["one"]) == 7.0
    assert again.stages["two"]["outcome"] == "ran"


def test_urls_are_shown_as_they_are(project: Project) -> None:
    with claim(project, "other", writes=("s3://bucket/made",)):
        with pytest.raises(BusyError, match="'s3://bucket/made/part' is being made by stage 'other'"):
            running.refuse(project.open(), reads=["s3://bucket/made/part"])
        running.refuse(project.open(), reads=["s3://bucket/made2", "made"])


def told(stage: str, *, reads: tuple[str, ...] = (), writes: tuple[str, ...] = ()) -> Running:
    return Running(stage, None, OTHER, reads, writes)


@contextmanager
def claim(project: Project, stage: str, *, writes: tuple[str, ...]) -> Iterator[None]:
    """As another process has it."""
    made = running.claim(project.open(), stage, told(stage, writes=writes))
    try:
        yield
    finally:
        made.release()


@contextmanager
def most_bytes(size: int) -> Iterator[None]:
    """No file of this process may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _last_record(project: Project, stage: str) -> dict[str, Any]:
    (folder,) = (project.root / ".dvc/tmp/millpond/runs").glob(f"{stage}-*")
    record: dict[str, Any] = json.loads(max(folder.iterdir()).read_text())
    return record
