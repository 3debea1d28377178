"""Contents that go out to a remote, read from where they are at hand: the store, or DVC's cache beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby

from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data, Piece
from millpond.daemon.project.digests import Objects, Place
from millpond.daemon.remote.upload import Upload

_READ_BYTES = 1 << 20


def uploads(objects: Objects, todo: Sequence[tuple[ObjectName, Place, str | None]]) -> Iterator[Upload]:
    """What to send of each: its name, where it is at hand, and its key where that is not its name's."""
    for in_store, part in groupby(todo, key=lambda each: each[1].in_store):
        items = list(part)
        if not in_store:
            yield from (Upload(name, place.size, _cached(objects, place), key) for name, place, key in items)
            continue
        pieces = objects.store.fetch(place.name for _, place, _ in items)
        yield from (Upload(name, place.size, _until_last(pieces), key) for name, place, key in items)


def _cached(objects: Objects, place: Place) -> Iterator[Data]:
    """An object of DVC's cache, checked against its name before its first byte goes out."""
    found = objects.cache.open(place.name)
    if found is None:
        return
    with os.fdopen(found[0], "rb") as file:
        while data := file.read(_READ_BYTES):
            yield data


def _until_last(pieces: Iterator[Piece]) -> Iterator[Data]:
    """The bytes of one content, off a stream of several."""
    for piece in pieces:
        yield piece.data
        if piece.last:
            return
