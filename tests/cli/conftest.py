"""A user of his own for each test."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from tests.cli.helpers import Home, Terminal


@pytest.fixture
def home() -> Iterator[Home]:
    """A fresh user. The path is short: the daemon's socket lies below it."""
    with tempfile.TemporaryDirectory(prefix="mp-cli-", ignore_cleanup_errors=True) as folder:
        made = Home(Path(folder))
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Terminal, all of whose programs are ended with the test."""
    made: list[Terminal] = []

    def start(home: Home, *args: str, env: Mapping[str, str] | None = None) -> Terminal:
        made.append(Terminal(home, *args, env=env))
        return made[-1]

    yield start
    for each in made:
        each.close()
