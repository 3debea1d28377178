"""repro beside real DVC's: the same lock, the same run cache, the same stages run, what it says."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.running import PIPELINE, Pipe, read_tree
from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project, opened

from millpond.daemon.errors import BusyError, MillpondError, StageFailedError
from millpond.daemon.jobs.runner import CommandRunner, Sink, Task


@contextmanager
def twin(tmp_path: Path) -> Iterator[tuple[Pipe, Pipe]]:
    """Two projects of the same content: ours, and one for DVC."""
    with opened(tmp_path / "ours") as ours, opened(tmp_path / "dvc") as theirs:
        yield Pipe(ours), Pipe(theirs)


def runs(project: Project) -> dict[str, bytes]:
    folder = project.root / ".dvc" / "cache" / "runs"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def made_folders(tmp_path: Path) -> None:
    for name in ("ours", "dvc"):
        (tmp_path / name).mkdir()


def test_a_pipeline_runs_as_in_dvc(tmp_path: Path) -> None:
    with twin(tmp_path) as (ours, theirs):
        ours.repro()
        said = real_dvc().ok("repro", cwd=theirs.project.root)
        assert ours.ran() == theirs.ran() == ["first", "second", "third", "aside"]
        assert read_tree(ours.project.root) == read_tree(theirs.project.root)
        assert runs(ours.project) == runs(theirs.project) != {}
        # All but DVC's words about Git and its last line, which are the client's.
        assert ours.said.strip() == said[: said.index("\nTo track")].strip()
        # Nothing is left to do, for either of the two.
        assert set(ours.outcomes().values()) == {"unchanged"}
        ours.project.export()
        assert ours.project.dvc("status", "--json").strip() == "{}"
        assert "up to date" in ours.dvc_repro()
        assert theirs.project.status() == {}
        assert set(theirs.outcomes().values()) == {"unchanged"}
        assert ours.ran() == theirs.ran() == []


CHANGES: dict[str, tuple[dict[str, str | None], tuple[str, ...]]] = {
    "source": ({"src.txt": "two\n"}, ()),
    "param that is not asked for": ({"params.yaml": "a: 1\nb: {c: x, d: 9}\nsize: 7\n"}, ()),
    "param": ({"params.yaml": "a: 1\nb: {c: y}\nsize: 7\n"}, ()),
    "param of the first": ({"params.yaml": "a: 2\nb: {c: x}\nsize: 7\n"}, ()),
    "output gone": ({"second.txt": None}, ()),
    "output changed": ({"mid/one": "spoiled"}, ()),
    "output of Git's gone": ({"score.json": None}, ()),
    "command": ({"dvc.yaml": PIPELINE["dvc.yaml"].replace("echo aside > ", "echo beside > ")}, ()),
    "new dependency": ({"dvc.yaml": PIPELINE["dvc.yaml"].replace("deps: [mid/one]", "deps: [mid/one, src.txt]")}, ()),
    "new output": ({"dvc.yaml": PIPELINE["dvc.yaml"].replace("outs: [aside.txt]", "outs: [aside.txt, code2]").replace("echo aside > aside.txt", "echo 1 > code2; echo aside > aside.txt")}, ()),
    "frozen": ({"dvc.yaml": PIPELINE["dvc.yaml"].replace("deps: [mid/one]", "deps: [mid/one]\n    frozen: true"), "src.txt": "3\n"}, ()),
    "always": ({"dvc.yaml": PIPELINE["dvc.yaml"].replace("deps: [code.sh]", "deps: [code.sh]\n    always_changed: true")}, ()),
    "lock gone": ({"dvc.lock": None}, ()),
    "forced": ({}, ("-f",)),
    "forced one": ({}, ("-f", "-s", "second")),
    "forced downstream": ({"code.sh": "echo more\n"}, ("--force-downstream",)),
    "downstream": ({"src.txt": "4\n"}, ("--downstream", "second")),
    "one target": ({"code.sh": "echo 5\n"}, ("second",)),
    "whole pipeline": ({"code.sh": "echo 6\n"}, ("-p", "third")),
    "pattern": ({"code.sh": "echo 7\n"}, ("--glob", "[as]*")),
    "all": ({"code.sh": "echo 8\n"}, ("-P",)),
    "dry": ({"code.sh": "echo 9\n"}, ("--dry",)),
    "no run cache": ({"dvc.lock": None}, ("--no-run-cache",)),
    "not stored": ({"code.sh": "echo 10\n"}, ("--no-commit",)),
    "below a directory": ({"code.sh": "echo 11\n"}, ("-R", ".")),
    "going on": ({"code.sh": "echo 12\n"}, ("-k",)),
}  # fmt: skip
WORDS = {
    "-f": "force", "-s": "single_item", "--force-downstream": "force_downstream", "--downstream": "downstream",
    "-p": "pipeline", "--glob": "glob", "-P": "all_pipelines", "--dry": "dry", "--no-run-cache": "no_run_cache",
    "--no-commit": "no_commit", "-R": "recursive", "-k": "on_error",
}  # fmt: skip


def change(project: Project, files: dict[str, str | None]) -> None:
    for path, text in files.items():
        if text is None:
            (project.root / path).unlink()
        else:
            if (project.root / path).exists():
                (project.root / path).chmod(0o644)
            project.write(path, text)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pipe, Path]]:
    """A project after DVC's first repro, whose cache both may use, and a copy of it as it is now."""
    base = tmp_path_factory.mktemp("done")
    with opened(base) as project:
        pipe = Pipe(project)
        real_dvc().ok("config", "cache.type", "copy", cwd=project.root)
        real_dvc().ok("repro", cwd=project.root)
        pipe.ran()
        shutil.copytree(project.root, base / "kept", symlinks=True)
        yield pipe, base / "kept"


