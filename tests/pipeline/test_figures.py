"""metrics, params, plots beside real DVC, on the same project."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cli.helpers import Home
from tests.jobs.helpers import until
from tests.pipeline.figurehelp import FILES, as_data, make, png, write
from tests.project.realdvc import real_dvc

METRICS = [
    ["metrics", "show"],
    ["metrics", "show", "-a", "-T"],
    ["metrics", "show", "-A"],
    ["metrics", "show", "--precision", "3"],
    ["metrics", "show", "--md"],
    ["metrics", "show", "m.json", "sub/n.yaml"],
    ["metrics", "show", "-R", "sub"],
    ["metrics", "diff"],
    ["metrics", "diff", "v1"],
    ["metrics", "diff", "v1", "v2"],
    ["metrics", "diff", "--md"],
    ["metrics", "diff", "--all", "--no-path", "--precision", "8"],
    ["metrics", "diff", "--targets", "m.json"],
    ["params", "diff"],
    ["params", "diff", "v1", "--all"],
    ["params", "diff", "v1", "v2"],
    ["params", "diff", "--no-path"],
    ["params", "diff", "--deps"],
    ["params", "diff", "--md"],
    ["params", "diff", "--targets", "extra.py", "other.yaml"],
]
# The tables of these are compared by quick tests, too; of the others their JSON is.
SHOWN = (["metrics", "show", "-a", "-T"], ["metrics", "diff"], ["metrics", "diff", "--md"], ["params", "diff"])
PLOTS = [
    ["show"],
    ["diff", "v1", "v2"],
    ["show", "noheader.csv", "--no-header", "-x", "0", "-y", "2"],
    ["show", "cm.csv", "plots_dir", "--title", "TT", "-t", "simple", "--x-label", "xl", "--y-label", "yl"],
]


@pytest.fixture(scope="module")
def made() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="mp-fig-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        make(home)
        try:
            yield home
        finally:
            home.close()


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="mp-fig-", ignore_cleanup_errors=True) as folder:
        fresh = Home(Path(folder))
        try:
            yield fresh
        finally:
            fresh.close()


def both(home: Home, *words: str, cwd: Path | None = None) -> tuple[str, str]:
    """What we say and what DVC says."""
    ours = home.run(*words, cwd=cwd)
    theirs = real_dvc().run(*words, cwd=cwd or home.repo)
    assert theirs.code == 0, theirs.err
    return ours.stdout, theirs.out


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, marks=[] if words in SHOWN else pytest.mark.long, id=" ".join(words)) for words in METRICS],
)
def test_tables(made: Home, words: list[str]) -> None:
    """DVC puts files of parameters in no order, and those that cannot be read in none of ours."""
    ours, theirs = both(made, *words)
    assert sorted(ours.splitlines()) == sorted(theirs.splitlines())
    assert ours.splitlines()[:1] == theirs.splitlines()[:1]


@pytest.mark.parametrize("words", [each for each in METRICS if each not in SHOWN and "--md" not in each], ids=" ".join)
def test_json(made: Home, words: list[str]) -> None:
    ours, theirs = (without_errors(as_data(text)) for text in both(made, *words, "--json"))
    assert ours == theirs


@pytest.mark.parametrize("words", [["metrics", "show"], ["metrics", "diff"], ["params", "diff"]], ids=" ".join)
def test_paths_are_seen_from_the_callers_folder(made: Home, words: list[str]) -> None:
    ours, theirs = (without_errors(as_data(text)) for text in both(made, *words, "--json", cwd=made.repo / "sub"))
    assert ours == theirs
    assert any("n.yaml" in text or ".." in text for text in json.dumps(ours).split('"'))


def without_errors(value: Any) -> Any:
    """Each error as True: their words are our own."""
    if isinstance(value, dict):
        return {key: True if key == "error" else without_errors(each) for key, each in value.items()}
    return value


leaf = st.one_of(
    st.integers(-1000, 1000),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.booleans(),
    st.none(),
    st.sampled_from(["", "text", "ü"]),
    st.lists(st.integers(0, 3), max_size=2),
)
documents = st.dictionaries(
    st.sampled_from("abcd"),
    st.recursive(leaf, lambda inner: st.dictionaries(st.sampled_from("xyz"), inner), max_leaves=6),
)


@settings(max_examples=5 if os.environ.get("MILLPOND_TESTS") != "long" else 60)
@given(old=documents, new=documents)
def test_random_documents(made: Home, old: dict[str, Any], new: dict[str, Any]) -> None:
    path = made.repo / "random.json"
    path.write_text(json.dumps(old))
    made.git("add", "-f", path.name)
    made.git("commit", "-qm", "random", "--", path.name)
    try:
        path.write_text(json.dumps(new))
        for command in ("metrics", "params"):
            ours, theirs = both(made, command, "diff", "--targets", path.name, "--json")
            assert as_data(ours) == as_data(theirs)
    finally:
        made.git("reset", "-q", "HEAD~1")
        path.unlink()


@pytest.mark.parametrize(
    "words",
    [
        *(pytest.param(words, id=" ".join(words)) for words in PLOTS),
        *(
            pytest.param(words, id=" ".join(words), marks=pytest.mark.long)
            for words in (["diff"], ["diff", "v1"], ["diff", "v2", "v1", "HEAD"])
        ),
    ],
)
def test_plots_are_what_dvc_draws(made: Home, words: list[str]) -> None:
    ours, theirs = (as_data(text) for text in both(made, "plots", *words, "--json"))
    assert drawn(ours) == drawn(theirs)
    assert {error["name"] for error in ours.get("errors", [])} == {error["name"] for error in theirs.get("errors", [])}


def test_plots_from_below(made: Home) -> None:
    ours, theirs = (as_data(text) for text in both(made, "plots", "show", "--json", cwd=made.repo / "deep"))
    assert drawn(ours) == drawn(theirs)


def drawn(told: dict[str, Any]) -> dict[str, Any]:
    """The figures; where an image was written is each tool's own."""
    return {
        name: [{key: value for key, value in each.items() if key != "url"} for each in figures]
        for name, figures in told["data"].items()
    }


