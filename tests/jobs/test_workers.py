"""Workers of a real daemon: what they see, how they end, what they leave."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.helpers import Site, children_named, context, gone, kill, running, until

from millpond.daemon import wirepath
from millpond.daemon.errors import (
    BusyError,
    CancelledError,
    InternalError,
    LockTimeoutError,
    MillpondError,
    ProtocolError,
    TargetError,
)
from millpond.daemon.rpc.client import Client


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("daemon"), SECRET_TOKEN="hunter2") as found:
        yield found


@pytest.fixture
def client(daemon: Site) -> Iterator[Client]:
    with daemon.start() as found:
        yield found


def test_a_worker_has_its_clients_surroundings_and_nothing_of_the_daemons(
    daemon: Site, client: Client, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"fold\xffer \xe2\x98\x83")
    odd.mkdir()
    (odd / "json.py").write_text("raise SystemExit('imported from the current folder')")
    env = {"NAME": os.fsdecode(b"v\xfe=\n%"), "HOME": "/nowhere"}
    found, _ = client.call("init", {"a": [1, None], "context": context(odd, env=env)})
    assert bytes.fromhex(found["cwd"]) == os.fsencode(odd)
    assert {bytes.fromhex(k): bytes.fromhex(v) for k, v in found["env"].items()} == {
        os.fsencode(k): os.fsencode(v) for k, v in env.items()
    }
    assert found["umask"] == 0o027
    assert found["uid"] == os.getuid()
    assert found["params"] == {"a": [1, None]}
    assert b"hunter2" not in bytes.fromhex(found["environ"])
    # Its socket and the lock that says it lives; nothing else of the zygote or the daemon, and no current folder to import.
    assert [name.partition(":")[0].rpartition(".")[2] for name in found["fds"]] == ["work", "socket"]
    assert "" not in found["path"] and "/" not in found["path"]


def test_the_daemon_was_given_no_secrets_either(daemon: Site, client: Client) -> None:
    status, _ = client.call("daemon.status", {})
    assert b"hunter2" not in Path(f"/proc/{status['pid']}/environ").read_bytes()


def test_a_typed_error_comes_through_with_all_its_parts(client: Client) -> None:
    with pytest.raises(TargetError) as caught:
        client.call("checkout", {"how": "typed", "context": context()})
    error = caught.value
    assert (error.message, error.hint, error.details) == (r"cannot read 'a\xff'", "try", {"n": 1})


@pytest.mark.parametrize(
    ("how", "says"), [("bug", "a bug"), ("exit", "SystemExit"), ("kill", "signal 9"), ("too long", "can be passed on")]
)
def test_a_worker_that_fails_hurts_nobody_else(daemon: Site, client: Client, how: str, says: str) -> None:
    with pytest.raises(MillpondError, match=says):
        client.call("checkout", {"how": how, "context": context()})
    assert client.call("root", {"context": context()})[0] == {}


def test_a_long_answer_comes_whole(daemon: Site, client: Client) -> None:
    pid = client.call("daemon.status", {})[0]["pid"]
    open_before = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(3):
        result, fds = client.call("checkout", {"how": "long", "context": context()})
        assert (len(result["text"]), fds) == (8 << 20, [])
    until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= open_before)


def test_a_bugs_traceback_is_in_the_log_under_the_requests_id_and_nowhere_else(daemon: Site, client: Client) -> None:
    seen: list[Any] = []
    with pytest.raises(InternalError) as caught:
        client.call("checkout", {"how": "bug", "context": context()}, on_notify=lambda *note: seen.append(note))
    assert "Traceback" not in str(caught.value) and seen == []
    traces = [line for line in daemon.log() if "ZeroDivisionError" in line["text"]]
    ended = [line for line in daemon.log() if line.get("outcome") == "internal"]
    assert traces[-1]["request"] == ended[-1]["request"]


def test_a_folder_that_is_gone_and_a_context_that_is_none(client: Client) -> None:
    with pytest.raises(TargetError, match="cannot enter '/not/there'"):
        client.call("root", {"context": context("/not/there")})
    for broken in ({"env": {"A": 1}}, {"env": {"A": "nul%00"}}, {"umask": "x"}, {"cwd": 7}, {"env": [1]}):
        with pytest.raises(ProtocolError, match="context"):
            client.call("root", {"context": broken})


def test_progress_reaches_the_client_coalesced_and_to_its_end(client: Client) -> None:
    notes: list[tuple[str, dict[str, Any]]] = []
    client.call("status", {"lines": 20, "context": context()}, on_notify=lambda *note: notes.append(note))
    progress = [params for method, params in notes if method == "$/progress"]
    assert progress[-1]["files"] == [1000, 1000]
    assert len(progress) < 50
    assert [params["text"] for method, params in notes if method == "$/log"] == [f"line {n}" for n in range(20)]


def test_a_worker_stores_through_its_socket(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    found, _ = client.call("status", {"paths": [str(tmp_path / "a")], "context": context()})
    assert found["names"] == [f"md5:{hashlib.md5(b'hello').hexdigest()}"]


def test_memory_that_is_used_again_mixes_nothing_up(client: Client, tmp_path: Path) -> None:
    contents = [random.Random(number).randbytes(size) for number, size in enumerate((70 << 20, 10, 33 << 20, 16 << 20))]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    paths = [str(tmp_path / str(number)) for number in range(len(contents))]
    found, _ = client.call("status", {"paths": paths, "context": context()})
    assert found["names"] == [f"md5:{hashlib.md5(content).hexdigest()}" for content in contents]
    report, _ = client.call("fsck", {"deep": True, "context": context()})
    assert report["ok"]


@pytest.mark.parametrize("after", [0, 1, 30])
def test_what_is_read_into_memory_that_is_used_again_is_whole(client: Client, tmp_path: Path, after: int) -> None:
    sizes = (20 << 20, 0, 10, *[300_000] * 30, 33 << 20, 16 << 20, 70_000)
    for number, size in enumerate(sizes):
        (tmp_path / str(number)).write_bytes(random.Random(number).randbytes(size))
    paths = [str(tmp_path / str(number)) for number in range(len(sizes))]
    found, _ = client.call("fetch", {"paths": paths, "after": after, "context": context()})
    assert found["digests"] == found["names"] * 2 and found["left open"] == 0
    unsealed, full = found["refusals"]
    assert "not a sealed memory file" in unsealed and "do not fit" in full


def test_a_cancelled_worker_keeps_its_lock_until_it_has_cleaned_up(client: Client, tmp_path: Path) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    params = {"project": str(tmp_path), "context": context()}
    first = client.start("add", {**params, "mark": str(mark), "until": str(tmp_path / "never"), "cleanup_s": 0.5})
    until(mark.exists)
    client.cancel(first)
    go.touch()
    second = client.start("add", {**params, "mark": str(tmp_path / "second"), "until": str(go)})
    first_was_gone = []

    def note(method: str, note_params: dict[str, Any]) -> None:
        if method == "$/progress" and note_params["id"] == second:
            first_was_gone.append(not mark.exists())

    client.on_notify = note
    client.wait(second)
    assert first_was_gone and all(first_was_gone)
    with pytest.raises(CancelledError):
        client.wait(first)


def test_hanging_up_ends_the_worker_and_frees_the_lock(daemon: Site, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    params = {"project": str(tmp_path), "mark": str(mark), "until": str(tmp_path / "go"), "context": context()}
    with daemon.start() as lost:
        lost.start("add", params)
        until(mark.exists)
        pid = int(mark.read_text())
    until(lambda: gone(pid))
    (tmp_path / "go").touch()
    with daemon.start() as other:
        assert other.call("add", params)[0] == {}


@pytest.mark.long
def test_a_worker_that_ignores_its_end_is_killed_with_its_children(client: Client, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    number = client.start("checkout", {"how": "deaf", "mark": str(mark), "context": context()})
    child = int(until(lambda: mark.exists() and mark.read_text()))
    client.cancel(number)
    with pytest.raises(CancelledError):
        client.wait(number)
    until(lambda: gone(child))


def test_who_waits_for_a_lock_is_told_for_whom_at_once(daemon: Site, client: Client, tmp_path: Path) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    params = {"project": str(tmp_path), "mark": str(mark), "until": str(go), "context": context()}
    holder = client.start("add", params)
    until(mark.exists)
    told: list[dict[str, Any]] = []
    with daemon.start() as other:

        def note(method: str, note_params: dict[str, Any]) -> None:
            if method == "$/waiting":
                told.append(note_params)
                go.touch()

        other.call("add", {**params, "mark": str(tmp_path / "other")}, on_notify=note)
    client.wait(holder)
    assert told[0]["for"].startswith(f"add by {client.server['you']['name']} (pid {os.getpid()}), ")


def test_a_wait_that_takes_too_long_names_the_holder(daemon: Site, client: Client, tmp_path: Path) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    params = {"project": str(tmp_path), "mark": str(mark), "until": str(go)}
    holder = client.start("add", {**params, "context": context()})
    until(mark.exists)
    with daemon.start() as other, pytest.raises(LockTimeoutError, match=r"after 0\.1 s: add by .* \(pid"):
        other.call("add", {**params, "context": context(wait_s=0.1)})
    go.touch()
    client.wait(holder)


def test_killing_the_zygote_ends_its_workers_and_the_next_request_has_a_new_one(
    daemon: Site, client: Client, tmp_path: Path
) -> None:
    status, _ = client.call("daemon.status", {})
    [zygote] = children_named("millpond-zygote", status["pid"])
    mark = tmp_path / "mark"
    params = {"project": str(tmp_path), "mark": str(mark), "until": str(tmp_path / "go"), "context": context()}
    number = client.start("add", params)
    until(mark.exists)
    os.kill(zygote, 9)
    with pytest.raises(MillpondError):
        client.wait(number)
    assert client.call("root", {"context": context()})[0] == {}
    (tmp_path / "go").touch()
    assert client.call("add", params)[0] == {}


def test_many_clients_at_once(daemon: Site) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with daemon.start() as mine:
                for _ in range(5):
                    assert mine.call("root", {"context": context()})[0] == {}
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_requests_of_one_caller_are_bounded(daemon: Site, client: Client, tmp_path: Path) -> None:
    params = {"project": str(tmp_path), "mark": str(tmp_path / "m"), "until": str(tmp_path / "go")}
    flying = [client.start("add", {**params, "context": context()}) for _ in range(64)]
    with daemon.start() as other:
        until(lambda: len(other.call("daemon.status", {})[0]["requests"]) == 64)
        with pytest.raises(BusyError, match="64 of your requests"):
            other.call("root", {"context": context()})
    (tmp_path / "go").touch()
    for number in flying:
        client.wait(number)


def test_the_daemon_leaks_neither_descriptors_nor_processes(daemon: Site, client: Client) -> None:
    status, _ = client.call("daemon.status", {})
    folder = Path(f"/proc/{status['pid']}/fd")

    def count() -> int:
        return len(list(folder.iterdir()))

    def at_rest() -> bool:
        """Only the worker forked ahead is there."""
        return len(children_named("millpond-worker", zygote)) == 1

    [zygote] = children_named("millpond-zygote", status["pid"])
    client.call("root", {"context": context()})
    until(at_rest)
    before, before_zygote = count(), len(os.listdir(f"/proc/{zygote}/fd"))
    for how in ("typed", "bug", "kill"):
        for _ in range(5):
            with pytest.raises(MillpondError):
                client.call("checkout", {"how": how, "context": context()})
            with daemon.start() as other:
                other.start("root", {"context": context()})
    until(lambda: at_rest() and count() <= before)
    assert len(os.listdir(f"/proc/{zygote}/fd")) == before_zygote


def test_the_worker_forked_ahead_may_be_killed(daemon: Site, client: Client) -> None:
    status, _ = client.call("daemon.status", {})
    [zygote] = children_named("millpond-zygote", status["pid"])

    def one_is_killed() -> bool:
        spares = children_named("millpond-worker", zygote)
        if len(spares) != 1:
            return False
        try:
            kill(spares[0])
        except ProcessLookupError:  # it was the last request's worker, which has just ended
            return False
        return True

    for _ in range(3):
        until(one_is_killed)
        assert client.call("root", {"context": context()})[0] == {}


def test_a_zygote_that_dies_all_the_time_is_not_started_for_ever(tmp_path: Path) -> None:
    with running(tmp_path) as place, place.start() as mine:
        status, _ = mine.call("daemon.status", {})
        for _ in range(5):
            assert mine.call("root", {"context": context()})[0] == {}
            [zygote] = children_named("millpond-zygote", status["pid"])
            os.kill(zygote, 9)
            until(lambda zygote=zygote: gone(zygote))  # type: ignore[misc]
        with pytest.raises(InternalError, match="died 5 times within 60 s"):
            mine.call("root", {"context": context()})


def test_wire_paths_name_projects_of_any_bytes(client: Client, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    (tmp_path / "go").touch()
    params = {"mark": str(tmp_path / "m"), "until": str(tmp_path / "go"), "context": context()}
    assert wirepath.decode(wirepath.encode(odd)) == odd
    assert client.call("add", {**params, "project": str(tmp_path) + "/%FF"})[0] == {}
