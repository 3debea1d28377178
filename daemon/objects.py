"""What the project layer asks of a store: put files, commit, ask for sizes, get contents back.

Two implementations: the store itself in this process (`millpond.daemon.store.local`, for tests and embedded use) and the
daemon's, over the worker's socket (`millpond.daemon.jobs.objects`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from millpond.daemon.names import ObjectName


@dataclass(frozen=True, slots=True)
class Put:
    """A file as it was stored: `stat` was the same before and after its bytes were read."""

    path: str
    name: ObjectName
    size: int
    stat: os.stat_result


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a content on its way out: `data` is valid until the next piece is asked for; `last` ends the content."""

    name: ObjectName
    data: memoryview
    last: bool


Data = bytes | bytearray | memoryview
# A content of so many bytes is one chunk; a larger one has a recipe.
ONE_CHUNK_BYTES = 64 << 10
# (length, last, is_dir, strand?): a part of a content, as `store.feed` takes it, and whether it ends it. Contents may come beside each
# other, each on a strand, numbered from 1; those without one come one after the other.
Slice = tuple[int, bool, bool] | tuple[int, bool, bool, int]
# Called with a content's name, made of these bytes, which are valid until it returns.
Keep = Callable[[ObjectName, memoryview], None]
# Called with (files done, bytes done) since the operation began; may raise CancelledError.
Tick = Callable[[int, int], None]


class ObjectStore(Protocol):
    """Contents by name, with the caller's rights: what he may not read is as if it were not there."""

    def put_files(self, paths: Iterable[str], *, tick: Tick | None = None, store: bool = True) -> Iterator[Put]:
        """Hash and store files, in order; `store=False` only hashes.

        Raises FileChangedError (the file changed while it was read), TargetError (gone, unreadable, not a regular
        file), DiskFullError. Nothing is named before `commit`.
        """
        ...

    def put_bytes(self, data: bytes, *, is_dir: bool = False, like: ObjectName | None = None) -> ObjectName:
        """Store a small content (a manifest with `is_dir`); its MD5 name. Named at `commit`. `like` names a former manifest: what both
        have in common takes no more room."""
        ...

    def put_pieces(
        self, pieces: Iterable[tuple[Data, bool, bool]], keep: Keep | None = None
    ) -> Generator[tuple[ObjectName, int], None, None]:
        """Store contents as they come: (bytes, whether they end a content, whether it is a manifest), one content after the
        other; each one's MD5 name and new bytes, in order. Named at `commit`. After an error nothing more can be put before
        `commit`, which then does nothing. `keep` is told of most of those that are not large, before they are named.
        """
        ...

    def commit(self) -> None:
        """Make everything put so far durable, named, and granted to the caller; then it may be acknowledged."""
        ...

    def sizes(self, names: Sequence[ObjectName], *, evicted: bool = False) -> list[int | None]:
        """Each content's size in bytes, None where the caller has no such object; with `evicted` also of what was here
        and only a remote has now."""
        ...

    def complete(self, name: ObjectName) -> bool:
        """Whether a manifest and all that it names are here for the caller; cheap when it was so before."""
        ...

    def read(self, name: ObjectName) -> bytes:
        """A whole small content. Raises ObjectMissingError, StoreDamagedError."""
        ...

    def fetch(self, names: Iterable[ObjectName]) -> Iterator[Piece]:
        """The contents of `names`, in order, each as one or more pieces (an empty content: one empty piece).

        Raises ObjectMissingError, StoreDamagedError.
        """
        ...
