"""All stages of a project: of every dvc.yaml and `.dvc` file in the workspace, or in a commit."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from millpond.daemon.errors import InvalidFileError
from millpond.daemon.pipeline import resolve, values
from millpond.daemon.pipeline.lock import LOCK_FILE, Lock
from millpond.daemon.pipeline.places import Places
from millpond.daemon.pipeline.resolve import Document
from millpond.daemon.pipeline.stage import Stage, pointer_stage, stages_of
from millpond.daemon.pipeline.template import Style
from millpond.daemon.project import dvcfile, yamlio
from millpond.daemon.project.outputs import WorkTree
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.stages import STAGES_FILE

# A file's bytes by its path from the project's root; None where there is no such file.
Content = Callable[[str], bytes | None]


@dataclass(slots=True)
class Pipelines:
    """What is known of a project's stages. `documents` by the path of their dvc.yaml; `failed` what cannot be read, with
    the error; `values` are the files of parameters that were asked for."""

    where: Places
    content: Content
    shown: Callable[[str], str]
    stages: list[Stage] = field(default_factory=list)
    documents: dict[str, Document] = field(default_factory=dict)
    locks: dict[str, Lock] = field(default_factory=dict)
    failed: dict[str, InvalidFileError] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    # Where outputs are.
    places: set[str] = field(default_factory=set)

    @property
    def root(self) -> str:
        """The project's, absolute."""
        return self.where.root

    def lock_of(self, stage: Stage) -> Lock:
        return self.locks[stage.lock]

    def value(self, path: str) -> Any:
        """The document of a file of parameters, read once; None where it is not there. Raises InvalidFileError."""
        if path not in self.values:
            raw = self.content(path)
            self.values[path] = None if raw is None else values.parse(raw, printable(self.shown(path)))
        return self.values[path]

    def add(self, path: str, raw: bytes, style: Style) -> None:
        """Take in a dvc.yaml, dvc.lock or `.dvc` file. Raises InvalidFileError."""
        name, shown = posixpath.basename(path), printable(self.shown(path))
        if name == STAGES_FILE:
            document = resolve.resolve(raw, path, self.value, style, shown)
            found = list(stages_of(document, path, self.where))
            self.documents[path] = document
            self._take(found)
        elif name == LOCK_FILE:
            self.locks[path] = Lock.parse(yamlio.decode(raw, shown), shown)
        else:
            self._take([pointer_stage(dvcfile.parse(yamlio.decode(raw, shown), shown), path, self.where)])

    def _take(self, stages: list[Stage]) -> None:
        self.stages += stages
        self.places.update(out.place for stage in stages for out in stage.outs if out.place is not None)


def load(repo: Repo, *, tolerant: bool = False, replaced: Mapping[str, bytes] | None = None) -> Pipelines:
    """The stages of the workspace. With `tolerant` files that cannot be read are left out, in `failed`; `replaced` are files
    as they are to be.

    Raises InvalidFileError.
    """

    def content(path: str) -> bytes | None:
        try:
            with open(repo.path(path), "rb") as file:
                return yamlio.read(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            shown = printable(repo.seen(path))
            raise InvalidFileError(f"cannot read '{shown}': {error.strerror}", path=shown) from error

    pipelines = Pipelines(Places(repo.root, repo.config), content, repo.seen)
    files: Iterator[tuple[str, bytes]] = WorkTree(repo.root, repo.rules, lambda: pipelines.places).pointer_files()
    if replaced is not None:
        files = ((path, raw) for path, raw in chain(files, replaced.items()) if raw is replaced.get(path, raw))
    return fill(pipelines, files, style_of(repo), tolerant=tolerant)


def fill(
    pipelines: Pipelines, files: Iterable[tuple[str, bytes]], style: Style, *, tolerant: bool = False
) -> Pipelines:
    """Take in all `files` (path, content). Raises InvalidFileError."""
    for path, raw in files:
        try:
            pipelines.add(path, raw, style)
        except InvalidFileError as error:
            if not tolerant:
                raise
            pipelines.failed[path] = error
    for stage in pipelines.stages:
        if stage.name and stage.lock not in pipelines.locks:
            pipelines.locks[stage.lock] = Lock.parse("", printable(pipelines.shown(stage.lock)))
    return pipelines


def style_of(repo: Repo) -> Style:
    """How mappings become options in this project."""
    return Style.of({key: value for key in ("bool", "list") if (value := repo.config.get("parsing", key)) is not None})
