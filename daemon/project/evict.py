"""`cache evict`: the caller's side of eviction. It asks the remotes of his projects what they hold, and tells the
daemon, project by project.

Twice: what was noted within a day is good enough to choose by; what is chosen goes only when it was asked for once
more, just before.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import MillpondError, UsageError, from_system
from millpond.daemon.names import DIR_SUFFIX, ObjectName
from millpond.daemon.project import config
from millpond.daemon.project.gc import STORE_LOCK, kept
from millpond.daemon.remote.places import Places
from millpond.daemon.store.evict_service import VICTIM
from millpond.daemon.store.ledger import MANIFEST
from millpond.daemon.store.usage import ROW_BYTES

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext

# Objects that the daemon is told of at once; of more than these the rest stay.
_MOST = memfd.MAX_BYTES // ROW_BYTES
# How long `cache info` waits for remotes.
_PATIENCE_S = 10.0
# Times that others are chosen instead of those that remotes turned out not to hold.
_ROUNDS = 20


@dataclass(slots=True)
class Holding:
    """A project (`path` in wire form) and what its remotes hold of its objects, with sizes; `reason` why that cannot be
    known."""

    path: str
    reason: str | None = None
    held: dict[bytes, int] = field(default_factory=dict)
    places: Places | None = None

    def close(self) -> None:
        if self.places is not None:
            self.places.close()


def evict(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {to?, dry} -> the report (store/evict.py) with `stored` before and `left` after, and `projects` [{path,
    reason, objects, bytes}] of what no remote was seen to hold. `to`: bytes that the store may have in the end, by
    default nine tenths of its limit. Raises UsageError (neither is there), AccessError (a project that was not read
    since the index was made anew cannot be read), BusyError, StoreDamagedError.
    """
    room, _ = context.client.call("gc.room", {})
    to = params.get("to")
    if to is None and not room["bytes"]:
        raise UsageError("the store has no limit, so say how far: --to SIZE", hint="all that may go: --to 0")
    wanted = int(to) if to is not None else room["bytes"] * 9 // 10
    return _evict(context, wanted, shared=True, dry=bool(params.get("dry")))


