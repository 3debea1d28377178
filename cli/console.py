"""Where the command line prints, and how loudly. What was asked for goes to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Mapping
from typing import TextIO

from millpond.cli.text import printable

_CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


class OutputError(Exception):
    """stdout cannot be written: its reader is gone, its disk is full, it is closed. `reason` is the system's error."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Console:
    """Two streams and the settings that decide what is written to them.

    `verbose` counts -v; `live` means that stderr may show a line that changes (progress); `interrupted` is set when the
    person pressed Ctrl-C: the exit code is 130 then, whatever the request came to.
    """

    def __init__(
        self,
        out: TextIO,
        err: TextIO,
        *,
        color_out: bool = False,
        color_err: bool = False,
        terminal: bool = False,
    ) -> None:
        self.out = out
        self.err = err
        self.color_out = color_out
        self.color_err = color_err
        self.terminal = terminal
        self.quiet = False
        self.verbose = 0
        self.wait_for_lock = False
        self.interrupted = False
        self._said: set[str] = set()

    @property
    def live(self) -> bool:
        return self.terminal and not self.quiet

    def say(self, text: str) -> None:
        """A line for the person: dropped with --quiet."""
        if not self.quiet:
            self.write(text)

    def write(self, text: str) -> None:
        """A line that was asked for (JSON, a path): written even with --quiet. Raises OutputError."""
        try:
            self.out.write(text + "\n")
        except OSError as error:
            raise OutputError(error) from error

    def write_bytes(self, data: bytes, *, err: bool = False) -> None:
        """Bytes of another program, as they are, to stdout or stderr, at once. Raises OutputError."""
        stream = self.err if err else self.out
        try:
            stream.flush()
            stream.buffer.write(data)
            stream.buffer.flush()
        except OSError as error:
            raise OutputError(error) from error

    def flush(self) -> None:
        """Write out what is buffered. Raises OutputError."""
        try:
            self.out.flush()
        except OSError as error:
            raise OutputError(error) from error

    def tell(self, text: str) -> None:
        """A line on stderr as it is; nothing can be said when that cannot be written."""
        with contextlib.suppress(OSError):
            self.err.write(text + "\n")
            self.err.flush()

    def note(self, text: str) -> None:
        """A line on stderr about what goes on; the same one is written once."""
        if not self.quiet and text not in self._said:
            self._said.add(text)
            self.tell(printable(text))

    def warn(self, text: str) -> None:
        """A warning on stderr."""
        if not self.quiet:
            self._labelled("WARNING", "yellow", text)

    def error(self, text: str) -> None:
        """An error on stderr, one line."""
        self._labelled("ERROR", "red", text)

    def debug(self, text: str) -> None:
        """A line on stderr with --verbose."""
        if self.verbose and not self.quiet:
            self._labelled("DEBUG", "dim", text)

    def paint(self, text: str, style: str) -> str:
        """`text` in a style of stdout, where colours are on."""
        return _painted(text, style, self.color_out)

    def _labelled(self, label: str, style: str, text: str) -> None:
        # stdout first, so that the two streams of one terminal or file keep their order; the end of the run says
        # whether it could be written.
        with contextlib.suppress(OutputError):
            self.flush()
        self.tell(f"{_painted(label, style, self.color_err)}: {printable(text)}")


def open_console(environ: Mapping[str, str]) -> Console:
    """The console of this process. Colours: on a terminal, unless NO_COLOR is set (not empty) or TERM is dumb."""
    out, err = _tolerant(sys.stdout, 1), _tolerant(sys.stderr, 2)
    colors = not environ.get("NO_COLOR") and environ.get("TERM") not in (None, "", "dumb")
    err_tty = err.isatty()
    return Console(
        out,
        err,
        color_out=colors and out.isatty(),
        color_err=colors and err_tty,
        terminal=err_tty and environ.get("TERM") != "dumb",
    )


def _tolerant(stream: TextIO | None, fd: int) -> TextIO:
    """Names of files go out as the bytes that they are, or escaped where the encoding has no room for them.

    A stream that is closed is replaced by one that fails when it is written, so that no later file gets its descriptor.
    """
    if stream is None:
        null = os.open(os.devnull, os.O_RDONLY)
        if null != fd:
            os.dup2(null, fd)
        stream = open(fd, "w", closefd=False)  # noqa: SIM115 - for the life of the process
    if isinstance(stream, io.TextIOWrapper):
        unicode = stream.encoding.lower().replace("-", "") == "utf8"
        stream.reconfigure(errors="surrogateescape" if unicode else "backslashreplace")
    return stream


def _painted(text: str, style: str, on: bool) -> str:
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if on else text
