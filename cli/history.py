"""Lineage and runs as text: a tree, Markdown, a table."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from millpond.cli import render, text
from millpond.daemon import wirepath

Row = dict[str, Any]
_SHORT = 7
_RECORD_PATHS = frozenset(["stage", "log", "error", "changed_meanwhile"])
_SOURCES = {"git": "in Git", "untracked": "not tracked", "elsewhere": "not of this project"}


def record(row: Row) -> Row:
    """A record of a run with its paths and texts as they are; its lock entry came so."""
    decoded = render.decoded({key: row[key] for key in _RECORD_PATHS & row.keys()}, _RECORD_PATHS)
    if isinstance(row.get("env"), dict):
        decoded["env"] = {name: wirepath.decode(value) for name, value in row["env"].items()}
    if row.get("reads"):
        decoded["reads"] = render.decoded(row["reads"], frozenset(["path"]))
    return {**row, **decoded, "reasons": render.decoded(row.get("reasons"), frozenset(["path"]))}


def tree_lines(found: Row) -> Iterator[str]:
    """What `lineage` has found as a tree; a step that was shown above is only named."""
    yield _head(found)
    yield from _Tree(found).lines()
    yield from _measured(found)
    yield from (f"! {_problem(row)}" for row in found["problems"])


class _Tree:
    def __init__(self, found: Row) -> None:
        self._found = found
        self._steps: dict[str, Row] = {row["id"]: row for row in found["steps"]}
        self._shown: set[str] = set()

    def lines(self) -> Iterator[str]:
        # A stack of its own: chains may be longer than Python's.
        waiting = [("", "", self._ends(self._found["roots"]))]
        while waiting:
            lead, _, children = waiting[-1]
            if not children:
                waiting.pop()
                continue
            child = children.pop(0)
            branch, below = ("├── ", "│   ") if children else ("└── ", "    ")
            if isinstance(child, str):
                yield f"{lead}{branch}{child}"
                continue
            step, note = child
            known = step["id"] in self._shown
            yield f"{lead}{branch}{text.printable(step['name'])}{'  (above)' if known else _how(step)}{note}"
            if not known:
                self._shown.add(step["id"])
                for line in _facts(step):
                    yield f"{lead}{below}{line}"
                waiting.append((f"{lead}{below}", "", self._children(step)))

    def _ends(self, ids: list[str]) -> list[Any]:
        if not ids and self._found["source"] is not None:
            nothing = "nothing was made from it" if self._found["down"] else "no step makes it"
            return [f"{_SOURCES[self._found['source']]}: {nothing}"]
        return [(self._steps[each], "") for each in ids]

    def _children(self, step: Row) -> list[Any]:
        if self._found["down"]:
            return self._ends(step["used_by"]) if step["used_by"] else []
        found: list[Any] = []
        makers: dict[str, str] = {}
        for dep in step["deps"]:
            for maker in dep["from"]:
                stale = f"  ! stale: {text.printable(dep['path'])}" if maker["state"] == "stale" else ""
                makers[maker["id"]] = makers.get(maker["id"], "") + stale
            if dep["source"]:
                stale = "  ! stale" if dep["state"] == "stale" else ""
                digest = f"  {_hash(dep)}" if _hash(dep) else ""
                found.append(f"{text.printable(dep['path'])}{digest}  {_SOURCES[dep['source']]}{stale}")
        # Steps that parameters come from have no dependency of their own.
        others = {row["id"]: "" for row in self._steps.values() if step["id"] in row["used_by"]}
        return [*found, *((self._steps[each], note) for each, note in (others | makers).items())]


def markdown_lines(found: Row) -> Iterator[str]:
    """What `lineage` has found as a report: problems first, then the steps, the nearest first, then the sources."""
    yield f"# Lineage of {_code(found['path'])} at {_code(found['rev'])}"
    yield ""
    if found["commit"]:
        yield from (f"Commit {_code(found['commit'])}.", "")
    if found["problems"]:
        yield from ("## The chain is broken", "", *(f"- {_escaped(_problem(row))}" for row in found["problems"]), "")
    for step in found["steps"]:
        yield from (f"## {_escaped(step['name'])}{_escaped(_how(step))}", "")
        for line in _facts(step, files=False):
            yield f"- {_code(line)}"
        rows = [["out", *_cells(row), ""] for row in step["outs"]]
        rows += [["dep", *_cells(dep), _from(dep)] for dep in step["deps"]]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        yield from ("", *text.markdown(["", "path", "md5", "size", "from"], cells), "")
    yield from (_escaped(line) for line in _measured(found))


def run_lines(runs: list[Row]) -> list[str]:
    """Records as a table; what mounts were asked for where any run had some."""
    rows = []
    mounted = any(run.get("reads") for run in runs)
    for run in runs:
        usage, code = run.get("usage") or {}, run.get("git") or {}
        revision = (code.get("rev") or "")[:_SHORT] + (" changed" if code.get("dirty") else "")
        revision = revision.strip()
        cells = [run["stage"], run["outcome"], f"{usage['seconds']:.1f}" if "seconds" in usage else ""]
        if mounted:
            cells += [_amount(run), f"{run['waited_s']:.1f}" if run.get("reads") else ""]
        cells += [str(run["user"].get("name", "")), str((run.get("host") or {}).get("name", "")), revision]
        rows.append([_time(run["began"]), *map(text.printable, cells)])
    figures = ["read", "waited"] if mounted else []
    return text.table(["began", "stage", "outcome", "seconds", *figures, "user", "host", "code"], rows)


def _head(found: Row) -> str:
    commit = found["commit"]
    at = found["rev"] if commit is None or found["rev"] == commit else f"{found['rev']} ({commit[:_SHORT]})"
    return f"{text.printable(found['path'])} at {text.printable(at)}"


def _how(step: Row) -> str:
    """Where what is told of a step is from."""
    record, code = step["record"], step["code"] or {}
    revision = str(code.get("rev") or "")[:_SHORT]
    if record is not None:
        changed = f" with changes {code['diff'][:_SHORT]}" if code.get("diff") else ""
        parts = [
            f"{_time(record['began'])} by {record['user'].get('name')} on {(record.get('host') or {}).get('name')}"
        ]
        how = "code" if code.get("how") == "recorded" else "committed with"
        parts += [f"{how} {revision}{changed}"] if revision else []
        parts += ["outputs brought back from an earlier run"] if record["outcome"] == "cached" else []
        parts += [text.duration(record["usage"]["seconds"])] if record.get("usage") else []
        parts += _read(record)
        parts += [f"job {record['job']}"] if record.get("job") is not None else []
        parts += [str(gpu.get("model")) for gpu in record.get("gpus") or []]
        return text.printable(f"  recorded here: {', '.join(parts)}")
    if step["kind"] != "stage":
        return ""
    if code.get("how") == "commit":
        return f"  from dvc.lock, which came with commit {revision}"
    if code.get("how") == "at or before commit":
        return f"  from dvc.lock, which came with commit {revision} or before"
    return "  from dvc.lock, not committed yet" if code else "  from dvc.lock" if step["outs"] else ""


def _read(record: Row) -> list[str]:
    """What the mounts of a run were asked for, and what its readers waited for."""
    rows = record.get("reads")
    if not rows:
        return []
    opens = text.plural(sum(row["opened"] for row in rows), "open")
    told = f"read {_amount(record)} from mounts in {opens}"
    if any(row["shared"] for row in rows):
        told += ", with other stages at once"
    waits = [("remotes", "waited_s"), ("the disk", "waited_disk_s"), ("unpacking", "waited_unpacking_s")]
    seconds = [(what, sum(row[key] for row in rows)) for what, key in waits]
    waited = [f"{value:.1f} s for {what}" for what, value in seconds if value >= 0.05]
    return [told, *([f"its readers waited {', '.join(waited)}"] if waited else [])]


def _amount(record: Row) -> str:
    """Bytes that mounts were asked for."""
    rows = record.get("reads") or []
    least = "at least " if any(row["at_least"] for row in rows) else ""
    return f"{least}{text.size(sum(row['bytes'] for row in rows))}" if rows else ""


def _facts(step: Row, *, files: bool = True) -> Iterator[str]:
    for command in [step["cmd"]] if isinstance(step["cmd"], str) else step["cmd"] or []:
        yield f"> {text.printable(command)}"
    for dep in step["source"] or []:
        repo = dep.get("repo") or {}
        revision = next((str(repo[key]) for key in ("rev_lock", "rev") if repo.get(key)), "")
        version = next((str(dep[key]) for key in ("version_id", "etag", "checksum", "md5") if dep.get(key)), "")
        told = [str(dep.get("path", "")), *([f"of {repo['url']}"] if repo.get("url") else [])]
        yield text.printable("  ".join(["imported:", *told, *filter(None, (revision, version))]))
    for path, values in (*step["params"].items(), *step["metrics"].items()):
        for key, value in _flat(values):
            yield text.printable(f"{path}: {key} = {json.dumps(value)}" if key else f"{path}: {json.dumps(value)}")
    for out in step["outs"] if files else []:
        yield "  ".join(cell for cell in _cells(out) if cell) + ("  ! changed" if out["state"] == "stale" else "")


def _flat(values: Any, lead: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from _flat(value, f"{lead}.{key}" if lead else str(key))
    else:
        yield lead, values


def _cells(row: Row) -> list[str]:
    size = "" if row["size"] is None else text.size(row["size"])
    return [text.printable(row["path"]), _hash(row) or "no hash", size]


def _from(dep: Row) -> str:
    source = [_SOURCES[dep["source"]] + (" (stale)" if dep["state"] == "stale" else "")] if dep["source"] else []
    made = [f"{maker['id']}{' (stale)' if maker['state'] == 'stale' else ''}" for maker in dep["from"]]
    return text.printable(", ".join([*made, *source]))


def _measured(found: Row) -> Iterator[str]:
    for row in found["measured"]:
        stale = "  ! stale" if row["state"] == "stale" else ""
        for path, values in row["metrics"].items():
            for key, value in _flat(values):
                yield text.printable(f"measured by {row['name']}: {path}: {key} = {json.dumps(value)}{stale}")


def _problem(row: Row) -> str:
    return text.printable(f"{row['step']}: {row['text']}")


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _code(shown: str) -> str:
    """As code in Markdown, whatever it holds."""
    shown = text.printable(shown)
    fence = "``" if "`" in shown else "`"
    pad = " " if fence == "``" else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _escaped(shown: str) -> str:
    return "".join(f"\\{char}" if char in "\\`*_[]<>|#" else char for char in text.printable(shown))


def _hash(row: Row) -> str:
    """What tells a content from others: an MD5, or what a bucket or web server has instead."""
    return text.printable(str(next((row[key] for key in ("md5", "etag", "checksum") if row.get(key)), "")))
