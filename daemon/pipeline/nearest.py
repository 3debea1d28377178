"""Of the earlier runs of a stage, the one that differs least from what it would run with now, and in what. Looked for only when
somebody asks, or when the stage is about to run for want of one that is the same."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.pipeline.changed import COMMAND, DELETED, DEP, MODIFIED, NEW, PARAM, Reason
from millpond.daemon.pipeline.lock import locked
from millpond.daemon.pipeline.provenance import CACHED, KEEP, RAN, SLACK, Records
from millpond.daemon.pipeline.runcache import RunCache
from millpond.daemon.pipeline.stage import Stage
from millpond.daemon.project.paths import printable

Entry = Mapping[str, Any]
RECORD, RUN_CACHE = "record", "run cache"
# Entries of the run cache that are read, for all stages together; the newest ones.
_MOST_ENTRIES = 500
# Differences that are told in a sentence, characters of a value and of a command there, and of a hash.
_TOLD, _VALUE, _COMMAND, _HASH = 5, 40, 80, 8


@dataclass(frozen=True, slots=True)
class Near:
    """An earlier run: `source` says how it is known, `ended` when it was, in seconds since 1970; `differences` lead from it to what
    there is now."""

    source: str
    ended: float
    differences: list[Reason]

    def to_json(self) -> dict[str, Any]:
        """{source, ended, differences, text}, differences as reasons are told."""
        return {
            "source": self.source,
            "ended": round(self.ended, 3),
            "differences": [each.to_json() for each in self.differences],
            "text": wirepath.encode(self.text),
        }

    @property
    def text(self) -> str:
        """One line."""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.ended))
        if not self.differences:
            return f"an earlier run, {when}, had the same inputs; not all of what it made is at hand"
        told = [_text(each) for each in self.differences[:_TOLD]]
        more = len(self.differences) - len(told)
        return f"nearest earlier run, {when}: {', '.join(told)}{f', and {more} more' if more else ''}"


@dataclass(slots=True)
class Nearest:
    """Of one verb: what was read is kept."""

    records: Records
    runs: RunCache
    _entries: dict[frozenset[str], list[tuple[float, Entry]]] | None = None
    _found: dict[Stage, Near | None] = field(default_factory=dict)

    def of(self, stage: Stage, inputs: Entry) -> Near | None:
        """The nearest run of a stage, of equals the newest; `inputs` is a lock entry without outputs. None when it never ran."""
        if stage not in self._found:
            runs = [Near(source, ended, differences(entry, inputs)) for source, ended, entry in self._earlier(stage)]
            # A record knows the stage; an entry of the run cache may be of another one that makes what is called the same.
            self._found[stage] = min(
                runs, key=lambda run: (len(run.differences), run.source != RECORD, -run.ended), default=None
            )
        return self._found[stage]

    def _earlier(self, stage: Stage) -> Iterator[tuple[str, float, Entry]]:
        outs = frozenset(out.path for out in stage.outs)
        for record in self.records.of_stage(stage, KEEP + SLACK):
            entry = record["entry"]
            if record["outcome"] in (RAN, CACHED) and _outs(entry) == outs:
                yield RECORD, float(record["ended"]), entry
        if self._entries is None:
            self._entries = {}
            for ended, entry in self.runs.newest(_MOST_ENTRIES):
                self._entries.setdefault(_outs(entry), []).append((ended, entry))
        for ended, entry in self._entries.get(outs, []):
            yield RUN_CACHE, ended, entry


def differences(old: Entry, new: Entry) -> list[Reason]:
    """What leads from the inputs of one lock entry to those of another; paths as they are written there."""
    found = (
        [] if old.get("cmd") == new.get("cmd") else [Reason(COMMAND, MODIFIED, old=old.get("cmd"), new=new.get("cmd"))]
    )
    before, after = locked(old, "deps"), locked(new, "deps")
    for path in {**before, **after}:
        was, now = before.get(path), after.get(path)
        if was is None or now is None or was.token != now.token:
            found.append(
                Reason(
                    DEP,
                    _state(was, now),
                    path,
                    old=None if was is None else was.value,
                    new=None if now is None else now.value,
                )
            )
    was_params, now_params = old.get("params") or {}, new.get("params") or {}
    for file in {**was_params, **now_params}:
        earlier, later = was_params.get(file) or {}, now_params.get(file) or {}
        for key in {**earlier, **later}:
            if key not in earlier or key not in later or earlier[key] != later[key]:
                state = NEW if key not in earlier else DELETED if key not in later else MODIFIED
                found.append(Reason(PARAM, state, file, key, earlier.get(key), later.get(key)))
    return found


def _state(was: Any, now: Any) -> str:
    return NEW if was is None else DELETED if now is None else MODIFIED


def _outs(entry: Entry) -> frozenset[str]:
    return frozenset(locked(entry, "outs"))


def _text(reason: Reason) -> str:
    if reason.kind == COMMAND:
        return f"command {_value(reason.old, _COMMAND)} -> {_value(reason.new, _COMMAND)}"
    if reason.kind == PARAM:
        old = "nothing" if reason.state == NEW else _value(reason.old, _VALUE)
        new = "nothing" if reason.state == DELETED else _value(reason.new, _VALUE)
        return f"{printable(reason.path)}: {printable(reason.key)} {old} -> {new}"
    return f"{printable(reason.path)} {_short(reason.old)} -> {_short(reason.new)}"


def _short(value: str | None) -> str:
    return "nothing" if value is None else printable(value.strip('"')[:_HASH])


def _value(value: Any, most: int) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return printable(text if len(text) <= most else f"{text[: most - 1]}…")
