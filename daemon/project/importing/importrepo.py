"""`import`: bring what another repository has at a path into the project, with a pointer that remembers which and at what commit."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.formers import Formers
from millpond.daemon.project.importing import external, repotree, source, target, urls
from millpond.daemon.project.importing.external import Settings
from millpond.daemon.project.importing.importurl import How, finish
from millpond.daemon.project.importing.keep import keep_repo
from millpond.daemon.project.importing.pointer import Found
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.select import refuse_clashes
from millpond.daemon.project.sharing import waiting


def import_(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {url, source, out, rev, no_exec, no_download, jobs, force, config, remote, remote_config} -> as `import_url`; `source` is
    the path in the repository.

    Raises as `import_url`, and NotARepoError, RevisionError, ObjectMissingError, StoreDamagedError.
    """
    settings = Settings.of(params)
    how = How.of({key: params.get(key) for key in ("no_exec", "no_download", "force", "jobs")})
    url, path = wirepath.decode(params["url"]), wirepath.decode(params["source"])
    out = None if params.get("out") is None else wirepath.decode(params["out"])
    rev = params.get("rev")
    repo = Repo.open(os.getcwd(), os.environ)
    with context.lock(repo.root, "write"):
        outputs = repo.outputs()
        refuse_clashes(outputs)
        place = target.destination(urls.basename(path) if out is None or os.path.isdir(out) else "", out)
        goal = target.resolve(repo, place, outputs, force=how.force)
        entry: dict[str, Any] = {"url": url, **({"rev": rev} if rev else {})}
        if how.no_exec:
            dep = {"path": path, "repo": {**entry, **settings.entry()}}
            return finish(context, repo, goal, dep, Found(), how, shown=path)
        with external.opened(context, url, rev, settings, os.environ, folders=(repo.cwd,)) as other:
            content = Found()
            with repotree.opened(other, path, context.store, jobs=how.jobs, tell=waiting(context, "import")) as files:
                told = source.warnings(files)
                if not how.no_download:
                    former = Formers(repo, context.store).of(goal.path, goal.pointer)
                    content = keep_repo(context, files, Objects(context.store, repo.cache), former)
            dep = {"path": path, "repo": {**entry, "rev_lock": other.commit, **settings.entry()}}
        return finish(context, repo, goal, dep, content, how, shown=f"{path} ({url})", warnings=told)
