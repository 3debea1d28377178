"""Settings from an environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from millpond.daemon.errors import UsageError
from millpond.daemon.jobs import jobfolder
from millpond.daemon.project.config import level_paths
from millpond.daemon.project.statcache import user_folder
from millpond.daemon.settings import MAX_SOCKET_PATH, from_env

UID = 4242  # nobody logged in


def test_the_xdg_folders_are_used() -> None:
    found = from_env({"HOME": "/h", "XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/c", "XDG_RUNTIME_DIR": "/r"}, UID)
    assert (found.store, found.socket) == (Path("/c/millpond"), Path("/r/millpond/millpond.sock"))
    assert (found.log, found.mounts) == (Path("/s/millpond/log/daemon.log"), Path("/s/millpond/mounts"))


def test_relative_xdg_folders_are_ignored_and_a_shared_home_has_a_socket_for_each_machine() -> None:
    found = from_env({"HOME": "/h", "XDG_CACHE_HOME": "c", "XDG_RUNTIME_DIR": "r"}, UID)
    assert found.store == Path("/h/.cache/millpond")
    assert found.socket == Path(f"/h/.local/state/millpond/run/{os.uname().nodename}/millpond.sock")


@pytest.mark.parametrize("value", ["/x", "", "relative", "./x", "~/x"])
def test_one_rule_holds_for_all_xdg_folders(value: str) -> None:
    env = {"HOME": "/h", "XDG_CACHE_HOME": value, "XDG_STATE_HOME": value, "XDG_CONFIG_HOME": value}
    cache, state, config = ("/x",) * 3 if value == "/x" else ("/h/.cache", "/h/.local/state", "/h/.config")
    assert user_folder(env) == f"{cache}/millpond-user" and from_env(env, UID).store == Path(f"{cache}/millpond")
    assert jobfolder.home(env) == f"{state}/millpond-user/jobs" and from_env(env, UID).state == Path(
        f"{state}/millpond"
    )
    assert level_paths("/p/.dvc", env)["global"] == f"{config}/dvc/config"


def test_another_store_has_a_daemon_of_its_own() -> None:
    env = {"HOME": "/h", "XDG_RUNTIME_DIR": "/r"}
    one, two, same = (from_env({**env, "MILLPOND_STORE": path}, UID) for path in ("/a", "/b", "/h/.cache/millpond"))
    assert same == from_env(env, UID)
    for name in ("socket", "log", "mounts", "store"):
        assert len({getattr(found, name) for found in (one, two, same)}) == 3


def test_a_socket_path_that_linux_cannot_hold_is_explained() -> None:
    fits = "/" + "x" * (MAX_SOCKET_PATH - 1)
    assert from_env({"HOME": "/h", "MILLPOND_SOCKET": fits}, UID).socket == Path(fits)
    with pytest.raises(UsageError, match="more than 107 bytes.*MILLPOND_SOCKET"):
        from_env({"HOME": "/h", "MILLPOND_SOCKET": fits + "x"}, UID)


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "1e99"])
def test_an_idle_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="MILLPOND_IDLE_EXIT"):
        from_env({"HOME": "/h", "MILLPOND_IDLE_EXIT": text}, UID)


def test_mounts_are_filled_ahead_unless_they_are_not_to_be() -> None:
    assert from_env({"HOME": "/h"}, UID).fill is None and from_env({"HOME": "/h", "MILLPOND_FILL": "3"}, UID).fill == 3
    assert from_env({"HOME": "/h", "MILLPOND_FILL": "0"}, UID).fill == 0
    with pytest.raises(UsageError, match="MILLPOND_FILL is 'many', which is not a number of processes"):
        from_env({"HOME": "/h", "MILLPOND_FILL": "many"}, UID)


def test_the_number_of_processes_of_a_mount_is_a_number() -> None:
    assert from_env({"HOME": "/h"}, UID).serving_most is None
    assert from_env({"HOME": "/h", "MILLPOND_SERVING": "3"}, UID).serving_most == 3
    for text in ("0", "-1", "many"):
        with pytest.raises(UsageError, match=f"MILLPOND_SERVING is '{text}', which is not a number of processes"):
            from_env({"HOME": "/h", "MILLPOND_SERVING": text}, UID)


def test_a_user_without_a_home_is_told() -> None:
    with pytest.raises(UsageError, match="HOME"):
        from_env({}, UID)


def test_the_systems_daemon_never_ends_for_idleness() -> None:
    found = from_env({"MILLPOND_SYSTEM_USER": "millpond"}, 0)
    assert (found.socket, found.idle_exit_s) == (Path("/run/millpond/millpond.sock"), 0.0)
