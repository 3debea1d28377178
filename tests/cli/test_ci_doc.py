"""docs/ci.md: its scripts run as they stand, on clean clones, by a user who has nothing but the clone and the remote."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.cli.helpers import Home
from tests.project.realdvc import real_dvc

PAGE = Path(__file__).parents[2] / "docs/ci.md"
PIPELINE = """
stages:
  prepare:
    cmd: sort data > sorted
    deps: [data]
    outs: [sorted]
  train:
    cmd: cat sorted > model; echo ${c} >> model
    deps: [sorted]
    params: [c]
    outs: [model]
  evaluate:
    cmd: echo "{\\"accuracy\\":" $(tail -n 1 model) "}" > metrics.json
    deps: [model]
    metrics: [metrics.json: {cache: false}]
"""


def blocks() -> list[tuple[str, str]]:
    """(language, text) of each block of the page."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def github() -> list[str]:
    """The steps' scripts; each has a shell of its own."""
    job = _yaml(0)["jobs"]["pipeline"]
    return [step["run"] for step in job["steps"] if "run" in step and step["name"] != "Install"]


def gitlab() -> list[str]:
    """The lines have one shell."""
    job = _yaml(1)["pipeline"]
    return ["\n".join(each for each in job["before_script"] + job["script"] if each not in gitlab_install())]


def github_install() -> list[str]:
    """The lines that install what is needed."""
    [script] = [step["run"] for step in _yaml(0)["jobs"]["pipeline"]["steps"] if step.get("name") == "Install"]
    return str(script).splitlines()


def gitlab_install() -> list[str]:
    return [each for each in _yaml(1)["pipeline"]["before_script"] if "install" in each or "apt-get" in each]


def _yaml(number: int) -> Any:
    texts = [text for language, text in blocks() if language == "yaml"]
    return YAML(typ="safe").load(texts[number])


class Team:
    """A repository on a server, a remote, and a developer whose pipeline has run on main."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.homes: list[Home] = []
        self.origin = base / "origin.git"
        self.dev = self.machine("dev")
        self.dev.git("init", "-q", "--bare", "-b", "main", str(self.origin), cwd=base)
        self.dev.git("init", "-q", "-b", "main")
        self.dev.git("remote", "add", "origin", str(self.origin))
        self.dev.run("init", "-q")
        self.dev.run("remote", "add", "-q", "-d", "team", str(base / "remote"))
        for name, text in {"dvc.yaml": PIPELINE, "params.yaml": "c: 0.5\n", "data": "2\n1\n"}.items():
            (self.dev.repo / name).write_text(text)
        self.dev.run("add", "-q", "data")
        self.dev.run("repro", "-q")
        self.dev.run("push", "-q")
        self.commit("main", "first")

    def machine(self, name: str) -> Home:
        self.homes.append(Home(self.base / name))
        return self.homes[-1]

    def commit(self, branch: str, message: str) -> None:
        self.dev.git("checkout", "-q", "-B", branch)
        self.dev.git("add", "-A")
        self.dev.git("commit", "-q", "-m", message)
        self.dev.git("push", "-q", "origin", branch)

    def request(self, branch: str, accuracy: float) -> None:
        """A branch that changes a parameter, as a person pushes it who has not run the pipeline."""
        self.dev.git("checkout", "-q", "main")
        (self.dev.repo / "params.yaml").write_text(f"c: {accuracy}\n")
        self.commit(branch, branch)

    def clone(self, name: str, branch: str) -> Home:
        home = self.machine(name)
        home.git("clone", "-q", "-b", branch, str(self.origin), str(home.repo))
        return home

    def ci(self, home: Home, branch: str, scripts: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a recipe; what its last script came to."""
        env = {
            **home.env,
            "BASE": "origin/main",
            "BRANCH": branch,
            "PUSH_URL": str(self.origin),
            "GITHUB_STEP_SUMMARY": str(home.path / "summary.md"),
        }
        for script in scripts:
            command = ["bash", "-eo", "pipefail", "-c", script]
            done = subprocess.run(command, cwd=home.repo, env=env, capture_output=True, text=True, timeout=120)
            if done.returncode:
                break
        return done

    def remote(self) -> set[str]:
        return {path.name for path in (self.base / "remote").rglob("*") if path.is_file()}

    def head(self, branch: str) -> str:
        return self.dev.git("rev-parse", branch, cwd=self.origin)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    team = Team(tmp_path_factory.mktemp("ci"))
    yield team
    for home in team.homes:
        home.close()


