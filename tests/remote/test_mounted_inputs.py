"""`repro --mount`: inputs that are not here are mounted while stages need them, and what comes of it is what files give."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.cli.helpers import Home
from tests.fusefs.helpers import eventually
from tests.mounts.conftest import fill
from tests.mounts.test_kills import processes
from tests.project.realdvc import real_dvc
from tests.remote import proxy as proxies
from tests.remote.conftest import ended
from tests.remote.proxy import Proxy, proxy
from tests.remote.servers import S3Server
from tests.remote.shared import Team
from tests.remote.test_lazy import through
from tests.store.helpers import sample

from millpond.daemon.mounts.place import MARKER

pytestmark = pytest.mark.fuse
over_s3 = pytest.mark.parametrize("team", ["s3"], indirect=True)
LARGE = 17_000_000
# Of the large file's bytes some; of the folder `all`, which holds data and a file of Git's, everything.
STAGES = """
stages:
  prep:
    cmd: mkdir -p mid && cat raw/a.txt raw/sub/one.bin > mid/joined && cp raw/sub/deep/two.bin mid/two
    deps: [raw]
    outs: [mid]
  train:
    cmd: head -c 100000 large.bin > model && cat mid/joined one.csv >> model && ./tool >> model
    deps: [mid, one.csv, raw/sub, large.bin, raw/a.txt, tool]
    outs: [model]
  all:
    cmd: find -L all -type f -print0 | LC_ALL=C sort -z | xargs -0 cat > everything
    deps: [all]
    outs: [everything]
"""


@pytest.fixture
def far(s3: S3Server) -> Iterator[Proxy]:
    with proxy(s3.endpoint) as made:
        yield made


@dataclass(slots=True)
class Made:
    """Ann's pipeline has run and all of it is pushed. Others have pointers alone, or, with `whole`, files."""

    team: Team
    ann: Home

    def clone(self, *, whole: bool = False) -> Home:
        home = self.team.person(f"p{len(self.team.people)}", self.ann)
        if whole:
            home.run("pull", "-q")
        return home


@pytest.fixture(scope="module", params=["local", pytest.param("s3", marks=pytest.mark.long)])
def made(request: pytest.FixtureRequest) -> Iterator[Made]:
    """For tests that leave the remote as it is."""
    with tempfile.TemporaryDirectory(prefix="mp-inp-", ignore_cleanup_errors=True) as folder:
        if request.param == "local":
            team = Team(Path(folder), f"{folder}/remote", None, [])
        else:
            server: S3Server = request.getfixturevalue("s3")
            team = Team(Path(folder), f"s3://{server.bucket('inputs')}/team", server, [])
        with ended(team):
            yield begin(team)


def begin(team: Team) -> Made:
    ann = team.person("ann")
    fill(ann.repo / "raw", 1)
    fill(ann.repo / "all/data", 2)
    (ann.repo / "all/of-git").write_text("git's\n")
    (ann.repo / "one.csv").write_text("1\n")
    (ann.repo / "tool").write_text("#!/bin/sh\necho a tool\n")
    (ann.repo / "tool").chmod(0o755)
    (ann.repo / "large.bin").write_bytes(sample(7, LARGE))
    ann.run("add", "-q", "raw", "all/data", "one.csv", "tool", "large.bin")
    (ann.repo / "dvc.yaml").write_text(STAGES)
    ann.run("repro", "-q")
    ann.git("add", "-A")
    ann.git("commit", "-qm", "made")
    ann.run("push", "-q")
    return Made(team, ann)


def change(home: Home, old: str, new: str) -> None:
    path = home.repo / "dvc.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def names(home: Home) -> list[str]:
    return sorted(path.name for path in home.repo.iterdir() if not path.name.startswith("."))


def lock(home: Home) -> str:
    return (home.repo / "dvc.lock").read_text()


def mounted(home: Home) -> list[str]:
    found = json.loads(home.run("mounts", "--json").stdout)["mounts"]
    return sorted(os.path.relpath(each["mountpoint"], home.repo) for each in found)


