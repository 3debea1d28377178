"""Results as text: pure functions from what the daemon answered to lines. Wording is DVC's where DVC has it."""

from __future__ import annotations

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
