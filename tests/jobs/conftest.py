"""A daemon that runs jobs, for the tests of a module, and a client of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.jobs.helpers import Site, running

from millpond.daemon.rpc.client import Client


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One daemon for the tests that do not hurt it."""
    folder = tmp_path_factory.mktemp("jobs")
    with pytest.MonkeyPatch.context() as patch, running(folder) as found:
        patch.setenv("JOBS_HOME", str(folder / "home"))
        yield found


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "JOBS_HOME" not in os.environ:
        monkeypatch.setenv("JOBS_HOME", str(tmp_path / "home"))


@pytest.fixture
def client(place: Site) -> Iterator[Client]:
    with place.start() as found:
        yield found