@pytest.mark.long
@pytest.mark.parametrize("recipe", [github, gitlab])
def test_a_request_is_run_compared_and_given_back(team: Team, recipe: Callable[[], list[str]]) -> None:
    name = recipe.__name__
    better = {"github": 0.75, "gitlab": 0.875}[name]
    team.request(f"better-{name}", better)
    runner = team.clone(f"runner-{name}", f"better-{name}")
    before = team.head(f"better-{name}")
    done = team.ci(runner, f"better-{name}", recipe())
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    if name == "github":
        assert f"| metrics.json | accuracy | 0.5           | {better}" in (runner.path / "summary.md").read_text()
    else:
        assert "train     ran" in done.stdout and "c changed from 0.5 to 0.875" in done.stdout
        assert f"| {better} " in done.stdout
    assert team.head(f"better-{name}") != before
    assert runner.git("status", "--porcelain") == ""
    if name == "github":  # everybody gets what was made, real DVC as well, and has nothing left to run
        other = team.clone("other", f"better-{name}")
        assert real_dvc().ok("pull", "-q", cwd=other.repo) == ""
        assert (other.repo / "model").read_text() == f"1\n2\n{better}\n"
        assert real_dvc().ok("status", cwd=other.repo) == "Data and pipelines are up to date.\n"
    else:  # run again it finds nothing to do
        head = team.head(f"better-{name}")
        assert team.ci(team.clone("again", f"better-{name}"), f"better-{name}", recipe()).returncode == 0
        assert team.head(f"better-{name}") == head


@pytest.mark.parametrize("recipe", [github, gitlab])
def test_the_gate_keeps_worse_metrics_out(team: Team, recipe: Callable[[], list[str]]) -> None:
    name = recipe.__name__
    team.request(f"worse-{name}", 0.25)
    head, kept = team.head(f"worse-{name}"), team.remote()
    done = team.ci(team.clone(f"gate-{name}", f"worse-{name}"), f"worse-{name}", recipe())
    assert done.returncode == 1 and done.stderr.endswith("accuracy fell from 0.5 to 0.25\n"), done.stderr
    assert (team.head(f"worse-{name}"), team.remote()) == (head, kept)


def test_a_lock_that_does_not_match_is_seen_without_data(team: Team) -> None:
    [check] = [text for language, text in blocks() if language == "sh"]
    team.request("stale", 0.625)
    stale = team.ci(team.clone("runner-stale", "stale"), "stale", [check])
    assert stale.returncode == 1
    assert "params.yaml: c changed from 0.5 to 0.625" in stale.stdout
    assert team.ci(team.clone("runner-main", "main"), "main", [check]).returncode == 0


@pytest.mark.parametrize("lines", [github_install, gitlab_install])
def test_the_installation_has_what_is_built(lines: Callable[[], list[str]]) -> None:
    system = [line.removeprefix("sudo ").split() for line in lines() if "apt-get" in line]
    assert [words[1] for words in system] == ["update", "install"]
    readme = re.search(r"`apt-get install ([^`]+)`", (PAGE.parents[1] / "README.md").read_text())
    # The images have Git and Python's headers; nothing is mounted.
    assert readme is not None and set(readme[1].split()) - {"fuse3", "git", "python3-dev"} == set(system[1][4:])


@pytest.mark.long
@pytest.mark.parametrize("lines", [github_install, gitlab_install])
def test_pip_takes_the_line_as_it_stands(lines: Callable[[], list[str]], tmp_path: Path) -> None:
    """Up to what it would bring beside millpond itself, which is built from the repository."""
    (tmp_path / "requirements.txt").touch()
    # As variables these would hold for what pip brings to build it, too.
    script = 'pip() { command pip "$@" --dry-run --no-deps; }\n'
    script += "\n".join(line for line in lines() if "pip install" in line)
    env = {**os.environ, "MILLPOND_URL": f"file://{PAGE.parents[1]}"}
    env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Would install millpond-" in done.stdout, f"{done.stdout}\n{done.stderr}"
