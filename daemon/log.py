"""The daemon's log: one JSON object a line, with the request's id; bounded by rotation."""

from __future__ import annotations

import json
import logging
import logging.handlers
import time
from pathlib import Path

MAX_BYTES = 8 << 20
KEPT = 3
_FIELDS = ("request", "uid", "pid", "outcome", "seconds")


class JsonFormatter(logging.Formatter):
    """{"time", "level", "logger", "text", "request", ..., "traceback"}."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix("millpond."),
            "text": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def to_file(path: Path) -> logging.Handler:
    """Log to a rotated file: at most KEPT older ones of MAX_BYTES."""
    # A log that cannot be written (a full disk) must not end requests, nor fill another file with its complaints.
    logging.raiseExceptions = False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=KEPT, encoding="utf-8")
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger("millpond")
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    root.propagate = False
    return handler
