"""Mounts that remotes refuse, given other credentials: those of whoever runs a command in their project.

They lie in the command's environment, or where it says. The worker asks the remote with them first, so that a mount never gets worse
ones than it has; then its environment goes to the mount's source, in a memory file that neither daemon nor holder reads.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from millpond.daemon import environs, wirepath
from millpond.daemon.errors import MillpondError, ObjectMissingError
from millpond.daemon.jobs.objects import Peer
from millpond.daemon.mounts.records import MountRecord
from millpond.daemon.names import ObjectName
from millpond.daemon.project import config
from millpond.daemon.project.repo import find_root
from millpond.daemon.remote import remotes
from millpond.daemon.remote.layout import key_of
from millpond.daemon.remote.places import NOTHING, Places
from millpond.daemon.remote.transfer import Transfer

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext

# A remote that does not answer in this time is not asked for longer, after a command that was about something else.
_ASK_S = 5.0


def revive(client: Peer, refused: Sequence[tuple[str, str, str]]) -> None:
    """After a command, in its environment: give that to those of the mounts (id, project, wanted object) that are of the project here, if
    the remote gives out the object. Never raises for what does not work: the mounts stay as they were."""
    try:
        root = find_root(os.getcwd())
    except (MillpondError, OSError):
        return
    mine = {
        mount_id: _name(wanted) if wanted else None
        for mount_id, repo, wanted in refused
        if wirepath.decode(repo) == root
    }
    if not mine:
        return
    deadline = time.monotonic() + _ASK_S
    answered = {wanted: _answers(root, wanted, deadline) for wanted in set(mine.values())}
    for mount_id, wanted in mine.items():
        if not answered[wanted]:
            continue
        try:
            give(client, mount_id)
        except (MillpondError, OSError):
            continue


def give(client: Peer, mount_id: str) -> None:
    """Have a mount's source ask with this process's environment. Raises CredentialsError, RemoteError, RemoteConfigError, MountError."""
    environ = environs.to_file(os.environ)
    try:
        client.call("mounts.credentials", {"id": mount_id}, fds=[environ])
    finally:
        os.close(environ)


def login(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {name | null} -> {remote, mounts: [mountpoint], failed: [{mountpoint, error}]}: ask a remote whether it lets the caller in, and
    give what his environment says to all of his mounts of the project. Raises CredentialsError, RemoteError, RemoteConfigError,
    NotARepoError."""
    root = find_root(os.getcwd())
    name = None if params.get("name") is None else wirepath.decode(str(params["name"]))
    settings = config.load(os.path.join(root, ".dvc"), os.environ)
    remote = remotes.find(settings, name)
    found, _ = context.client.call("mounts.find", {"all": True})
    records = [MountRecord.from_json(each) for each in found["mounts"]]
    records = [record for record in records if record.repo == root and record.uid == context.uid]
    context.progress(f"asking remote {remote.name}")
    known = [record.name for record in records if record.name]
    with Transfer(remotes.connect(remote, os.environ)) as transfer, contextlib.suppress(ObjectMissingError):
        transfer.get(key_of(_name(known[0]) if known else NOTHING), 0, 1)
    given: list[str] = []
    failed: list[dict[str, str]] = []
    for record in records:
        mountpoint = wirepath.encode(record.mountpoint)
        try:
            give(context.client, record.id)
            given.append(mountpoint)
        except MillpondError as error:
            failed.append({"mountpoint": mountpoint, "error": str(error)})
    return {"remote": wirepath.encode(remote.name), "mounts": given, "failed": failed}


def _name(text: str) -> ObjectName:
    return ObjectName(*text.split(":", 1))


def _answers(root: str, wanted: ObjectName | None, deadline: float) -> bool:
    """Whether the project's remotes answer to this environment, now."""
    answered = threading.Event()

    def ask() -> None:
        try:
            Places(lambda: config.load(os.path.join(root, ".dvc"), os.environ), os.environ).check(wanted)
            answered.set()
        except MillpondError:
            return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(max(0.0, deadline - time.monotonic()))
    return answered.is_set()
