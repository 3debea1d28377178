"""`stage add`: a new stage in the dvc.yaml here, written as DVC writes it; refused before anything is written."""

from __future__ import annotations

import os
import string
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import InvalidFileError, OverlapError, TargetError, UsageError
from millpond.daemon.pipeline import graph, pipelines
from millpond.daemon.pipeline.places import Item, Places, is_outside
from millpond.daemon.pipeline.recording import kept_outside
from millpond.daemon.pipeline.stage import Stage
from millpond.daemon.pipeline.variables import PARAMS_FILE
from millpond.daemon.project import gitignore, yamlio
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.durable import write_all, write_error
from millpond.daemon.project.importing.urls import shown_url
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.stages import STAGES_FILE

_NO_CACHE, _PERSIST = {"cache": False}, {"persist": True}
# Option: section of dvc.yaml, and what it sets.
_OUTS: dict[str, tuple[str, dict[str, bool]]] = {
    "outs": ("outs", {}),
    "outs_no_cache": ("outs", _NO_CACHE),
    "outs_persist": ("outs", _PERSIST),
    "outs_persist_no_cache": ("outs", _NO_CACHE | _PERSIST),
    "metrics": ("metrics", {}),
    "metrics_no_cache": ("metrics", _NO_CACHE),
    "plots": ("plots", {}),
    "plots_no_cache": ("plots", _NO_CACHE),
}
_REFUSED = frozenset(string.punctuation) - {"_", "-"}


