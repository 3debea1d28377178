"""gc --cloud and --not-in-remote: beside real DVC, beside pushes of others, and killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.cli.helpers import Home, Terminal
from tests.faults.test_limits import sentence
from tests.mounts.test_kills import children, processes
from tests.project.realdvc import real_dvc
from tests.remote.shared import Team, data_of, key_of, s3_if_long
from tests.store.helpers import sample

locally = pytest.mark.parametrize("team", ["local"], indirect=True)


def collect(home: Home, *options: str, **more: Any) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(home.run("gc", "--json", "-f", "-c", "--grace", "0", *options, **more).stdout)
    return report


def objects(team: Team) -> dict[str, int]:
    return {key: size for key, size in team.keys().items() if not key.startswith(".millpond/")}


def broken(team: Team) -> list[str]:
    """Manifests of the remote some of whose files are not there."""
    there = objects(team)
    found = []
    for key in there:
        if key.endswith(".dir"):
            entries = json.loads((Path(team.url) / key).read_bytes())
            found += [key for entry in entries if key_of(entry["md5"]) not in there]
    return found


def third(home: Home) -> None:
    """One more version, in a branch."""
    home.git("checkout", "-q", "-b", "more", "v1")
    home.run("checkout", "-q")
    (home.repo / "data/only.txt").write_bytes(b"only here")
    home.run("add", "-q", "data")
    home.git("commit", "-qam", "third")
    home.git("checkout", "-q", "main")
    home.run("checkout", "-q")


@pytest.mark.long
@s3_if_long
def test_what_goes_is_what_goes_by_dvc(team: Team) -> None:
    ann = team.begin()
    third(ann)
    ann.run("push", "-A")
    for key in ("ab/" + "c" * 30, "files/md5/00/" + "1" * 30 + ".dir", "files/md5/00/" + "2" * 30):
        team.put(key, b"[]")
    ann.run("cache", "export", "-A")
    before = objects(team)
    scopes = (["-w"], ["-a"], ["-T"], ["-A"], ["--rev", "HEAD~1"], ["--rev", "main", "-n", "-1"], ["-a", "-T"])
    for scope in scopes:
        said = real_dvc().run("gc", "-c", "-f", "--dry", *scope, cwd=ann.repo)
        assert said.code == 0
        expected = {word for word in (said.out + said.err).split() if team.url.removeprefix("s3://") in word}
        found = collect(ann, "--dry", *scope)["remotes"][0]
        assert found["removed"]["objects"] == len(expected), scope
        assert found["kept"]["objects"] == len(before) - len(expected)
    assert dict(team.keys()) == before, "--dry only shows"
    collect(ann, "-T")
    ours = objects(team)
    for key, size in before.items():
        if key not in ours:
            team.put(key, b"x" * size)
    real_dvc().ok("gc", "-c", "-f", "-T", cwd=ann.repo)
    assert objects(team) == ours and 0 < len(ours) < len(before)
    bob = team.person("bob", ann)
    real_dvc().ok("fetch", "-T", cwd=bob.repo)
    bob.run("pull")
    assert data_of(bob) == data_of(ann)


@locally
def test_what_is_removed_is_not_taken_to_be_there(team: Team) -> None:
    ann = team.begin()
    ann.run("push")
    pointer = (ann.repo / "one.csv.dvc").read_bytes()
    ann.git("rm", "-q", "one.csv.dvc")
    collect(ann, "-w")
    (ann.repo / "one.csv.dvc").write_bytes(pointer)
    asked = ["data", "status", "--not-in-remote", "--json", "--no-remote-refresh"]
    assert json.loads(ann.run(*asked).stdout)["not_in_remote"] == ["one.csv"]


@locally
def test_it_shows_and_asks_first(team: Team) -> None:
    ann = team.begin()
    ann.run("push", "-A")
    said = ann.run("gc", "-c", "-w", "--dry", "--grace", "0").stdout
    assert "From remote 'team'" in said and "this removes 3 objects (367 B) and keeps 7 objects" in said
    assert "1 manifest and 2 files, there since 20" in said and ".dir of data\n" in said and " of one.csv\n" in said
    assert "other people" in said
    assert "nobody to ask" in ann.run("gc", "-c", "-w", "--grace", "0", code=1).stderr
    assert (
        "3 objects (367 B) stay there only because they came a short while ago" in ann.run("gc", "-cw", "--dry").stdout
    )
    terminal = Terminal(ann, "gc", "-c", "-w", "--grace", "0")
    terminal.read_until("Remove them?")
    terminal.type("n")
    assert terminal.finish() == 1 and len(objects(team)) == 10
    terminal.close()
    assert "Removed 3 objects (367 B) on remote 'team'." in ann.run("gc", "-cwf", "--grace", "0").stdout
    assert "Nothing to remove on remote 'team'." in ann.run("gc", "-cwf", "--grace", "0").stdout
    assert not broken(team) and len(objects(team)) == 7


@locally
@pytest.mark.parametrize("garbage", [False, True])
def test_what_killed_pushes_left_goes_after_a_week(team: Team, garbage: bool) -> None:
    """Where nothing else goes nobody is asked; what else may go waits for a yes."""
    ann = team.begin()
    ann.run("push", "-A")
    before, week = objects(team), 7 * 86_400.0
    made = {"files/md5/00/.millpond-a-1.tmp": 2.0, "ab/.millpond-b-2.tmp": 2.0, "files/md5/00/.millpond-c-3.tmp": 0.9}
    # One that was to be a folder of objects.
    made |= {f"files/md5/.millpond-d-4.tmp/{name}": 2.0 for name in ("x", "y")} | {"files/md5/.millpond-d-4.tmp": 2.0}
    for key, weeks in made.items():
        path = Path(team.url) / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            path.write_bytes(b"half")
        os.utime(path, (time.time() - weeks * week,) * 2)
    assert collect(ann, "-A", "--dry")["remotes"][0]["left"] == {"files": 4, "bytes": 16}
    goes = "What killed pushes left there more than a week ago goes: 4 temporary files (16 B).\n"
    assert goes in ann.run("gc", "-cA", "--dry").stdout
    assert all((Path(team.url) / key).exists() for key in made)
    if garbage:
        assert goes in ann.run("gc", "-cw", "--grace", "0", code=1).stdout
        assert all((Path(team.url) / key).exists() for key in made)
        said = ann.run("gc", "-cwf", "--grace", "0").stdout
        assert "Removed 3 objects (367 B) on remote 'team'.\n" in said and len(objects(team)) == 7 + 1
    else:
        said = ann.run("gc", "-cA", "--grace", "0").stdout
        assert "Nothing to remove on remote 'team'.\n" in said and before.items() <= objects(team).items()
    assert said.endswith("Removed 4 temporary files (16 B) that killed pushes had left there.\n")
    assert [key for key in made if (Path(team.url) / key).exists()] == ["files/md5/00/.millpond-c-3.tmp"]
    said = ann.run("gc", "-cw" if garbage else "-cA", "--grace", "0").stdout
    assert said.count("\n") == 2, "nothing more goes, and nothing is run"


@locally
def test_a_manifest_that_cannot_be_read_ends_it(team: Team) -> None:
    """Its files would go with DVC."""
    ann = team.begin()
    ann.run("push", "-A")
    bob = team.person("bob", ann)
    manifest = next(key for key in objects(team) if key.endswith(".dir") and key_of(_first(ann)) == key)
    saved = (Path(team.url) / manifest).read_bytes()
    for data in (None, b"[]"):
        team.put(manifest, data)
        before = objects(team)
        done = bob.run("gc", "-cTf", "--grace", "0", code=8 if data is None else 6)
        sentence(done)
        assert "'data'" in done.stderr and "nothing is removed" in done.stderr and "--skip-failed" in done.stderr
        assert objects(team) == before
    assert "passed over" not in bob.run("gc", "-cTf", "--grace", "0", "--skip-failed").stdout
    assert not any(key == manifest for key in objects(team)) or objects(team)[manifest] == 2
    # What DVC has never stored must not be read: a dependency, an output that is Git's.
    team.put(manifest, saved)
    (ann.repo / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  s:\n    cmd: x\n    deps:\n    - path: src\n      hash: md5\n"
        f"      md5: {'a' * 32}.dir\n    outs:\n    - path: plots\n      hash: md5\n      md5: {'b' * 32}.dir\n"
    )
    (ann.repo / "dvc.yaml").write_text(
        "stages:\n  s:\n    cmd: x\n    deps: [src]\n    outs:\n    - plots: {cache: false}\n"
    )
    collect(ann, "-w")
    (ann.repo / "dvc.yaml").write_text("stages:\n  s:\n    cmd: x\n    deps: [src]\n    outs: [plots]\n")
    assert f"{'b' * 32}.dir of 'plots'" in ann.run("gc", "-cwf", code=8).stderr


def _first(home: Home) -> str:
    """The manifest of the first version."""
    pointer = home.git("show", "v1:data.dvc")
    return pointer.partition("md5: ")[2].split()[0]


@locally
def test_what_others_need_here_stays(team: Team) -> None:
    ann = team.begin()
    ann.run("push", "-A")
    clone = ann.path / "clone"
    ann.git("clone", "-q", "-b", "main", str(ann.repo), str(clone))
    ann.git("checkout", "-q", "v1", cwd=clone)
    ann.run("checkout", "-q", cwd=clone)
    report = collect(ann, "-w")
    assert report["remotes"][0]["removed"]["objects"] == 0 and report["remotes"][0]["shared"] == [str(clone)]
    assert f"{clone} uses this remote, too" in ann.run("gc", "-cw", "--dry").stdout
    shutil.rmtree(clone)
    assert collect(ann, "-w")["remotes"][0]["removed"]["objects"] == 0, "it may come back"
    ann.run("forget-project", str(clone))
    ann.run("pin", "one.csv@v1")
    gone = collect(ann, "-w")["remotes"][0]["removed"]["objects"]
    assert gone == 2 and key_of(hashlib.md5(b"one\n").hexdigest()) in objects(team), "the pin's stays"


@pytest.mark.long
@pytest.mark.parametrize("team", ["s3"], indirect=True)
def test_one_url_is_one_place_whatever_its_endpoint_is_called(team: Team) -> None:
    """Another project may have the endpoint from its environment."""
    ann = team.begin()
    ann.run("push", "-A")
    clone = ann.path / "clone"
    ann.git("clone", "-q", "-b", "main", str(ann.repo), str(clone))
    (clone / ".dvc/config.local").write_text("['remote \"team\"']\n    endpointurl = http://another.invalid\n")
    ann.git("checkout", "-q", "v1", cwd=clone)
    ann.run("checkout", "-q", cwd=clone)
    assert collect(ann, "-w")["remotes"][0]["removed"]["objects"] == 0


@pytest.mark.long
@locally
def test_what_a_young_manifest_names_stays(team: Team) -> None:
    """Somebody pushes what names old files, and only he knows of it."""
    ann = team.begin()
    ann.run("push")
    bob = team.person("bob", ann)
    bob.run("pull")
    (bob.repo / "data/new.txt").write_bytes(b"new")
    (bob.repo / "one.csv").write_bytes(b"another\n")
    bob.run("add", "-q", "data", "one.csv")
    time.sleep(12)
    began = time.time()
    bob.run("push")
    (ann.repo / "data.dvc").unlink()
    shutil.rmtree(ann.repo / "data")
    ann.run("gc", "-cwf", "--grace", str((time.time() - began + 10) / 3600))
    assert not broken(team) and key_of(hashlib.md5(b"new").hexdigest()) in objects(team)
    carol = team.person("carol", ann)
    shutil.copy(bob.repo / "data.dvc", carol.repo)
    assert carol.run("pull", "data").returncode == 0


@locally
def test_only_the_remote_that_was_asked_for(team: Team) -> None:
    ann = team.begin()
    other = team.folder / "other"
    with open(ann.repo / ".dvc/config", "a") as config:
        config.write(f"['remote \"own\"']\n    url = {other}\n")
    ann.run("push", "-A")
    ann.run("push", "-A", "-r", "own")
    count = len(list(other.rglob("*")))
    assert [each["name"] for each in collect(ann, "-w", "-r", "team")["remotes"]] == ["team"]
    assert len(list(other.rglob("*"))) == count and len(objects(team)) == 7
    pointer = ann.repo / "one.csv.dvc"
    pointer.write_text(pointer.read_text() + "  remote: own\n")
    assert [each["name"] for each in collect(ann, "-w")["remotes"]] == ["team", "own"]
    assert len([path for path in other.rglob("*") if path.is_file() and "gc" not in path.parts]) == 7


@locally
def test_a_second_project_in_scope(team: Team) -> None:
    ann = team.begin()
    ann.run("push", "-A")
    second = ann.path / "second"
    second.mkdir()
    ann.git("init", "-q", cwd=second)
    ann.run("init", "-q", cwd=second)
    shutil.copy(ann.repo / ".dvc/config", second / ".dvc/config")
    for text in (b"older", b"newer"):
        (second / "d").mkdir(exist_ok=True)
        (second / "d/f").write_bytes(text)
        ann.run("add", "-q", "d", cwd=second)
        ann.run("push", "-q", cwd=second)
    with open(second / ".dvc/config", "a") as config:
        config.write(f"['remote \"own\"']\n    url = {team.folder}/own\n")
    pointer = second / "d.dvc"
    pointer.write_text(pointer.read_text() + "  remote: own\n")
    before = set(objects(team))
    report = collect(ann, "-A", "-p", str(second))
    assert report["remotes"][0]["removed"]["objects"] == 2 and not report["remotes"][0]["shared"]
    assert before - set(objects(team)) >= {key_of(hashlib.md5(b"older").hexdigest())}
    assert not broken(team) and key_of(hashlib.md5(b"newer").hexdigest()) in objects(team)
    ann.run("gc", "--not-in-remote", "-wf", "--grace", "0", "-p", str(second))
    assert (ann.run("pull", cwd=second).returncode, (second / "d/f").read_bytes()) == (0, b"newer")


@locally
def test_what_no_remote_has_stays_here(team: Team) -> None:
    ann = team.begin()
    ann.run("cache", "export", "-A")
    ann.run("push", "one.csv")
    (ann.repo / "new.txt").write_bytes(b"new")
    ann.run("add", "-q", "new.txt")
    report = json.loads(ann.run("gc", "--not-in-remote", "-w", "--json", "-f", "--grace", "0").stdout)
    real_dvc().ok("gc", "--not-in-remote", "-w", "-f", cwd=ann.repo)
    left = {path for path in (ann.repo / ".dvc/cache/files").rglob("*") if path.is_file()}
    assert report["kept"]["objects"] == len(left) == 7
    ann.run("push")
    assert json.loads(ann.run("gc", "--not-in-remote", "-wf", "--json", "--grace", "0").stdout)["kept"]["objects"] == 0
    shutil.rmtree(ann.repo / ".dvc/cache")
    shutil.rmtree(ann.repo / "data")
    assert "8 files fetched" in ann.run("pull").stdout


@pytest.mark.long
@locally
@pytest.mark.parametrize("collector", ["millpond", "dvc"])
def test_notes_of_what_was_there_are_no_proof(team: Team, collector: str) -> None:
    """Who pushed yesterday what somebody collected today sends it again."""
    ann = team.begin()
    bob = team.person("bob", ann)
    ann.run("push", "-A")
    bob.git("rm", "-q", "data.dvc", "one.csv.dvc")
    if collector == "millpond":
        collect(bob, "-w")
    else:
        real_dvc().ok("gc", "-c", "-w", "-f", cwd=bob.repo)
    assert not objects(team)
    (ann.repo / "data/more.txt").write_bytes(b"more")
    ann.run("add", "-q", "data")
    assert ann.run("push").stdout.startswith("8 files pushed")
    assert not broken(team)
    assert ann.run("push").stdout == "Everything is up to date.\n"


@pytest.mark.long
@locally
def test_a_push_during_a_collection_looks_again(team: Team) -> None:
    ann = team.begin()
    ann.run("push", "-A")
    bob = team.person("bob", ann)
    bob.run("pull")
    (bob.repo / "data/large.bin").write_bytes(sample(9, 3_000_000))
    bob.run("add", "-q", "data")
    ann.git("rm", "-q", "data.dvc", "one.csv.dvc")
    slowly = {"MILLPOND_RATE": "1M"}
    with subprocess.Popen(bob.command("push"), cwd=bob.repo, env=bob.env | slowly, stdout=subprocess.PIPE) as pushing:
        deadline = time.monotonic() + 20
        while not list(Path(team.url).rglob(".millpond-*")):
            assert time.monotonic() < deadline and pushing.poll() is None
            time.sleep(0.01)
        collect(ann, "-w")
        assert not any(key.endswith(".dir") for key in objects(team)) and pushing.poll() is None
        said, _ = pushing.communicate(timeout=60)
    assert pushing.returncode == 0 and said.startswith(b"8 files pushed"), "seven of them were there when it began"
    assert not broken(team) and len(objects(team)) == 8
    real_dvc().ok("fetch", cwd=bob.repo)


@locally
def test_a_second_collection_is_told_of_the_first(team: Team) -> None:
    ann = team.begin()
    ann.run("push", "-A")
    mark = Path(team.url) / ".millpond/gc/0123"
    mark.parent.mkdir(parents=True)
    mark.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    done = ann.run("gc", "-cwf", "--grace", "0", code=5)
    sentence(done)
    assert "process 7 on elsewhere" in done.stderr and len(objects(team)) == 10
    assert [path.name for path in mark.parent.iterdir() if path.name != "last"] == ["0123"]
    (ann.repo / "one.csv").write_bytes(b"later still\n")
    ann.run("add", "-q", "one.csv")
    with subprocess.Popen(ann.command("push"), cwd=ann.repo, env=ann.env, stdout=subprocess.PIPE) as pushing:
        time.sleep(1.5)
        assert pushing.poll() is None and len(objects(team)) == 10, "it waits"
        mark.unlink()
        said, _ = pushing.communicate(timeout=30)
    assert b"1 file pushed" in said


def garbage(team: Team, directories: int, files: int) -> None:
    """Whole directories that nothing names."""
    chance = random.Random(directories)
    for _ in range(directories):
        contents = {chance.randbytes(4).hex(): chance.randbytes(20) for _ in range(files)}
        entries = [{"md5": hashlib.md5(data).hexdigest(), "relpath": name} for name, data in sorted(contents.items())]
        manifest = json.dumps(entries).encode()
        for data in contents.values():
            team.put(key_of(hashlib.md5(data).hexdigest()), data)
        team.put(key_of(f"{hashlib.md5(manifest).hexdigest()}.dir"), manifest)


@pytest.mark.long
@locally
def test_a_collection_that_is_killed_leaves_what_is_whole(team: Team) -> None:
    ann = team.begin()
    ann.run("push", "-A")
    garbage(team, 20, 150)
    daemon = processes(ann, "daemon")[0]
    before = objects(team)
    chance = random.Random(4)
    killed = 0
    for number in range(6):
        with subprocess.Popen(
            ann.command("gc", "-cTf", "--grace", "0"), cwd=ann.repo, env=ann.env, stderr=subprocess.DEVNULL
        ) as running:
            while running.poll() is None and len(objects(team)) == len(before):
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.05) if number else 0)  # the first time while manifests go
            for pid in (child for zygote in children(daemon) for child in children(zygote)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert not broken(team)
        killed += running.returncode != 0
        for mark in Path(team.url, ".millpond/gc").iterdir():
            mark.unlink()  # as if five minutes had passed
        if len(objects(team)) == 10:
            break
        before = objects(team)
    assert killed
    collect(ann, "-T")
    assert len(objects(team)) == 10 and "up to date" in ann.run("push", "-A").stdout


@pytest.mark.long
@locally
@pytest.mark.parametrize("rounds", [3, pytest.param(60, marks=pytest.mark.long)])
def test_two_people_at_once(team: Team, rounds: int) -> None:
    """Each pushes versions of the same files and collects what the other has; a version that is there is there whole."""
    ann = team.begin()
    bob = team.person("bob", ann)
    ann.run("push")
    bob.run("pull")

    def work(home: Home, seed: int) -> list[str]:
        chance, told = random.Random(seed), []
        for number in range(rounds):
            if chance.random() < 0.5:
                # Back and forth between few versions, so that what is pushed was collected before.
                (home.repo / "data/a.txt").write_bytes(sample(chance.randrange(4), 200_000))
                (home.repo / f"data/{seed}.txt").write_bytes(b"%d" % chance.randrange(4))
                told.append(home.run("add", "-q", "data").stderr)
                told.append(home.run("push", "-q").stderr)
            elif chance.random() < 0.6:
                told.append(home.run("gc", "-cwfq", "--grace", "0", code=None).stderr)
            else:
                home.run("fetch", code=None)
            told.append(f"{number}")
        return told

    with ThreadPoolExecutor(2) as pool:
        for told in pool.map(work, (ann, bob), (1, 2)):
            assert all(
                not line or line.isdigit() or "another collection" in line or "meanwhile: looking again" in line
                for line in told
            ), told
    assert not broken(team)
    for home in (ann, bob):
        home.run("push")
        assert not broken(team)
        reader = team.person(f"reader-{home.path.name}", ann)
        for pointer in ("data.dvc", "one.csv.dvc"):
            shutil.copy(home.repo / pointer, reader.repo)
        reader.run("pull")
        assert data_of(reader) == data_of(home)


@s3_if_long
def test_a_remote_that_was_never_pushed_to(team: Team) -> None:
    ann = team.begin()
    assert "Nothing goes from remote 'team'" in ann.run("gc", "-cA", "--dry").stdout
    assert "Nothing to remove on remote 'team'." in ann.run("gc", "-cAf").stdout
    assert ann.run("push").stdout.startswith("7 files pushed")
