"""The holder's side of its source (source.py): requests in flight, answers in any order, late ones never mistaken.

Each request carries a number that its answer repeats. One thread receives; whoever asked waits for his own answer until
his deadline. A source that sends what is no answer is believed no more: every later request fails at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import MillpondError, ObjectMissingError, ProtocolError, StoreDamagedError, from_wire
from millpond.daemon.names import ObjectName
from millpond.daemon.rpc import framing

log = logging.getLogger("millpond.source")

# A source that does not answer in this time is taken for gone: EIO.
DEADLINE_S = 60.0
# A large object that is checked before it is read is given up when nothing comes for so long.
SILENCE_S = 45.0

# What a source may say of why it is refused, in characters.
_MAX_REASON = 1000

_Answer = tuple[dict[str, Any], list[int]]


@dataclass(frozen=True, slots=True)
class Told:
    """What a source tells of itself with each answer: requests to remotes and bytes from them so far; large objects that it has in
    part, which nobody has checked as a whole yet; why the remotes refuse it, empty if they do not; for which object they did; and what
    it says of the last large object that was found to be damaged, perhaps after bytes of it were read; bytes a second and requests at
    once that it keeps to, 0 where nothing bounds them."""

    requests: int = 0
    bytes: int = 0
    unverified: int = 0
    refused: str = ""
    wanted: str = ""
    damaged: str = ""
    rate: int = 0
    jobs: int = 0

    @classmethod
    def of(cls, answer: dict[str, Any], before: Told) -> Told:
        """From an answer; what `before` was where it tells nothing, or nonsense."""
        told = answer.get("told")
        if not isinstance(told, dict):
            return before
        try:
            requests, size, unverified = (int(told[key]) for key in ("requests", "bytes", "unverified"))
            refused, wanted, damaged = (str(told[key])[:_MAX_REASON] for key in ("refused", "wanted", "damaged"))
            bounds = int(told["rate"]), int(told["jobs"])
            return cls(requests, size, unverified, refused, wanted, damaged, *bounds)
        except (KeyError, TypeError, ValueError):
            return before


class SourceClient:
    """Asks a source over a connected socket. Blocking; used from any number of threads, which the caller bounds. `changed` is
    called, from any thread, when the source is gone, and when remotes begin or end to refuse it."""

    def __init__(
        self, sock: socket.socket, *, deadline_s: float = DEADLINE_S, changed: Callable[[], None] = lambda: None
    ) -> None:
        self._sock = sock
        self._sock.settimeout(deadline_s)
        self._deadline_s = deadline_s
        self._sending = threading.Lock()
        # Guards what follows. `_ended` says why nothing can be asked any more.
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[_Answer]] = {}
        self._number = 0
        self._ended: MillpondError | None = None
        self._receiver: threading.Thread | None = None
        self._changed = changed
        self.told = Told()

    @property
    def ended(self) -> bool:
        """Whether nothing can be asked any more."""
        with self._lock:
            return self._ended is not None

    def listen(self) -> None:
        """Know of the source's end before anything is asked."""
        with self._lock:
            self._start_receiver()

    def open(self, name: ObjectName, size: int | None = None, near: Sequence[ObjectName] = ()) -> tuple[int, int, bool]:
        """(descriptor, size, whether all is there) of an object: a regular file of that size, and where not all of it is there,
        `ensure` brings what is read. `size` is what the listing says, without it remotes are not asked; `near` may be read soon.
        Raises ObjectMissingError, StoreDamagedError, ProtocolError, RemoteError, CredentialsError."""
        request: dict[str, Any] = {"op": "open", "name": [name.algo, name.value], "size": size}
        if near:
            request["near"] = [(each.algo, each.value) for each in near]
        answer, fds = self._ask(request)
        try:
            if len(fds) != 1:
                raise ProtocolError(f"the source gave {len(fds)} descriptors for object {name}")
            found = os.fstat(fds[0])
            if not stat.S_ISREG(found.st_mode) or found.st_size != answer.get("size"):
                raise StoreDamagedError(f"the source gave for object {name} what is no file of the size it told")
        except BaseException:
            framing.close_all(fds)
            raise
        return fds[0], found.st_size, answer.get("whole") is not False

    def ensure(self, name: ObjectName, size: int, inode: int, offset: int, length: int) -> tuple[int, int] | int:
        """Have a range of a file of `open` filled; the range [start, end) around it that is. Or, of an object that is checked as a whole
        first and is still coming, how much came so far: ask again. Raises as `open`, RemoteChangedError."""
        answer = self._plain(
            {
                "op": "ensure",
                "name": [name.algo, name.value],
                "size": size,
                "inode": inode,
                "offset": offset,
                "length": length,
            }
        )
        if "coming" in answer:
            return int(answer["coming"])
        start, end = int(answer["start"]), int(answer["end"])
        if not 0 <= start <= offset or not min(offset + length, size) <= end <= size:
            raise ProtocolError(f"the source filled another range of object {name} than was asked for")
        return start, end

    def credentials(self, environ: int) -> None:
        """Have the remotes asked with another environment, which a memory file holds (`environ`, a descriptor): nobody but the source
        reads it. Raises CredentialsError, RemoteError, RemoteConfigError when they do not answer to that either."""
        self._plain({"op": "credentials"}, [environ])

    def refs(self) -> dict[str, str]:
        """Branches and tags with their commits."""
        refs = dict(self._plain({"op": "refs"})["refs"])
        return {wirepath.decode(str(name)): str(commit) for name, commit in refs.items()}

    def version(self, revision: str) -> tuple[str, bytes]:
        """(commit, root folder) of a revision. Raises RevisionError, DaemonUnavailableError."""
        answer = self._plain({"op": "version", "rev": wirepath.encode(revision)})
        return str(answer["commit"]), bytes.fromhex(answer["root"])

    def close(self) -> None:
        """Hang up; who still waits gets ObjectMissingError."""
        self._end(_gone("it is not needed any more"))
        with self._lock:  # a thread that was about to be started is running, and no other comes
            receiver = self._receiver
        if receiver is not None:
            receiver.join()
        self._sock.close()

    def abandon(self) -> None:
        """In a child of the process whose client this is: let go of the socket, which the parent goes on to use."""
        self._sock.close()

    def _plain(self, request: dict[str, Any], given: Sequence[int] = ()) -> dict[str, Any]:
        """The answer to a request that takes no descriptors."""
        answer, fds = self._ask(request, given)
        framing.close_all(fds)
        return answer

    def _ask(self, request: dict[str, Any], given: Sequence[int] = ()) -> _Answer:
        number, future = self._expect()
        try:
            with self._sending:
                framing.send(self._sock, framing.encode({"id": number, **request}, given), given)
        except OSError as error:
            # Half a frame may be on its way: nothing can be sent behind it.
            self._end(_gone(f"it takes no more requests ({error.strerror or error})"))
        try:
            answer, fds = future.result(self._deadline_s)
        except TimeoutError:
            with self._lock:
                late = self._waiting.pop(number, None) is not None
            if late:
                raise _gone(f"it did not answer in {self._deadline_s:g} s") from None
            answer, fds = future.result()  # it came at the last moment
        if "error" in answer:
            framing.close_all(fds)
            raise from_wire(answer["error"]) if isinstance(answer["error"], dict) else _nonsense()
        return answer, fds

    def _expect(self) -> tuple[int, Future[_Answer]]:
        with self._lock:
            if self._ended is not None:
                raise _again(self._ended)
            self._start_receiver()
            self._number += 1
            future: Future[_Answer] = Future()
            self._waiting[self._number] = future
            return self._number, future

    def _start_receiver(self) -> None:
        if self._receiver is None:
            self._receiver = threading.Thread(target=self._receive, name="source-answers", daemon=True)
            self._receiver.start()

    def _receive(self) -> None:
        decoder = framing.Decoder(framing.parse_json)
        try:
            while self._more(decoder):
                while (item := decoder.next()) is not None:
                    self._deliver(*item)
            self._end(_gone("it hung up"))
        except MillpondError as error:
            self._end(error)
        except OSError as error:
            self._end(_gone(str(error)))
        finally:
            decoder.close()

    def _more(self, decoder: framing.Decoder[dict[str, Any]]) -> bool:
        while True:
            with contextlib.suppress(TimeoutError):  # nobody may be waiting
                return framing.receive(self._sock, decoder)

    def _deliver(self, answer: dict[str, Any], fds: list[int]) -> None:
        number = answer.get("id")
        told, self.told = self.told, Told.of(answer, self.told)
        if told.refused != self.told.refused:
            self._changed()
        with self._lock:
            future = self._waiting.pop(number, None) if type(number) is int else None
        if future is None:  # too late
            framing.close_all(fds)
        else:
            future.set_result((answer, fds))

    def _end(self, reason: MillpondError) -> None:
        """Believe this source no more; whoever waits is told why."""
        with self._lock:
            self._ended = self._ended or reason
            waiting, self._waiting = self._waiting, {}
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        for future in waiting.values():
            future.set_exception(_again(reason))
        self._changed()


def _again(error: MillpondError) -> MillpondError:
    """The same error for another thread: one that is raised twice would collect tracebacks."""
    return from_wire(error.to_wire())


def _gone(why: str) -> ObjectMissingError:
    return ObjectMissingError(f"the process that reads the project's own cache is gone: {why}", hint="mount again")


def _nonsense() -> ProtocolError:
    return ProtocolError("the process that reads the project's own cache answered nonsense", hint="mount again")
