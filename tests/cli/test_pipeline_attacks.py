"""What goes wrong with a pipeline, by the program: one clear sentence, the right exit code, and nothing half-recorded."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import sentence, small_disk
from tests.mounts.conftest import fill

GOOD = "stages:\n  one:\n    cmd: cp src one\n    deps: [src]\n    outs: [one]\n"


@pytest.fixture
def made(home: Home) -> Iterator[Home]:
    """A pipeline that has run, committed."""
    _begin(home)
    yield home
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if (place := line.split(" ")[4]).startswith(str(home.path)):
            subprocess.run(["umount", "-l", place], check=False, timeout=20)


def _begin(home: Home) -> None:
    home.git("init", "-q", "-b", "main")
    home.run("init", "-q")
    (home.repo / "src").write_text("1\n")
    (home.repo / "dvc.yaml").write_text(GOOD)
    home.run("repro", "-q")
    home.git("add", "-A")
    home.git("commit", "-qm", "made")


def _recorded(home: Home) -> dict[str, bytes]:
    """What tells of the pipeline's runs, and what they made."""
    files = [home.repo / name for name in ("dvc.lock", ".gitignore", "one")]
    files += sorted((home.repo / ".dvc/cache").rglob("*"))
    return {str(path): path.read_bytes() for path in files if path.is_file()}


def _long(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.long)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        _long("stages: [\n", "dvc.yaml' line 2"),
        ("stages:\n  one:\n    cmd: cp src one\n    outz: [one]\n", "unknown key 'outz'"),
        _long("stages:\n  one:\n    deps: [src]\n", "has no 'cmd'"),
        (f"<<<<<<< HEAD\n{GOOD}=======\n{GOOD}>>>>>>> other\n", "conflict markers"),
        _long("stages:\n\t- x\n", "dvc.yaml' line 2"),
    ],
)
def test_a_wrong_dvc_yaml(made: Home, text: str, words: str) -> None:
    before = _recorded(made)
    (made.repo / "dvc.yaml").write_text(text)
    for command in ("repro", "status", "dag", "commit"):
        done = made.run(command, code=255)
        sentence(done)
        assert words in done.stderr, (command, done.stderr)
    assert _recorded(made) == before
    made.git("checkout", "-q", "dvc.yaml")
    assert made.run("repro").stdout.endswith("Data and pipelines are up to date.\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> other\n", "conflict markers"),
        _long(lambda text: text.replace("md5: ", "md5: x"), "is not an MD5"),
        _long(lambda text: text[: len(text) // 2] + "\n: [", "dvc.lock"),
        _long(lambda text: "- a list\n", "dvc.lock"),
    ],
)
def test_a_wrong_dvc_lock(made: Home, spoil: object, words: str) -> None:
    lock = made.repo / "dvc.lock"
    good = lock.read_text()
    lock.write_text(spoil(good))  # type: ignore[operator]
    before = _recorded(made)
    (made.repo / "src").write_text("2\n")
    for command in ("repro", "status", "commit"):
        done = made.run(command, code=255)
        sentence(done)
        assert "dvc.lock" in done.stderr and words in done.stderr, (command, done.stderr)
    assert _recorded(made) == before
    lock.write_text(good)
    made.run("repro", "-q")
    assert (made.repo / "one").read_text() == "2\n"


def test_a_command_that_is_killed(made: Home) -> None:
    before = _recorded(made)
    (made.repo / "dvc.yaml").write_text(GOOD.replace("cp src one", "echo half > one; kill -9 $$"))
    done = made.run("repro", code=255)
    sentence(done)
    assert "SIGKILL" in done.stderr and "enough memory" in done.stderr
    lock = str(made.repo / "dvc.lock")
    assert _recorded(made)[lock] == before[lock]
    assert "one:\n\tchanged outs:\n\t\tmodified:           one" in made.run("status").stdout
    made.git("checkout", "-q", "dvc.yaml")
    made.run("repro", "-q")
    assert _recorded(made) == before


