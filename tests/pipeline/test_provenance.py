"""Records of runs: what is in them, when they are written, how many are kept, and what a crash leaves."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.faults.cases import opened
from tests.faults.injection import KILL, Injector, in_child
from tests.pipeline.running import Pipe
from tests.project.verbhelp import Project

from millpond.daemon.errors import CancelledError, MillpondError, StageFailedError
from millpond.daemon.pipeline import pipelines, provenance, surroundings
from millpond.daemon.pipeline.gpus import gpus
from millpond.daemon.pipeline.lock import Lock
from millpond.daemon.pipeline.provenance import KEEP, SLACK, Records, folder_of, key_of
from millpond.daemon.pipeline.surroundings import Code, machine

ONE = {
    "a": "1\n",
    "params.yaml": "p: 1\n",
    "dvc.yaml": "stages:\n  one:\n    cmd: cp a b\n    deps: [a]\n    params: [p]\n    outs: [b]\n",
}


def records(project: Project) -> list[dict[str, object]]:
    """All of them, the oldest first."""
    paths = sorted(Path(folder_of(project.open())).rglob("*.json"), key=lambda path: path.name)
    return [json.loads(path.read_text()) for path in paths]


def test_every_run_is_recorded(project: Project) -> None:
    project.environ |= {"PYTHONHASHSEED": "7", "AWS_SECRET_ACCESS_KEY": "no", "MILLPOND_JOB": "12"}
    pipe = Pipe(project, ONE)
    project.write("code.py", "1")
    project.commit()
    head = project.git("rev-parse", "HEAD").strip()
    pipe.repro()
    (first,) = records(project)
    lock = Lock.parse(pipe.lock(), "dvc.lock")
    assert first["entry"] == lock.entries["one"] and first["outcome"] == "ran" and first["exit_code"] == 0
    assert first["git"]["rev"] == head and first["git"]["dirty"] is False  # type: ignore[index]
    assert first["env"]["PYTHONHASHSEED"] == "7" and first["job"] == 12  # type: ignore[index]
    assert "no" not in first["env"].values() and set(first["env"]) <= set(surroundings.VARIABLES)  # type: ignore[attr-defined, call-overload]
    assert first["usage"]["memory"] > 0 and first["began"] <= first["ended"]  # type: ignore[index, operator]
    assert os.path.exists(project.root / str(first["log"]))
    assert "out" in {reason["kind"] for reason in first["reasons"]}  # type: ignore[attr-defined]
    project.write("code.py", "2")
    project.write("params.yaml", "p: 2\n")
    pipe.repro()
    assert records(project)[1]["git"]["changed"] == [  # type: ignore[index]
        [path, project.git("hash-object", path).strip()] for path in ("code.py", "params.yaml")
    ]
    project.write("params.yaml", "p: 1\n")
    assert pipe.outcomes() == {"one": "cached"}
    assert pipe.outcomes() == {"one": "unchanged"}
    project.write("dvc.yaml", ONE["dvc.yaml"].replace("cp a b", "cp a b; exit 3"))
    with pytest.raises(StageFailedError):
        pipe.repro()
    project.write("dvc.yaml", ONE["dvc.yaml"].replace("cp a b", "touch c"))
    with pytest.raises(StageFailedError):
        pipe.repro()
    found = records(project)
    assert [each["outcome"] for each in found] == ["ran", "ran", "cached", "failed", "failed"]
    assert [each["exit_code"] for each in found] == [0, 0, None, 3, 0]
    assert project.run("why", "one", last=True)["stages"][0]["run"] == found[4]
    assert [each["outcome"] for each in project.run("runs", "one", most=2)["runs"]] == ["failed", "failed"]
    assert "was not made" in str(found[4]["error"]) and found[2]["usage"] is None
    assert Records(project.open()).of_entry(lock.entries["one"]) == found[0], "the run, not what brought it back"


def test_the_code_is_git_s_and_not_what_stages_write(project: Project) -> None:
    unborn = Code(project.open()).now(())
    assert unborn is not None and unborn["rev"] is None and unborn["dirty"], "what `init` has staged"
    for path in ("a", "out/b", "dvc.lock", ".gitignore", "g"):
        project.write(path, "1")
    project.commit()
    for path in ("out/b", "dvc.lock", ".gitignore"):
        project.write(path, "2")
    code = Code(project.open())
    clean = code.now(["out"])
    assert clean is not None and clean["dirty"] is False
    (project.root / "g").unlink()
    os.symlink("a", project.write("a", "2").with_name("g"))
    dirty = Code(project.open()).now(["out"])
    assert dirty is not None and dirty["diff"] and [path for path, _ in dirty["changed"]] == ["a", "g"]
    (project.root / "g").unlink()
    gone = Code(project.open()).now(["out"])
    assert gone is not None and gone["changed"][1] == ["g", None] and gone["diff"] != dirty["diff"]


def test_gpus_are_what_the_driver_tells(tmp_path: Path) -> None:
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "information").write_text("Model: \t\t NVIDIA A100\nIRQ:   1\nGPU UUID: \t GPU-1-2\n")
    assert gpus(proc=str(tmp_path)) == [{"model": "NVIDIA A100", "uuid": "GPU-1-2"}]
    assert gpus(proc=str(tmp_path / "none")) == []
    assert machine({})["gpus"] == gpus()


# A driver's library with one GPU, as nvidia-ml-py calls it; with HANGS set it never answers.
DRIVER = """
#include <string.h>
#include <stdlib.h>
#include <unistd.h>
struct memory { unsigned long long total, free, used; };
int nvmlInitWithFlags(unsigned flags) { if (getenv("HANGS")) pause(); return 0; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned n) { strncpy(text, "999.1", n); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)1; return 0; }
int nvmlDeviceGetName(void *device, char *text, unsigned n) { strncpy(text, "Test Card", n); return 0; }
int nvmlDeviceGetUUID(void *device, char *text, unsigned n) { strncpy(text, "GPU-3-4", n); return 0; }
int nvmlDeviceGetMemoryInfo(void *device, struct memory *m) { m->total = 80ULL << 30; return 0; }
"""


def test_gpus_are_what_the_library_tells(tmp_path: Path) -> None:
    pytest.importorskip("pynvml")
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler")
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "driver.c")], check=True)
    program = f"import json; from millpond.daemon.pipeline.gpus import gpus; print(json.dumps(gpus(proc={str(tmp_path)!r}, wait_s=1.0)))"

    def told(**env: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | env, capture_output=True, check=True, timeout=20
        )
        return json.loads(done.stdout)

    there = {"LD_LIBRARY_PATH": str(tmp_path)}
    assert told(**there) == [{"model": "Test Card", "uuid": "GPU-3-4", "memory": 80 << 30, "driver": "999.1"}]
    assert told(**there, HANGS="1") == []
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0/information").write_text("Model: A\nGPU UUID: B\n")
    assert told(**there, HANGS="1") == [{"model": "A", "uuid": "B"}]


def test_old_runs_go_but_none_that_a_lock_names(project: Project) -> None:
    pipe = Pipe(project, ONE)
    pipe.repro()
    project.commit()
    committed = Lock.parse(pipe.lock(), "dvc.lock").entries["one"]
    project.write("params.yaml", "p: 2\n")
    pipe.repro()
    repo = project.open()
    loaded = pipelines.load(repo)
    (stage,) = loaded.stages
    journal = provenance.Journal(repo, loaded)
    run = journal.begin({"cmd": "cp a b"}, [])
    for _ in range(KEEP + SLACK):
        journal.failed(stage, run, StageFailedError("no"))
    found = records(project)
    assert KEEP + 2 <= len(found) <= KEEP + SLACK + 2
    here = Lock.parse(pipe.lock(), "dvc.lock").entries["one"]
    assert [key_of(each["entry"]) for each in found[:2]] == [key_of(committed), key_of(here)]  # type: ignore[arg-type]
    journal.failed(stage, run, CancelledError("stopped"))
    assert records(project)[-1]["outcome"] == "cancelled"


def test_what_is_no_record_is_passed_over(project: Project) -> None:
    pipe = Pipe(project, ONE)
    pipe.repro()
    entry = Lock.parse(pipe.lock(), "dvc.lock").entries["one"]
    (path,) = Path(folder_of(project.open())).rglob("*.json")
    record = json.loads(path.read_text())
    for number, text in enumerate(("", "[]", "{}", '{"stage": 1}', path.read_text()[:-9], "\0")):
        path.with_name(f"{9 * 10**19 + number}-{key_of(entry)}.json").write_text(text)
    path.write_text(json.dumps(record | {"user": {"uid": 4_000_000, "name": "someone"}}))
    found = Records(project.open()).of_entry(entry)
    assert found is not None and found["user"]["uid"] == os.getuid()
    # The name of the file makes no record that of another entry.
    path.rename(path.with_name(f"1-{key_of({**entry, 'cmd': 'other'})}.json"))
    assert Records(project.open()).of_entry({**entry, "cmd": "other"}) is None


@pytest.mark.parametrize("last", ["record", "lock"])
def test_a_crash_between_record_and_lock(tmp_path: Path, last: str) -> None:
    """In a process of its own, killed right after the rename of the one, or of the other."""
    with opened(tmp_path) as project:
        project.root.mkdir()
        project.run("init", no_scm=True)
        for path, text in ONE.items():
            project.write(path, text)

    def work(_: Injector) -> None:
        real = os.rename

        def rename(old: str, new: str) -> None:
            real(old, new)
            if new.endswith("dvc.lock") if last == "lock" else "/runs/one" in new:
                os.kill(os.getpid(), signal.SIGKILL)

        os.rename = rename  # type: ignore[assignment]
        with opened(tmp_path) as project:
            project.run("repro")

    assert in_child(work, 0, KILL)["killed"]
    with opened(tmp_path) as project:
        pipe = Pipe(project, {})
        assert [each["outcome"] for each in records(project)] == ["ran"]
        assert (project.root / "dvc.lock").exists() == (last == "lock")
        assert pipe.outcomes() == {"one": "unchanged" if last == "lock" else "cached"}
        entry = Lock.parse(pipe.lock(), "dvc.lock").entries["one"]
        found = Records(project.open()).of_entry(entry)
        assert found is not None and found["outcome"] == "ran"


def test_a_lock_that_cannot_be_written_leaves_no_record(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(project, ONE)
    real = os.rename

    def rename(old: str, new: str) -> None:
        if new.endswith("dvc.lock"):
            raise OSError(errno.EIO, "broken", new)
        real(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(MillpondError):
            pipe.repro()
    assert [each["outcome"] for each in records(project)] == ["failed"]


def test_a_run_is_found_whatever_versions_remotes_have_of_its_outputs() -> None:
    file = {"path": "a", "hash": "md5", "md5": "0" * 32, "size": 1}
    folder = {"path": "d", "hash": "md5", "md5": "", "size": 2, "nfiles": 1}
    cloud = {"cloud": {"s3": {"etag": "x", "version_id": "v"}}}
    rows = [{"relpath": "f", "md5": "1" * 32, "size": 2}]
    text = json.dumps([{"md5": "1" * 32, "relpath": "f"}])
    folder["md5"] = hashlib.md5(text.encode()).hexdigest() + ".dir"
    made = {"cmd": "c", "outs": [file, folder]}
    pushed = {
        "cmd": "c",
        "outs": [
            file | cloud,
            {"path": "d", "hash": "md5", "size": 2, "nfiles": 1, "files": [{**rows[0], **cloud}]},
        ],
    }
    assert key_of(pushed) == key_of(made)
    assert key_of({**pushed, "outs": [pushed["outs"][1]]}) != key_of(made)