def restored(pipe: Pipe, kept: Path) -> None:
    shutil.rmtree(pipe.project.root)
    shutil.copytree(kept, pipe.project.root, symlinks=True)


# Those of the quick run.
QUICK = ("source", "param", "output changed", "frozen", "lock gone", "forced downstream", "downstream", "dry")


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in CHANGES]
)
def test_what_runs_after_a_change_is_what_dvc_runs(done: tuple[Pipe, Path], case: str) -> None:
    pipe, kept = done
    files, argv = CHANGES[case]
    results = []
    for ours in (True, False):
        restored(pipe, kept)
        change(pipe.project, files)
        if ours:
            flags: dict[str, Any] = {WORDS[word]: True for word in argv if word in WORDS}
            flags |= {"on_error": "keep-going"} if "on_error" in flags else {}
            pipe.repro(*[word for word in argv if word not in WORDS], **flags)
            said = "\n".join(line for line in pipe.said.splitlines() if " earlier run, " not in line)  # ours alone
        else:
            ran = real_dvc().run("repro", *argv, cwd=pipe.project.root)
            assert ran.code == 0, ran.err
            said = ran.out
        lines = [line for line in said.splitlines() if line and not line.startswith(("Use `", "Data and", "WARNING"))]
        if case == "dry":  # DVC looks up what was there before the change
            lines = [line for line in lines if "is cached" not in line]
        cut = (
            lines.index("To track the changes with git, run:")
            if "To track the changes with git, run:" in lines
            else None
        )
        results.append((pipe.ran(), read_tree(pipe.project.root), lines[:cut], set(runs(pipe.project))))
    assert results[0] == results[1]


