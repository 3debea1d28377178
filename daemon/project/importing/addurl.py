"""`add --to-remote`, and `add URL --out`: what is tracked comes from elsewhere, or goes to a remote instead of the store."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import UsageError
from millpond.daemon.project import dvcfile
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.dvcfile import Out
from millpond.daemon.project.importing import opening, source, target, urls
from millpond.daemon.project.importing.importurl import How, settle
from millpond.daemon.project.importing.keep import keep
from millpond.daemon.project.importing.pointer import Found
from millpond.daemon.project.importing.target import Target
from millpond.daemon.project.importing.toremote import Uploading
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.select import refuse_clashes
from millpond.daemon.project.sharing import Links, waiting
from millpond.daemon.remote.pace import rate


def is_from_elsewhere(params: dict[str, Any]) -> bool:
    """Whether `add` was asked for something that is done here. Raises UsageError for options that do not go together."""
    targets = params.get("targets") or []
    if params.get("to_remote"):
        if len(targets) != 1 or params.get("glob"):
            raise UsageError("--to-remote takes one target")
        if params.get("no_commit"):
            raise UsageError("--no-commit can't be used with --to-remote")
        return True
    for option in ("remote", "remote_jobs"):
        if params.get(option):
            raise UsageError(f"--{option.replace('_', '-')} can't be used without --to-remote")
    if params.get("out") is None or len(targets) != 1 or urls.is_local(wirepath.decode(targets[0])):
        return False
    if params.get("no_commit"):
        raise UsageError("--no-commit can't be used with a url: its data has no other place here")
    return True


def add_from_elsewhere(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """As `add`, of one target: a path or a url. {targets, out, to_remote, remote, remote_jobs, force} -> as `add`."""
    url = wirepath.decode(params["targets"][0])
    out = None if params.get("out") is None else wirepath.decode(params["out"])
    repo = Repo.open(os.getcwd(), os.environ)
    jobs, force = params.get("remote_jobs"), bool(params.get("force"))
    with context.lock(repo.root, "write"):
        outputs = repo.outputs()
        refuse_clashes(outputs)
        inside = repo.relative(url) if urls.is_local(url) else None
        own = out is None and inside is not None
        where = url if own else target.destination(urls.basename(url), out)
        goal = target.resolve(repo, where, outputs, force=force or own)
        tell = waiting(context, "add")
        with opening.opened(
            url, repo.config, {}, os.environ, folder=repo.cwd, jobs=jobs, rate=rate(os.environ), tell=tell
        ) as found:
            if params.get("to_remote"):
                with Links(repo, params.get("remote"), jobs, os.environ, tell=tell) as links:
                    content = Uploading(context, links.of(links.remote_of(None))).run(found)
            else:
                content = keep(context, found)
            told = source.warnings(found)
        return {**_finish(context, repo, goal, content, params), "warnings": [wirepath.encode(each) for each in told]}


def _finish(context: VerbContext, repo: Repo, goal: Target, content: Found, params: dict[str, Any]) -> dict[str, Any]:
    assert content.name is not None
    texts = {goal.pointer: (goal.old, _text(goal, content))}
    how = How(to_remote=bool(params.get("to_remote")), force=bool(params.get("force")))
    git_add = settle(context, repo, goal.path, texts, content, how)
    row = {
        "path": repo.wire(goal.path),
        "pointer": repo.wire(goal.pointer),
        "md5": content.name.value,
        "size": content.size,
        "nfiles": content.nfiles,
        "changed": True,
    }
    files = 1 if content.nfiles is None else content.nfiles
    return {
        "added": [row],
        "git_add": repo.for_git(git_add),
        "autostaged": repo.git is not None and repo.config.flag("core", "autostage"),
        "totals": {"files": files, "bytes": content.size, "new_bytes": getattr(context.store, "new_bytes", None)},
    }


def _text(goal: Target, content: Found) -> str:
    out = Out(goal.name, content.name, content.size, content.nfiles)
    if goal.old is None:
        return dvcfile.new_text(out)
    old = dvcfile.parse(goal.old, goal.pointer)
    kept = next((each for each in old.outs if each.path == goal.name), out)
    return dvcfile.updated_text(old, [Out(kept.path, out.name, out.size, out.nfiles, False, kept.cache, kept.extra)])