def test_a_definition_is_drawn_once_when_it_is_named(made: Home) -> None:
    told = as_data(made.run("plots", "show", "both", "--json").stdout)
    assert list(told["data"]) == ["both"]
    [spec] = made.run("plots", "show", "both", "--show-vega").stdout.splitlines()
    assert json.loads(spec) == told["data"]["both"][0]["content"]


def test_the_report_needs_no_network_and_shows_images(made: Home, tmp_path: Path) -> None:
    said = made.run("plots", "diff", "v1", "-o", str(tmp_path / "out")).stdout.strip()
    assert said == f"file://{tmp_path}/out/index.html"
    page = (tmp_path / "out/index.html").read_text()
    assert 'src="http' not in page and "vegaEmbed" in page
    assert page.count("data:image/png;base64,") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]


def test_a_page_of_ones_own(made: Home, tmp_path: Path) -> None:
    own = tmp_path / "own.html"
    own.write_text("<h1>Mine</h1>{scripts}{plot_divs}")
    made.run("plots", "show", "both", "-o", str(tmp_path / "out"), "--html-template", str(own))
    assert (tmp_path / "out/index.html").read_text().startswith("<h1>Mine</h1><script>")
    own.write_text("<h1>Mine</h1>")
    failed = made.run("plots", "show", "both", "--html-template", str(own), code=None)
    assert failed.returncode != 0 and "{plot_divs}" in failed.stderr


def test_a_name_cannot_end_the_script_that_it_stands_in(made: Home, tmp_path: Path) -> None:
    (made.repo / "evil.csv").write_text("a,</script><b>\n1,2\n")
    try:
        made.run("plots", "show", "evil.csv", "-o", str(tmp_path / "out"))
        page = (tmp_path / "out/index.html").read_text()
        assert "</script><b>" not in page and "\\u003c/script>" in page
    finally:
        (made.repo / "evil.csv").unlink()


def test_in_a_terminal(made: Home) -> None:
    shown = made.run("plots", "show", "named", "--text").stdout.splitlines()
    assert shown[0] == "named" and shown[1].lstrip().startswith("1 ")
    assert [line.split("⣿ ")[1] for line in shown if "⣿ " in line] == [
        "workspace logs.csv loss",
        "workspace more.json acc",
    ]


def test_templates_are_dvcs(made: Home) -> None:
    assert both(made, "plots", "templates")[0] == real_dvc().ok("plots", "templates", cwd=made.repo)
    ours, theirs = both(made, "plots", "templates", "simple")
    assert json.loads(ours) == json.loads(theirs)


def test_modify_changes_what_is_said_of_a_plot_alone(made: Home) -> None:
    path = made.repo / "dvc.yaml"
    before = path.read_text()
    try:
        said = made.run("plots", "modify", "cm.csv", "--title", "t", "--no-header", "-x", "p", "--unset", "template")
        assert said.stdout == "Modifying stage 'train' in 'dvc.yaml'\n"
        ours = path.read_text()
        # DVC changes no stage with a template in it.
        path.write_text(before.replace("${x.y}", "5"))
        real_dvc().ok("plots", "modify", "cm.csv", "--title", "t", "--no-header", "-x", "p", cwd=made.repo)
        real_dvc().ok("plots", "modify", "cm.csv", "--unset", "template", cwd=made.repo)
        assert plots_of(ours) == plots_of(path.read_text())
        changed = set(before.splitlines()) ^ set(ours.splitlines())
        assert {line.split(":")[0].strip() for line in changed} == {"template", "x", "title", "header"}
    finally:
        path.write_text(before)


