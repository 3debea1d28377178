"""Imports in `fetch` and `pull`: their data is brought from where they are from, as it was when they were imported.

Data of another repository is on no remote of this project. Data of a url may be: it is looked for there first, then at the url, if
that still has what it had. An import of --no-download has no name yet: it comes with `pull`, and its pointer stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from millpond.daemon.errors import ObjectMissingError, TargetError, UsageError
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.formers import Formers
from millpond.daemon.project.importing import external, opening, repotree, source, versions
from millpond.daemon.project.importing.external import Settings
from millpond.daemon.project.importing.keep import Placing, keep, keep_repo
from millpond.daemon.project.importing.pointer import Found
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.sharing import choices, waiting
from millpond.daemon.remote.pace import rate


class Imports:
    """Brings imports into the store; `came` tells of each what it was."""

    def __init__(self, context: VerbContext, repo: Repo, jobs: int | None) -> None:
        self._context = context
        self._repo = repo
        self._objects = Objects(context.store, repo.cache)
        self._formers = Formers(repo, context.store)
        self._jobs = jobs
        self._tell = waiting(context, "fetch")
        self.sources: list[str] = []

    def bring(self, output: Output) -> Found:
        """An import's content, as its pointer has it. Raises ObjectMissingError where its source has it no more, and as `import_`,
        `import_url`."""
        assert output.imported is not None
        self._context.progress("importing", note=output.imported.shown)
        entry, repo = output.imported.entry, output.imported.repo
        self.sources.append(output.imported.shown)
        found = self._of_url(output, entry) if repo is None else self._of_repo(output, entry, repo)
        if output.name is not None and found.name != output.name:
            raise self._gone(output, "has something else there now")
        return found

    def _of_repo(self, output: Output, entry: Mapping[str, Any], repo: Mapping[str, Any]) -> Found:
        folders = (self._folder(output), self._repo.cwd, self._repo.root)
        rev = repo.get("rev_lock") or repo.get("rev")
        settings = Settings.recorded(repo)
        with (
            external.opened(self._context, str(repo["url"]), rev, settings, os.environ, folders=folders) as other,
            repotree.opened(other, str(entry["path"]), self._context.store, jobs=self._jobs, tell=self._tell) as files,
        ):
            return keep_repo(self._context, files, self._objects, self._formers.of(output.path, output.pointer))

    def _of_url(self, output: Output, entry: Mapping[str, Any]) -> Found:
        refuse_others(output)
        url = str(entry["path"])
        pins = versions.recorded(entry)
        try:
            with opening.opened(
                url,
                self._repo.config,
                source.settings(entry.get("fs_config")),
                os.environ,
                folder=self._folder(output),
                jobs=self._jobs,
                rate=rate(os.environ),
                pins=pins,
                tell=self._tell,
            ) as found:
                token = found.token()
                is_other = not pins and token is not None and not source.same(entry, token)
                former = self._formers.of(output.path, output.pointer)
                content = None if is_other else keep(self._context, found, like=former)
        except (TargetError, ObjectMissingError) as error:
            raise self._gone(output, f"cannot be read: {error.message}") from error
        if content is not None and token is None and content.name is not None:
            is_other = not source.same(entry, {"md5": content.name.value})
        if content is None or is_other:
            raise self._gone(output, "has something else there now")
        return content

    def _folder(self, output: Output) -> str:
        return self._repo.path(os.path.dirname(output.pointer))

    def _gone(self, output: Output, why: str) -> ObjectMissingError:
        assert output.imported is not None
        shown = printable(self._repo.seen(output.path))
        what = f"'{shown}'" if output.name is None else f"'{shown}' ({output.name})"
        return ObjectMissingError(
            f"{what} is neither here nor on a remote, and its source '{output.imported.shown}' {why}",
            path=shown,
            hint=f"take what is there now: millpond update {printable(self._repo.seen(output.pointer))}",
        )


def refuse_others(output: Output) -> None:
    """Raise UsageError for imports that are not read here: of databases."""
    assert output.imported is not None
    if "db" in output.imported.entry:
        shown = printable(output.pointer)
        raise UsageError(
            f"'{shown}' is an import of a database, which this version does not read", hint="use dvc for it"
        )


def place_partial(
    context: VerbContext, repo: Repo, imports: Imports, outputs: Sequence[Output], *, force: bool
) -> list[Output]:
    """Bring imports that have no name yet to their places, those that are taken only by force; which were brought."""
    brought = []
    for output in outputs:
        if os.path.lexists(repo.path(output.path)) and not force:
            continue
        found = imports.bring(output)
        placing = Placing(context, repo, output.path, found.name)
        if not force:
            placing.refuse_loss("move them away, or use --force to lose them")
        placing.apply()
        brought.append(output)
    return brought


def bring_lacking(context: VerbContext, target: str | None, rev: str | None) -> bool:
    """Bring the imports of a version (a target in wire form, None for all) that are not here as a whole; whether there were any. Raises
    as `Imports.bring`, and as `choices`."""
    repo = Repo.open(os.getcwd(), os.environ)
    asked = {"targets": [target] if target else [], "revs": [rev] if rev else [], "recursive": True}
    imports, objects = Imports(context, repo, None), Objects(context.store, repo.cache)
    for output in dict.fromkeys(choice.output for choice in choices(repo, asked)):
        if output.imported is not None and output.name is not None and not objects.whole(output.name):
            imports.bring(output)
    return bool(imports.sources)
