"""What a verb is given: the store with the caller's rights, the project's lock, and ways to tell how far it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from millpond.daemon.names import ObjectName
from millpond.daemon.objects import ObjectStore

T = TypeVar("T")
# (done, total or None) of files or of bytes.
Counts = tuple[int, int | None]


class VerbContext(Protocol):
    """The worker's side of a request. Verbs run with the caller's environment, folder and umask in place."""

    @property
    def store(self) -> ObjectStore: ...

    @property
    def uid(self) -> int: ...

    def lock(self, project: str, mode: str, *, patient: bool = False) -> AbstractContextManager[None]:
        """Hold the lock of the project at the absolute path `project`; `mode` is read or write. With `patient` it is waited for as
        long as it takes: who asks has done work that must not be lost."""
        ...

    def seen(self, project: str, git: str | None, names: Iterable[ObjectName]) -> None:
        """The project at `project` (Git directory `git`) uses these objects: gc keeps them for it."""
        ...

    def again(self, work: Callable[[], T]) -> T:
        """Do what may be repeated as a whole: where the verb outlives the daemon, it is, with the next one."""
        ...

    def progress(self, phase: str, files: Counts | None = None, bytes: Counts | None = None, note: str = "") -> None:
        """Called as often as one likes; may raise CancelledError."""
        ...

    def tell_progress(self) -> None:
        """Tell the last one now: nothing more comes for a while."""
        ...

    def waiting(self, for_whom: str, since_s: float) -> None:
        """The verb waits for somebody, for so many seconds already; may raise CancelledError."""
        ...

    def log(self, level: str, text: str) -> None:
        """A line for the person: `level` is info or warning."""
        ...


@dataclass(slots=True)
class LocalContext:
    """A VerbContext without a daemon, for tests and embedding: one process, no lock needed."""

    store: ObjectStore
    uid: int
    on_progress: Callable[[str, Counts | None, Counts | None], None] | None = None

    def lock(self, project: str, mode: str, *, patient: bool = False) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def seen(self, project: str, git: str | None, names: Iterable[ObjectName]) -> None:
        """There is no daemon that would collect garbage."""

    def again(self, work: Callable[[], T]) -> T:
        return work()

    def progress(self, phase: str, files: Counts | None = None, bytes: Counts | None = None, note: str = "") -> None:
        if self.on_progress is not None:
            self.on_progress(phase, files, bytes)

    def tell_progress(self) -> None:
        """Every progress is told at once."""

    def waiting(self, for_whom: str, since_s: float) -> None:
        """There is nobody to tell."""

    def log(self, level: str, text: str) -> None:
        """Results carry the warnings as well."""
