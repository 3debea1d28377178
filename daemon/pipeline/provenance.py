"""What is kept of stage runs: `.dvc/tmp/millpond/runs/STAGE/TIME-KEY.json`, a file a run, never changed once it is there.

KEY is the digest of the lock entry that the run ended with, so that an entry of any dvc.lock finds the run that made it, and no
run is taken for what it did not make. Records tell of data and never stand for it: nothing is restored from them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import CancelledError, InvalidFileError, MillpondError
from millpond.daemon.jobs.runner import Ended
from millpond.daemon.pipeline import memory, runcache
from millpond.daemon.pipeline.lock import Lock, locked
from millpond.daemon.pipeline.pipelines import Pipelines
from millpond.daemon.pipeline.stage import Stage, address
from millpond.daemon.pipeline.surroundings import Code, machine, user
from millpond.daemon.project import yamlio
from millpond.daemon.project.durable import sync_folder, write_all
from millpond.daemon.project.repo import Repo
from millpond.daemon.version import VERSION

RAN, CACHED, FAILED, CANCELLED = "ran", "cached", "failed", "cancelled"
# Runs of a stage that are kept, beside those that a lock names; so many more are let gather before old ones go.
KEEP, SLACK = 20, 10
# Stages whose runs are kept.
MOST_STAGES = 20_000
_MAX_BYTES = 64 << 20
_NO_KEY = "0" * 32
_FOLDER = "runs"
Entry = Mapping[str, Any]


def key_of(entry: Entry) -> str:
    """What a run is found by: the digest of a lock entry, sizes aside, and which versions remotes have of its outputs: those come later."""
    versioned = [out for out in entry.get("outs") or [] if "cloud" in out or "files" in out]
    if versioned:
        known = locked({"outs": versioned}, "outs")
        outs = [known[out["path"]].entry(out["path"]) if out["path"] in known else out for out in entry["outs"]]
        entry = {**entry, "outs": outs}
    text = json.dumps(runcache.without_sizes(entry), sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


@dataclass(slots=True)
class Run:
    """A stage's turn that is under way: when it began (seconds since 1970), and with what."""

    inputs: Entry
    code: dict[str, Any] | None
    reasons: list[dict[str, Any]]
    began: float
    usage: dict[str, Any] = field(default_factory=lambda: {"seconds": 0.0, "user_s": 0.0, "system_s": 0.0, "memory": 0})
    code_of_exit: int | None = None
    # What its mounted inputs were asked for, and for how many seconds those who read waited; None: it had none.
    reads: list[dict[str, Any]] | None = None
    waited_s: float | None = None

    # Files of parameters were changed while it ran; it is recorded with those that it began with.
    params_changed: bool = False

    def changed_deps(self, entry: Entry) -> list[str]:
        """Dependencies that are others in what it ended with (a lock entry) than when it began."""
        before, after = locked(self.inputs, "deps"), locked(entry, "deps")
        return sorted(path for path in after if path not in before or before[path].token != after[path].token)

    def take(self, ended: Ended) -> None:
        """One of its commands ended."""
        usage = self.usage
        for name in ("seconds", "user_s", "system_s"):
            usage[name] = round(usage[name] + getattr(ended, name), 3)
        usage["memory"] = max(usage["memory"], ended.memory)
        self.code_of_exit = ended.code


