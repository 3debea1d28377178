"""Running pipelines in a test's project, by our repro and by DVC's, and seeing which commands ran."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project

from millpond.daemon.project.context import LocalContext

# Each command adds its name to a file outside of the project, so that it shows what ran.
PIPELINE = {
    "src.txt": "one\n",
    "params.yaml": "a: 1\nb: {c: x}\nsize: 7\n",
    "code.sh": "echo code\n",
    "dvc.yaml": """
stages:
  first:
    cmd: echo first >> ../ran; mkdir -p mid && cat src.txt code.sh > mid/one && echo ${a} > mid/two
    deps: [src.txt, code.sh]
    params: [a, size]
    outs: [mid]
  second:
    cmd:
    - echo second >> ../ran
    - cat mid/one > second.txt; chmod +x second.txt
    - "echo '{\\"score\\": 1}' > score.json"
    deps: [mid/one]
    params: [b.c]
    outs: [second.txt]
    metrics: [score.json: {cache: false}]
  third:
    cmd: echo third >> ../ran; cat second.txt mid/two > third.txt
    deps: [second.txt, mid]
    outs: [third.txt: {desc: "the end"}]
  aside:
    cmd: echo aside >> ../ran; echo aside > aside.txt
    deps: [code.sh]
    outs: [aside.txt]
""",
}


class Pipe:
    """A project with a pipeline, and what ran in it."""

    def __init__(self, project: Project, files: Mapping[str, str] = PIPELINE) -> None:
        self.project = project
        self.said = ""
        for path, text in files.items():
            project.write(path, text)

    def repro(self, *targets: str, **params: Any) -> dict[str, Any]:
        """Our repro; what it said, and its commands wrote, is in `said`."""
        with tempfile.TemporaryFile() as out:
            context = _Context(self.project.store, os.getuid(), None, [out.fileno(), out.fileno()])
            before, self.project.context = self.project.context, context
            try:
                return self.project.run("repro", *targets, **params)
            finally:
                self.project.context = before
                out.seek(0)
                self.said = out.read().decode()

    def dvc_repro(self, *argv: str, code: int = 0) -> str:
        """DVC's repro, with all objects at hand; what it said."""
        self.project.export()
        ran = real_dvc().run("repro", *argv, cwd=self.project.root)
        assert ran.code == code, ran.err
        return ran.out

    def ran(self) -> list[str]:
        """The commands that ran since this was asked."""
        path = self.project.base / "ran"
        found = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    def lock(self, folder: str = ".") -> str:
        return (self.project.root / folder / "dvc.lock").read_text()

    def outcomes(self, *targets: str, **params: Any) -> dict[str, str]:
        return {row["name"]: row["outcome"] for row in self.repro(*targets, **params)["stages"]}


class _Context(LocalContext):
    """With the descriptors that a client sends."""

    def __init__(self, store: Any, uid: int, on_progress: Any, fds: list[int]) -> None:
        super().__init__(store, uid, on_progress)
        self.fds = fds


def read_tree(root: Path) -> dict[str, bytes]:
    """All files of a project but Git's and DVC's own."""
    found = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_file() and relative.parts[0] not in (".git", ".dvc"):
            found[str(relative)] = path.read_bytes()
    return found