def test_the_reasons_are_data(tmp_path: Path) -> None:
    with opened(tmp_path / "ours") as project:
        pipe = Pipe(project)
        pipe.repro()
        project.write("params.yaml", "a: 1\nb: {c: x}\nsize: 8\n")
        (project.root / "aside.txt").unlink()
        rows = {row["name"]: row["reasons"] for row in pipe.repro(dry=True)["stages"]}
        assert rows["first"] == [
            {"kind": "param", "state": "modified", "path": "params.yaml", "key": "size", "old": 7, "new": 8}
        ]
        assert [(each["kind"], each["state"], each["path"]) for each in rows["aside"]] == [
            ("out", "deleted", "aside.txt")
        ]
        assert rows["second"] == []
        why = project.run("why", "first")["stages"][0]
        assert why["reasons"] == rows["first"] and why["outcome"] == "would run"
        pipe.repro()
        last = project.run("why", "first", "aside", last=True)["stages"]
        assert [row["outcome"] for row in last] == ["ran", "cached"]
        assert last[0]["reasons"] == rows["first"] and last[0]["seconds"] >= 0


def test_a_failed_stage_leaves_nothing_and_names_what_it_stops(tmp_path: Path) -> None:
    with opened(tmp_path / "ours") as project:
        pipe = Pipe(project, {**PIPELINE, "dvc.yaml": PIPELINE["dvc.yaml"].replace("chmod +x second.txt", "exit 3")})
        with pytest.raises(StageFailedError) as caught:
            pipe.repro()
        assert caught.value.message == (
            "failed to reproduce 'second': failed to run: cat mid/one > second.txt; exit 3, exited with 3"
        )
        assert ".dvc/tmp/millpond/logs/second-" in str(caught.value.hint)
        assert pipe.ran() == ["first", "second"]
        assert list(project.status()) == ["second", "third", "aside"]
        assert "second:" not in pipe.lock()
        with pytest.raises(StageFailedError) as caught:
            pipe.repro(on_error="keep-going")
        assert caught.value.details == {"failed": ["second"], "left_out": ["third"]}
        assert "Stage 'third' will be skipped due to this failure" in pipe.said
        assert pipe.ran() == ["second", "aside"]
        found = {row["name"]: row["outcome"] for row in pipe.repro(on_error="ignore")["stages"]}
        assert found == {"first": "unchanged", "second": "failed", "third": "ran", "aside": "unchanged"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cmd: x\n    deps: [gone]\n    outs: [o]", "dependency 'gone' does not exist"),
        ("cmd: x\n    params: [gone]\n    outs: [o]", "parameter 'gone' is not in 'params.yaml'"),
        ("cmd: 'true'\n    outs: [o]", "output 'o' was not made"),
        ("cmd: kill -9 $$\n    outs: [o]", "was killed by SIGKILL"),
        ("cmd: 'true'\n    wdir: nowhere\n    outs: [o]", "working directory 'nowhere'"),
        ("cmd: 'true'\n    deps: ['gs://b/k']\n    outs: [o]", "of a kind that only DVC follows"),
        ("cmd: echo > /tmp/o\n    outs: [/tmp/o]", "lies outside of the project, where none can be kept"),
        ("cmd: echo > src.txt\n    outs: [src.txt]", "already tracked by Git"),
    ],
)
def test_what_cannot_run_says_why_and_loses_nothing(tmp_path: Path, text: str, words: str) -> None:
    with opened(tmp_path / "ours") as project:
        pipe = Pipe(project, {**PIPELINE, "dvc.yaml": f"stages:\n  s:\n    {text}\n"})
        project.commit()
        before = read_tree(project.root)
        with pytest.raises(StageFailedError) as caught:
            pipe.repro()
        assert words in str(caught.value)
        assert read_tree(project.root) == before


def test_the_environment_and_the_log_of_a_command(tmp_path: Path) -> None:
    with opened(tmp_path / "ours") as project:
        text = "stages:\n  s:\n    cmd: echo $DVC_STAGE $DVC_ROOT $PWD $X; cat; echo err >&2\n    wdir: in\n"
        pipe = Pipe(project, {"sub/dvc.yaml": text, "sub/in/f": ""})
        project.environ["X"] = "mine"
        pipe.repro("sub/dvc.yaml")
        assert f"sub/dvc.yaml:s {project.root} {project.root}/sub/in mine\n" in pipe.said
        (log,) = (project.root / ".dvc/tmp/millpond/logs").iterdir()
        assert log.read_text().endswith("err\n")


