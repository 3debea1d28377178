"""What `status` says of imports: that their source has something else now, or that their pointer was changed by hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from millpond.daemon.errors import CredentialsError, MillpondError, NotARepoError, RemoteError, TargetError
from millpond.daemon.project import dvcfile
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.importing import external, opening, pointer, source, urls
from millpond.daemon.project.importing.external import Settings
from millpond.daemon.project.importing.importurl import folder_of, shown_path, shown_source
from millpond.daemon.project.importing.keep import keep
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.sharing import waiting

DELETED, MODIFIED, AVAILABLE = "deleted", "modified", "update available"


@dataclass(slots=True)
class Changes:
    """Of one pointer: states of its dependency by how it is shown; whether its MD5 is not that of its text."""

    deps: dict[str, str] = field(default_factory=dict)
    checksum: bool = False


def changes(context: VerbContext, repo: Repo, outputs: Sequence[Output], *, updates: bool) -> dict[str, Changes]:
    """By pointer, of those of these outputs that are imports. What is frozen follows no url, as in DVC; other repositories are looked
    at with `updates`. Raises RemoteError, CredentialsError, NotARepoError, RevisionError."""
    looking = _Looking(context, repo)
    found: dict[str, Changes] = {}
    for output in outputs:
        if output.imported is None:
            continue
        parsed = dvcfile.read(repo.path(output.pointer))
        made = found[output.pointer] = Changes(checksum=pointer.is_changed(parsed))
        folder = folder_of(repo, output.pointer, parsed)
        if output.imported.is_repo and updates:
            made.deps = looking.at_repo(output, folder)
        elif not output.imported.is_repo and not output.imported.frozen and "db" not in output.imported.entry:
            made.deps = looking.at_url(output, folder)
    return found


class _Looking:
    """Looks at each repository once."""

    def __init__(self, context: VerbContext, repo: Repo) -> None:
        self._context = context
        self._repo = repo
        self._commits: dict[tuple[str, str | None, str], str] = {}

    def at_repo(self, output: Output, folder: str) -> dict[str, str]:
        assert output.imported is not None
        entry = output.imported.repo or {}
        url, rev = str(entry["url"]), entry.get("rev")
        if entry.get("rev_lock") is None:
            return {}  # of --no-exec: nothing was looked at yet
        key = url, rev, folder
        if key not in self._commits:
            self._context.progress("looking at the source", note=output.imported.shown)
            folders = (folder, self._repo.cwd, self._repo.root)
            try:
                with external.opened(
                    self._context, url, rev, Settings.recorded(entry), os.environ, folders=folders
                ) as other:
                    self._commits[key] = other.commit
            except (RemoteError, CredentialsError, NotARepoError) as error:
                raise _hinted(error) from error
        return {output.imported.shown: AVAILABLE} if self._commits[key] != entry["rev_lock"] else {}

    def at_url(self, output: Output, folder: str) -> dict[str, str]:
        assert output.imported is not None
        entry = output.imported.entry
        settings = source.settings(entry.get("fs_config"))
        url = str(entry["path"])
        self._context.progress("looking at the source", note=url)
        try:
            tell = waiting(self._context, "status")
            with opening.opened(url, self._repo.config, settings, os.environ, folder=folder, tell=tell) as found:
                shown = shown_source(self._repo, found)
                token = found.token() or source.dependency(
                    found, url, keep(self._context, found, store=False).name, settings
                )
                if source.same(entry, token):
                    return {}
                # As DVC has it: a version that is known stays what it is.
                return {shown: AVAILABLE if token.get("version_id") and entry.get("version_id") else MODIFIED}
        except TargetError as error:
            if not error.details.get("absent"):
                raise
            path = os.path.normpath(os.path.join(folder, url.removeprefix("file://")))
            return {shown_path(self._repo, path) if urls.is_local(url) else url: DELETED}


def _hinted(error: MillpondError) -> MillpondError:
    return type(error)(error.message, path=error.path, hint="status --no-updates does not look at sources of imports")
