"""lineage: what made a file, at any revision, with and without records, and where the chain is broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.pipeline.running import Pipe
from tests.project.test_situations import git_in
from tests.project.verbhelp import Project

from millpond.daemon import wirepath
from millpond.daemon.errors import RevisionError, TargetError
from millpond.daemon.pipeline import origins
from millpond.daemon.pipeline.provenance import folder_of

FILES = {
    "code.sh": "echo code\n",
    "params.yaml": "lr: 0.1\nsplit: {ratio: 2}\n",
    "dvc.yaml": """
stages:
  prepare:
    cmd: mkdir -p mid && cp raw.csv mid/a && cp raw.csv mid/b
    deps: [raw.csv, code.sh]
    params: [split.ratio]
    outs: [mid]
  part:
    foreach: [x, y]
    do:
      cmd: cat mid/a seen.csv > ${item}.bin
      deps: [mid/a, seen.csv]
      outs: ["${item}.bin"]
  train:
    cmd: cat x.bin y.bin > model
    deps: [x.bin, y.bin, loose]
    params: [lr]
    outs: [model]
  evaluate:
    cmd: "wc -c model > /dev/null; echo '{\\"acc\\": 0.5}' > score.json"
    deps: [model]
    metrics: [score.json: {cache: false}]
""",
}


@pytest.fixture
def pipe(project: Project, tmp_path: Path) -> Pipe:
    found = Pipe(project, FILES)
    other = tmp_path / "other"
    other.mkdir()
    (other / "seen.csv").write_text("5,6\n")
    for argv in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "1"]):
        git_in(other, *argv)
    project.run("import", url=str(other), source="seen.csv", out=None)
    project.write("raw.csv", "1,2\n")
    project.write("loose", "untracked\n")
    project.add("raw.csv")
    project.write(".git/info/exclude", "loose\n")
    found.repro()
    project.commit("v1")
    project.git("tag", "v1")
    return found


def asked(project: Project, target: str, **params: Any) -> dict[str, Any]:
    return project.run("lineage", target=wirepath.encode(target), **params)


def steps(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in found["steps"]}


def told(found: dict[str, Any], kind: str) -> list[tuple[str, str]]:
    return [(row["step"], row["text"]) for row in found["problems"] if row["kind"] == kind]


def test_a_model_back_to_its_sources(pipe: Pipe) -> None:
    project = pipe.project
    head = project.git("rev-parse", "HEAD").strip()
    found = asked(project, "model")
    rows = steps(found)
    assert list(rows) == ["train", "part@x", "part@y", "prepare", "seen.csv.dvc", "raw.csv.dvc"]
    assert found["roots"] == ["train"] and rows["train"]["params"] == {"params.yaml": {"lr": 0.1}}
    assert rows["prepare"]["deps"][0]["source"] == "git" and rows["prepare"]["deps"][0]["state"] == "same"
    assert rows["part@x"]["deps"][0]["from"] == [{"id": "prepare", "state": "same"}], "a file in a folder"
    assert rows["seen.csv.dvc"]["kind"] == "import" and len(rows["seen.csv.dvc"]["source"][0]["repo"]["rev_lock"]) == 40
    assert all(rows[name]["record"]["outcome"] == "ran" for name in ("train", "part@y", "prepare"))
    assert rows["train"]["record"]["git"]["rev"] is None and rows["train"]["code"]["how"] == "commit", (
        "before any commit"
    )
    assert told(found, "untracked") == [("train", "its source 'loose' is tracked neither by Git nor by a .dvc file")]
    assert [row["kind"] for row in found["problems"]] == ["untracked"]
    assert found["measured"][0]["metrics"] == {"score.json": {"acc": 0.5}} and found["measured"][0]["state"] == "same"
    # Without the records all but who, where and when is in dvc.lock and Git.
    shutil.rmtree(folder_of(project.open()))
    bare = steps(asked(project, "model@v1"))
    assert list(bare) == list(rows) and bare["train"]["record"] is None
    assert bare["train"]["code"] == {"how": "commit", "rev": head}
    assert [out["md5"] for out in bare["train"]["outs"]] == [out["md5"] for out in rows["train"]["outs"]]


def test_revisions_and_a_dirty_workspace(pipe: Pipe) -> None:
    project = pipe.project
    first = project.git("rev-parse", "HEAD").strip()
    project.write("params.yaml", "lr: 0.2\nsplit: {ratio: 2}\n")
    dirty = asked(project, "model")
    assert told(dirty, "stale") == [("train", "it was made with lr = 0.1, 'params.yaml' has 0.2")]
    assert told(asked(project, "model@v1"), "stale") == []
    pipe.repro()
    project.commit("v2")
    shutil.rmtree(folder_of(project.open()))
    second = project.git("rev-parse", "HEAD").strip()
    rows = steps(asked(project, "model@HEAD"))
    assert rows["train"]["code"]["rev"] == second and rows["prepare"]["code"]["rev"] == first
    assert steps(asked(project, "model", rev="v1"))["train"]["params"]["params.yaml"] == {"lr": 0.1}
    # Data changed and tracked anew, and nothing was run: the chain is broken at its beginning.
    project.write("raw.csv", "7,8\n")
    assert told(asked(project, "model"), "changed")[0][0] == "raw.csv.dvc"
    project.add("raw.csv")
    project.write("code.sh", "echo other\n")
    assert [step for step, _ in told(asked(project, "mid"), "stale")] == ["prepare", "prepare"]
    project.commit("v3")
    at = asked(project, "mid/a@HEAD")
    assert steps(at)["prepare"]["deps"][1]["from"] == [{"id": "raw.csv.dvc", "state": "stale"}]
    assert steps(at)["prepare"]["deps"][0]["state"] == "stale"


def test_after_a_rename(pipe: Pipe) -> None:
    project = pipe.project
    project.run("move", source="raw.csv", target="data.csv")
    text = project.read("dvc.yaml").replace("raw.csv", "data.csv").replace("  prepare:", "  begin:")
    project.write("dvc.yaml", text)
    pipe.repro()
    project.commit("renamed")
    assert list(steps(asked(project, "mid"))) == ["begin", "data.csv.dvc"]
    assert list(steps(asked(project, "mid@HEAD~1"))) == ["prepare", "raw.csv.dvc"]
    with pytest.raises(TargetError, match=r"is no output, source or stage at 'HEAD'"):
        asked(project, "raw.csv@HEAD")


def test_what_was_made_from_it(pipe: Pipe) -> None:
    project = pipe.project
    every = {"prepare", "part@x", "part@y", "train", "evaluate"}
    for target in ("raw.csv", "raw.csv.dvc", "code.sh"):
        assert set(steps(asked(project, target, down=True))) == every, target
    assert set(steps(asked(project, "params.yaml@v1", down=True))) == every
    assert set(steps(asked(project, "part@x", down=True))) == {"train", "evaluate"}
    assert asked(project, "score.json", down=True)["steps"] == []
    assert set(steps(asked(project, "seen.csv", down=True, rev="v1"))) == every - {"prepare"}
    source = asked(project, "code.sh")
    assert source["source"] == "git" and source["steps"] == []


def test_what_there_is_not(pipe: Pipe) -> None:
    project = pipe.project
    with pytest.raises(TargetError):
        asked(project, "nothing")
    with pytest.raises(RevisionError):
        asked(project, "model@v9")
    project.write(
        "dvc.yaml", project.read("dvc.yaml") + "  late:\n    cmd: cp model late\n    deps: [model]\n    outs: [late]\n"
    )
    late = asked(project, "late")
    assert told(late, "never ran") and steps(late)["late"]["deps"][0]["from"] == [{"id": "train", "state": "unknown"}]
    assert "train" in steps(late)


def test_a_bound_on_history_is_told(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    project = pipe.project
    shutil.rmtree(folder_of(project.open()))
    project.git("commit", "-q", "--allow-empty", "-m", "2")
    head = project.git("rev-parse", "HEAD").strip()
    monkeypatch.setattr(origins, "MOST_COMMITS", 1)
    assert steps(asked(project, "model"))["train"]["code"] == {"how": "at or before commit", "rev": head}
    monkeypatch.setattr(origins, "_MOST_BYTES", 0)
    project.write("dvc.lock", project.read("dvc.lock").replace("lr: 0.1", "lr: 0.3"))
    assert steps(asked(project, "model"))["train"]["code"]["how"] == "at or before commit"
    monkeypatch.undo()
    assert steps(asked(project, "model"))["train"]["code"] == {"how": "not committed"}


def test_a_folder_with_sources_and_outputs_in_it(project: Project) -> None:
    text = "stages:\n  a:\n    wdir: w\n    cmd: cp ../in ../o\n    deps: [../in]\n    outs: [../o]\n"
    pipe = Pipe(project, {"sub/in": "1", "sub/w/x": "", "sub/dvc.yaml": text})
    project.write("dvc.yaml", "stages:\n  t:\n    cmd: cat sub/o sub/in > m\n    deps: [sub]\n    outs: [m]\n")
    project.git("add", "-A")
    pipe.repro("sub/dvc.yaml")
    pipe.repro("t")
    found = asked(project, "m")
    (dep,) = steps(found)["t"]["deps"]
    assert dep["from"] == [{"id": "sub/dvc.yaml:a", "state": "unknown"}] and dep["source"] == "git"
    assert len(told(found, "unknown")) == 1, "DVC does not keep the manifests of dependencies"
    inside = project.run("lineage", target="o", cwd=project.root / "sub")
    assert [(row["id"], row["name"]) for row in inside["steps"]] == [("sub/dvc.yaml:a", "a")]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sets(st.integers(0, 9), max_size=4), min_size=1, max_size=9), st.data())
def test_it_is_the_transitive_closure(project: Project, needs: list[set[int]], data: st.DataObject) -> None:
    """Of random graphs: stage N needs outputs of stages before it, and `s`, which is Git's."""
    graph = {number: {each for each in found if each < number} for number, found in enumerate(needs)}
    lock: dict[str, Any] = {}
    body: dict[str, Any] = {}
    odd = data.draw(
        st.sets(st.sampled_from([(a, b) for a, found in graph.items() for b in found] or [(0, 0)]), max_size=2)
    )
    for number, found in graph.items():
        deps = ["s", *(f"o{each}" for each in sorted(found))]
        body[f"n{number}"] = {"cmd": f"make {number}", "deps": deps, "outs": [f"o{number}"]}
        entries = [
            {
                "path": dep,
                "hash": "md5",
                "md5": f"{99 if dep != 's' and (number, int(dep[1:])) in odd else dep[1:] or 0:0>32}",
            }
            for dep in deps
        ]
        outs = [{"path": f"o{number}", "hash": "md5", "md5": f"{number:032}"}]
        lock[f"n{number}"] = {"cmd": f"make {number}", "deps": entries, "outs": outs}
    project.write("s", "1")
    project.write("dvc.yaml", json.dumps({"stages": body}))
    project.write("dvc.lock", json.dumps({"schema": "2.0", "stages": lock}))
    ups = {number: {number} for number in graph}
    for number, found in graph.items():
        ups[number] |= set().union(*(ups[each] for each in found))
    last = data.draw(st.sampled_from(sorted(graph)))
    up = asked(project, f"o{last}")
    assert set(steps(up)) == {f"n{each}" for each in ups[last]}
    stale = {
        (row["id"], maker["id"])
        for row in up["steps"]
        for dep in row["deps"]
        for maker in dep["from"]
        if maker["state"] == "stale"
    }
    assert stale == {(f"n{a}", f"n{b}") for a, b in odd if a != b and a in ups[last]}
    down = {f"n{each}" for each in graph if last in ups[each] and each != last}
    assert set(steps(asked(project, f"o{last}", down=True))) == down