def stage_add(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {name, cmd, deps, params, outs, outs_no_cache, outs_persist, outs_persist_no_cache, metrics, metrics_no_cache,
    plots, plots_no_cache, wdir, always_changed, desc, force} -> {name, file, changed, git_add, autostaged, warnings}.

    `changed`: the stage was there before. Raises OverlapError, InvalidFileError, UsageError,
    TargetError (it is there; its name is none); nothing is written then.
    """
    name = str(params.get("name") or "")
    if not name or set(name) & _REFUSED:
        raise TargetError(f"'{printable(name)}' is no name for a stage: it cannot contain punctuation characters")
    if not params.get("cmd"):
        raise TargetError(f"stage '{name}' has no command", hint="write it behind the options")
    repo = Repo.open(os.getcwd(), os.environ)
    with context.lock(repo.root, "write"):
        file = repo.relative(STAGES_FILE) or STAGES_FILE
        _check_wdir(repo, params.get("wdir"))
        document = _document(repo, file)
        stages = document.setdefault("stages", {})
        old = stages.get(name)
        if old is not None and not params.get("force"):
            raise TargetError(
                f"stage '{name}' already exists in '{STAGES_FILE}'",
                path=STAGES_FILE,
                hint="use `--force` to overwrite it",
            )
        stages[name] = _merged(old, _entry(params, Places(repo.root, repo.config), repo.relative(".") or ""), name)
        text = yamlio.dump(document)
        stage = _checked(repo, file, text, name)
        warnings = _write(repo, file, text, stage)
        written = [file, *warnings.pop("written")]
        git = repo.git
        autostaged = git is not None and repo.config.flag("core", "autostage")
        if git is not None and autostaged:
            git.stage([repo.git_path(path) for path in written])
    return {
        "name": name,
        "file": repo.wire(file),
        "changed": old is not None,
        "git_add": repo.for_git(written),
        "autostaged": autostaged,
        "warnings": [wirepath.encode(text) for text in warnings["warnings"]],
    }


def _check_wdir(repo: Repo, wdir: str | None) -> None:
    if wdir is None:
        return
    path, shown = os.path.join(repo.cwd, wirepath.decode(wdir)), printable(wirepath.decode(wdir))
    if repo.relative(wirepath.decode(wdir)) is None:
        raise TargetError(f"working directory '{shown}' is outside of the project", path=shown)
    if not os.path.isdir(path):
        problem = "is no directory" if os.path.lexists(path) else "does not exist"
        raise TargetError(f"working directory '{shown}' {problem}", path=shown)


def _document(repo: Repo, file: str) -> Any:
    try:
        with open(repo.path(file), "rb") as opened:
            text = yamlio.decode(yamlio.read(opened), printable(repo.seen(file)))
    except FileNotFoundError:
        return {}
    document = yamlio.load(text, printable(repo.seen(file)), round_trip=True)
    if document is not None and not isinstance(document, dict):
        raise InvalidFileError(f"'{STAGES_FILE}' is not a mapping", path=STAGES_FILE)
    return document or {}


def _entry(params: dict[str, Any], places: Places, here: str) -> dict[str, Any]:
    """The stage as DVC writes it: keys in its order, paths sorted; absolute ones of the project from the stage's folder. `here` is
    the caller's folder."""
    wdir = params.get("wdir")
    folder = None if wdir is None else os.path.normpath(wirepath.decode(wdir))

    def written(path: str) -> str:
        return places.of(os.path.normpath(os.path.join(here, folder or ".")), wirepath.decode(path)).path

    sections: dict[str, dict[str, dict[str, bool]]] = {"outs": {}, "metrics": {}, "plots": {}}
    for option, (section, flags) in _OUTS.items():
        for path in params.get(option) or []:
            sections[section][written(path)] = flags
    outs = {
        section: [{path: dict(flags)} if flags else path for path, flags in sorted(found.items())]
        for section, found in sections.items()
    }
    entry = {
        "desc": params.get("desc"),
        "cmd": params["cmd"],
        "wdir": None if folder == "." else folder,
        "deps": sorted(written(path) for path in params.get("deps") or []),
        "params": _params(params.get("params") or []),
        **outs,
        "always_changed": bool(params.get("always_changed")),
    }
    return {key: value for key, value in entry.items() if value}


def _params(options: list[str]) -> list[Any]:
    """`KEY,KEY` of params.yaml first, then other files (`FILE:KEY`, `FILE:` for all of it)."""
    found: dict[str, dict[str, None]] = {}
    for option in options:
        file, colon, keys = wirepath.decode(option).rpartition(":")
        names = [key for key in keys.split(",") if key]
        found.setdefault(file if colon and file else PARAMS_FILE, {}).update(dict.fromkeys(names))
    default = sorted(found.get(PARAMS_FILE, {}))
    rest = [{file: sorted(found[file]) or None} for file in sorted(found) if file != PARAMS_FILE or not default]
    return [*default, *rest]


def _merged(old: Any, entry: dict[str, Any], name: str) -> Any:
    """The entry in place of an old one: what is as it was keeps its comments, `desc` and `meta` stay."""
    if old is None:
        return entry
    if not isinstance(old, dict) or "foreach" in old or "matrix" in old or "${" in str(dict(old)):
        raise UsageError(f"stage '{name}' is made by a template", hint=f"edit '{STAGES_FILE}' by hand")
    for key in [key for key in old if key not in entry and key not in ("desc", "meta")]:
        del old[key]
    for key, value in entry.items():
        if old.get(key) != value:
            old[key] = value
    return old


def _checked(repo: Repo, file: str, text: str, name: str) -> Stage:
    """The new stage among all others. Raises OverlapError, InvalidFileError, UsageError."""
    loaded = pipelines.load(repo, replaced={file: text.encode("utf-8", "surrogateescape")})
    stage = next(each for each in loaded.stages if each.key == (file, name))
    items: list[Item] = [*stage.deps, *stage.outs]
    keys = [item.key for item in items]
    twice = next((item.path for item in items if keys.count(item.key) > 1), None)
    if twice is not None:
        raise OverlapError(f"'{printable(twice)}' is named twice in stage '{name}'", path=printable(twice))
    for out in stage.outs:
        if out.cache and is_outside(out):
            raise kept_outside(printable(shown_url(out.path)))
    graph.build(loaded.stages, repo.seen)
    return stage


def _write(repo: Repo, file: str, text: str, stage: Stage) -> dict[str, list[str]]:
    cached = [out.place for out in stage.outs if out.cache and out.place]
    there = [place for place in cached if os.path.isdir(os.path.dirname(repo.path(place)))]
    ignoring = gitignore.texts(repo, there)
    try:
        write_all({repo.path(path): content for path, content in {file: text, **ignoring}.items()})
    except OSError as error:
        raise write_error(error, "add the stage again") from error
    late = [
        f"'{printable(repo.seen(place))}' is put into .gitignore when the stage has run: its directory is not there yet"
        for place in cached
        if place not in there
    ]
    return {"written": list(ignoring), "warnings": late}
