"""Which inputs are mounted: settings and their order, and sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from millpond.daemon.errors import InvalidFileError, UsageError
from millpond.daemon.pipeline.mounting import ABOVE, ALWAYS, AUTO, NEVER, SMALL_FILE, Policy, policy


def test_the_command_counts_more_than_the_environment_and_that_more_than_files(tmp_path: Path) -> None:
    dvc, user = tmp_path / "repo/.dvc", tmp_path / "config/millpond"
    dvc.mkdir(parents=True)
    user.mkdir(parents=True)
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert policy(str(dvc), env, None) == Policy(NEVER, ABOVE)
    (user / "config").write_text("[repro]\nmount = always  # here\nmount_above = 2GB\n")
    assert policy(str(dvc), env, None) == Policy(ALWAYS, 2_000_000_000)
    (dvc / "config.millpond").write_text("[repro]\n    mount = auto\n")
    assert policy(str(dvc), env, None) == Policy(AUTO, 2_000_000_000)
    env |= {"MILLPOND_MOUNT": "never", "MILLPOND_MOUNT_ABOVE": "5MB"}
    assert policy(str(dvc), env, None) == Policy(NEVER, 5_000_000)
    assert policy(str(dvc), env, True) == Policy(ALWAYS, 5_000_000)
    assert not policy(str(dvc), {"HOME": str(tmp_path)}, False).on


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[repro]\nmount = perhaps\n", "repro.mount: 'perhaps' is none of never, auto, always"),
        ("[repro]\nmount_above = much\n", "repro.mount_above: 'much' is no size"),
        ("[repro]\nmounts = auto\n", "no setting 'repro.mounts'"),
        ("[core]\nmount = auto\n", "no setting 'core.mount'"),
        ("mount = auto\n", "before any section"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_it(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.millpond"
    path.write_text(text)
    with pytest.raises(InvalidFileError, match="config.millpond") as error:
        policy(str(tmp_path), {"XDG_CONFIG_HOME": "/nowhere"}, None)
    assert said in error.value.message


def test_what_is_wrong_in_the_environment_is_named(tmp_path: Path) -> None:
    for name, value in (("MILLPOND_MOUNT", "yes"), ("MILLPOND_MOUNT_ABOVE", "0")):
        with pytest.raises(UsageError, match=f"{name}: '{value}'"):
            policy(str(tmp_path), {name: value, "XDG_CONFIG_HOME": "/nowhere"}, None)


def test_sizes_decide() -> None:
    auto, always = Policy(AUTO, 1000), Policy(ALWAYS)
    assert auto.mounts(10, is_dir=True, here=False) and not auto.mounts(10, is_dir=True, here=True)
    assert auto.mounts(1000, is_dir=True, here=True) and always.mounts(0, is_dir=True, here=True)
    for each in (auto, always):
        assert not each.mounts(SMALL_FILE - 1, is_dir=False, here=False)
        assert each.mounts(SMALL_FILE, is_dir=False, here=True)
