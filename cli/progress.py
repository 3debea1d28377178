"""How far a request is: on a terminal a line that changes, elsewhere only what it waits for.

`Meter` turns the daemon's notifications into a text, as a pure function of them and the time; `Reporter` shows it. The
library that draws is imported when a line is shown for the first time, which a quick request never does.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from millpond.cli import text
from millpond.cli.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# A request that is over sooner shows no line at all.
DELAY_S = 0.4
# The rate is that of the last few seconds, so that a stall shows; told every 0.1 s, this many samples span them.
RATE_WINDOW_S = 5.0
MAX_SAMPLES = 64

Amount = tuple[int, int | None]


class Meter:
    """Bytes and files done of one phase, its rate and what is left. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self.phase = ""
        self.files: Amount | None = None
        self.bytes: Amount | None = None
        self.note = ""
        self._samples: deque[tuple[float, int]] = deque(maxlen=MAX_SAMPLES)

    def update(self, params: dict[str, Any], now: float) -> None:
        """Take in a `$/progress`; a new phase begins anew."""
        if params.get("phase", "") != self.phase:
            self.phase = str(params.get("phase", ""))
            self._samples.clear()
        self.files, self.bytes = _amount(params.get("files")), _amount(params.get("bytes"))
        self.note = str(params.get("note") or "")
        self._samples.append((now, self._position()))
        while len(self._samples) > 2 and now - self._samples[0][0] > RATE_WINDOW_S:
            self._samples.popleft()

    def fraction(self) -> float | None:
        """How much is done, 0 to 1; None when the total is not known."""
        done, total = self._measure()
        return min(done / total, 1.0) if total else None

    def rate(self) -> float | None:
        """Bytes (or files, where no bytes are told) a second over the last seconds."""
        if len(self._samples) < 2:
            return None
        (first, before), (last, after) = self._samples[0], self._samples[-1]
        return max(after - before, 0) / (last - first) if last > first else None

    def left_s(self) -> float | None:
        """Seconds left at this rate."""
        done, total = self._measure()
        rate = self.rate()
        return max(total - done, 0) / rate if total is not None and rate else None

    def detail(self) -> str:
        """Bytes, files, rate, time left: what is known of them."""
        parts = []
        if self.files is not None:
            parts.append(_of(self.files, text.count) + " files")
        if self.bytes is not None:
            parts.append(_of(self.bytes, text.size))
        rate, left = self.rate(), self.left_s()
        if rate:
            parts.append(f"{text.size(rate)}/s" if self.bytes is not None else f"{rate:.0f}/s")
        if left is not None:
            parts.append(f"{text.duration(round(left))} left")
        if self.note:
            parts.append(text.printable(self.note))
        return ", ".join(parts)

    def _measure(self) -> Amount:
        # Bytes tell the time left better, but only with a total; files may have one when bytes do not.
        for amount in (self.bytes, self.files):
            if amount is not None and amount[1] is not None:
                return amount
        return (self._position(), None)

    def _position(self) -> int:
        amount = self.bytes if self.bytes is not None else self.files
        return amount[0] if amount is not None else 0


def waiting_text(params: dict[str, Any]) -> str:
    """One line of a `$/waiting`: for whom, and how long already."""
    what = str(params.get("for") or "another request")
    since = params.get("since_s")
    return f"waiting for {what}" + (f", {text.duration(float(since))}" if since else "")


class Reporter:
    """Shows the notifications of one request on stderr. A context manager: nothing of a changing line stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._meter = Meter()
        self._began = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def notified(self, method: str, params: dict[str, Any]) -> None:
        """A notification came; unknown ones are ignored."""
        if method == "$/progress":
            self._meter.update(params, time.monotonic())
            self._show(self._meter.phase, self._meter.detail())
        elif method == "$/waiting":
            self._wait(params)
        elif method == "$/log":
            self._log(str(params.get("level", "info")), str(params.get("text", "")))

    def _wait(self, params: dict[str, Any]) -> None:
        """On a terminal in the line that changes, and with -v in one that stays; elsewhere in that alone, once."""
        if self._console.live:
            self._show(waiting_text(params), "", at_once=True)
        if self._console.verbose or not self._console.live:
            self._console.note(waiting_text({"for": params.get("for")}))

    def cancelling(self) -> None:
        """Ctrl-C was pressed."""
        self._show("cancelling", "", at_once=True)

    def _show(self, head: str, detail: str, *, at_once: bool = False) -> None:
        if not self._console.live:
            return
        if self._bar is None and not at_once and time.monotonic() - self._began < DELAY_S:
            return
        bar, task = self._line()
        fraction = self._meter.fraction()
        bar.update(
            task,
            description=text.printable(head),
            detail=detail,
            completed=(fraction or 0) * 100,
            total=None if fraction is None else 100,
        )
        # Shown for the first time only now, so that it is never shown empty; then it redraws itself.
        bar.start()

    def _line(self) -> tuple[Progress, TaskID]:
        if self._bar is None or self._task is None:
            # Late: 40 ms.
            from rich.console import Console as Screen
            from rich.progress import BarColumn, Progress, TextColumn
            from rich.table import Column

            screen = Screen(
                file=self._console.err, force_terminal=True, no_color=not self._console.color_err, highlight=False
            )
            one_line = Column(no_wrap=True, overflow="ellipsis")
            self._bar = Progress(
                TextColumn("{task.description}", markup=False, table_column=one_line),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[detail]}", markup=False, table_column=one_line),
                console=screen,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._bar.add_task("", total=None, detail="")
        return self._bar, self._task

    def _log(self, level: str, message: str) -> None:
        if level == "debug":
            self._console.debug(message)
        elif level in ("warning", "error"):
            self._console.warn(message)
        elif self._console.verbose:
            self._console.note(message)


def _amount(value: Any) -> Amount | None:
    if value is None:
        return None
    done, total = value
    return int(done), None if total is None else int(total)


def _of(amount: Amount, shown: Any) -> str:
    done, total = amount
    return shown(done) if total is None else f"{shown(done)} of {shown(total)}"
