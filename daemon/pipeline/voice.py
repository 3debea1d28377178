"""What a repro says: to its client or its job's log, in order with what its commands write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from millpond.daemon.jobs.runner import Sink
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.paths import printable


@dataclass(slots=True)
class Voice:
    """What a repro says, in order with what its commands write. What is `held` is said when it is released."""

    context: VerbContext
    sink: Sink
    quiet: bool = False
    held: list[tuple[Callable[[str], None], str]] | None = None

    def release(self) -> None:
        """Say what was held, and hold no more."""
        held, self.held = self.held, None
        for speak, text in held or ():
            speak(text)

    def say(self, text: str) -> None:
        if self.quiet:
            return
        if self.held is not None:
            self.held.append((self.say, text))
        elif self.sink.out is None:
            self.context.log("info", text)
        else:
            self.sink.write(f"{_shown(text)}\n".encode(errors="surrogateescape"))

    def warn(self, text: str) -> None:
        if self.held is not None:
            self.held.append((self.warn, text))
        elif self.sink.err is None:
            self.context.log("warning", text)
        elif not self.quiet:
            self.sink.write(f"WARNING: {_shown(text)}\n".encode(errors="surrogateescape"), error=True)


def _shown(text: str) -> str:
    """A line without what moves a terminal's cursor."""
    return "\n".join(printable(line) for line in text.split("\n"))
