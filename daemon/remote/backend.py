"""What a remote must be able to do: one small interface, which local directories, S3, ssh and http implement.

Calls block, and may be made from several threads at once. Keys are relative to the remote's url, with `/`, never empty, without
`.` and `..`. Nothing of a put is seen under its key before all of it is there.
"""

from __future__ import annotations

import builtins
import os
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

from millpond.daemon.errors import ObjectMissingError, RemoteChangedError, RemoteError
from millpond.daemon.objects import Data

if TYPE_CHECKING:
    from millpond.daemon.remote.staging import Staging

# A put_stream's pieces are gathered into parts of this size: S3 takes 10,000 of them, so 160 GB in one object.
PART_BYTES = 16 << 20
# A server that was never reached is given up after so long, in seconds: who waits shall know that the url is wrong, or the network away.
FIRST_CONNECT_S = 2.5
# Of an error's details: the same will happen at the next try.
FINAL = {"again": False}
# And of one that says that nothing came for as long as is waited for (silence.py).
SILENT = {"silent": True}
# Why, in its message.
NO_ANSWER = "it does not answer"

# Objects that are removed by one call.
DELETE_KEYS = 500
# Told of so many bytes more.
Sent = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a remote: `size` in bytes; `etag` changes whenever the content does; `modified` in seconds since 1970."""

    key: str
    size: int
    etag: str | None = None
    version: str | None = None
    modified: float = 0.0


@dataclass(frozen=True, slots=True)
class Got:
    """The bytes of a range, and what the object was when they were read."""

    data: Data
    entry: Entry


class Backend(Protocol):
    """One remote. All methods raise RemoteError when it cannot be reached or answers nonsense, CredentialsError when it does not
    let the caller in; `name` and `url` are for messages, and hold no secrets."""

    name: str
    url: str
    # Whether asking for one object costs next to nothing, so that a listing never pays.
    near: bool
    # Whether a small object is read in less time than a thread takes to hand it over.
    instant: bool
    # Whether `list` can be asked at all: RemoteConfigError where not.
    lists: bool
    # By how many seconds the remote's clock is ahead of ours, where its answers tell.
    clock_s: float | None
    # How many requests `put_many` has under way at once.
    many: int
    # Whether writing small objects one by one, many at once, costs no more than `put_many`.
    singly: bool

    @property
    def staging(self) -> Staging | None:
        """Where objects are written ahead and made durable together; None where they are not files of this machine."""
        ...

    def head(self, key: str) -> Entry | None:
        """What is there, None if nothing."""
        ...

    def sizes_of(self, keys: Sequence[str]) -> builtins.list[int | None]:
        """Bytes of what is there under each key, None where nothing is."""
        ...

    def get(self, key: str, start: int = 0, size: int | None = None, *, etag: str | None = None) -> Got:
        """`size` bytes from `start` (None: to the end; fewer only where the object ends). With `etag` only if it is still the
        same. Raises ObjectMissingError, RemoteChangedError."""
        ...

    def put(self, key: str, data: Data, *, create: bool = False) -> bool:
        """Write a small object whole; with `create` only where there is none: False if there was one."""
        ...

    def put_stream(self, key: str, pieces: Iterable[Data], size: int, sent: Sent | None = None) -> None:
        """Write an object of `size` bytes; `sent` is told, from any thread, of bytes that came there, perhaps not of all. Raises RemoteError when
        the pieces are not that many."""
        ...

    def put_many(self, items: Sequence[tuple[str, Data]]) -> None:
        """Write small objects, durable together where that is cheaper than one by one."""
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects below the folder `prefix` ("" for everything), in no order; none where there is no such folder."""
        ...

    def sizes(self, prefix: str, wanted: Callable[[str], bool] | None = None) -> builtins.list[tuple[str, int]]:
        """As `list`: (key, size in bytes) of each, or of those keys that are wanted; no others are held."""
        ...

    def prepare(self) -> None:
        """Do ahead what the first request would have to, as far as nothing is asked of the remote; raises nothing."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; what is not there is no error."""
        ...

    def refuse_writing(self) -> None:
        """Raise RemoteConfigError where nothing can be written."""
        ...

    def forget(self, key: str) -> None:
        """Remove what is kept of an object that was deleted: its old versions, where the remote keeps them."""
        ...

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove objects, at most DELETE_KEYS; when it returns they are gone for good."""
        ...

    def close(self) -> None: ...


class Base(ABC):
    """What all kinds tell alike."""

    name: str
    lists = True
    instant = False
    singly = False
    clock_s: float | None = None

    @property
    def staging(self) -> Staging | None:
        return None

    def sizes_of(self, keys: Sequence[str]) -> builtins.list[int | None]:
        """For kinds that know no shorter way than asking for each."""
        return [None if entry is None else entry.size for entry in map(self.head, keys)]

    @abstractmethod
    def head(self, key: str) -> Entry | None: ...

    def refuse_writing(self) -> None:  # noqa: B027 - most kinds are written to
        """Raise RemoteConfigError where nothing can be written."""

    def forget(self, key: str) -> None:  # noqa: B027 - most kinds keep nothing of what was deleted
        """Nothing is kept of what was deleted."""

    def absent(self, key: str) -> ObjectMissingError:
        """There is no such object."""
        return ObjectMissingError(f"'{key}' is not on remote '{self.name}'", path=key)

    def changed(self, key: str) -> RemoteChangedError:
        """It is another one than was asked for."""
        return RemoteChangedError(f"'{key}' on remote '{self.name}' was changed", path=key)

    @abstractmethod
    def list(self, prefix: str) -> Iterator[Entry]: ...

    def sizes(self, prefix: str, wanted: Callable[[str], bool] | None = None) -> builtins.list[tuple[str, int]]:
        """For kinds that know no shorter way."""
        return [(entry.key, entry.size) for entry in self.list(prefix) if wanted is None or wanted(entry.key)]

    def prepare(self) -> None:  # noqa: B027 - most kinds have nothing to look for
        """There is nothing to be done ahead."""

    @abstractmethod
    def delete(self, key: str) -> None: ...

    def delete_many(self, keys: Sequence[str]) -> None:
        """For kinds that remove one after the other."""
        for key in keys:
            self.delete(key)


class ReadOnly(Base):
    """What the kinds tell alike that nothing is written to or removed from."""

    lists = False

    def refuse_writing(self) -> None:
        self._refuse()

    def put(self, key: str, data: Data, *, create: bool = False) -> bool:
        self._refuse()

    def put_stream(self, key: str, pieces: Iterable[Data], size: int, sent: Sent | None = None) -> None:
        self._refuse()

    def put_many(self, items: Sequence[tuple[str, Data]]) -> None:
        self._refuse()

    def delete(self, key: str) -> None:
        self._refuse()

    @abstractmethod
    def _refuse(self) -> NoReturn:
        """Raise RemoteConfigError: why nothing is written there."""


class Counted:
    """Pieces as they are, checked to be `size` bytes in all: RemoteError where not. `error` is what they raised: a library that is
    given them may wrap it."""

    def __init__(self, pieces: Iterable[Data], size: int, key: str) -> None:
        self._pieces = pieces
        self._size = size
        self._key = key
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Data]:
        done = 0
        try:
            for piece in self._pieces:
                done += len(piece)
                yield piece
            if done != self._size:
                raise wrong_size(self._key, done, self._size)
        except Exception as error:
            self.error = error
            raise


def wrong_size(key: str, done: int, size: int) -> RemoteError:
    """What was to be written came to another number of bytes."""
    return RemoteError(f"'{key}' came to {done} bytes where {size} were expected", path=key)


def parts(pieces: Iterable[Data], size: int = PART_BYTES) -> Iterator[bytes]:
    """The same bytes in parts of `size`, the last one shorter."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    if waiting:
        yield bytes(waiting)


def told(pieces: Iterable[Data], sent: Sent) -> Iterator[Data]:
    """The same pieces; `sent` is told of each when the next one is asked for."""
    for piece in pieces:
        size = len(piece)
        yield piece
        sent(size)


def write_all(fd: int, data: Data) -> None:
    """All of it at a file's position. Raises OSError."""
    done = os.write(fd, data)
    if done < len(data):
        view = memoryview(data)
        while done < len(view):
            done += os.write(fd, view[done:])


def why(error: BaseException) -> str:
    """Why no connection was made, from what the system, the resolver or TLS said below a library's errors."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    if isinstance(error, socket.gaierror):
        return "there is no such host"
    if isinstance(error, ssl.SSLError):
        return f"it speaks no TLS that is known here ({error.reason})"
    if isinstance(error, TimeoutError):
        return NO_ANSWER
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
