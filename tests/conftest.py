"""How all tests run: no clock in property tests, and a sample of their examples unless MILLPOND_TESTS=long."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings
from tests.jobs import reach

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile("sample", deadline=None, max_examples=16, suppress_health_check=_QUIET)
settings.register_profile("long", deadline=None, max_examples=400, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("MILLPOND_TESTS", "sample"))


def pytest_configure() -> None:
    """Programs that tests start get SIGHUP as from a shell, though the tests themselves may run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_unconfigure() -> None:
    """At the end of a session, and of each process that runs a part of it."""
    reach.clean()
