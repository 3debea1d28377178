"""This program's version."""

from __future__ import annotations

UNKNOWN = "unknown"


def own_version() -> str:
    """The installed distribution's version; UNKNOWN when run from a checkout that is not installed."""
    # Late: 12 ms.
    from importlib import metadata

    try:
        return metadata.version("millpond")
    except metadata.PackageNotFoundError:
        return UNKNOWN
