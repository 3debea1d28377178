"""Users of their own, as the command line's tests have them."""

from __future__ import annotations

from tests.mounts.conftest import home

__all__ = ["home"]
