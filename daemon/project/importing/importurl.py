"""`import-url`: bring what a url names into the project, with a pointer that remembers where from and what it was there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import UsageError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import dvcfile, pointers
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.export import export_after
from millpond.daemon.project.formers import Formers
from millpond.daemon.project.importing import opening, pointer, source, target, urls, versions
from millpond.daemon.project.importing.keep import Placing, keep
from millpond.daemon.project.importing.pointer import Found
from millpond.daemon.project.importing.source import LocalSource, Source
from millpond.daemon.project.importing.target import Target
from millpond.daemon.project.importing.toremote import Uploading
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.select import refuse_clashes
from millpond.daemon.project.sharing import Links, waiting
from millpond.daemon.remote.pace import rate
from millpond.daemon.remote.silence import Tell

# Settings that a pointer must not hold: it is committed.
_SECRET = frozenset(
    [
        "secret_access_key",
        "session_token",
        "sse_customer_key",
        "access_key_id",
        "password",
        "passphrase",
        "account_key",
        "sas_token",
        "connection_string",
        "client_secret",
        "token",
        "bearer_token_command",
        "oss_key_secret",
    ]
)
# What to do where something would be lost.
FORCE = "move them away, or use --force to lose them"


@dataclass(frozen=True, slots=True)
class How:
    """How much of an import is done: nothing is read, nothing is brought, or all of it; `remote` where it goes instead of here."""

    no_exec: bool = False
    no_download: bool = False
    to_remote: bool = False
    remote: str | None = None
    force: bool = False
    jobs: int | None = None
    versioned: bool = False

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> How:
        how = cls(
            bool(params.get("no_exec")),
            bool(params.get("no_download")),
            bool(params.get("to_remote")),
            params.get("remote"),
            bool(params.get("force")),
            params.get("jobs"),
            bool(params.get("version_aware")),
        )
        if how.no_exec and how.no_download:
            raise UsageError("--no-exec and --no-download do not go together")
        if how.to_remote and (how.no_exec or how.no_download or how.versioned):
            raise UsageError("--no-exec/--no-download/--version-aware cannot be combined with --to-remote")
        if how.remote is not None and not how.to_remote:
            raise UsageError("--remote can't be used without --to-remote")
        return how


def import_url(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {url, out, to_remote, remote, no_exec, no_download, version_aware, jobs, force, fs_config} -> {source, path, pointer, md5, size, nfiles,
    git_add, autostaged, executed, warnings}; md5, size and nfiles None where they are not known.

    Raises TargetError, OverlapError, TrackedByGitError, UsageError, RemoteConfigError, RemoteError, RemoteChangedError,
    CredentialsError, DiskFullError; the project is as it was then.
    """
    how = How.of(params)
    fs_config = dict(params.get("fs_config") or {})
    for key in fs_config:
        if key in _SECRET:
            raise UsageError(
                f"--fs-config {key} would be written into a .dvc file, which is for Git",
                hint="set it for a remote, in .dvc/config.local, and import remote://NAME/path",
            )
    if how.versioned:
        fs_config[versions.FLAG] = True
    url = wirepath.decode(params["url"])
    out = None if params.get("out") is None else wirepath.decode(params["out"])
    repo = Repo.open(os.getcwd(), os.environ)
    with context.lock(repo.root, "write"):
        outputs = repo.outputs()
        refuse_clashes(outputs)
        goal = target.resolve(repo, target.destination(urls.basename(url), out), outputs, force=how.force)
        recorded = recorded_url(repo, url, goal)
        if how.no_exec:
            dep = {"hash": "md5", "path": recorded, **({"fs_config": fs_config} if fs_config else {})}
            return finish(context, repo, goal, dep, Found(), how, shown=recorded)
        tell = waiting(context, "import-url")
        with opening.opened(
            url,
            repo.config,
            source.settings(fs_config),
            os.environ,
            folder=repo.cwd,
            jobs=how.jobs,
            rate=rate(os.environ),
            tell=tell,
        ) as found:
            _refuse_itself(repo, found, goal)
            former = Formers(repo, context.store).of(goal.path, goal.pointer)
            content, dep = bring(context, repo, found, recorded, fs_config, how, former, tell)
        shown, told = shown_source(repo, found), source.warnings(found)
        return finish(context, repo, goal, dep, content, how, shown=shown, warnings=told)


