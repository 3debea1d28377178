"""Random dvc.yaml files, many of them wrong: ours and DVC refuse the same ones, and make the same stages of the others."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from millpond.daemon.errors import MillpondError
from millpond.daemon.pipeline import graph, pipelines
from millpond.daemon.pipeline.stage import address
from millpond.daemon.project import yamlio
from millpond.daemon.project.repo import Repo

COUNT = 300 if os.environ.get("MILLPOND_TESTS") == "long" else 25
_SCALARS: list[Any] = [1, 0.5, 1e-5, True, None, "text", "two words", "it's", "", "${nope", "\\${kept}"]
_ORACLE = """
import json, os, sys
from dvc.repo import Repo
from dvc.stage.utils import split_params_deps
found = {}
for root in json.load(sys.stdin):
    os.chdir(root)
    try:
        index = Repo('.').index
        edges = [[b.addressing, a.addressing] for a, b in index.graph.edges]
        stages = {}
        for stage in index.stages:
            params, deps = split_params_deps(stage)
            stages[stage.addressing] = {'cmd': stage.cmd, 'deps': [d.def_path for d in deps],
                'params': {p.def_path: list(dict.fromkeys(p.params)) for p in params}, 'outs': [o.def_path for o in stage.outs],
                'wdir': os.path.relpath(stage.wdir, root)}
        found[root] = {'stages': stages, 'edges': sorted(edges)}
    except Exception as error:
        found[root] = None
print(json.dumps(found))
"""


class _Maker:
    """Makes one dvc.yaml, and the names that its templates may use."""

    def __init__(self, seed: int) -> None:
        self.rnd = random.Random(seed)
        self.names = ["a", "b.c", "b.d[0]", "l[1]", "deep.x.y"]

    def params(self) -> dict[str, Any]:
        pick = self.rnd.choice
        return {
            "a": pick(_SCALARS), "b": {"c": pick(_SCALARS), "d": [pick(_SCALARS), 2]}, "l": [pick(_SCALARS), pick(_SCALARS), 3],
            "deep": {"x": {"y": pick(_SCALARS), "flag": pick([True, False]), "many": [1, "b c"]}}, "names": ["p", "q", 3],
            "maps": {"first": {"v": 1}, "second": {"v": pick(_SCALARS)}},
        }  # fmt: skip

    def text(self, more: tuple[str, ...] = ()) -> str:
        parts = ["w"]
        for _ in range(self.rnd.randrange(3)):
            names = [*self.names, *more, *more, *(["gone", "l", "b"] if self.rnd.random() < 0.05 else [])]
            parts.append(self.rnd.choice(["x", "-", " ", ".", f"${{{self.rnd.choice(names)}}}"]))
        return "".join(parts)

    def stage(self, number: int, more: tuple[str, ...] = (), own: str = "") -> dict[str, Any]:
        rnd = self.rnd
        entry: dict[str, Any] = {
            "cmd": rnd.choice(
                [self.text(more), [self.text(more), "echo"], "run ${deep.x}", self.text(more) + " ${maps}"]
            )
        }
        if rnd.random() < 0.2:
            entry["wdir"] = rnd.choice([".", "sub", "./sub/../sub"])
        if rnd.random() < 0.6:
            entry["deps"] = [
                rnd.choice([f"o{rnd.randrange(4)}", f"d{rnd.randrange(3)}/x", self.text(more)])
                for _ in range(rnd.randrange(3))
            ]
        entry["outs"] = [rnd.choice([f"o{number}{own}", f"d{number}/x{own}"]), {f"e{number}{own}": {"cache": False}}][
            : rnd.randrange(3)
        ]
        if rnd.random() < 0.4:
            entry["params"] = rnd.choice(
                [["a", "b.c"], [{"other.json": ["k"]}], [{"params.yaml": None}, "a"], ["a", {"params.yaml": ["l"]}]]
            )
        if rnd.random() < 0.2:
            entry["vars"] = [rnd.choice([{"local": 1}, {"a": 2}, "more.yaml", "more.yaml:m", {"deep": {"z": 1}}])]
        if rnd.random() < 0.05:
            entry[rnd.choice(["oops", "frozen", "desc", "meta", "always_changed"])] = rnd.choice(
                [True, "text", {"k": 1}]
            )
        return entry

    def document(self) -> dict[str, Any]:
        rnd, stages = self.rnd, {}
        for number in range(rnd.randrange(1, 5)):
            kind = rnd.random()
            if kind < 0.5:
                stages[f"s{number}"] = self.stage(number)
            elif kind < 0.75:
                loop = rnd.choice(
                    [
                        ["x", 1, True],
                        "${names}",
                        "${maps}",
                        {"k": {"v": 1}, "2": {"v": "b"}},
                        [{"v": 1}, {"v": 2}],
                        "${a}",
                    ]
                )
                use: tuple[str, ...] = ("item",) if loop in (["x", 1, True], "${names}", "${a}") else ("item.v",)
                use = (*use, "key") if isinstance(loop, dict) or loop == "${maps}" else use
                own = "-${key}" if "key" in use else "-${item}" if use == ("item",) else "-${item.v}"
                stages[f"s{number}"] = {"foreach": loop, "do": self.stage(number, use, own)}
            else:
                matrix = {"m": rnd.choice([["x", 2], "${names}"]), "n": rnd.choice([[0.5], [{"v": 1}, "s"], "${l}"])}
                stages[f"s{number}"] = {"matrix": matrix, **self.stage(number, ("item.m", "key"), "-${key}")}
        document: dict[str, Any] = {"stages": stages}
        if rnd.random() < 0.3:
            document["vars"] = [
                rnd.choice([{"g": 1}, {"a": 2}, "more.yaml", "more.yaml:m", "params.yaml", "params.yaml:a"])
            ]
        return document


def _ours(root: Path) -> dict[str, Any] | None:
    try:
        loaded = pipelines.load(Repo.open(str(root), {"HOME": str(root)}))
        built = graph.build(loaded.stages, str)
    except MillpondError:
        return None
    stages = {
        address(stage, stage.file): {
            "cmd": stage.cmd,
            "deps": [dep.path for dep in stage.deps],
            "params": {params.path: list(params.keys) for params in stage.params},
            "outs": [out.path for out in stage.outs],
            "wdir": stage.wdir or ".",
        }
        for stage in loaded.stages
    }
    edges = [
        [address(other, other.file), address(stage, stage.file)]
        for stage in built.stages
        for other in built.needs[stage]
    ]
    return {"stages": stages, "edges": sorted(edges)}


def test_random_files_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    roots = []
    for seed in range(COUNT):
        maker, root = _Maker(seed), tmp_path / str(seed)
        (root / ".dvc").mkdir(parents=True)
        (root / "sub").mkdir()
        (root / ".dvc/config").write_text("[core]\n    no_scm = true\n")
        (root / "params.yaml").write_text(yamlio.dump(maker.params()))
        (root / "more.yaml").write_text("m: 1\nn: 2\n")
        (root / "dvc.yaml").write_text(yamlio.dump(maker.document()))
        roots.append(str(root))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ORACLE],
        input=json.dumps(roots),
        capture_output=True,
        text=True,
        check=True,
    )
    oracle = json.loads(done.stdout)
    for name in roots:
        assert _ours(Path(name)) == oracle[name], (Path(name) / "dvc.yaml").read_text()
    assert COUNT * 0.1 < sum(found is not None for found in oracle.values()) < COUNT * 0.9
