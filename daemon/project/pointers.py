"""Writing pointers: with the `.gitignore` that keeps Git out of their data, all or none, staged where the config asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from millpond.daemon.project import gitignore
from millpond.daemon.project.durable import write_all, write_error
from millpond.daemon.project.repo import Repo


def write(repo: Repo, texts: Mapping[str, tuple[str | None, str]], ignored: Iterable[str]) -> list[str]:
    """Put pointers in place (relative path: text before and now) and have Git ignore these outputs; what to give to `git add`,
    relative. Raises DiskFullError, InvalidFileError, LockTimeoutError, AccessError; no file was changed by the first two."""
    try:
        ignoring = gitignore.texts(repo, ignored)
        new = {path: text for path, (old, text) in texts.items() if text != old} | ignoring
        write_all({repo.path(path): text for path, text in new.items()})
        git_add = [*texts, *ignoring]
        if repo.git is not None and repo.config.flag("core", "autostage"):
            repo.git.stage([repo.git_path(path) for path in git_add])
    except OSError as error:
        raise write_error(error) from error
    return git_add
