"""What a pipeline of DVC's makes, shared: its run cache, its metrics and plots."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.project.realdvc import real_dvc
from tests.remote.shared import Team

STAGES = """
metrics: [more]
plots:
- drawn: {y: {table/t.csv: a}}
stages:
  prep:
    cmd: mkdir -p d more table && cp src d/o && cp src d2 && cp src m.json && cp src p.csv && cp src more/n && cp src table/t.csv
    deps: [src]
    outs: [d, d2, more, table]
    metrics: [m.json]
    plots: [p.csv]
"""


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Team, Home]]:
    """Somebody whose stage was run twice by real DVC."""
    with tempfile.TemporaryDirectory(prefix="mp-runs-", ignore_cleanup_errors=True) as folder:
        team = Team(Path(folder), f"{folder}/remote", None, [])
        ann = team.person("ann")
        (ann.repo / "dvc.yaml").write_text(STAGES)
        for text in ("first\n", "second\n"):
            (ann.repo / "src").write_text(text)
            real_dvc().ok("repro", "-q", cwd=ann.repo)
        ann.git("add", "-A")
        ann.git("commit", "-qm", "made")
        yield team, ann
        for home in team.people:
            home.close()


def runs(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("runs/*/*/*")}


def test_a_run_cache_is_shared_as_dvc_shares_it(made: tuple[Team, Home]) -> None:
    team, ann = made
    expected = team.folder / "by-dvc"
    real_dvc().ok("remote", "add", "-q", "--local", "other", str(expected), cwd=ann.repo)
    real_dvc().ok("push", "-q", "--run-cache", "-r", "other", cwd=ann.repo)
    theirs = {str(path.relative_to(expected)) for path in expected.rglob("*") if path.is_file()}
    count = json.loads(ann.run("push", "--run-cache", "--json").stdout)["objects"]
    assert set(team.keys()) == theirs and count == len(theirs)
    assert runs(Path(team.url)) == runs(ann.repo / ".dvc/cache") and len(runs(Path(team.url))) == 2
    assert ann.run("push", "--run-cache").stdout == "Everything is up to date.\n"
    odd = Path(team.url) / ("runs/ab/ab" + "0" * 62 + "/" + "1" * 64)
    odd.parent.mkdir(parents=True)
    odd.write_text("- no entry")
    (Path(team.url) / "runs/escape").write_text("x")
    bob = team.person("bob", ann)
    done = bob.run("pull", "--run-cache")
    assert "2 entries of the run cache fetched" in done.stdout and "no entry of a run cache" in done.stderr
    assert runs(bob.repo / ".dvc/cache") == runs(ann.repo / ".dvc/cache")
    bob.run("cache", "export")
    (bob.repo / "dvc.lock").unlink()
    assert "is cached - skipping run" in real_dvc().ok("repro", cwd=bob.repo)
    assert bob.run("fetch", "--no-run-cache").stdout == "Everything is up to date.\n"
    odd.unlink()


def test_repro_pull_takes_what_others_made(made: tuple[Team, Home]) -> None:
    team, ann = made
    ann.run("push", "-q", "--run-cache")
    ours, theirs = (team.person(who, ann) for who in ("carol", "dave"))
    wanted = (ann.repo / "dvc.lock").read_bytes()
    for who in (ours, theirs):
        (who.repo / "dvc.lock").unlink()
    assert "is cached - skipping run" in real_dvc().ok("repro", "--pull", cwd=theirs.repo)
    assert "is cached - skipping run" in ours.run("repro", "--pull").stdout
    assert (ours.repo / "dvc.lock").read_bytes() == (theirs.repo / "dvc.lock").read_bytes() == wanted
    (ours.repo / ".dvc/config").write_text("[core]\n    remote = gone\n")
    (ours.repo / "dvc.lock").unlink()
    done = ours.run("repro", "--pull", "--no-run-cache")
    assert "Running stage" in done.stdout and "run cache" not in done.stderr
    (ours.repo / "src").write_text("third\n")
    done = ours.run("repro", "--pull")
    assert "the run cache was not pulled: " in done.stderr and "Running stage" in done.stdout


@pytest.mark.parametrize(
    "words",
    [["plots"], *(pytest.param(each, marks=pytest.mark.long) for each in (["metrics"], ["metrics", "plots"]))],
    ids="-".join,
)
def test_metrics_and_plots_alone(made: tuple[Team, Home], words: list[str]) -> None:
    team, ann = made
    ann.run("push", "-q")
    readers = [team.person(f"{who}-{'-'.join(words)}", ann) for who in ("theirs", "ours")]
    options = [option for word in words for option in ("--type", word)]
    real_dvc().ok("fetch", *options, cwd=readers[0].repo)
    readers[1].extra["MILLPOND_EXPORT"] = "always"
    readers[1].run("fetch", *options)
    theirs, ours = ({path.name for path in (each.repo / ".dvc/cache").rglob("*") if path.is_file()} for each in readers)
    assert ours == theirs and theirs
    assert readers[1].run("fetch", *options, "d").stdout == "Everything is up to date.\n"
    readers[1].run("fetch", *options, "-A")
