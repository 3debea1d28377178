"""What is said of the store, of what is removed from it and from remotes, and of what may be: pure functions as those of render.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from millpond.cli import text
from millpond.cli.render import path


def fsck_lines(report: dict[str, Any], *, deep: bool) -> Iterator[str]:
    """`fsck`: what was checked, what is damaged, which files that hurts."""
    damaged = report.get("damaged") or []
    for damage in damaged:
        where = "" if damage.get("segment") is None else f" in segment {damage['segment']}"
        yield f"{damage['kind']} {damage['id']}{where}: {text.printable(damage['reason'])}"
        for name in damage.get("files") or []:
            yield f"\thurts {text.printable(name)}"
    total = report.get("damaged_count") or len(damaged)
    if total > len(damaged):
        yield f"... and {text.count(total - len(damaged))} more"
    yield (
        f"Checked {text.plural(report['records'], 'record')} in {text.plural(report['segments'], 'segment')}, "
        f"{text.plural(report['objects'], 'object')}, {text.size(report['bytes'])}"
        + (", with every object's digest." if deep else ".")
    )
    repaired, quarantined = report.get("repaired") or 0, report.get("quarantined") or 0
    if repaired or quarantined:
        yield f"Repaired {text.count(repaired)}, quarantined {text.count(quarantined)}."
    if report["ok"]:
        yield "The store is clean."
    else:
        hint = "" if repaired or quarantined else " Run `millpond fsck --repair`."
        yield f"The store is damaged: {text.plural(total, 'finding')}.{hint}"


def cache_lines(stats: dict[str, Any], *, now: float) -> Iterator[str]:
    """`cache info`."""
    yield f"Store:        {text.printable(str(stats['path']))}"
    yield f"Objects:      {text.count(stats['objects'])}, {text.size(stats['logical'])}"
    yield f"Chunks:       {text.count(stats['chunks'])}, {text.size(stats['unique'])}"
    yield f"On disk:      {text.size(stats['stored'])} in {text.plural(stats['segments'], 'segment')}"
    yield f"Saved:        {stats['dedup_ratio']:.2f}x by deduplication, {stats['compression_ratio']:.2f}x by compression"
    yield f"Disk is free: {text.size(stats['free'])}"
    yield from _scrub_lines(stats["scrub"], stats["stored"], now)


def _scrub_lines(scrub: dict[str, Any], stored: int, now: float) -> Iterator[str]:
    """When the daemon last read all of the store by itself, and what it found."""
    passed = f"all of it, {text.duration(now - scrub['passed'])} ago" if scrub["passed"] else "not yet as a whole"
    part = f"; {min(100, 100 * scrub['bytes'] // max(stored, 1))} % since" if scrub["began"] else ""
    yield f"Read again:   {passed}{part}"
    if damaged := scrub["damaged"] + scrub["passed_damaged"]:
        yield f"DAMAGED:      {text.plural(damaged, 'record')}: see `millpond fsck`"
        for each in scrub.get("hurt", ())[:10]:
            yield f"\t{text.printable(each)}"


def gc_lines(report: dict[str, Any]) -> Iterator[str]:
    """What a sweep would remove, by project."""
    removed, kept = report["removed"], report["kept"]
    yield from unreadable_lines(report)
    if not removed["objects"] and not report["records"]:
        yield f"Nothing goes; {_objects(kept)} stay."
    else:
        freed = text.size(report["freed"])
        yield f"This keeps {_objects(kept)} and removes {_objects(removed)}, of which {freed} on disk:"
        for name, part in sorted(report["projects"].items()):
            yield f"\t{_objects(part)} of {path(name)}"
        if report["other"]["objects"]:
            yield f"\t{_objects(report['other'])} of no project"
    if report["young"]["objects"]:
        yield f"{_objects(report['young'])} stay only because they were stored a short while ago (--grace)."
    for remote in report["remotes"]:
        yield from _gc_remote_lines(remote)


def _gc_remote_lines(remote: dict[str, Any]) -> Iterator[str]:
    """What would go from a remote."""
    where = f"remote '{text.printable(remote['name'])}' ({text.printable(remote['url'])})"
    removed = remote["removed"]
    if not removed["objects"]:
        yield f"Nothing goes from {where}; {_objects(remote['kept'])} stay."
    else:
        yield f"From {where} this removes {_objects(removed)} and keeps {_objects(remote['kept'])}:"
        files = removed["objects"] - remote["directories"]
        kinds = [text.plural(remote["directories"], "manifest"), text.plural(files, "file")]
        yield f"\t{' and '.join(kinds)}, there since {_days(remote['oldest'], remote['newest'])}"
        for name, place in remote["shown"]:
            yield f"\t{name}{'' if place is None else f' of {path(place)}'}"
        if removed["objects"] > len(remote["shown"]):
            yield f"\tand {removed['objects'] - len(remote['shown']):,} more"
        yield "\tProjects of other people and machines are not known here: what only they need of these goes, too."
    if remote["left"]["files"]:
        yield f"What killed pushes left there more than a week ago goes: {_left(remote)}."
    if remote["young"]["objects"]:
        yield f"{_objects(remote['young'])} stay there only because they came a short while ago (--grace)."
    for place in remote["shared"]:
        yield f"{path(place)} uses this remote, too, and keeps all that it needs there."


def _left(remote: dict[str, Any]) -> str:
    left = remote["left"]
    return f"{text.plural(left['files'], 'temporary file')} ({text.size(left['bytes'])})"


def _days(first: float, last: float) -> str:
    """A day, or the first and the last one."""
    days = [time.strftime("%Y-%m-%d", time.localtime(when)) for when in (first, last)]
    return days[0] if days[0] == days[1] else f"{days[0]}, the latest since {days[1]}"


def gc_done_lines(report: dict[str, Any]) -> Iterator[str]:
    """After a sweep."""
    yield from unreadable_lines(report)
    removed = report["removed"]
    if not removed["objects"] and not report["records"]:
        yield f"Nothing to remove; {_objects(report['kept'])} stay."
    else:
        yield f"Removed {_objects(removed)}; {text.size(report['freed'])} on disk are given back in the background."
    if report["granted"]:
        yield f"{text.plural(report['granted'], 'object')} of them stay for other users."
    for remote in report["remotes"]:
        gone = remote["removed"]
        where = f"on remote '{text.printable(remote['name'])}'"
        yield f"{'Removed ' + _objects(gone) if gone['objects'] else 'Nothing to remove'} {where}."
        if remote["left"]["files"]:
            yield f"Removed {_left(remote)} that killed pushes had left there."


def unreadable_lines(report: dict[str, Any]) -> Iterator[str]:
    """Projects that could not be read by a sweep."""
    for item in report.get("unreadable") or []:
        yield (
            f"{path(item['path'])} cannot be read, so what it was last known to need is kept "
            f"({text.printable(item['reason'])}); if it is gone: millpond forget-project"
        )


def _objects(part: dict[str, Any]) -> str:
    return f"{text.plural(part['objects'], 'object')} ({text.size(part['bytes'])})"


def pin_name(pin: dict[str, Any]) -> str:
    """`data@f14272cab9a5`."""
    target = path(pin["target"]) or "everything"
    return f"{target}@{pin['commit'][:12]}" if pin.get("commit") else target


def evict_lines(report: dict[str, Any]) -> Iterator[str]:
    """`cache evict`."""
    evicted = report["evicted"]
    done = "Would evict" if report["dry"] else "Evicted"
    left = f"; the store has {text.size(report['left'])}" if not report["dry"] else ""
    yield f"{done} {text.plural(evicted['objects'], 'object')}, {text.size(evicted['bytes'])}{left}"
    if report["left"] > report["to"] and not (report["dry"] and report["freed"] >= report["left"] - report["to"]):
        yield from _staying_lines(report)


def evictable_lines(report: dict[str, Any]) -> Iterator[str]:
    """What might be evicted and what not, below `cache info`."""
    may, gone = report["evictable"], report["remote_only"]
    why = ", which remotes hold as well" if may["objects"] else ""
    yield f"May be evicted: {text.plural(may['objects'], 'object')}, {text.size(may['bytes'])}{why}"
    yield from _staying_lines(report)
    if gone["objects"]:
        evicted = f"{text.plural(gone['objects'], 'object')}, {text.size(gone['bytes'])}"
        yield f"Only on remotes: {evicted}, that were evicted"


def _staying_lines(report: dict[str, Any]) -> Iterator[str]:
    if report["projects"] or report["kept"]:
        yield "Not to be evicted:"
    for row in report["projects"]:
        amount = f"{text.plural(row['objects'], 'object')}, {text.size(row['bytes'])}"
        why = f"its remotes cannot be asked: {row['reason']}" if row["reason"] else "not seen on its remotes"
        yield f"\t{path(row['path'])}: {amount}: {text.printable(why)}"
    for row in report["kept"]:
        yield f"\t{text.plural(row['objects'], 'object')}, {text.size(row['bytes'])}: {row['reason']}"


def project_lines(projects: list[dict[str, Any]]) -> Iterator[str]:
    """The caller's projects, below `cache info`."""
    if projects:
        yield "Projects that keep data in it:"
    for row in projects:
        yield f"\t{path(row['path'])}: {text.plural(row['objects'], 'object')}, {text.size(row['bytes'])}"
        if 0 < row["alone"] < row["bytes"]:
            yield f"\t\t{text.size(row['alone'])} of it in no other project"
        only = row["only"]
        if only is None:
            yield "\t\tthe project cannot be opened: see `millpond forget-project`"
        elif only["objects"]:
            yield f"\t\t{text.plural(only['objects'], 'object')}, {text.size(only['bytes'])}, not in its DVC cache: the only copy on this machine"
