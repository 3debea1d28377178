"""Clones of Git repositories that are elsewhere: one for each url, kept per user, fetched when a revision is asked for that may have moved.

A clone is bare and whole (branches and tags). It is made under a temporary name and renamed, so that what is there is usable. Who
makes one or fetches into it holds its lock alone; who reads it, which a fetch does not disturb, shares a second lock, so that it is
not removed meanwhile. Git itself asks for credentials where it is set up to (a helper, an agent); nobody is there to be asked by a
terminal.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from urllib.parse import unquote

from millpond.daemon.errors import AccessError, DiskFullError, LockTimeoutError, RemoteError
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.copying import below
from millpond.daemon.project.gitrepo import GitRepo
from millpond.daemon.project.importing.urls import parsed, shown_url
from millpond.daemon.project.paths import printable
from millpond.daemon.project.statcache import user_folder

# Bounds of a user's clones; the one in use may go beyond the second.
MAX_CLONES, MAX_BYTES = 32, 4 << 30
_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_HEAD = "refs/millpond/HEAD"
_BRANCHES = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", f"+HEAD:{_HEAD}")
_FETCH = ("--quiet", "--force", "--no-write-fetch-head")
# Transports that Git may use for an address that is in a file of somebody's repository: none that runs a command of its own.
_PROTOCOLS = "file:git:http:https:ssh"
# A credential helper, which Git has a shell run: the secrets are in its environment only.
_HELPER = '!f() { test "$1" != get || printf "username=%s\\npassword=%s\\n" "$MILLPOND_GIT_USER" "$MILLPOND_GIT_PASSWORD"; }; f'
_LOCK_S = 600.0
_POLL_S = 0.1


@contextlib.contextmanager
def clone(context: VerbContext, url: str, rev: str | None, environ: Mapping[str, str]) -> Iterator[tuple[GitRepo, str]]:
    """The clone of a url, up to date for `rev` (None: the default branch), and the commit that it means there.

    Raises RemoteError when Git cannot get it, RevisionError, DiskFullError, LockTimeoutError, AccessError.
    """
    top = os.path.join(user_folder(environ), "clones")
    os.makedirs(top, mode=0o700, exist_ok=True)
    name = hashlib.blake2b(os.fsencode(url), digest_size=16).hexdigest()
    folder = os.path.join(top, f"{name}.git")
    with contextlib.ExitStack() as using:
        with _locked(context, f"{folder}.lock", url):
            fresh = not os.path.isdir(folder)
            if fresh:
                _make(context, folder, url, environ)
            using.enter_context(_used(f"{folder}.use", fcntl.LOCK_SH))
            if not fresh and not (rev is not None and _SHA.fullmatch(rev) and _open(folder).has_commit(rev)):
                _fetch(context, environ, url, folder, "--prune")
            os.utime(folder)
        _prune(top, folder)
        repo = _open(folder)
        yield repo, repo.resolve(rev or _HEAD)


def _make(context: VerbContext, folder: str, url: str, environ: Mapping[str, str]) -> None:
    temporary = f"{folder}.new"
    shutil.rmtree(temporary, ignore_errors=True)  # of somebody who was killed: the lock is ours
    try:
        _git(context, environ, url, "init", "--quiet", "--bare", "--template=", temporary)
        _fetch(context, environ, url, temporary)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _fetch(context: VerbContext, environ: Mapping[str, str], url: str, folder: str, *options: str) -> None:
    bare, more = without_secrets(url, environ)
    _git(context, {**environ, **more}, url, "--git-dir", folder, "fetch", *_FETCH, *options, "--", bare, *_BRANCHES)


def without_secrets(url: str, environ: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """A url as Git may have it in its command line, which all users see; and what its environment gets, which they do not: a
    credential helper that tells the url's user and password to that host, and which keeps Git from having others store them."""
    parts = parsed(url)
    if parts.password is None:
        return url, {}
    where = parts.netloc.rpartition("@")[2]
    if parts.scheme not in ("http", "https"):  # ssh takes no password from a url
        return parts._replace(netloc=f"{parts.username}@{where}").geturl(), {}
    count = environ.get("GIT_CONFIG_COUNT", "")
    first = int(count) if count.isdecimal() else 0
    found = {"GIT_CONFIG_COUNT": str(first + 2)}
    for number, value in enumerate(("", _HELPER), first):  # an empty one ends the list of those before
        found |= {f"GIT_CONFIG_KEY_{number}": f"credential.{parts.scheme}://{where}.helper"}
        found |= {f"GIT_CONFIG_VALUE_{number}": value}
    found |= {"MILLPOND_GIT_USER": unquote(parts.username or ""), "MILLPOND_GIT_PASSWORD": unquote(parts.password)}
    return parts._replace(netloc=where).geturl(), found