def plots_of(text: str) -> dict[str, Any]:
    from ruamel.yaml import YAML

    found: dict[str, Any] = {}
    for entry in YAML(typ="safe").load(text)["stages"]["train"]["plots"]:
        found.update(entry if isinstance(entry, dict) else {entry: None})
    return found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plots", "show", "nothing.csv"], "'nothing.csv'"),
        (["plots", "show", "both", "-t", "nope"], "template 'nope'"),
        (["plots", "show", "both", "-x", "nope"], "no field 'nope'"),
        (["plots", "diff", "v1", "nope"], "revision 'nope'"),
        (["plots", "modify", "m.json", "-x", "a"], "no stage has a plot 'm.json'"),
        (["plots", "modify", "cm.csv", "--unset", "nope"], "no setting 'nope'"),
        (["plots", "templates", "nope"], "no template 'nope'"),
        (["metrics", "diff", "nope"], "revision 'nope'"),
        (["params", "diff", "--targets", "/etc/passwd"], "outside of the project"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_told_in_a_line(made: Home, words: list[str], said: str) -> None:
    failed = made.run(*words, code=None)
    assert failed.returncode not in (0, 1) and said in failed.stderr
    assert "Traceback" not in failed.stderr


def test_metrics_that_only_the_cache_has(made: Home) -> None:
    """A revision's cached metrics come from the store or DVC's cache, and the workspace's when they are not in place."""
    (made.repo / "cached.json").rename(made.repo / "away")
    try:
        told = as_data(made.run("metrics", "diff", "v1", "v2", "--targets", "cached.json", "--json").stdout)
        assert told == {"cached.json": {"c": {"old": 0.25, "new": 1, "diff": 0.75}}}
        told = as_data(made.run("metrics", "show", "cached.json", "--json").stdout)
        assert told == {"": {"data": {"cached.json": {"data": {"c": 1}}}}}
    finally:
        (made.repo / "away").rename(made.repo / "cached.json")


def test_before_the_first_commit_and_without_plots(home: Home) -> None:
    home.git("init", "-q")
    home.dvc("init", "-q")
    write(home, {"dvc.yaml": "metrics: [m.json]\n", "m.json": FILES["m.json"], "params.yaml": "a: 1\n"})
    assert as_data(home.run("metrics", "diff", "--json").stdout) == {"m.json": {"a": {"old": None, "new": 1}}}
    assert as_data(home.run("params", "diff", "--json").stdout) == {"params.yaml": {"a": {"old": None, "new": 1}}}
    assert home.run("plots", "show").stdout == "There are no plots: dvc.yaml defines none.\n"
    assert png()[:4] == b"\x89PNG"


@pytest.mark.long
def test_a_report_is_opened_in_the_browser_when_asked(made: Home, tmp_path: Path) -> None:
    tools, said = tmp_path / "tools", tmp_path / "said"
    tools.mkdir()
    (tools / "xdg-open").write_text(f'#!/bin/sh\nprintf "%s" "$1" > {said}.new && mv {said}.new {said}\n')
    (tools / "xdg-open").chmod(0o755)
    env = {"PATH": f"{tools}:{made.env['PATH']}"}
    made.run("plots", "show", "-o", str(tmp_path / "quiet"), env=env)
    out = tmp_path / "opened here"
    shown = made.run("plots", "show", "--open", "-o", str(out), env=env).stdout
    page = out / "index.html"
    assert f"file://{page}" in shown and page.is_file()
    assert until(lambda: said.exists() and said.read_text()) == str(page), "and not the first one"


@pytest.mark.long
def test_a_browser_draws_the_report(made: Home, tmp_path: Path) -> None:
    """Without a network: each chart has become a picture of some size."""
    made.run("plots", "diff", "v1", "-o", str(tmp_path / "out"))
    page = tmp_path / "out/index.html"
    probe = "setInterval(() => { document.title = `drawn ${document.querySelectorAll('canvas.marks, svg.marks').length}` }, 200)"
    before, _, after = page.read_text().rpartition("</body>")
    page.write_text(f"{before}<script>{probe}</script></body>{after}")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=30000",
        "--dump-dom",
        f"file://{page}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    told = as_data(made.run("plots", "diff", "v1", "--json").stdout)
    charts = sum(figures[0]["type"] == "vega" for figures in told["data"].values() if figures)
    assert charts > 10 and f"<title>drawn {charts}</title>" in done.stdout
