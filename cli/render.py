"""Results as text: pure functions from what the daemon answered to lines. Wording is DVC's where DVC has it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from millpond.cli import text
from millpond.daemon import wirepath

# Colours by state of an output; see `checkout_lines`.
_CHANGES = (("modified", "yellow"), ("added", "green"), ("deleted", "red"))
Paint = Callable[[str, str], str]


def plain(shown: str, _: str) -> str:
    """The Paint of a pipe."""
    return shown


def path(wire: str) -> str:
    """A path of a result, safe to print on one line."""
    return text.printable(wirepath.decode(wire))


def decoded(value: Any, keys: frozenset[str]) -> Any:
    """A result with the values (or lists of values) of the named members decoded: for --json."""
    if isinstance(value, dict):
        return {key: _decoded_member(member) if key in keys else decoded(member, keys) for key, member in value.items()}
    return [decoded(member, keys) for member in value] if isinstance(value, list) else value


def _decoded_member(member: Any) -> Any:
    if isinstance(member, list):
        return [_decoded_member(item) for item in member]
    if isinstance(member, dict):
        return {wirepath.decode(key): value for key, value in member.items()}
    return wirepath.decode(member) if isinstance(member, str) else member


def init_lines(result: dict[str, Any], *, scm: bool) -> Iterator[str]:
    """After `init`."""
    yield "Initialized DVC repository."
    if scm:
        yield ""
        yield "You can now commit the changes to git."
    yield ""
    yield "What's next?"
    yield "------------"
    yield "- Store and track data: millpond add PATH"
    yield "- See all commands: millpond help"


def add_lines(result: dict[str, Any], *, config: str | None, verbose: bool = False) -> Iterator[str]:
    """After `add`: what to do next. `config` is the repository's config file as the shell sees it, to switch autostage on."""
    if verbose:
        for item in result.get("added") or []:
            files = item.get("nfiles")
            what = text.plural(files, "file") + ", " if files is not None else ""
            state = "stored" if item.get("changed", True) else "unchanged"
            yield f"{path(item['path'])}: {state}, {what}{text.size(item.get('size') or 0)}, md5 {item.get('md5')}"
    stage = [wirepath.decode(name) for name in result.get("git_add") or []]
    if not stage or result.get("autostaged"):
        return
    yield ""
    yield "To track the changes with git, run:"
    yield ""
    yield "\tgit add " + " ".join(text.shell_quoted(name) for name in stage)
    if config is not None:
        yield ""
        yield "To enable auto staging, run:"
        yield ""
        yield f"\tgit config -f {text.shell_quoted(config)} core.autostage true"


def checkout_lines(result: dict[str, Any], *, summary: bool, paint: Paint = plain) -> Iterator[str]:
    """After `checkout`: one line a changed output, or with --summary how many."""
    if summary:
        # Mounted directories have no files that were written: they count as one.
        yield checkout_summary(result.get("files") or {state: len(result[state]) for state, _ in _CHANGES})
        return
    for state, color in _CHANGES:
        for name in result.get(state) or []:
            yield paint(f"{state[0].upper():<8}", color) + path(name)


def checkout_summary(counts: dict[str, int]) -> str:
    """`1 file modified, 3 files added and 1 file deleted`."""
    parts = [
        f"{counts[state]} file{'' if counts[state] == 1 else 's'} {state}" for state, _ in _CHANGES if counts[state]
    ]
    if not parts:
        return "No changes."
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def status_lines(status: dict[str, Any], *, tracked: int | None = None) -> Iterator[str]:
    """`status`: stage, group, output; `tracked` 0 says that there is nothing to compare."""
    if not status:
        if tracked == 0:
            yield "There are no data or pipelines tracked in this project yet."
            yield "Run `millpond add PATH` to track data."
        else:
            yield "Data and pipelines are up to date."
        return
    for stage, groups in status.items():
        yield f"{path(stage)}:"
        for group in groups:
            if isinstance(group, str):
                yield f"\t{text.printable(group)}"
                continue
            for title, outputs in group.items():
                yield f"\t{text.printable(title)}:"
                for name, state in outputs.items():
                    if not isinstance(state, dict):
                        yield f"\t\t{_state(state)}{path(name)}"
                        continue
                    # Parameters of a file.
                    yield f"\t\t{path(name)}:"
                    yield from (f"\t\t\t{_state(each)}{text.printable(key)}" for key, each in state.items())


def _state(state: Any) -> str:
    return f"{str(state) + ':':<20}"