@contextlib.contextmanager
def using(git_dir: str) -> Iterator[None]:
    """Have a clone stay meanwhile. Raises OSError for one that is gone."""
    folder = git_dir.rstrip("/")
    with _used(f"{folder}.use", fcntl.LOCK_SH):
        os.stat(folder)
        yield


def _open(folder: str) -> GitRepo:
    found = GitRepo.discover(folder)
    assert found is not None, f"{folder} is a repository"
    return found


def _git(context: VerbContext, environ: Mapping[str, str], url: str, *argv: str) -> None:
    """Run Git as the caller; it is ended when the caller gives up."""
    env = {
        "GIT_ALLOW_PROTOCOL": _PROTOCOLS,
        **environ,
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C.UTF-8",
    }
    for name in (
        "MILLPOND_REMOTE_SETTINGS",
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_NAMESPACE",
    ):
        env.pop(name, None)
    if "GIT_SSH_COMMAND" not in env and "GIT_SSH" not in env:
        env["GIT_SSH_COMMAND"] = "ssh -oBatchMode=yes"
    try:
        process = subprocess.Popen(
            ["git", "-c", "gc.auto=0", "-c", "maintenance.auto=false", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=env,
        )
    except OSError as error:
        raise AccessError(f"cannot run git: {error.strerror}", hint="install git") from error
    try:
        with process:
            said = b""
            while True:
                try:
                    _, said = process.communicate(timeout=_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    context.progress("getting the repository", note=shown_url(url))
    except BaseException:
        process.kill()
        raise
    if process.returncode:
        lines = [line for line in os.fsdecode(said).splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("fatal: ")), lines[-1] if lines else "it failed")
        if b"No space left" in said:
            raise DiskFullError(f"no room left for a clone of '{shown_url(url)}'", hint="make room, then do it again")
        raise RemoteError(
            f"Git cannot get '{shown_url(url)}': {printable(reason.removeprefix('fatal: ').replace(url, shown_url(url)))}",
            path=shown_url(url),
            hint="see that `git ls-remote` of it works without asking for a password",
        )


@contextlib.contextmanager
def _locked(context: VerbContext, path: str, url: str) -> Iterator[None]:
    """Hold a clone's lock alone. Raises LockTimeoutError."""
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            with _used(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield
                return
        except BlockingIOError:
            if time.monotonic() > deadline:
                shown = shown_url(url)
                raise LockTimeoutError(f"another command of yours is using the clone of '{shown}'") from None
            context.progress("waiting for another command that gets the same repository", note=shown_url(url))
            time.sleep(_POLL_S)


@contextlib.contextmanager
def _used(path: str, how: int) -> Iterator[None]:
    """A lock file, locked. Raises BlockingIOError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def _prune(top: str, used: str) -> None:
    """Remove the clones that were used the longest ago, until the rest is within bounds; one that is in use stays."""
    with os.scandir(top) as entries:
        clones = [(entry.stat().st_mtime, entry.path) for entry in entries if entry.name.endswith(".git")]
    clones = sorted(each for each in clones if each[1] != used)
    sizes = {path: _size(path) for _, path in [*clones, (0.0, used)]}
    for _, path in clones:
        if len(sizes) <= MAX_CLONES and sum(sizes.values()) <= MAX_BYTES:
            return
        alone = fcntl.LOCK_EX | fcntl.LOCK_NB
        with contextlib.suppress(OSError), _used(f"{path}.lock", alone), _used(f"{path}.use", alone):
            gone = f"{path}.new"
            shutil.rmtree(gone, ignore_errors=True)
            os.rename(path, gone)
            shutil.rmtree(gone, ignore_errors=True)
            del sizes[path]


def _size(folder: str) -> int:
    total = 0
    with contextlib.suppress(OSError):
        for path in below(folder)[0]:
            with contextlib.suppress(OSError):
                total += os.lstat(path).st_size
    return total