def last_run(home: Home, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(home.run("runs", stage, "-n", "1", "--json").stdout)["runs"][0]
    return found


def start(home: Home, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        home.command("repro", "--mount", *argv),
        cwd=home.repo,
        env=home.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def waits_in(home: Home, stage_command: str, name: str = "go") -> str:
    """A command that says that it has begun, then waits until it may go on."""
    return f"touch ../{name}.begun; while ! test -e ../{name}; do sleep 0.05; done; {stage_command}"


def test_what_is_not_here_is_mounted_and_gives_what_files_give(made: Made) -> None:
    ann, bob = made.clone(whole=True), made.clone()
    before = names(bob)
    said = bob.run("repro", "--mount").stdout
    assert said.endswith("Data and pipelines are up to date.\n") and names(bob) == before and "Mounting" not in said
    for home in (ann, bob):
        change(home, "cat mid/joined one.csv", "cat mid/joined one.csv one.csv")
        change(home, "xargs -0 cat >", "xargs -0 wc -c >")
    said = bob.run("repro", "--mount").stdout
    assert re.findall("Mounting '(.*?)'", said) == ["mid", "raw", "large.bin", "all/data"]
    assert mounted(bob) == [] and names(bob) == sorted([*before, "everything", "model", "one.csv", "tool"])
    assert not (bob.repo / "all/data").exists(), "no empty folder is left"
    # Real DVC, with all of the data as files, comes to the same.
    ann.run("cache", "export", "-q")
    real_dvc().ok("repro", "-q", cwd=ann.repo)
    assert lock(bob) == lock(ann)
    assert (bob.repo / "model").read_bytes() == (ann.repo / "model").read_bytes()
    reads = {row["path"]: row for row in last_run(bob, "train")["reads"]}
    assert set(reads) == {"mid", "raw", "large.bin"} and reads["mid"]["opened"] == 1
    assert 100_000 <= reads["large.bin"]["bytes"] < LARGE / 2, "what is not read is not brought"
    assert reads["large.bin"]["remote_bytes"] < LARGE
    assert not any(row["errors"] or row["shared"] or row["at_least"] for row in reads.values())
    assert "read " in bob.run("lineage", "model").stdout and "waited" in bob.run("runs").stdout
    bob.run("pull", "-q")
    bob.run("cache", "export", "-q")
    assert real_dvc().ok("status", "--json", cwd=bob.repo).strip() == "{}"


@pytest.mark.long
def test_a_stage_that_runs_anew_writes_files_where_its_old_output_would_be_mounted(made: Made) -> None:
    ann, bob = made.clone(whole=True), made.clone()
    for home in (ann, bob):
        change(home, "cat raw/a.txt raw/sub", "cat raw/a.txt raw/a.txt raw/sub")
    said = bob.run("repro", "--mount", "train", "-j", "2").stdout
    assert "Mounting 'mid'" not in said and said.count("Mounting 'raw'") == 1
    assert (bob.repo / "mid").is_dir() and mounted(bob) == []
    ann.run("repro", "-q", "train")
    assert lock(bob) == lock(ann)
    # What is recorded and nowhere is made anew.
    value = re.search(r"path: mid\n\s+hash: md5\n\s+md5: (\S+)", lock(ann))
    assert value is not None
    eve = made.clone()
    (eve.repo / "dvc.yaml").write_text((ann.repo / "dvc.yaml").read_text())
    (eve.repo / "dvc.lock").write_text(lock(ann))
    said = eve.run("repro", "--mount", "prep").stdout
    assert "Running stage 'prep'" in said and lock(eve) == lock(ann)


@pytest.mark.long
def test_which_are_mounted_is_said_by_settings(made: Made) -> None:
    bob = made.clone()
    change(bob, "cat mid/joined one.csv", "cat mid/joined one.csv one.csv")
    assert "does not exist" in bob.run("repro", "-s", "train", code=255).stderr
    config = bob.repo / ".dvc/config.millpond"
    config.write_text("[repro]\n    mount = auto\n    mount_above = 1kB\n")
    real_dvc().ok("config", "core.remote", cwd=bob.repo)
    bob.run("fetch", "-q", "mid", "large.bin")
    said = bob.run("repro", "train").stdout
    assert re.findall("Mounting '(.*?)'", said) == ["mid", "raw", "large.bin"], "what is large, here or not"
    change(bob, "cat mid/joined", "cat mid/joined mid/joined")
    said = bob.run("repro", "train", env={"MILLPOND_MOUNT_ABOVE": "1GB"}).stdout
    assert re.findall("Mounting '(.*?)'", said) == ["raw"], "what is not here; the rest is brought as files"
    assert not (bob.repo / "large.bin").is_symlink() and (bob.repo / "mid/two").is_file()
    assert "does not exist" in bob.run("repro", "train", "-f", "-s", "--no-mount", code=255).stderr
    assert "'sometimes' is none of" in bob.run("repro", env={"MILLPOND_MOUNT": "sometimes"}, code=254).stderr
    config.write_text("[repro]\n    mounts = auto\n")
    assert "there is no setting 'repro.mounts'" in bob.run("repro", code=None).stderr


@over_s3
@pytest.mark.long
@pytest.mark.parametrize("fault", ["denied", "broken"])
def test_a_remote_that_goes_away_midway_fails_the_stage_and_nothing_is_recorded(
    team: Team, far: Proxy, fault: str
) -> None:
    bob = begin(team).clone()
    through(bob, far)
    before = lock(bob)
    change(bob, "head -c 100000 large.bin > model", waits_in(bob, "cat large.bin > model"))
    with start(bob, "train") as running:
        eventually(lambda: (bob.path / "go.begun").exists(), "its command runs")
        far.fault = getattr(proxies, fault)
        (bob.path / "go").touch()
        said, _ = running.communicate(timeout=180)
    assert running.returncode == 255
    assert "its input 'large.bin' could not be read, " in said and "team" in said
    assert ("remote login" if fault == "denied" else "when the remote answers again") in said
    assert lock(bob) == before and mounted(bob) == [] and not (bob.repo / "large.bin").is_symlink()
    run = last_run(bob, "train")
    assert run["outcome"] == "failed" and {row["path"]: row["errors"] > 0 for row in run["reads"]}["large.bin"]
    far.fault = None
    assert "Updating lock file" in bob.run("repro", "--mount", "train").stdout


@over_s3
@pytest.mark.long
def test_a_command_that_takes_no_notice_of_a_failed_read_is_not_recorded(team: Team, far: Proxy) -> None:
    bob = begin(team).clone()
    through(bob, far)
    before = lock(bob)
    change(bob, "head -c 100000 large.bin > model && cat mid/joined one.csv >> model && ./tool >> model", "WORK")
    change(bob, "WORK", waits_in(bob, "(cat raw/sub/deep/two.bin || true) > model"))
    with start(bob, "train") as running:
        eventually(lambda: (bob.path / "go.begun").exists(), "its command runs")
        far.fault = proxies.denied
        (bob.path / "go").touch()
        said, _ = running.communicate(timeout=60)
    assert running.returncode == 255 and "its commands ended well, but its input 'raw' could not be read" in said
    assert "millpond commit train" in said and lock(bob) == before


def test_who_writes_into_a_mounted_input_is_told_what_to_do(made: Made) -> None:
    bob = made.clone()
    before = lock(bob)
    change(bob, "mkdir -p mid", "mkdir -p mid && touch raw/new")
    said = bob.run("repro", "--mount", "prep", code=255).stderr
    assert "its input 'raw' is mounted, and read-only" in said and "`outs`" in said and "--no-mount" in said
    assert lock(bob) == before and mounted(bob) == []
    (bob.repo / "m").mkdir()
    bob.run("mount", "-q", "raw@HEAD", "m")
    change(bob, "outs: [everything]", "outs: [everything, m/made]")
    said = bob.run("repro", "--mount", "all", code=255).stderr
    assert "output 'm/made' lies in 'm', which is a mount" in said and "umount m" in said and lock(bob) == before


@pytest.mark.long
@pytest.mark.parametrize(
    "victim", ["repro", *(pytest.param(name, marks=pytest.mark.long) for name in ("daemon", "holder"))]
)
def test_killed_midway(made: Made, victim: str) -> None:
    ann, bob = made.clone(whole=True), made.clone()
    for home in (ann, bob):
        change(home, "head -c 100000 large.bin", waits_in(home, "head -c 200000 large.bin"))
    running = start(bob, "train")
    eventually(lambda: (bob.path / "go.begun").exists(), "its command runs")
    assert mounted(bob)[1:] == ["mid", "raw"] and (bob.repo / "large.bin").is_symlink()
    if victim == "daemon":
        [pid] = processes(bob, "daemon")
        os.kill(pid, signal.SIGKILL)
    elif victim == "holder":
        for each in json.loads(bob.run("mounts", "--json").stdout)["mounts"]:
            os.kill(each["pid"], signal.SIGKILL)
    else:
        [job] = json.loads(bob.run("jobs", "--json").stdout)
        for pid in session(job["pid"]):
            if not any(word in cmdline(pid) for word in ("/bin/sh", "sleep")):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    (bob.path / "go").touch()
    (ann.path / "go").touch()
    said, _ = running.communicate(timeout=90)
    ann.run("repro", "-q", "train")
    if victim == "daemon":
        assert running.returncode == 0, said
    elif victim == "holder":
        assert running.returncode == 255 and "was gone meanwhile" in said, said
    else:
        assert running.returncode != 0 and mounted(bob)[1:] == ["mid", "raw"], "they stay, and hold what they held"
        status = json.loads(bob.run("status", "--json").stdout)
        assert "raw.dvc" not in status and "large.bin.dvc" not in status, "nobody takes them for something else"
    said = bob.run("repro", "--mount", "train").stdout
    assert lock(bob) == lock(ann), said
    assert mounted(bob) == [] and not (bob.repo / "raw").exists() and not (bob.repo / "large.bin").is_symlink()


def session(leader: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                found.append(int(path.parent.name))
    return found


def cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@pytest.mark.long
def test_a_busy_mount_stays_and_the_next_repro_takes_it_away(made: Made) -> None:
    bob = made.clone()
    change(bob, "head -c 100000 large.bin", waits_in(bob, "head -c 200000 large.bin"))
    running = start(bob, "train")
    eventually(lambda: (bob.path / "go.begun").exists(), "its command runs")
    with subprocess.Popen(["sleep", "60"], cwd=bob.repo / "raw") as busy:
        (bob.path / "go").touch()
        said, _ = running.communicate(timeout=60)
        assert running.returncode == 0 and "'raw' stays mounted" in said and "sleep" in said
        assert mounted(bob) == ["raw"]
        assert (bob.repo / "raw/a.txt").exists()
        busy.kill()
    bob.run("repro", "--mount", "train")
    assert mounted(bob) == [] and not (bob.repo / "raw").exists()


@pytest.mark.long
def test_with_the_other_options(made: Made) -> None:
    ann = made.clone(whole=True)
    change(ann, "cat mid/joined one.csv", "cat mid/joined one.csv one.csv")
    (ann.repo / "one.csv").write_text("2\n")
    ann.run("add", "-q", "one.csv")
    ann.run("repro", "-q", "train")
    for options in (
        ["--pull"],
        ["--allow-missing"],
        ["-k"],
        ["-f"],
        ["-s"],
        ["--no-commit"],
        ["--no-run-cache", "-j", "3"],
    ):
        bob = made.clone()
        (bob.repo / "dvc.yaml").write_text((ann.repo / "dvc.yaml").read_text())
        (bob.repo / "one.csv").write_text("2\n")
        bob.run("add", "-q", "one.csv")
        said = bob.run("repro", "--mount", *options, "train").stdout
        assert "Mounting 'raw'" in said and lock(bob) == lock(ann), options
        assert mounted(bob) == [] and not (bob.repo / "raw").exists(), options
    bob = made.clone()
    change(bob, "head -c 100000 large.bin", "false && head -c 100000 large.bin")
    change(bob, "xargs -0 cat >", "xargs -0 wc -c >")
    failed = bob.run("repro", "--mount", "-k", code=255)
    assert "Mounting 'all/data'" in failed.stdout and (bob.repo / "everything").exists(), "the other one ran"
    assert mounted(bob) == [] and last_run(bob, "train")["outcome"] == "failed"


@pytest.mark.long
def test_two_repros_share_a_mount_and_the_last_one_takes_it_away(made: Made) -> None:
    bob = made.clone()
    change(bob, "mkdir -p mid", waits_in(bob, "mkdir -p mid", "first"))
    change(bob, "xargs -0 cat >", "xargs -0 wc -c raw/a.txt >")
    change(bob, "deps: [all]", "deps: [all, raw/a.txt]")
    change(bob, "find -L", waits_in(bob, "find -L", "second"))
    with start(bob, "-s", "prep") as first, start(bob, "-s", "all") as second:
        eventually(lambda: all((bob.path / f"{name}.begun").exists() for name in ("first", "second")), "both run")
        refused = bob.run("repro", "--mount", "-s", "train", "-f", code=5).stderr
        assert "'mid' is being made by stage 'prep' (job " in refused
        (bob.path / "first").touch()
        said, _ = first.communicate(timeout=60)
        assert first.returncode == 0, said
        assert "raw" in mounted(bob), "the second one needs it"
        (bob.path / "second").touch()
        said, _ = second.communicate(timeout=60)
        assert second.returncode == 0, said
    assert mounted(bob) == [] and not (bob.repo / "raw").exists()


@pytest.mark.long
def test_stages_at_once_share_figures_and_detached_and_cancelled_ones_leave_nothing(made: Made) -> None:
    bob = made.clone()
    (bob.repo / "dvc.yaml").write_text(
        "stages:\n"
        "  a: {cmd: cat raw/a.txt > a; sleep 1, deps: [raw], outs: [a]}\n"
        "  b: {cmd: cat raw/a.txt > b; sleep 1, deps: [raw], outs: [b]}\n"
    )
    bob.run("repro", "--mount", "-j", "2", "--detach")
    eventually(lambda: json.loads(bob.run("jobs", "--all", "--json").stdout)[0]["ended"] is not None, "it ended")
    assert "with other stages at once" in bob.run("lineage", "a").stdout
    assert all(last_run(bob, name)["reads"][0]["shared"] for name in ("a", "b")) and mounted(bob) == []
    (bob.repo / "dvc.yaml").write_text((bob.repo / "dvc.yaml").read_text().replace("sleep 1", "sleep 60"))
    running = start(bob, "-k")
    eventually(lambda: mounted(bob) == ["raw"], "it is mounted")
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    eventually(lambda: mounted(bob) == [] and not (bob.repo / "raw").exists(), "nothing is left of a cancelled one")


@pytest.mark.long
def test_killed_at_any_moment_nothing_is_taken_for_empty_data(made: Made) -> None:
    bob = made.clone()
    rng = random.Random(6)
    for round_ in range(1, 11):
        (bob.repo / "dvc.yaml").write_text(STAGES.replace("head -c 100000", f"head -c {100_000 + round_}"))
        running = start(bob, "train")
        time.sleep(rng.uniform(0.3, 3.0))
        for victim in rng.choice((["repro"], ["daemon"], ["repro", "daemon"], ["daemon", "repro", "holder"])):
            kill(bob, victim)
        running.communicate(timeout=120)
        for place in ("raw", "mid", "all/data"):
            path = bob.repo / place
            assert not path.exists() or path.is_mount() or (path / MARKER).exists(), f"round {round_}: {place}"
        said = bob.run("repro", "--mount", "train").stdout
        assert f"head -c {100_000 + round_}" in lock(bob), said
        assert mounted(bob) == [] and not (bob.repo / "raw").exists() and not (bob.repo / "large.bin").is_symlink()
        assert (bob.repo / "model").stat().st_size == 100_000 + round_ + 70_010 + 2 + 7


def kill(home: Home, victim: str) -> None:
    """Kill what there is of a kind."""
    pids = []
    if victim == "daemon":
        status = home.run("daemon", "status", "--json", code=None)
        pids = [int(json.loads(status.stdout)["pid"])] if status.returncode == 0 else []
    elif victim == "holder":
        pids = [each["pid"] for each in json.loads(home.run("mounts", "--json").stdout)["mounts"] if each["pid"]]
    else:
        for job in json.loads(home.run("jobs", "--json", code=None).stdout or "[]"):
            pids += session(job["pid"]) if job["pid"] else []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