@pytest.fixture
def few_megabytes() -> Iterator[Path]:
    """A control group whose processes have 64 MB between them."""
    for top, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = top / f"millpond-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(64 << 20))
            break
        except OSError:
            if group.exists():
                shutil.rmtree(group, ignore_errors=True)
    else:
        pytest.skip("no control group can be made here")
    yield group / "cgroup.procs"
    group.rmdir()


@pytest.mark.long
@pytest.mark.root
def test_a_command_that_has_too_little_memory(made: Home, few_megabytes: Path) -> None:
    before = _recorded(made)
    eat = "x = b'1' * (1 << 20); y = [bytearray(1 << 20) for _ in range(1000)]"
    command = f'echo half > one; sh -c "echo \\$\\$ > {few_megabytes}; exec python3 -c \\"{eat}\\""'
    (made.repo / "dvc.yaml").write_text(
        f"stages:\n  one:\n    cmd: |-\n      {command}\n    deps: [src]\n    outs: [one]\n"
    )
    done = made.run("repro", code=255)
    assert "was there enough memory?" in done.stderr.strip().splitlines()[-1], done.stderr
    lock = str(made.repo / "dvc.lock")
    assert _recorded(made)[lock] == before[lock]


@pytest.mark.long
@pytest.mark.root
def test_a_disk_that_is_full_when_outputs_are_stored(home: Home) -> None:
    with small_disk(home.path / "small", "48m"):
        home.extra["MILLPOND_STORE"] = str(home.path / "small/store")
        _begin(home)
        before = _recorded(home)
        large = "head -c 80000000 /dev/urandom > one"
        (home.repo / "dvc.yaml").write_text(GOOD.replace("cp src one", large))
        done = home.run("repro", code=255)
        sentence(done)
        assert "failed to reproduce 'one'" in done.stderr and "no room" in done.stderr, done.stderr
        now = _recorded(home)
        del now[str(home.repo / "one")], before[str(home.repo / "one")]
        assert now == before, "neither dvc.lock nor the run cache know of it"
        home.git("checkout", "-q", "dvc.yaml")
        home.run("repro", "-q")
        assert home.run("status").stdout == "Data and pipelines are up to date.\n"
        assert "clean" in home.run("fsck", "--deep").stdout
        home.run("daemon", "stop", "-q")  # before its disk goes; its socket is not where others have theirs


@pytest.mark.fuse
def test_a_stage_that_writes_into_a_mount(made: Home) -> None:
    fill(made.repo / "data", 1)
    made.run("add", "-q", "data")
    made.run("checkout", "-q", "--mount", "data")
    before = _recorded(made)
    # As an output inside of it: refused before it runs.
    (made.repo / "away").mkdir()
    made.run("mount", "-q", "data", "away")
    (made.repo / "dvc.yaml").write_text(
        "stages:\n  w:\n    cmd: echo > ../ran; echo > away/new\n    outs: [away/new]\n"
    )
    done = made.run("repro", code=255)
    sentence(done)
    assert "output 'away/new' lies in 'away', which is a mount, which no command can write into" in done.stderr
    assert "declare that in `outs`" in done.stderr and not (made.path / "ran").exists()
    # Undeclared: the command fails, and it is said why.
    stage = "stages:\n  w:\n    cmd: cp src data/new\n    deps: [src, data]\n    outs: [new]\n"
    (made.repo / "dvc.yaml").write_text(stage)
    done = made.run("repro", code=255)
    assert "Read-only file system" in done.stderr + done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert "its input 'data' is mounted, and read-only" in last and "declare that as an output" in last
    assert "millpond umount data && millpond checkout data" in last
    assert _recorded(made) == before
    (made.repo / "dvc.yaml").write_text(stage.replace("data/new", "new"))
    made.run("repro", "-q", "w")
    assert (made.repo / "new").read_text() == "1\n"
