"""docs/behaviours.md names tests that are there, for every behaviour that it does not give away by name."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"
_NAMED = re.compile(r"([a-z]+/test_[a-z_]+\.py)::(test_\w+)")


def rows() -> list[tuple[str, str]]:
    """(behaviour, shown by) of the page's tables."""
    found = []
    for line in (DOCS / "behaviours.md").read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| behaviour"):
            behaviour, shown = line.strip("| ").split(" | ")
            found.append((behaviour, shown))
    return found


def test_every_test_that_is_named_is_there() -> None:
    named = {found for _, shown in rows() for found in _NAMED.findall(shown)}
    assert len(named) > 50
    missing = [
        (file, name) for file, name in named if not re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.M)
    ]
    assert missing == []


def test_every_behaviour_is_shown_given_away_or_not_here_yet() -> None:
    headings = re.findall(r"^## (.*)$", (DOCS / "differences.md").read_text(), re.M)
    for behaviour, shown in rows():
        tests, away = _NAMED.findall(shown), re.fullmatch(r"difference: (.*)", shown)
        later = re.fullmatch(r"not in this version: (remotes|pipelines|pipelines, remotes)", shown)
        assert tests or later or (away and away[1] in headings), behaviour
