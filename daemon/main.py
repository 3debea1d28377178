"""`millpondd`: read the settings, start a zygote, become the daemon (core.py).

Only small things are imported here: the zygote loads what workers need while this process loads what the daemon needs.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
from typing import TYPE_CHECKING

from millpond.daemon import log as daemon_log
from millpond.daemon.errors import AccessError, InternalError, MillpondError, from_system
from millpond.daemon.jobs.start import start_zygote
from millpond.daemon.settings import from_env

if TYPE_CHECKING:
    from millpond.daemon.core import Daemon as Daemon

# Objects made, and not freed by their last reference, until cycles are looked for.
_COLLECT_AFTER = 20_000


class Readiness:
    """Whoever started the daemon learns that it answers requests, or why it does not: once."""

    def __init__(self, fd: int, notify_socket: str) -> None:
        self._fd = fd
        self._notify_socket = notify_socket

    def ready(self) -> None:
        """Requests are answered now."""
        self._write(b"\n")
        if self._notify_socket:
            _notify_systemd(self._notify_socket)

    def failed(self, error: MillpondError) -> None:
        self._write(json.dumps(error.to_wire()).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self._fd, data)
            os.close(self._fd)
            self._fd = -1


def main(argv: list[str] | None = None) -> int:
    """The program. `--ready-fd N`: a newline is written there when requests are answered, or the error as JSON."""
    parser = argparse.ArgumentParser(
        prog="millpondd", description="The millpond daemon; commands start it by themselves."
    )
    parser.add_argument("--ready-fd", type=int, default=-1, help="write a newline here once requests are answered")
    options = parser.parse_args(argv)
    readiness = Readiness(options.ready_fd, os.environ.pop("NOTIFY_SOCKET", ""))
    # Many threads allocate large buffers: with an arena for each the memory would never be given back.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    try:
        _run(readiness)
        return 0
    except MillpondError as error:
        return _failed(error, readiness)
    except Exception as error:
        import logging

        logging.getLogger("millpond.daemon").exception("the daemon failed")
        if isinstance(error, OSError):
            return _failed(from_system(error, "starting the daemon"), readiness)
        return _failed(InternalError(f"the daemon failed: {error!r}", hint="see its log"), readiness)


def _run(readiness: Readiness) -> None:
    settings = from_env(os.environ, os.getuid())
    if os.environ.get("MILLPOND_SYSTEM_USER"):
        from millpond.daemon.jobs.system import SystemMode

        system = SystemMode.begin(os.environ, settings)
        zygote = None
    else:
        system = None
        zygote = start_zygote("caller,holder", settings.verbs)
    try:
        daemon_log.to_file(settings.log)
    except OSError as error:
        raise AccessError(f"cannot write the log '{settings.log}': {error.strerror}", path=str(settings.log)) from error
    from millpond.daemon import core

    # A feed of small files makes tens of thousands of objects and hardly a cycle: looking for some after every 700 took a twentieth
    # of the daemon's time.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    core.run(settings, system, zygote, readiness.ready)


def _failed(error: MillpondError, readiness: Readiness) -> int:
    print(f"millpondd: {error}", file=sys.stderr)
    readiness.failed(error)
    return error.exit_code


def _notify_systemd(address: str) -> None:
    """sd_notify(3) READY=1."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock, contextlib.suppress(OSError):
        sock.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


if __name__ == "__main__":
    sys.exit(main())
