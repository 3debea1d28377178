"""Exit codes that the command line itself uses; `exit_table` has all of them."""

from __future__ import annotations

from millpond.daemon.errors import CancelledError, DaemonUnavailableError, MillpondError, StoreDamagedError, UsageError

OK = 0
DIFFERENT = MillpondError.exit_code
USAGE = UsageError.exit_code
NOT_RUNNING = DaemonUnavailableError.exit_code
DAMAGED = StoreDamagedError.exit_code
INTERRUPTED = CancelledError.exit_code
# 128 + SIGPIPE, as a shell shows a program that the signal ended.
BROKEN_PIPE = 141
