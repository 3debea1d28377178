"""Mounts as text: what was mounted and unmounted, and the list of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from millpond.cli import text
from millpond.cli.render import Paint, path, plain


def mount_line(result: dict[str, Any]) -> str:
    """After `mount`: what is where, pinned to which commit."""
    about = "" if result.get("versions") else f" ({text.plural(result['files'], 'file')}, {text.size(result['bytes'])})"
    return f"Mounted {version_name(result)} on {path(result['mountpoint'])}{about}"


def version_name(mount: dict[str, Any]) -> str:
    """`data@1a2b3c4d5e6f`; of a difference `data@A..B`; the workspace's version has no commit, and is told apart by its object's digest; no
    target is the whole tree."""
    target, commit = path(mount.get("target") or ""), mount.get("commit")
    if diff := mount.get("diff"):
        return f"{target}@{diff[0][:12]}..{diff[1][:12]}"
    if commit:
        return f"{target}@{commit[:12]}"
    if target and mount.get("name"):
        return f"{target} (md5 {str(mount['name']).partition(':')[2][:12]})"
    return target or ("all versions" if mount.get("versions") else "the workspace's version")


def unmounted_line(wire: str) -> str:
    """One mount that was ended."""
    return f"Unmounted {path(wire)}"


def umount_lines(result: dict[str, Any]) -> Iterator[str]:
    """After `umount`."""
    emptied = result.get("emptied") or []
    for name in result.get("unmounted") or []:
        left = "; its place in the workspace is empty now: millpond checkout [--mount] brings the data back"
        yield unmounted_line(name) + (left if name in emptied else "")
    if not result.get("unmounted"):
        yield "Nothing is mounted."


def mounts_lines(
    mounts: list[dict[str, Any]], *, now: float, paint: Paint = plain, verbose: bool = False
) -> Iterator[str]:
    """`mounts`: a table; below it why a mount is not well, and with `verbose` why it has its engine."""
    if not mounts:
        yield "Nothing is mounted."
        return
    rows = []
    for mount in mounts:
        since = mount.get("since")
        rows.append(
            [
                path(mount["mountpoint"]),
                version_name(mount),
                mount["state"],
                mount.get("engine") or "-",
                str(mount.get("pid") or "-"),
                text.duration(now - since) if since else "-",
                text.size(mount.get("read_bytes") or 0),
            ]
        )
    lines = text.table(["MOUNTPOINT", "VERSION", "STATE", "ENGINE", "PID", "SINCE", "READ"], rows)
    yield paint(lines[0], "bold")
    for mount, line in zip(mounts, lines[1:], strict=True):
        yield line if mount["state"] == "mounted" else paint(line, "red" if mount["state"] == "dead" else "yellow")
    for mount in mounts:
        if mount["state"] == "needs-credentials":
            hint = "run a command in its project with credentials that are let in, or: millpond remote login"
            yield f"{path(mount['mountpoint'])}: {text.printable(str(mount['error']))}; {hint}"
        elif mount.get("error"):
            yield f"{path(mount['mountpoint'])}: {text.printable(str(mount['error']))}"
        if mount.get("stands_in"):
            yield f"{path(mount['mountpoint'])}: stands in for {path(mount['stands_in'])} while a repro needs it"
        if mount.get("remote_requests"):
            yield f"{path(mount['mountpoint'])}: {_remote_line(mount)}"
        if verbose and (mount.get("remote_rate") or mount.get("remote_jobs")):
            yield f"{path(mount['mountpoint'])}: {_limits_line(mount)}"
        if verbose and mount.get("waited_disk_s") is not None:
            yield f"{path(mount['mountpoint'])}: {_waited_line(mount)}"
        if verbose and mount.get("verify"):
            unverified = text.plural(mount.get("unverified") or 0, "object")
            yield f"{path(mount['mountpoint'])}: large objects are checked {_VERIFY[mount['verify']]}; {unverified} in part now"
        if verbose and mount.get("engine_why"):
            yield f"{path(mount['mountpoint'])}: engine {mount['engine']}: {text.printable(mount['engine_why'])}"
        if verbose:
            yield from (f"{path(mount['mountpoint'])}: {line}" for line in _kernel_lines(mount))


def _kernel_lines(mount: dict[str, Any]) -> Iterator[str]:
    """What the kernel does for a mount, and how many processes serve it."""
    if state := mount.get("passthrough"):
        files, size = text.plural(mount["passthrough_files"], "file"), text.size(mount["passthrough_bytes"])
        yield f"passthrough {text.printable(str(state))}: {files}, {size}"
    elif mount.get("read_ahead_kb"):
        direct = mount.get("engine") == "direct"
        yield f"passthrough off: {'only with --materialize' if direct else 'not with this engine'}"
    if kib := mount.get("read_ahead_kb"):
        why = mount.get("read_ahead_why")
        yield f"read-ahead {kib} KiB" + (f": {text.printable(str(why))}" if why else "")
    if count := mount.get("serving"):
        why = mount.get("serving_why") or (f"{mount['serving_most']} at most" if mount["serving_most"] > 1 else "")
        yield f"served by {count} process{'' if count == 1 else 'es'}" + (f": {text.printable(why)}" if why else "")
    if mount.get("filled_files") is not None:
        yield _filling_line(mount)


def _filling_line(mount: dict[str, Any]) -> str:
    """What was brought into the page cache ahead of readers, and why nothing more is."""
    files, size = text.plural(mount["filled_files"], "file"), text.size(mount["filled_bytes"])
    why = mount.get("filling_why")
    if (thread := mount.get("filling_by_thread")) and not why:
        return f"brought ahead: {size}, by a thread: {text.printable(str(thread))}"
    if why and not mount["filled_files"]:
        return f"small files are not brought ahead: {text.printable(str(why))}"
    if not why and (killed := mount.get("fillers_killed")):
        those = "1 process that did so was" if killed == 1 else f"{killed} processes that did so were"
        return f"brought ahead: {files}, {size}; {those} killed and replaced"
    return f"brought ahead: {files}, {size}" + (f"; no more: {text.printable(str(why))}" if why else "")


_VERIFY = {"blocks": "when their last byte is here", "whole": "before they are read"}


def _waited_line(mount: dict[str, Any]) -> str:
    """What readers of a mount waited for."""
    parts = [("remotes", "waited_s"), ("the disk", "waited_disk_s"), ("unpacking", "waited_unpacking_s")]
    return "readers waited " + ", ".join(f"{mount[key]:.1f} s for {what}" for what, key in parts)


def _limits_line(mount: dict[str, Any]) -> str:
    """What bounds reading from remotes."""
    rate, jobs = mount.get("remote_rate"), mount.get("remote_jobs")
    bounds = [f"{text.size(rate)} a second (MILLPOND_RATE)"] if rate else []
    bounds += [f"{text.plural(jobs, 'request')} at once (the remote's jobs)"] if jobs else []
    return f"reads from the remote at most {' and '.join(bounds)}"


def _remote_line(mount: dict[str, Any]) -> str:
    """What a mount brought from remotes, and what that cost its readers."""
    moved, requests = text.size(mount["remote_bytes"]), text.plural(mount["remote_requests"], "request")
    here = 100 * (1 - min(1.0, mount["waits"] / max(mount["opens"], 1)))
    waits = text.plural(mount["waits"], "time")
    return f"{moved} from the remote in {requests}; readers waited {mount['waited_s']:.1f} s in all, {waits}; {here:.0f} % were read from here"


def restore_lines(result: dict[str, Any]) -> Iterator[str]:
    """After `mounts --restore`."""
    for item in result.get("restored") or []:
        yield f"Restored {path(item['mountpoint'] if isinstance(item, dict) else item)}"
    for item in result.get("failed") or []:
        yield f"Not restored: {path(item['mountpoint'])}: {text.printable(str(item['error']))}"
    if not result.get("restored") and not result.get("failed"):
        yield "Nothing to restore."
