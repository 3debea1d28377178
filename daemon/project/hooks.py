"""`install`: Git hooks that run millpond, and the merge driver for `.dvc` files.

A hook is one line that calls `millpond git-hook`, so what it does comes with the program and not with the file. DVC's own
hooks are replaced: both would do the same twice, and DVC does not see what only the store has.
"""

from __future__ import annotations

import os
import re
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError, InvalidFileError, UsageError
from millpond.daemon.project import yamlio
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.durable import write_all, write_error
from millpond.daemon.project.gitrepo import GitRepo
from millpond.daemon.project.repo import Repo, printable

HOOKS = ("post-checkout", "pre-commit", "pre-push")
PRE_COMMIT_FILE = ".pre-commit-config.yaml"
# The driver has DVC's name: a `.gitattributes` made for DVC goes on to work.
_DRIVER = {
    "merge.dvc.name": "millpond merge driver",
    "merge.dvc.driver": "millpond git-hook merge-driver --ancestor %O --our %A --their %B --path %P",
}
_ATTRIBUTES = ".gitattributes"
_DVC_REPOS = re.compile(r"https://github\.com/(treeverse|iterative)/dvc(\.git)?/?")
# A hook beyond this is nobody's one line.
_MAX_HOOK = 1 << 16


def install(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {pre_commit} -> {hooks: [path], replaced: [path], attributes}: the files written, as seen from the caller's folder.

    With `pre_commit` the hooks are put into the pre-commit tool's file. `attributes`: whether Git gives any `.dvc` file to the
    driver. Raises ConflictError for another tool's hook, InvalidFileError, UsageError, AccessError; no hook was changed then.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    if repo.git is None or repo.git.root is None:
        raise UsageError("this project is not in a Git repository, so there are no hooks to install")
    with context.lock(repo.root, "write"):
        try:
            into = _into_pre_commit if params.get("pre_commit") else _into_git
            hooks, replaced = into(repo, repo.git)
            repo.git.configure(_DRIVER)
        except OSError as error:
            raise write_error(error) from error
        return {
            "hooks": [wirepath.encode(os.path.relpath(path, repo.cwd)) for path in hooks],
            "replaced": [wirepath.encode(os.path.relpath(path, repo.cwd)) for path in replaced],
            "attributes": _has_attributes(repo.git.root),
        }


def dvc_hooks(git: GitRepo) -> list[str]:
    """The names of DVC's own hooks that are installed."""
    folder = git.hooks_dir
    return [name for name in HOOKS if "dvc git-hook" in (_text(os.path.join(folder, name)) or "")]


def _into_git(repo: Repo, git: GitRepo) -> tuple[list[str], list[str]]:
    """Write the hooks; (all of them, those that were DVC's)."""
    folder = git.hooks_dir
    texts: dict[str, str] = {}
    replaced = []
    for name in HOOKS:
        path = os.path.join(folder, name)
        line = f'millpond git-hook {name} "$@"'
        own = f"#!/bin/sh\nexec {line}\n"
        if os.path.lexists(path) and (found := _text(path)) != own:
            if found is not None and re.search(rf"^[^#\n]*\bmillpond git-hook {name}\b", found, re.MULTILINE):
                continue  # called from a hook that does more
            if found is None or not re.fullmatch(rf"#!.*\nexec dvc git-hook {name} \$@\n", found):
                raise _foreign(os.path.relpath(path, repo.cwd), name, line, found)
            replaced.append(path)
        texts[path] = own
    os.makedirs(folder, exist_ok=True)
    write_all(texts, executable=True)
    return [os.path.join(folder, name) for name in HOOKS], replaced


def _foreign(path: str, name: str, line: str, text: str | None) -> ConflictError:
    shown = printable(path)
    if text is not None and "dvc git-hook" in text:
        return ConflictError(
            f"'{shown}' runs DVC's hook and more",
            path=shown,
            hint=f"write `{line}` in place of `dvc git-hook {name}` there",
        )
    hint = f"add the line `{line}` to it, or use --use-pre-commit-tool"
    return ConflictError(f"there is a {name} hook already, '{shown}'", path=shown, hint=hint)


def _text(path: str) -> str | None:
    """A hook's text; None for what is no plain file, cannot be read, or is too long to be ours or DVC's."""
    if os.path.islink(path) or not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            text = file.read(_MAX_HOOK)
    except OSError:
        return None
    return text if len(text) < _MAX_HOOK else None


def _into_pre_commit(repo: Repo, git: GitRepo) -> tuple[list[str], list[str]]:
    """Put our hooks into the pre-commit tool's file, in place of DVC's; comments and everything else stay."""
    path = os.path.join(git.root or repo.root, PRE_COMMIT_FILE)
    document: Any = {}
    if os.path.exists(path):
        with open(path, "rb") as file:
            document = yamlio.load(yamlio.decode(yamlio.read(file), path), path, round_trip=True)
        document = {} if document is None else document
    repos = document.setdefault("repos", []) if isinstance(document, dict) else None
    if not isinstance(repos, list) or not all(isinstance(each, dict) for each in repos):
        shown = printable(path)
        raise InvalidFileError(
            f"'{shown}' is not a file of the pre-commit tool", path=shown, hint="its `repos` is a list"
        )
    for index in reversed(range(len(repos))):
        if _replaced_by_ours(repos[index]):
            del repos[index]
    repos.append({"repo": "local", "hooks": [_pre_commit_hook(name) for name in HOOKS]})
    write_all({path: yamlio.dump(document)})
    return [path], []


def _replaced_by_ours(repo: dict[str, Any]) -> bool:
    """Whether an entry of the tool's file is DVC's, or ours of an earlier time."""
    hooks = repo.get("hooks") or []
    ours = {f"millpond-{name}" for name in HOOKS}
    local = repo.get("repo") == "local" and bool(hooks) and all(hook.get("id") in ours for hook in hooks)
    return local or _DVC_REPOS.fullmatch(str(repo.get("repo"))) is not None


def _pre_commit_hook(name: str) -> dict[str, Any]:
    return {
        "id": f"millpond-{name}",
        "name": f"millpond {name}",
        "entry": f"millpond git-hook {name}",
        "language": "system",
        "always_run": True,
        "pass_filenames": False,
        "verbose": True,
        "stages": [name],
    }


def _has_attributes(root: str) -> bool:
    text = _text(os.path.join(root, _ATTRIBUTES)) or ""
    return re.search(r"^[^#\n]*\.dvc\s(.*\s)?merge=dvc(\s|$)", text, re.MULTILINE) is not None
