"""`update`: bring what has changed at the sources of imports."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import UsageError
from millpond.daemon.project import dvcfile
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.importing import external, opening, pointer, repotree, source, versions
from millpond.daemon.project.importing.external import Settings
from millpond.daemon.project.importing.fetching import refuse_others
from millpond.daemon.project.importing.importurl import How, bring, folder_of, settle, shown_source
from millpond.daemon.project.importing.keep import Placing, keep, keep_repo
from millpond.daemon.project.importing.pointer import Found
from millpond.daemon.project.importing.target import Target
from millpond.daemon.project.importing.versions import Pin
from millpond.daemon.project.importing.worktree import Following, remote_of
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.select import refuse_clashes, select
from millpond.daemon.project.sharing import waiting
from millpond.daemon.remote.pace import rate

# The data in the workspace is not what was imported.
_CHANGED = "move them away, or bring back what was imported (millpond checkout --force), then update"


def update(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, rev, recursive, no_download, to_remote, remote, jobs} -> {imports: [{pointer, source, path, changed}]}, outputs that a
    `worktree` remote holds among them (worktree.py).

    Imports whose sources are as they were are left alone. Raises UsageError for what is neither, and as `import_url`, `import_`;
    imports that were brought before one failed are done.
    """
    how = How.of({key: params.get(key) for key in ("to_remote", "remote", "jobs")})
    if params.get("no_download"):
        if how.to_remote:
            raise UsageError("--to-remote can't be used with --no-download")
        how = How(no_download=True, jobs=how.jobs)
    repo = Repo.open(os.getcwd(), os.environ)
    targets = [wirepath.decode(each) for each in params.get("targets") or []]
    with context.lock(repo.root, "write"):
        outputs = repo.outputs()
        refuse_clashes(outputs)
        chosen = select(repo, outputs, targets, recursive=bool(params.get("recursive")))
        found = dict.fromkeys(choice.output for choice in chosen)
        following = {output: remote_of(repo, output) for output in found if output.imported is None}
        for output, remote in following.items():
            if remote is None and not params.get("recursive"):
                shown = printable(repo.seen(output.pointer))
                raise UsageError(
                    f"'{shown}' is no import", hint="`millpond commit` records what tracked data holds now"
                )
        done = [
            Updating(context, repo, output, how).run(params.get("rev"))
            for output in found
            if output.imported is not None
        ]
        for output, remote in following.items():
            if remote is not None:
                done.append(Following(context, repo, output, remote, how).run(params.get("rev")))
        return {"imports": done}


class Updating:
    """One import on its way to what its source has now."""

    def __init__(self, context: VerbContext, repo: Repo, output: Output, how: How) -> None:
        self._context = context
        self._repo = repo
        self._output = output
        self._how = how
        self._tell = waiting(context, "update")
        self._pointer = dvcfile.read(repo.path(output.pointer))
        self._folder = folder_of(repo, output.pointer, self._pointer)
        assert output.imported is not None
        self._import = output.imported
        self._shown = output.imported.shown

    def run(self, rev: str | None) -> dict[str, Any]:
        """The verb's row. Raises as `update`."""
        self._context.progress("looking at the source", note=self._import.shown)
        entry = self._import.entry
        repo = self._import.repo
        if repo is not None:
            if self._how.to_remote:
                raise UsageError("data of other repositories cannot be updated with --to-remote", hint="leave it out")
            changed = self._of_repo(entry, dict(repo), rev)
        else:
            changed = self._of_url(entry, self._pins(entry, rev))
        return {
            "pointer": self._repo.wire(self._output.pointer),
            "source": wirepath.encode(self._shown),
            "path": self._repo.wire(self._output.path),
            "changed": changed,
        }

    def _pins(self, entry: Mapping[str, Any], rev: str | None) -> list[Pin]:
        """The version that an import from a url is to go to; none for the latest, which a url that names one has not."""
        shown = printable(self._repo.seen(self._output.pointer))
        named = versions.split(str(entry["path"]))[1]
        if rev is None:
            return []
        if entry.get("files"):
            raise UsageError(f"'{shown}' is a folder, and a version is one file's", hint="leave --rev out")
        if not entry.get("version_id"):
            raise UsageError(f"'{shown}' is from a url, which has no revisions", hint="leave --rev out")
        if named not in (None, rev):
            raise UsageError(
                f"the url of '{shown}' names version {named}",
                hint="import it without ?versionId=, by --version-aware -f",
            )
        return [Pin("", rev)]

    def _of_url(self, entry: dict[str, Any], pins: Sequence[Pin]) -> bool:
        refuse_others(self._output)
        url = str(entry["path"])
        with opening.opened(
            url,
            self._repo.config,
            source.settings(entry.get("fs_config")),
            os.environ,
            folder=self._folder,
            jobs=self._how.jobs,
            rate=rate(os.environ),
            pins=pins,
            tell=self._tell,
        ) as found:
            if self._is_whole() and self._is_same(entry, found):
                return self._bring_back()
            self._shown = shown_source(self._repo, found)
            settings = entry.get("fs_config") or {}
            former = self._output.name
            content, dep = bring(self._context, self._repo, found, url, settings, self._how, former, self._tell)
        self._finish(dep, content)
        return True

    def _is_same(self, entry: Mapping[str, Any], found: source.Source) -> bool:
        token = found.token()
        if token is None and isinstance(found, source.LocalSource):
            name = keep(self._context, found, store=False).name
            token = None if name is None else {"md5": name.value}
        return token is not None and source.same(entry, token)

    def _of_repo(self, entry: dict[str, Any], repo: dict[str, Any], rev: str | None) -> bool:
        if rev is not None:
            repo["rev"] = rev
        folders = (self._folder, self._repo.cwd, self._repo.root)
        with external.opened(
            self._context, repo["url"], repo.get("rev"), Settings.recorded(repo), os.environ, folders=folders
        ) as other:
            before, repo["rev_lock"] = repo.get("rev_lock"), other.commit
            dep = {**entry, "repo": repo}
            if before == other.commit and dep["repo"] == entry["repo"] and self._is_whole():
                return self._bring_back()
            content = Found()
            with repotree.opened(
                other, str(entry["path"]), self._context.store, jobs=self._how.jobs, tell=self._tell
            ) as files:
                if not self._how.no_download:
                    objects = Objects(self._context.store, self._repo.cache)
                    content = keep_repo(self._context, files, objects, self._output.name)
        self._finish(dep, content)
        return True

    def _is_whole(self) -> bool:
        """Whether the pointer is as it was written, and its data is here, as far as it is meant to be."""
        if pointer.is_changed(self._pointer):
            return False
        if self._output.name is None:
            return self._how.no_download
        objects = Objects(self._context.store, self._repo.cache)
        return self._how.to_remote or self._how.no_download or objects.whole(self._output.name)

    def _bring_back(self) -> bool:
        """Have data that is as the source's where it belongs, unless something else that is saved nowhere is there; whether it was not."""
        if self._how.to_remote or self._how.no_download:
            return False
        placing = Placing(self._context, self._repo, self._output.path, self._output.name)
        if not placing.is_due:
            return False
        placing.apply()
        return True

    def _finish(self, dep: Mapping[str, Any], content: Found) -> None:
        output = self._output
        goal = Target(output.path, output.pointer, self._pointer.text)
        name = self._pointer.outs[0].path
        text = pointer.text(dep, name, content, whole=True, old=goal.old, path=output.pointer)
        texts = {goal.pointer: (goal.old, text)}
        settle(self._context, self._repo, output.path, texts, content, self._how, _CHANGED)
