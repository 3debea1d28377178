"""DESIGN.md tells the FUSE protocol as protocol.py has it; and what protocol.py has is what the kernel's header says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.fusefs.helpers import ROOT

from millpond.fusefs.engines import protocol
from millpond.fusefs.engines.protocol import CHANGES, FLAGS, RULES, Init, Op

# The C library's development files have it where they are installed.
HEADER = Path("/usr/include/linux/fuse.h")


def rows() -> list[str]:
    """The tables of the page, row by row."""
    asked = [
        f"| {op.name} {op} | {rule.answer} | {rule.remembered or '-'} |"
        for op, rule in RULES.items()
        if op not in CHANGES
    ]
    changes = ", ".join(f"{op.name} {op}" for op in RULES if op in CHANGES)
    rule = RULES[next(iter(CHANGES))]
    flags = [f"| {flag.name} {flag.bit_length() - 1} | {why} |" for flag, why in FLAGS.items()]
    return [*asked, f"| {changes} | {rule.answer} | {rule.remembered or '-'} |", *flags]


def test_the_page_has_every_request_and_flag() -> None:
    page = (
        (ROOT / "DESIGN.md").read_text().partition("### FUSE, as the direct engine speaks it")[2].partition("\n## ")[0]
    )
    shown = [line for line in page.splitlines() if re.match(r"\| [A-Z_]+ \d", line)]
    assert shown == rows()
    assert f"{protocol.MAJOR}.{protocol.MINOR}" in page


def test_every_request_has_a_rule_and_every_flag_a_reason() -> None:
    assert set(RULES) == set(Op)
    assert set(FLAGS) == set(Init)


@pytest.mark.skipif(not HEADER.exists(), reason="the kernel's header is not installed")
def test_numbers_are_the_headers() -> None:
    text = HEADER.read_text()
    numbers = {name: int(value) for name, value in re.findall(r"FUSE_(\w+)\s*=\s*(\d+),", text)}
    for op in Op:
        if op.name in numbers:  # an older header has not all of them
            assert numbers[op.name] == op
    shifts = {name: int(value) for name, value in re.findall(r"#define FUSE_(\w+)\s+\(1(?:ULL)? << (\d+)\)", text)}
    for flag in Init:
        if flag.name in shifts:
            assert 1 << shifts[flag.name] == flag
    opens = {name: 1 << int(value) for name, value in re.findall(r"#define FOPEN_(\w+)\s+\(1 << (\d+)\)", text)}
    assert (opens["KEEP_CACHE"], opens["CACHE_DIR"]) == (protocol.KEEP_CACHE, protocol.CACHE_DIR)
    assert opens.get("PASSTHROUGH", protocol.PASSTHROUGH) == protocol.PASSTHROUGH