def bring(
    context: VerbContext,
    repo: Repo,
    found: Source,
    recorded: str,
    fs_config: Mapping[str, Any],
    how: How,
    like: ObjectName | None,
    tell: Tell,
) -> tuple[Found, dict[str, Any]]:
    """Have a source's content where it is to be, in the store or on a remote, which `tell` is told of if it is silent; it, and the pointer's
    entry for the source. `like`: as `keep`."""
    token = found.token()
    if how.no_download and token is not None:
        return Found(), source.dependency(found, recorded, None, fs_config)
    if how.to_remote:
        with Links(repo, how.remote, how.jobs, os.environ, tell=tell) as links:
            content = Uploading(context, links.of(links.remote_of(None))).run(found)
    else:
        content = keep(context, found, store=not how.no_download, like=like)
    dep = source.dependency(found, recorded, content.name, fs_config)
    return (Found() if how.no_download else content), dep


def finish(
    context: VerbContext,
    repo: Repo,
    goal: Target,
    dep: Mapping[str, Any],
    content: Found,
    how: How,
    *,
    shown: str,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Put the data in place, then write its pointer; the verb's result."""
    push = not (dep.get("version_id") or "files" in dep)
    text = pointer.text(dep, goal.name, content, whole=not how.no_exec, old=goal.old, path=goal.pointer, push=push)
    git_add = settle(context, repo, goal.path, {goal.pointer: (goal.old, text)}, content, how)
    return {
        "source": wirepath.encode(shown),
        "path": repo.wire(goal.path),
        "pointer": repo.wire(goal.pointer),
        "md5": None if content.name is None else content.name.value,
        "size": content.size,
        "nfiles": content.nfiles,
        "git_add": repo.for_git(git_add),
        "autostaged": repo.git is not None and repo.config.flag("core", "autostage"),
        "executed": not how.no_exec,
        "warnings": [wirepath.encode(each) for each in warnings],
    }


def settle(
    context: VerbContext,
    repo: Repo,
    path: str,
    texts: Mapping[str, tuple[str | None, str]],
    content: Found,
    how: How,
    hint: str = FORCE,
) -> list[str]:
    """Write pointers, then bring stored content into the workspace, where what is of an older version goes; what to give to `git add`."""
    placing = None
    if not (how.to_remote or how.no_exec):
        names = [] if content.name is None else [content.name]
        context.seen(repo.root, None if repo.git is None else repo.git.git_dir, names)
        placing = Placing(context, repo, path, content.name)
        if not how.force:
            placing.refuse_loss(hint)
    git_add = pointers.write(repo, texts, [path])
    if placing is not None:
        placing.apply()
    if content.name is not None and not how.to_remote:
        export_after(context, repo, [path], os.environ)
    return git_add


def recorded_url(repo: Repo, url: str, goal: Target) -> str:
    """A url as the pointer has it. What lies in the project is named from the pointer's folder, as DVC has it; so is what was given as
    a relative path, which DVC takes as it stands and then looks for from there; `file://` is a path, for DVC reads no such url."""
    if not urls.is_local(url):
        return url
    path, folder = url.removeprefix("file://"), repo.path(goal.folder)
    relative = repo.relative(path)
    if relative is not None:
        return os.path.relpath(repo.path(relative), folder)
    if os.path.isabs(path) or os.path.normpath(folder) == repo.cwd:
        return path
    return os.path.relpath(os.path.join(repo.cwd, path), folder)


def folder_of(repo: Repo, pointer_path: str, parsed: dvcfile.DvcFile) -> str:
    """The absolute folder from which a pointer's relative urls begin."""
    return os.path.normpath(repo.path(os.path.join(os.path.dirname(pointer_path), parsed.wdir)))


def shown_source(repo: Repo, found: Source) -> str:
    """A source as DVC's messages have it."""
    return shown_path(repo, found.path) if isinstance(found, LocalSource) else found.url


def shown_path(repo: Repo, path: str) -> str:
    """An absolute path as DVC's messages have it: in the project from the caller's folder, else whole."""
    relative = repo.relative(path)
    return path if relative is None else repo.seen(relative)


def _refuse_itself(repo: Repo, found: Source, goal: Target) -> None:
    if isinstance(found, LocalSource):
        here, there = f"{os.path.realpath(repo.path(goal.path))}/", f"{os.path.realpath(found.path)}/"
        if here.startswith(there) or there.startswith(here):
            shown = printable(repo.seen(goal.path))
            raise UsageError(f"'{shown}' would be an import of itself", hint="choose another OUT")