def make_room(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """The daemon's own verb. {to, lock} -> {why}: evict for a request of the same user that waits, and say what may not
    go. `lock` is whether the store's lock is to be taken, which that request may have. Raises as `evict`."""
    with context.lock(STORE_LOCK, "read") if params.get("lock") else contextlib.nullcontext():
        report = _evict(context, int(params["to"]), shared=False, dry=False)
    return {"why": why_not(report)}


def holdings(context: WorkerContext, within_s: float | None = None) -> list[Holding]:
    """What the remotes of each of the caller's projects hold, by its roots as last known. With `within_s` no more is waited for
    all of them; what has not answered then holds nothing, for that reason."""
    known, _ = context.client.call("gc.projects", {})
    end = None if within_s is None else time.monotonic() + within_s
    found = []
    for row in known["projects"]:
        holding, rows = Holding(row["path"]), dict[bytes, int]()
        context.progress("looking at remotes", note=wirepath.decode(row["path"]))
        with _reason(holding):
            rows = _objects(context, row["path"])
        if end is not None:
            holding = _look_until(end, holding, rows)
        elif rows:
            _look(holding, rows, lambda done, total: context.progress("looking at remotes", (done, total)))
        found.append(holding)
    return found


def ask(
    context: WorkerContext, found: Sequence[Holding], *, to: int, shared: bool, dry: bool
) -> tuple[dict[str, Any], list[list[ObjectName]]]:
    """The daemon's report, and of each project the objects that go, or would with `dry`."""
    rows, projects, left = [], [], _MOST
    for holding in found:
        part = [root + size.to_bytes(8, "little") for root, size in list(holding.held.items())[:left]]
        left -= len(part)
        rows += part
        projects.append({"path": holding.path, "count": len(part)})
    with memfd.sent(b"".join(rows)) as fd:
        params = {"projects": projects, "to": to, "shared": shared, "dry": dry}
        report, fds = context.client.call("gc.evict", params, fds=[fd])
    victims: list[list[ObjectName]] = [[] for _ in found]
    with memfd.mapped(fds[0]) as view:
        for number, root in VICTIM.iter_unpack(view):
            victims[number].append(ObjectName("md5", root[1:].hex()))
    return report, victims


def _evict(context: WorkerContext, to: int, *, shared: bool, dry: bool) -> dict[str, Any]:
    room, _ = context.client.call("gc.room", {})
    left = room["stored"]
    kept(context, [], lambda roots: set())
    with contextlib.ExitStack() as stack:
        found = holdings(context)
        for holding in found:
            stack.callback(holding.close)
        report, victims = ask(context, found, to=to, shared=shared, dry=True)
        gone = {"objects": 0, "bytes": 0}
        freed, aim = 0, to
        for number in range(0 if dry else _ROUNDS):
            # At first in any case: there may be garbage.
            if any(victims) or not number:
                done, _ = ask(context, _confirmed(context, found, victims), to=aim, shared=shared, dry=False)
                gone = {key: gone[key] + done["evicted"][key] for key in gone}
                freed += done["freed"]
            else:
                left = context.client.call("gc.shrink", {"to": to})[0]["stored"]
                if left <= to or not aim or not report["evictable"]["objects"]:
                    break
                # What segments have beside records takes room, too.
                aim = max(0, aim - (left - to))
            report, victims = ask(context, found, to=aim, shared=shared, dry=True)
        if not dry:
            report |= {"evicted": gone, "freed": freed, "dry": False}
    return told(report, found) | {"stored": room["stored"], "left": left, "to": to}


def what_may_go(context: WorkerContext) -> dict[str, Any]:
    """The report of an eviction of everything, which is not done. Raises StoreDamagedError, BusyError."""
    with contextlib.ExitStack() as stack:
        found = holdings(context, _PATIENCE_S)
        for holding in found:
            stack.callback(holding.close)
        report, _ = ask(context, found, to=0, shared=True, dry=True)
    return told(report, found)


def told(report: dict[str, Any], found: Sequence[Holding]) -> dict[str, Any]:
    """A report with what no remote was seen to hold as `projects`, and `kept` as rows [{why, reason, objects,
    bytes}]."""
    reasons = {holding.path: holding.reason for holding in found}
    lacking, kept_part = report["lacking"], report["kept"]
    rows = [{"path": path, "reason": reasons.get(path), **part} for path, part in sorted(lacking.items())]
    stays = [{"why": why, "reason": REASONS[why], **part} for why, part in sorted(kept_part.items())]
    return {**{key: value for key, value in report.items() if key != "lacking"}, "projects": rows, "kept": stays}


# Why contents stay, as a person reads it.
REASONS = {
    "manifest": "manifests",
    "several": "objects with several names, or names with several contents",
    "pinned": "pinned",
    "in use": "being added or used now",
    "unnamed": "named by no project: see `millpond gc`",
    "others": "read by other users, too",
    "shared": "made of what stays in any case",
}


def why_not(report: dict[str, Any]) -> str:
    """What stays in the store and why, in a phrase."""
    parts = []
    for row in report["projects"]:
        where = f"'{wirepath.decode(row['path'])}'"
        reason = (
            f"of {where}, whose remotes cannot be asked ({row['reason']})"
            if row["reason"]
            else f"on no remote of {where}"
        )
        parts.append(f"{_size(row['bytes'])} {reason}")
    parts += [f"{_size(row['bytes'])} {row['reason']}" for row in report["kept"] if row["bytes"]]
    return "nothing more can be evicted: " + ("; ".join(parts) if parts else "there is nothing that remotes hold")


@contextlib.contextmanager
def _reason(holding: Holding) -> Iterator[None]:
    """Without live credentials, or a remote at all, nothing of a project is held anywhere."""
    try:
        yield
    except MillpondError as error:
        holding.held, holding.reason = {}, error.message
    except OSError as error:
        holding.held, holding.reason = {}, from_system(error, "looking at it").message


def _look_until(end: float, holding: Holding, rows: dict[bytes, int]) -> Holding:
    """`_look` in a thread, which is left to itself when it takes too long."""
    if not rows:
        return holding
    thread = threading.Thread(target=_look, args=(holding, rows, lambda done, total: None), daemon=True)
    thread.start()
    thread.join(max(0.0, end - time.monotonic()))
    if thread.is_alive():
        return Holding(holding.path, f"they have not answered in {_PATIENCE_S:g} s")
    return holding


def _look(holding: Holding, rows: dict[bytes, int], tick: Callable[[int, int], None]) -> None:
    """Which of a project's objects (`rows`: roots and sizes) its remotes hold, as they tell now."""
    with _reason(holding):
        _look_at(holding, rows, tick)


def _look_at(holding: Holding, rows: dict[bytes, int], tick: Callable[[int, int], None]) -> None:
    dvc_dir = os.path.join(wirepath.decode(holding.path), ".dvc")
    os.stat(dvc_dir)
    holding.places = Places(lambda: config.load(dvc_dir, os.environ), os.environ)
    names = {_name(root): root for root in rows if root[0] != MANIFEST}
    for transfer in holding.places.transfers():
        rest = [name for name, root in names.items() if root not in holding.held]
        there = transfer.present(rest, tick) if rest else {}
        holding.held |= {names[name]: size for name, size in there.items()}


def _confirmed(context: WorkerContext, found: Sequence[Holding], victims: Sequence[list[ObjectName]]) -> list[Holding]:
    """What is there of that, asked of the remotes now. What is not is no longer held."""
    confirmed = []
    for holding, names in zip(found, victims, strict=True):
        now = Holding(holding.path)
        confirmed.append(now)
        if not names or holding.places is None:
            continue
        context.progress("asking remotes once more", note=wirepath.decode(holding.path))
        with _reason(holding):
            there = holding.places.sizes(list(names))
            for transfer in holding.places.transfers():
                transfer.sync_found(there)
            now.held = {b"\0" + bytes.fromhex(name.hex): size for name, size in there.items()}
            for name in names:
                root = b"\0" + bytes.fromhex(name.hex)
                if now.held.get(root) != holding.held.get(root):
                    holding.held.pop(root, None)
        if now.reason is not None:
            holding.reason, holding.held = now.reason, {}
    return confirmed


def _objects(context: WorkerContext, path: str) -> dict[bytes, int]:
    """Roots of what a project keeps in the store, with sizes."""
    _, fds = context.client.call("gc.objects", {"path": path})
    with memfd.mapped(fds[0]) as view:
        data = bytes(view)
    rows = (data[start : start + ROW_BYTES] for start in range(0, len(data), ROW_BYTES))
    return {row[:17]: int.from_bytes(row[17:], "little") for row in rows}


def _name(root: bytes) -> ObjectName:
    return ObjectName("md5", root[1:].hex() + (DIR_SUFFIX if root[0] == MANIFEST else ""))


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
