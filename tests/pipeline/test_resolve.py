"""Stages and graphs of dvc.yaml files, as real DVC has them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from tests.pipeline.examples import LOOPS, REFUSED, SEVERAL
from tests.project.realdvc import real_dvc
from tests.project.test_formats import CORPUS, copied_corpus
from tests.project.verbhelp import Project

from millpond.daemon.errors import InvalidFileError, MillpondError, OverlapError
from millpond.daemon.pipeline import graph, pipelines
from millpond.daemon.pipeline.stage import address
from millpond.daemon.project import quickyaml, yamlio
from millpond.daemon.project.repo import Repo


def written(project: Project, files: Mapping[str, str]) -> Project:
    for path, text in files.items():
        project.write(path, text)
    return project


def listed(project: Project, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = project.run("stage.list", all=True, fail=True, **params)["stages"]
    return found


def edges(text: str) -> set[str]:
    return {line for line in text.splitlines() if line.endswith(";")}


def resolved_by_dvc(project: Project) -> dict[str, dict[str, Any]]:
    """What DVC makes of each stage: command, dependencies, parameters, outputs, as it writes them to dvc.lock."""
    code = (
        "import json; from dvc.repo import Repo; from dvc.stage.utils import split_params_deps\n"
        "found = {}\n"
        "for stage in Repo('.').index.stages:\n"
        "    if stage.cmd:\n"
        "        params, deps = split_params_deps(stage)\n"
        "        found[stage.addressing] = {'cmd': stage.cmd, 'deps': [d.def_path for d in deps],\n"
        "            'params': {p.def_path: list(dict.fromkeys(p.params)) for p in params},\n"
        "            'outs': [o.def_path for o in stage.outs]}\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=project.root,
        env=project.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("files", [LOOPS, SEVERAL], ids=["loops", "several"])
def test_stages_and_graphs_are_dvc_s(project: Project, files: dict[str, str]) -> None:
    written(project, files)
    ours = {row["name"]: {key: row[key] for key in ("cmd", "deps", "params", "outs")} for row in listed(project)}
    commands = {name: row for name, row in ours.items() if row["cmd"] is not None}
    assert commands == resolved_by_dvc(project)
    assert edges(project.run("dag", format="dot")["text"]) == edges(project.dvc("dag", "--dot"))
    assert edges(project.run("dag", format="dot", outs=True)["text"]) == edges(project.dvc("dag", "--dot", "--outs"))
    for argv, params in (
        (("--mermaid",), {"format": "mermaid"}),
        (("--md", "--collapse-foreach-matrix"), {"format": "md", "collapse": True}),
    ):
        wanted = project.dvc("dag", *argv).splitlines()
        assert sorted(map(str, wanted)) == sorted(_renumbered(project.run("dag", **params)["text"], wanted))
    table = {
        line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1]
        for line in project.dvc("stage", "list", "--all").splitlines()
    }
    assert {row["name"]: row["description"] for row in listed(project)} == table


def _renumbered(text: str, wanted: list[str]) -> list[str]:
    """The lines with the numbers that DVC gave the same nodes: it takes pipelines in another order."""
    ours = {line.partition("[")[2]: line.strip().partition("[")[0] for line in text.splitlines() if "[" in line}
    theirs = {line.partition("[")[2]: line.strip().partition("[")[0] for line in wanted if "[" in line}
    names = {ours[label]: theirs[label] for label in ours}
    found = []
    for line in text.splitlines():
        head, arrow, tail = line.strip().partition("-->")
        if arrow:
            line = f"\t{names[head]}-->{names[tail]}"
        elif "[" in line:
            line = f"\t{names[head.partition('[')[0]]}[{line.partition('[')[2]}"
        found.append(line)
    return found


def test_targets_of_dag_and_list(project: Project) -> None:
    written(project, SEVERAL)
    for argv, params in (
        (("top",), {"target": "top"}),
        (("two/dvc.yaml:after",), {"target": "two/dvc.yaml:after"}),
        (("two/dvc.yaml:after", "--full"), {"target": "two/dvc.yaml:after", "full": True}),
        (("data",), {"target": "data"}),
    ):
        ours = edges(project.run("dag", format="dot", **params)["text"])
        assert ours == edges(project.dvc("dag", "--dot", *argv)), argv
    for argv in (("two/dvc.yaml",), ("data.dvc",), ("one/dvc.yaml:idle", "top"), ("-R", "two")):
        wanted = project.dvc("stage", "list", "--name-only", *argv).split()
        names = [word for word in argv if word != "-R"]
        found = project.run("stage.list", *names, recursive="-R" in argv)["stages"]
        assert sorted(row["name"] for row in found) == sorted(wanted)
    assert project.run("stage.list", cwd=project.root / "two")["stages"][0]["name"] == "deep"


@pytest.mark.parametrize("case", REFUSED)
def test_what_dvc_refuses_is_refused_at_its_place(project: Project, case: str) -> None:
    text, line, words = REFUSED[case]
    project.write("params.yaml", "a: 1\n")
    project.write("dvc.yaml", text)
    with pytest.raises(InvalidFileError) as caught:
        listed(project)
    assert caught.value.details["line"] == line
    assert words in caught.value.message
    assert "dvc.yaml" in caught.value.message
    assert real_dvc().run("stage", "list", "--all", "--fail", cwd=project.root).code == 255


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a: {cmd: x, outs: [o]}, b: {cmd: y, outs: [./o]}", ["'a'", "'b'", "'o'"]),
        ("a: {cmd: x, outs: [o]}, b: {cmd: y, outs: [o/in]}", ["'a'", "'b'", "'o/in'"]),
        ("a: {cmd: x, outs: [o], metrics: [./o]}", ["'a'", "twice"]),
        (
            "a: {cmd: x, deps: [p], outs: [o]}, b: {cmd: y, deps: [o], outs: [p]}, c: {cmd: z, deps: [p]}",
            ["'a'", "'b'"],
        ),
        ("a: {cmd: x, deps: [o], outs: [o]}", ["'a' -> 'a'"]),
    ],
)
def test_graphs_that_are_none_are_refused_with_the_names(project: Project, text: str, names: list[str]) -> None:
    project.write("dvc.yaml", f"stages: {{{text}}}\n")
    with pytest.raises((OverlapError, InvalidFileError)) as caught:
        project.run("dag")
    assert all(name in caught.value.message for name in names)
    assert real_dvc().run("dag", cwd=project.root).code == 255


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus is not here")
def test_real_projects_have_the_stages_and_graphs_that_dvc_found(tmp_path: Path) -> None:
    compared = 0
    copied_corpus(tmp_path)
    for oracle in sorted(CORPUS.glob("**/oracle.stages.txt")):
        root = tmp_path / oracle.parent.relative_to(CORPUS)
        top = tmp_path / oracle.relative_to(CORPUS).parts[0]
        subprocess.run(["git", "init", "-q", str(top)], check=True)
        (root / ".dvc").mkdir(exist_ok=True)
        (root / ".dvc" / "config").touch()
        repo = Repo.open(str(root), {"HOME": str(tmp_path)})
        loaded = pipelines.load(repo, tolerant=True)
        names = {stage: address(stage, stage.file) for stage in loaded.stages}
        assert sorted(names.values()) == sorted(filter(None, map(str.strip, oracle.read_text().splitlines()))), root
        codes = dict(line.split("=") for line in (oracle.parent / "oracle.exit").read_text().split())
        assert bool(loaded.failed) == (codes["stages-fail"] != "0"), root
        if codes["dag"] == "0":
            built = graph.build(loaded.stages, str)
            ours = {f'"{names[other]}" -> "{names[stage]}";' for stage in built.stages for other in built.needs[stage]}
            assert ours == {line for line in edges((oracle.parent / "oracle.dag.dot").read_text()) if "->" in line}, (
                root
            )
        compared += 1
    assert compared > 50


_WORDS = st.sampled_from(
    ["a", "b c", "1", "1.5", "1e-5", "true", "null", "~", "yes", "x: y", "a #b", "#c", "'q'", '"d"', "[1, two]", "{}", "-", "",
     "./p", "0x10", "0b11", "2020-01-01", "a:", "- n", "$x", "${v}", "1_000", "00", ".5", "é", "e1f", "12e3", "*a", "|", "k:", "@z"]
)  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["", "- ", "k: ", "- k: ", "j:", "m.n@o-1: ", "# "]), _WORDS))
)
def test_quick_yaml_is_yaml(lines: list[tuple[int, str, str]]) -> None:
    text = "".join(f"{'  ' * indent}{lead}{word}\n" for indent, lead, word in lines)
    done, document = quickyaml.load(text)
    if done:
        assert repr(document) == repr(YAML(typ="safe", pure=True).load(text)), text


_DATA = st.recursive(
    st.one_of(
        st.integers(-99, 99), st.booleans(), st.sampled_from(["text", "d3b07384d113edec49eaa6238ad5ff00", "a/b.c"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3), st.dictionaries(st.sampled_from(["k", "long.key"]), inner, min_size=1)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["a", "b@c"]), _DATA, min_size=1))
def test_what_dvc_writes_is_read_quickly(document: dict[str, Any]) -> None:
    text = yamlio.dump(document)
    done, found = quickyaml.load(text)
    nested = "- - " in text
    assert done or nested
    if done:
        assert found == document


def test_a_stage_of_several_wrong_files_is_named(project: Project) -> None:
    written(project, SEVERAL)
    project.write("three/dvc.yaml", "stages: 1\n")
    found = project.run("stage.list", all=True)
    assert list(found["failed"]) == ["three/dvc.yaml"]
    assert "top" in {row["name"] for row in found["stages"]}
    for target in ("three/dvc.yaml", "three/dvc.yaml:x", "nosuch", "two/dvc.yaml:nosuch", "gone.dvc"):
        with pytest.raises(MillpondError) as caught:
            project.run("stage.list", target)
        assert caught.value.exit_code == 255
        assert real_dvc().run("stage", "list", "--fail", target, cwd=project.root).code == 255