def status_json(status: dict[str, Any]) -> dict[str, Any]:
    """DVC's `status --json`: names decoded."""
    return {wirepath.decode(stage): [_group_json(group) for group in groups] for stage, groups in status.items()}


def _group_json(group: Any) -> Any:
    if not isinstance(group, dict):
        return group
    return {
        title: {wirepath.decode(name): state for name, state in outputs.items()} for title, outputs in group.items()
    }


def doctor_lines(checks: list[dict[str, Any]], *, paint: Paint = plain) -> Iterator[str]:
    """`doctor`: one line a check, with what to do below those that failed."""
    width = max((len(check["name"]) for check in checks), default=0)
    for check in checks:
        mark = paint("ok  ", "green") if check["ok"] else paint("FAIL", "red")
        yield f"{mark}  {check['name']:<{width}}  {text.printable(str(check.get('detail') or ''))}".rstrip()
        if check.get("hint") and not check["ok"]:
            yield f"{'':<{width + 8}}{text.printable(check['hint'])}"


def check_lines(checks: list[dict[str, Any]], *, paint: Paint = plain) -> Iterator[str]:
    """`remote check`: one line a trial."""
    width = max((len(check["name"]) for check in checks), default=0)
    colors = {"ok": "green", "failed": "red"}
    for check in checks:
        mark = paint(f"{check['state']:<7}", colors.get(check["state"], "dim"))
        yield f"{mark}  {check['name']:<{width}}  {text.printable(check['detail'])}".rstrip()


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


def daemon_lines(status: dict[str, Any], *, now: float) -> Iterator[str]:
    """`daemon status`."""
    store = status.get("store") or {}
    yield f"The daemon runs: pid {status['pid']}, since {text.duration(now - status['started'])}"
    yield f"Version:  {status['version']}, protocol {status['protocol']}"
    for title, value in (("Store", store.get("path")), ("Socket", status.get("socket")), ("Log", status.get("log"))):
        if value:
            yield f"{title + ':':<9} {text.printable(str(value))}"
    yield f"Memory:   {text.size(status['rss'])}"
    yield f"At work:  {text.plural(len(status.get('requests') or []), 'request')}, " + (
        f"{text.plural(status['workers'], 'worker')}, {text.plural(status['mounts'], 'mount')}"
    )
    jobs = status.get("jobs") or {}
    if any(jobs.values()):
        yield f"Jobs:     {jobs['running']} running, {jobs['queued']} waiting"
    for item in status.get("requests") or []:
        yield (
            f"\t{item['method']} of uid {item['uid']} (pid {item['pid']}), request {item['id']}, "
            f"{text.duration(item['seconds'])}"
        )


_JOB_COLORS = {"running": "green", "failed": "red", "lost": "red", "cancelled": "yellow"}


# Fields of a job's row that are paths.
JOB_PATHS = frozenset({"cwd", "folder"})


def job_lines(jobs: list[dict[str, Any]], *, now: float, paint: Paint = plain, folders: bool = False) -> Iterator[str]:
    """`jobs`: SINCE is how long it has run or waited, or how long ago it ended; with `folders` where each runs."""
    if not jobs:
        yield "There are no jobs."
        return
    rows = []
    for row in jobs:
        since = row["ended"] or row["started"] or row["created"]
        code = "" if row["exit_code"] is None else str(row["exit_code"])
        end = f"signal {row['signal']}" if row["signal"] is not None else code
        ago = text.duration(now - since) + (" ago" if row["ended"] else "")
        told = _job_progress(row.get("progress"))
        where = [text.shortened(path(row["cwd"]))] if folders else []
        rows.append([str(row["number"]), row["name"] or "", row["state"], ago, end, *where, row["title"] + told])
    columns = ["JOB", "NAME", "STATE", "SINCE", "EXIT", *(["FOLDER"] if folders else []), "COMMAND"]
    header, *lines = text.table(columns, rows)
    yield header
    for row, line in zip(jobs, lines, strict=True):
        state = row["state"]
        yield line.replace(f"  {state}", f"  {paint(state, _JOB_COLORS[state])}", 1) if state in _JOB_COLORS else line


def _job_progress(progress: dict[str, Any] | None) -> str:
    """What a verb told last: where it is, or for whom it waits."""
    if not progress:
        return ""
    if progress.get("for"):
        return f" (waiting for {text.printable(str(progress['for']))})"
    amounts = [
        text.size(done) if key == "bytes" else text.plural(done, "file")
        for key in ("files", "bytes")
        if progress.get(key)
        for done in [progress[key][0]]
    ]
    return f" ({', '.join([text.printable(str(progress.get('phase') or 'at work')), *amounts])})"


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
