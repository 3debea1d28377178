"""What a remote lets its caller do, tried one after the other: reach it, list, read, write, create, delete.

What is written is two small objects under names of their own beside `files/`; they are removed in any case, and where they cannot be
they are named. Each trial has a deadline; a remote that does not answer ends the rest.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from millpond.daemon.errors import CredentialsError, MillpondError, ObjectMissingError, RemoteError
from millpond.daemon.names import ObjectName
from millpond.daemon.remote.backend import Backend, Entry
from millpond.daemon.remote.layout import MODERN, digest_of, keys_of

T = TypeVar("T")
# It works; it does not, and that is an error; it does not, and that hurts nothing; it was not tried.
OK, FAILED, NO, SKIPPED = "ok", "failed", "no", "skipped"
_DEADLINE_S = 30.0
# Objects that are looked at to tell the layout, and of the project's own those that are asked for.
_LOOKED_AT, _ASKED = 1000, 8
_PREFIXES = tuple(f"{number:02x}" for number in range(256))
# S3 refuses requests that are a quarter of an hour off.
_CLOCK_S = 300.0
_BYTES = 64
# What S3 calls the right to do it.
_RIGHTS = {"list": "s3:ListBucket", "read": "s3:GetObject", "write": "s3:PutObject", "delete": "s3:DeleteObject"}


@dataclass(frozen=True, slots=True)
class Check:
    """One trial: `state` is one of the above, `took_s` seconds, `error` why it failed."""

    name: str
    state: str
    detail: str = ""
    took_s: float = 0.0
    error: MillpondError | None = None


def check(backend: Backend, names: Sequence[ObjectName], *, write: bool) -> Iterator[Check]:
    """Try all of it; `names` are objects of the project, which may be there. Closes nothing."""
    checker = _Checker(backend, names)
    try:
        yield from checker.looking()
        if not checker.ended:
            yield from checker.writing() if write else ()
    finally:
        checker.close()


class _Checker:
    """`ended` when the remote cannot be reached."""

    def __init__(self, backend: Backend, names: Sequence[ObjectName]) -> None:
        self._backend = backend
        self._names = names[:_ASKED]
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="check")
        self._probe, self._other = (f".millpond-check-{secrets.token_hex(8)}.tmp" for _ in range(2))
        self._written: set[str] = set()
        self._versioned = False
        self.ended = False

    def close(self) -> None:
        """Remove what is still there: a trial failed, or nobody waits for the next one."""
        for key in sorted(self._written):
            with contextlib.suppress(MillpondError):
                self._within(lambda key=key: self._remove(key))  # type: ignore[misc]
        self._pool.shutdown(wait=False, cancel_futures=True)

    def looking(self) -> Iterator[Check]:
        """What needs no right to write."""
        yield (reached := self._try("reach", self._reach))
        if reached.state == FAILED:
            self.ended = True
            return
        found: list[Entry] = []
        if self._backend.lists:
            yield (listed := self._try("list", lambda: self._list(found)))
        else:
            yield (listed := Check("list", NO, "http has no way to ask for it"))
        if listed.state == FAILED:
            yield Check("layout", SKIPPED, "nothing could be listed")
        else:
            yield self._try("layout", lambda: self._layout(found))
        readable = next((entry.key for entry in found), None) or self._within_or_none(self._own)
        if readable is None:
            yield Check("read", SKIPPED, "nothing is there to be read")
        else:
            yield self._try("read", lambda: self._read(readable))
        if (ahead := self._backend.clock_s) is not None:
            yield Check("clock", *_clock(ahead))

    def writing(self) -> Iterator[Check]:
        """What changes the remote for a moment."""
        data = secrets.token_bytes(_BYTES)
        yield (written := self._try("write", lambda: self._write(data)))
        if written.state == OK:
            yield self._try("read back", lambda: self._read_back(data))
            yield self._try("create", lambda: self._create(data))
            yield self._try("clock", self._clock)
            yield self._try("versions", self._versions)
            yield self._try("delete", self._delete)

    # -- trials: what they found, or (state, what they found) ---------------------------------------------------------

    def _reach(self) -> str:
        began = time.monotonic()
        try:
            self._backend.head(self._probe)
        except CredentialsError as error:
            if error.path != self._probe:  # nobody was let in
                raise
            # S3 says so of what is not there to who may not list; what may be done shows below.
        return f"answers in {(time.monotonic() - began) * 1000:.0f} ms"

    def _list(self, found: list[Entry]) -> str:
        found += islice(self._backend.list(""), _LOOKED_AT)
        return f"{len(found)}{' or more' if len(found) == _LOOKED_AT else ''} objects"

    def _layout(self, found: Sequence[Entry]) -> tuple[str, str]:
        """DVC 3, DVC 2, both or none."""
        keys = [entry.key for entry in found]
        modern = any(key.startswith(f"{MODERN}/") for key in keys)
        legacy = any(digest_of(key) and not key.startswith(f"{MODERN}/") for key in keys)
        if self._backend.lists and len(keys) == _LOOKED_AT:
            modern = modern or self._any(MODERN)
            legacy = legacy or any(self._pool.map(self._any, _PREFIXES))
        elif not self._backend.lists:
            there = [key for name in self._names for key in keys_of(name) if self._backend.head(key) is not None]
            modern = any(key.startswith(f"{MODERN}/") for key in there)
            legacy = any(not key.startswith(f"{MODERN}/") for key in there)
        kinds = [kind for kind, has in ((f"DVC 3 ({MODERN}/)", modern), ("DVC 2", legacy)) if has]
        if kinds:
            return OK, " and ".join(kinds)
        if not self._backend.lists:
            return NO, "not known: nothing of this project is there"
        return (NO, "none of DVC's: it holds other things") if keys else (OK, "empty")

    def _any(self, prefix: str) -> bool:
        return next(iter(self._backend.list(prefix)), None) is not None

    def _own(self) -> str | None:
        """An object of the project's that is there."""
        for name in self._names:
            for key in keys_of(name):
                with contextlib.suppress(CredentialsError):
                    if self._backend.head(key) is not None:
                        return key
        return None

    def _read(self, key: str) -> str:
        try:
            got = self._backend.get(key, 0, _BYTES)
        except ObjectMissingError:
            return "what was listed was removed meanwhile"
        return f"{len(got.data)} bytes of '{key}'"

    def _write(self, data: bytes) -> str:
        self._written.add(self._probe)
        self._backend.put(self._probe, data)
        return f"'{self._probe}'"

    def _read_back(self, data: bytes) -> str:
        if bytes(self._backend.get(self._probe).data) != data:
            raise RemoteError(
                f"remote '{self._backend.name}' gives other bytes of '{self._probe}' than were written",
                hint="do not keep data there before its admin has looked into it",
            )
        return "the same bytes"

    def _create(self, data: bytes) -> tuple[str, str]:
        self._written.add(self._other)
        if not self._backend.put(self._other, data, create=True):
            return NO, "an object that is not there cannot be created"
        try:
            again = self._backend.put(self._other, b"other", create=True)
        except RemoteError as error:
            return NO, f"is refused: {error.message}"
        return (NO, "overwrites what is there") if again else (OK, "only where there is none")

    def _clock(self) -> tuple[str, str]:
        entry = self._backend.head(self._probe)
        if entry is None or not entry.modified:
            return SKIPPED, "the remote tells no times"
        return _clock(entry.modified - time.time())

    def _versions(self) -> str:
        entry = self._backend.head(self._probe)
        self._versioned = entry is not None and entry.version is not None
        return "old versions are kept" if self._versioned else "none are kept"

    def _delete(self) -> str:
        for key in (self._probe, self._other):
            self._remove(key)
            if self._backend.head(key) is not None:
                raise RemoteError(
                    f"'{key}' is still on remote '{self._backend.name}'", path=key, hint="remove it by hand"
                )
            self._written.discard(key)
        return "removed again"

    def _remove(self, key: str) -> None:
        self._backend.delete(key)
        if self._versioned:
            self._backend.forget(key)

    # -- how they are run ---------------------------------------------------------------------------------------------

    def _try(self, name: str, trial: Callable[[], str | tuple[str, str]]) -> Check:
        began = time.monotonic()
        try:
            found = self._within(trial)
        except MillpondError as error:
            return Check(name, FAILED, self._why(name, error), time.monotonic() - began, error)
        state, detail = (OK, found) if isinstance(found, str) else found
        return Check(name, state, detail, time.monotonic() - began)

    def _why(self, name: str, error: MillpondError) -> str:
        right = _RIGHTS.get("write" if name == "create" else "read" if name == "read back" else name)
        if isinstance(error, CredentialsError) and right is not None and self._backend.url.startswith("s3:"):
            return f"{error.message}; the permission is {right}"
        return error.message

    def _within(self, call: Callable[[], T]) -> T:
        try:
            return self._pool.submit(call).result(_DEADLINE_S)
        except TimeoutError:
            raise RemoteError(
                f"remote '{self._backend.name}' ({self._backend.url}) did not answer in {_DEADLINE_S:g} s",
                hint="see its url and the network, then try again",
            ) from None

    def _within_or_none(self, call: Callable[[], T]) -> T | None:
        try:
            return self._within(call)
        except MillpondError:
            return None


def _clock(ahead: float) -> tuple[str, str]:
    if abs(ahead) < 2:
        return OK, "the same"
    where = "ahead of" if ahead > 0 else "behind"
    return OK if abs(ahead) < _CLOCK_S else NO, f"{abs(ahead):,.0f} s {where} this machine's"
