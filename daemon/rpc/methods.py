"""What a request is to its handler: who calls, what came with it, and how to tell the caller how it goes."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from millpond.daemon.errors import AccessError, ProtocolError
from millpond.daemon.rpc.framing import close_all

if TYPE_CHECKING:
    from millpond.daemon.rpc.connection import Connection

Role = Literal["client", "worker"]


@dataclass(frozen=True, slots=True)
class Reply:
    """A result with descriptors, which are closed once they are sent."""

    result: dict[str, Any]
    fds: Sequence[int] = ()


class Params(dict[str, Any]):
    """A request's parameters; one that is missing is the caller's mistake, not ours."""

    def __missing__(self, key: str) -> Any:
        raise ProtocolError(f"the request lacks its parameter '{key}'")


@dataclass(slots=True, eq=False)
class Call:
    """One request under way. `uid` is the caller's, also when his worker asks; `id` names it in the log."""

    connection: Connection
    number: Any
    method: str
    uid: int
    pid: int
    id: str
    fds: list[int]
    started: float = field(default_factory=time.monotonic)
    ended: bool = False

    @property
    def origin(self) -> Call:
        """The person's request: of a worker's call the one that the worker serves."""
        return self.connection.parent or self

    def take_fd(self) -> int:
        """The one descriptor that came with the request; the taker closes it. Raises ProtocolError."""
        if len(self.fds) != 1:
            raise ProtocolError(f"{self.method} takes one descriptor, {len(self.fds)} came")
        return self.fds.pop()

    def progress(
        self,
        *,
        phase: str,
        files: tuple[int, int | None] | None = None,
        bytes: tuple[int, int | None] | None = None,
        note: str = "",
    ) -> None:
        """Tell the caller how far it is; the latest of it is told every 0.1 s, and before the answer."""
        self.notify("$/progress", {"phase": phase, "files": files, "bytes": bytes, "note": note})

    def waiting(self, for_whom: str, since_s: float) -> None:
        """Tell the caller what he waits for."""
        self.notify("$/waiting", {"for": for_whom, "since_s": round(since_s, 1)})

    def log(self, level: Literal["info", "warning"], text: str) -> None:
        """A line for the person."""
        self.notify("$/log", {"level": level, "text": text})

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Tell the person behind this call: a worker's calls are told on as those of its client."""
        if self.ended:
            return
        origin = self.origin
        if not origin.ended:
            origin.tell(method, params)

    def tell(self, method: str, params: dict[str, Any]) -> None:
        """Have the client who made this call told something of it."""
        self.connection.notes.put(self.number, method, params)

    def seconds(self) -> float:
        """How long it has run."""
        return round(time.monotonic() - self.started, 3)

    def close(self) -> None:
        """The call is over: close descriptors that nobody took, tell nothing more."""
        self.ended = True
        close_all(self.fds)
        self.fds.clear()


Handler = Callable[[Call, dict[str, Any]], Awaitable[dict[str, Any] | Reply]]


@dataclass(frozen=True, slots=True)
class Method:
    """A registered handler and who may call it."""

    handler: Handler
    roles: frozenset[str]


class Registry:
    """Methods by name."""

    def __init__(self) -> None:
        self._methods: dict[str, Method] = {}

    def register(self, name: str, handler: Handler, *, who: Role | Literal["both"] = "client") -> None:
        """Add a method for clients, for workers, or both. A name is registered once."""
        if name in self._methods:
            raise ValueError(f"method {name} is registered twice")
        self._methods[name] = Method(handler, frozenset({"client", "worker"} if who == "both" else {who}))

    def find(self, name: str, role: Role) -> Handler:
        """The handler. Raises ProtocolError (no such method), AccessError (not for this side)."""
        method = self._methods.get(name)
        if method is None:
            raise ProtocolError(
                f"this daemon has no method '{name}'", hint="is the daemon older? millpond daemon restart"
            )
        if role not in method.roles:
            raise AccessError(f"method '{name}' is not for a {role}")
        return method.handler

    def names(self, role: Role) -> list[str]:
        return sorted(name for name, method in self._methods.items() if role in method.roles)
