"""A user of his own for each test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home


@pytest.fixture
def home() -> Iterator[Home]:
    """A fresh user. The path is short: the daemon's socket lies below it."""
    with tempfile.TemporaryDirectory(prefix="mp-cli-", ignore_cleanup_errors=True) as folder:
        made = Home(Path(folder))
        try:
            yield made
        finally:
            made.close()
