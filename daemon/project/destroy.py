"""`destroy`: a project is no DVC project any more. Its data stays in the workspace, and what is in the store stays there.

Order, so that a crash leaves what the same command ends: the workspace's links into DVC's cache become files that are on
disk; then pointers go, then DVC's cache and everything else in `.dvc`, its configuration last.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

from millpond.daemon.project import outputs, running
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.copying import remove_tree
from millpond.daemon.project.durable import remove_all, sync_file_system, write_error
from millpond.daemon.project.ignore import IGNORE_FILE
from millpond.daemon.project.outputs import LOCK_FILE, Output, WorkTree
from millpond.daemon.project.remove import refuse_mounted
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.stages import STAGES_FILE, Stages
from millpond.daemon.project.unprotect import make_own

# Names asked of the store in one request.
_BATCH = 4096


def destroy(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {dry} -> {files, cache: {objects, bytes, unstored, unstored_bytes}}: the files that go (`dry`: would go), `.dvc`
    left aside, and the objects of DVC's cache in it; `unstored` are those that the store does not have.

    Raises NotARepoError, InvalidFileError (a pointer that cannot be read), ConflictError (mounted data); nothing was changed
    then. DiskFullError: links were replaced, and nothing is lost.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    with context.lock(repo.root, "write"):
        files, outs = _found(repo)
        refuse_mounted(repo, outs)
        running.refuse(repo, writes=[""], env=os.environ)
        report = {"files": [repo.wire(file) for file in files], "cache": _cache(context, repo)}
        if not params.get("dry"):
            make_own(context, [repo.path(out.path) for out in outs if out.cache])
            try:
                sync_file_system(repo.root)
                remove_all([repo.path(file) for file in files])
                _remove_dvc_dir(context, repo)
            except OSError as error:
                raise write_error(error, hint="run the command again: nothing of the workspace is lost") from error
    return report


def _found(repo: Repo) -> tuple[list[str], list[Output]]:
    """The project's own files outside of `.dvc`: pointers, files with stages and their locks, the rules; and the outputs."""
    contents = dict(WorkTree(repo.root, repo.rules).pointer_files())
    files = []
    for path, content in contents.items():
        folder, name = os.path.split(path)
        if name == STAGES_FILE and Stages.parse(content, path).names:
            # The lock first: while the stages are there, a second attempt takes both.
            files += [each for each in (os.path.join(folder, LOCK_FILE), path) if each in contents]
        elif name not in (STAGES_FILE, LOCK_FILE):
            files.append(path)
    if IGNORE_FILE in os.listdir(repo.root):
        files.append(IGNORE_FILE)
    return files, [output for output in outputs.collect_from(contents) if not output.stale]


def _cache(context: VerbContext, repo: Repo) -> dict[str, int]:
    """What DVC's cache holds, where it goes with `.dvc`."""
    found = dict.fromkeys(("objects", "bytes", "unstored", "unstored_bytes"), 0)
    if not repo.cache.folder.startswith(os.path.join(repo.dvc_dir, "")):
        return found
    names = repo.cache.names()
    while batch := list(itertools.islice(names, _BATCH)):
        for name, stored in zip(batch, context.store.sizes(batch), strict=True):
            _count(found, repo.cache.size(name) or 0, stored is not None)
        context.progress("looking into DVC's cache", (found["objects"], None))
    return found


def _count(found: dict[str, int], size: int, is_stored: bool) -> None:
    found["objects"] += 1
    found["bytes"] += size
    if not is_stored:
        found["unstored"] += 1
        found["unstored_bytes"] += size


def _remove_dvc_dir(context: VerbContext, repo: Repo) -> None:
    folder = repo.dvc_dir
    if os.path.islink(folder):
        remove_all([folder])
        return
    # While its configuration is there, a second attempt finds everything where the first one did.
    for name in sorted(os.listdir(folder), key=lambda name: name.startswith("config")):
        context.progress("removing", note=name)
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            remove_tree(path)
        else:
            os.unlink(path)
    os.rmdir(folder)
    sync_file_system(repo.root)