def test_a_person_s_change_of_the_lock_meanwhile_stays(tmp_path: Path) -> None:
    other = "  other:\n    cmd: by hand\n"
    with opened(tmp_path / "ours") as project:
        text = PIPELINE["dvc.yaml"].replace("echo second >> ../ran", "cat ../other >> dvc.lock")
        pipe = Pipe(project, {**PIPELINE, "dvc.yaml": text, "../other": other})
        pipe.repro()
        assert other in pipe.lock()
        assert all(f"  {name}:\n" in pipe.lock() for name in ("first", "second", "third", "aside"))


def test_the_newest_whole_run_is_taken(tmp_path: Path) -> None:
    """DVC looks at the newest entry only; ours at all of them."""
    with opened(tmp_path / "ours") as project:
        # Not a function of its inputs: each run makes something else.
        text = "stages:\n  s:\n    cmd: date +%N > out\n    deps: [src.txt]\n    outs: [out]\n"
        pipe = Pipe(project, {"dvc.yaml": text, "src.txt": "1"})
        contents = []
        for _ in range(2):
            pipe.repro(force=True)
            contents.append(project.read("out"))
            time.sleep(0.01)
        (project.root / "dvc.lock").unlink()
        assert pipe.outcomes() == {"s": "cached"}
        assert project.read("out") == contents[1]
        entry = next(
            path
            for path in (project.root / ".dvc/cache/runs").rglob("*")
            if path.is_file() and "spoil" not in path.name
        )
        newest = max(entry.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        newest.write_text(newest.read_text().replace("md5: ", "md5: 0000000000000000000000000000000a #", 2))
        newest.write_text("cmd: [")
        (project.root / "dvc.lock").unlink()
        assert pipe.outcomes() == {"s": "cached"}
        assert project.read("out") == contents[0]


def test_several_at_once_end_as_one_by_one(tmp_path: Path) -> None:
    rnd = random.Random(5)
    names = [f"s{number}" for number in range(12)]
    lines = ["stages:"]
    for number, name in enumerate(names):
        needs = rnd.sample(names[:number], min(number, rnd.choice([0, 1, 2])))
        pause = rnd.choice(["0", "0.02", "0.05"])
        made = " ".join([*needs, "src.txt"])
        lines += [
            f"  {name}:",
            f"    cmd: sleep {pause}; cat {made} > {name}; echo {name} >> ../ran",
            f"    deps: [src.txt{''.join(f', {each}' for each in needs)}]",
            f"    outs: [{name}]",
        ]
    text = "\n".join(lines) + "\n"
    locks = []
    for folder, jobs in (("ours", 1), ("dvc", 4)):
        with opened(tmp_path / folder) as project:
            pipe = Pipe(project, {"dvc.yaml": text, "src.txt": "1"})
            pipe.repro(jobs=jobs)
            assert sorted(pipe.ran()) == sorted(names)
            locks.append(pipe.lock())
            assert set(pipe.outcomes(jobs=jobs).values()) == {"unchanged"}
    assert locks[0] == locks[1]


def test_a_place_that_is_free_is_taken_before_outputs_are_stored(tmp_path: Path) -> None:
    slow = "until test -e ../go; do sleep 0.05; done; cat src > "
    text = f"""
stages:
  quick: {{cmd: cat src > quick, deps: [src], outs: [quick]}}
  slow: {{cmd: '{slow} slow', deps: [src], outs: [slow]}}
  next: {{cmd: 'cat src > next; touch ../go', deps: [src], outs: [next]}}
"""
    with opened(tmp_path / "ours") as project:
        pipe = Pipe(project, {"dvc.yaml": text, "src": "1"})
        assert set(pipe.outcomes(jobs=2).values()) == {"ran"}
        said = pipe.said.splitlines()
        assert said.index("Running stage 'next':") < said.index("Updating lock file 'dvc.lock'")
        assert project.status() == {}
        one_by_one = Pipe(project, {"src": "2", "../go": ""})
        one_by_one.repro()
        said = one_by_one.said.splitlines()
        assert said.index("Updating lock file 'dvc.lock'") < said.index("Running stage 'slow':")


def test_a_command_that_outlives_its_repro_is_not_run_beside(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    first, second = CommandRunner(Sink()), CommandRunner(Sink())
    task = Task("s", "sleep 0.3; echo done", str(tmp_path), dict(os.environ), log)
    first.start(task)
    with pytest.raises(BusyError, match="is being run already"):
        second.start(task)
    assert first.wait().code == 0
    assert Path(log).read_text() == "done\n"
    second.start(task)
    second.stop()
    first.stop()
    started = time.monotonic()
    third = CommandRunner(Sink())
    third.start(Task("s", "trap '' TERM; sleep 60 & sleep 60", str(tmp_path), dict(os.environ), log))
    third.stop()
    assert time.monotonic() - started < 10


def test_commit_of_stages(tmp_path: Path) -> None:
    with twin(tmp_path) as (ours, theirs):
        for pipe in (ours, theirs):
            for path, text in {
                "mid/one": "1",
                "mid/two": "2",
                "second.txt": "s",
                "score.json": "{}",
                "third.txt": "t",
            }.items():
                pipe.project.write(path, text)
        asked = ours.project.run("commit", "first", "third")["unconfirmed"]
        assert [row["pointer"] for row in asked] == ["first", "third"]
        assert not (ours.project.root / "dvc.lock").exists()
        ours.project.run("commit", "first", "third", force=True)
        real_dvc().ok("commit", "-f", "first", "third", cwd=theirs.project.root)
        assert read_tree(ours.project.root) == read_tree(theirs.project.root)
        with pytest.raises(MillpondError, match=r"output 'aside.txt' was not made"):
            ours.project.run("commit", "aside", force=True)


def test_data_that_was_changed_is_committed_on_the_way(tmp_path: Path) -> None:
    with opened(tmp_path / "ours") as project:
        text = "stages:\n  s:\n    cmd: cat data > out\n    deps: [data]\n    outs: [out]\n"
        pipe = Pipe(project, {"dvc.yaml": text, "data": "1"})
        project.add("data")
        assert pipe.outcomes() == {"data.dvc": "unchanged", "s": "ran"}
        project.write("data", "2")
        assert pipe.outcomes() == {"data.dvc": "ran", "s": "ran"}
        assert "Verifying data sources in stage: 'data.dvc'" in pipe.said
        project.export()
        assert project.dvc("status", "--json").strip() == "{}"
        (project.root / "data").unlink()
        with pytest.raises(StageFailedError, match="missing data 'source': data"):
            pipe.repro()
        (project.root / "out").unlink()
        assert pipe.outcomes(allow_missing=True) == {"data.dvc": "unchanged", "s": "unchanged"}


def test_data_that_is_only_on_the_remote_is_pulled(tmp_path: Path) -> None:
    with opened(tmp_path / "ours") as project:
        text = "stages:\n  s:\n    cmd: cat data > out\n    deps: [data]\n    outs: [out]\n"
        pipe = Pipe(project, {"dvc.yaml": text, "data": "1"})
        project.add("data")
        (project.root / ".dvc/config").write_text(
            f"['remote \"r\"']\n    url = {project.base / 'remote'}\n[core]\n    remote = r\n"
        )
        pipe.repro()
        project.run("push")
        (project.root / "data").unlink()
        (project.root / "out").unlink()
        assert pipe.outcomes(pull=True) == {"data.dvc": "unchanged", "s": "unchanged"}
        assert project.read("out") == project.read("data") == "1"
