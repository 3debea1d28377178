"""Where a mount's processes write what went wrong: one file, begun anew when it is large."""

from __future__ import annotations

import contextlib
import logging
import os

_MOST_BYTES = 4 << 20


def log_to(path: str) -> None:
    """Have this process write there."""
    with contextlib.suppress(OSError):
        if os.path.getsize(path) > _MOST_BYTES:
            os.unlink(path)
    # Open from the beginning: what is to be said may be that there are no descriptors left. In system mode the folder is the daemon's,
    # and what is said goes where the zygote's own words go.
    handler: logging.Handler
    try:
        handler = logging.FileHandler(path)
    except OSError:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("millpond")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