class Journal:
    """Writes records of one repro's runs. Each has a file of its own, so that no lock is needed."""

    def __init__(self, repo: Repo, loaded: Pipelines) -> None:
        self._repo = repo
        self._loaded = loaded
        self._folder = folder_of(repo)
        self._code = Code(repo)
        self._machine: dict[str, Any] | None = None
        self._heads: dict[str, Lock] = {}

    def begin(self, inputs: Entry, reasons: list[dict[str, Any]]) -> Run:
        """A stage begins with `inputs` (a lock entry without outputs)."""
        return Run(inputs, self._code.now(self._loaded.places), reasons, time.time())

    def record(self, stage: Stage, run: Run, entry: Entry, outcome: str) -> dict[str, str]:
        """{absolute path: text} of the record of a run that ended well, to be written with its lock entry. Raises OSError."""
        changed = [wirepath.encode(path) for path in run.changed_deps(entry)]
        fields = {"entry": entry, "changed_meanwhile": changed, "params_changed": run.params_changed}
        return self._file(stage, run, outcome, key_of(entry), fields)

    def failed(self, stage: Stage, run: Run, error: MillpondError) -> None:
        """Record a run that came to nothing. Failing to is no error: the stage's own is what counts."""
        outcome = CANCELLED if isinstance(error, CancelledError) else FAILED
        with contextlib.suppress(OSError):
            write_all(
                self._file(stage, run, outcome, _NO_KEY, {"entry": run.inputs, "error": wirepath.encode(error.message)})
            )
            self.tidy(stage)

    def tidy(self, stage: Stage) -> None:
        """Let old runs of the stage go, but none whose outputs dvc.lock names, here or in the last commit."""
        folder = os.path.join(self._folder, memory.slug(stage))
        with contextlib.suppress(OSError):
            names = sorted(os.listdir(folder), reverse=True)
            if len(names) <= KEEP + SLACK:
                return
            kept = set(names[:KEEP])
            for key in {key_of(entry) for entry in self._entries(stage)}:
                own = [name for name in names if _key(name) == key]
                # Rather the run itself than one that brought its outputs back.
                kept.update((*(name for name in own if _is_run(os.path.join(folder, name))), *own)[:1])
            for name in set(names) - kept:
                os.unlink(os.path.join(folder, name))

    def _entries(self, stage: Stage) -> Iterator[Entry]:
        """The stage's entries in dvc.lock, here and in the last commit."""
        head = self._heads.get(stage.lock)
        if head is None:
            head = self._heads[stage.lock] = self._at_head(stage.lock)
        for lock in (head, self._loaded.locks.get(stage.lock)):
            entry = None if lock is None else lock.get(stage.name)
            if entry is not None:
                yield entry

    def _at_head(self, path: str) -> Lock:
        git = self._repo.git
        commit = None if git is None else git.head()
        raw = None if git is None or commit is None else git.blob(commit, self._repo.git_path(path))
        with contextlib.suppress(InvalidFileError):
            return Lock.parse(yamlio.decode(raw or b"", path), path)
        return Lock(path, "")

    def _file(self, stage: Stage, run: Run, outcome: str, key: str, fields: dict[str, Any]) -> dict[str, str]:
        if self._machine is None:
            self._machine = machine(os.environ)
            self._bound()
        folder = os.path.join(self._folder, memory.slug(stage))
        if not os.path.isdir(folder):
            first = not os.path.isdir(self._folder)
            os.makedirs(folder, exist_ok=True)
            sync_folder(self._folder)
            if first:
                sync_folder(os.path.dirname(self._folder))
        executed = outcome != CACHED
        record = {
            "version": 1,
            "stage": wirepath.encode(address(stage, stage.file)),
            "outcome": outcome,
            "began": round(run.began, 3),
            "ended": round(time.time(), 3),
            "exit_code": run.code_of_exit,
            "usage": run.usage if executed else None,
            "reasons": run.reasons,
            **fields,
            "git": run.code,
            **self._machine,
            "log": wirepath.encode(self._log(stage)) if executed else None,
            "millpond": VERSION,
            "reads": run.reads if executed else None,
            "waited_s": run.waited_s if executed else None,
        }
        path = os.path.join(folder, f"{time.time_ns():020d}-{key}.json")
        return {path: json.dumps(record, default=str) + "\n"}

    def _log(self, stage: Stage) -> str:
        return os.path.relpath(memory.log_path(os.path.dirname(self._folder), stage), self._repo.root)

    def _bound(self) -> None:
        """Forget stages that are no more, the oldest first, when there are too many."""
        with contextlib.suppress(OSError):
            names = os.listdir(self._folder)
            if len(names) <= MOST_STAGES:
                return
            current = {memory.slug(stage) for stage in self._loaded.stages}
            gone = [os.path.join(self._folder, name) for name in names if name not in current]
            for path in sorted(gone, key=os.path.getmtime)[: len(names) - MOST_STAGES]:
                for name in os.listdir(path):
                    os.unlink(os.path.join(path, name))
                os.rmdir(path)


class Records:
    """The records of a project, to be read."""

    def __init__(self, repo: Repo) -> None:
        self._folder = folder_of(repo)
        self._by_key: dict[str, list[str]] | None = None

    def of_stage(self, stage: Stage, most: int | None = None) -> Iterator[dict[str, Any]]:
        """The last runs of a stage, the newest first."""
        folder = os.path.join(self._folder, memory.slug(stage))
        return _read_all(os.path.join(folder, name) for name in sorted(_names(folder), reverse=True)[:most])

    def of_entry(self, entry: Entry) -> dict[str, Any] | None:
        """The run that a lock entry is of: the last that was executed, else one that brought its outputs back."""
        if self._by_key is None:
            self._by_key = {}
            for stage in _names(self._folder):
                for name in _names(os.path.join(self._folder, stage)):
                    self._by_key.setdefault(_key(name), []).append(os.path.join(self._folder, stage, name))
        paths = sorted(self._by_key.get(key_of(entry), []), key=os.path.basename, reverse=True)
        found = [record for record in _read_all(paths) if key_of(record["entry"]) == key_of(entry)]
        return next((record for record in found if record["outcome"] == RAN), found[0] if found else None)


def folder_of(repo: Repo) -> str:
    """Where a project's records are."""
    return os.path.join(repo.temporary, "millpond", _FOLDER)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _key(name: str) -> str:
    return name.removesuffix(".json").rpartition("-")[2]


def _is_run(path: str) -> bool:
    return any(record["outcome"] == RAN for record in _read_all([path]))


def _read_all(paths: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The records in files; what is none is passed over. Who ran it is who owns the file, whatever it says."""
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                owner = os.fstat(fd).st_uid
                record = json.loads(file.read(_MAX_BYTES))
            if _is_record(record):
                if record["user"].get("uid") != owner:
                    record["user"] = user(owner)
                yield record


def _is_record(record: Any) -> bool:
    kinds = {"stage": str, "outcome": str, "began": int | float, "ended": int | float, "entry": dict, "user": dict}
    return isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in kinds.items())
