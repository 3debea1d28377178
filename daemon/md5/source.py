"""The kernels' algorithm (RFC 1321) as LLVM's text, one for each number of streams."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

BLOCK_BYTES = 64
# Streams of one call: up to so many as scalars, beyond as lanes of a vector.
WIDTHS = (1, 2, 3, 4, 8, 16)
_SCALARS = 4
_SHIFTS = ((7, 12, 17, 22), (5, 9, 14, 20), (4, 11, 16, 23), (6, 10, 15, 21))
_CONSTANTS = tuple(int(abs(math.sin(step + 1)) * 2**32) for step in range(64))


class _Text:
    """LLVM's text, line by line; values are named by their number."""

    def __init__(self, width: int) -> None:
        self.width = width
        # Chains of steps beside each other, each of one scalar or of one vector.
        self.chains, self.lanes = (width, 1) if width <= _SCALARS else (1, width)
        self.type = "i32" if self.lanes == 1 else f"<{self.lanes} x i32>"
        self.lines: list[str] = []
        self._count = 0

    def value(self, text: str) -> str:
        """The name of a new value."""
        name = f"%v{self._count}"
        self._count += 1
        self.lines.append(f"  {name} = {text}")
        return name

    def op(self, name: str, left: str, right: str) -> str:
        return self.value(f"{name} {self.type} {left}, {right}")

    def constant(self, number: int) -> str:
        return str(number) if self.lanes == 1 else f"<{', '.join([f'i32 {number}'] * self.lanes)}>"

    def turned(self, value: str, by: int) -> str:
        """Bits turned left."""
        kind = "i32" if self.lanes == 1 else f"v{self.lanes}i32"
        arguments = f"{self.type} {value}, {self.type} {value}, {self.type} {self.constant(by)}"
        return self.value(f"call {self.type} @llvm.fshl.{kind}({arguments})")


def source(width: int) -> str:
    """The kernel of a width as LLVM's text: a function `md5(states, data, blocks)`."""
    text = _Text(width)
    of = text.type
    kind = "i32" if text.lanes == 1 else f"v{text.lanes}i32"
    places = [[(row * width + chain) * 4 for row in range(4)] for chain in range(text.chains)]
    before = [[_load(text, of, "%states", place) for place in chain] for chain in places]
    bases = [_load(text, "ptr", "%data", lane * 8) for lane in range(width)]
    head, text.lines = text.lines, []
    states = [[f"%s{chain}{row}" for row in range(4)] for chain in range(text.chains)]
    summands = _summands(text, bases)
    after = _rounds(text, states, summands)
    sums = [
        [text.op("add", old, new) for old, new in zip(*pair, strict=True)] for pair in zip(states, after, strict=True)
    ]
    phis = [
        f"  {name} = phi {of} [ {first}, %begin ], [ {again}, %loop ]"
        for names, firsts, agains in zip(states, before, sums, strict=True)
        for name, first, again in zip(names, firsts, agains, strict=True)
    ]
    body, text.lines = text.lines, []
    for chain, values in zip(places, sums, strict=True):
        for place, value in zip(chain, values, strict=True):
            address = text.value(f"getelementptr i8, ptr %states, i64 {place}")
            text.lines.append(f"  store {of} {value}, ptr {address}, align 4")
    return "\n".join(
        [
            f"declare {of} @llvm.fshl.{kind}({of}, {of}, {of})",
            "define void @md5(ptr %states, ptr %data, i64 %blocks) {",
            "begin:",
            *head,
            *([] if text.lanes > 1 else [f"  %sums = alloca [{64 * width} x i32], align 64"]),
            "  br label %loop",
            "loop:",
            "  %at = phi i64 [ 0, %begin ], [ %next, %loop ]",
            *phis,
            f"  %offset = mul i64 %at, {BLOCK_BYTES}",
            *body,
            "  %next = add i64 %at, 1",
            "  %goes_on = icmp ult i64 %next, %blocks",
            "  br i1 %goes_on, label %loop, label %end",
            "end:",
            *text.lines,
            "  ret void",
            "}",
            "",
        ]
    )


def _load(text: _Text, of: str, base: str, offset: int | str) -> str:
    """A value at any address."""
    address = text.value(f"getelementptr i8, ptr {base}, i64 {offset}")
    return text.value(f"load {of}, ptr {address}, align 1")


def _summands(text: _Text, bases: list[str]) -> list[list[tuple[str, ...]]]:
    """What each of the 64 steps adds, for each chain: a word of the block and a constant, or their sum.

    For scalars a few vector instructions add them and leave the sums in memory, where a step takes them with one addition. Left to
    itself LLVM adds the constant and the last term in one instruction, whose result comes a cycle later: in each step, as all wait for it.
    """
    if text.lanes > 1:
        words: list[str] = []
        for first in range(0, 16, text.lanes):
            place = text.value(f"add i64 %offset, {first * 4}")
            words += _transposed(text, [_load(text, text.type, base, place) for base in bases])
        return [[(text.constant(_CONSTANTS[step]), words[_schedule(step)[1]]) for step in range(64)]]
    for chain, base in enumerate(bases):
        block = _load(text, "<16 x i32>", base, "%offset")
        for part in range(4):
            added = {word: _CONSTANTS[step] for step in range(64) for at, word in [_schedule(step)] if at == part}
            constants = ", ".join(f"i32 {added[word]}" for word in range(16))
            place = text.value(f"getelementptr i8, ptr %sums, i64 {chain * 256 + part * 64}")
            text.lines.append(
                f"  store <16 x i32> {text.value(f'add <16 x i32> {block}, <{constants}>')}, ptr {place}, align 64"
            )
    return [
        [(_load(text, "i32", "%sums", chain * 256 + part * 64 + word * 4),) for part, word in map(_schedule, range(64))]
        for chain in range(text.chains)
    ]


def _transposed(text: _Text, rows: list[str]) -> list[str]:
    """Columns of a square: halves are exchanged between rows that are 1, 2, 4... apart."""
    size = text.lanes
    apart = 1
    while apart < size:
        for upper in range(size):
            if not upper & apart:
                lower = upper | apart
                left = [lane if not lane & apart else size + (lane ^ apart) for lane in range(size)]
                right = [lane | apart if not lane & apart else size + lane for lane in range(size)]
                rows[upper], rows[lower] = (_shuffled(text, rows[upper], rows[lower], lanes) for lanes in (left, right))
        apart *= 2
    return rows


def _shuffled(text: _Text, upper: str, lower: str, lanes: list[int]) -> str:
    mask = ", ".join(f"i32 {lane}" for lane in lanes)
    return text.value(f"shufflevector {text.type} {upper}, {text.type} {lower}, <{text.lanes} x i32> <{mask}>")


def _rounds(text: _Text, states: list[list[str]], summands: list[list[tuple[str, ...]]]) -> list[list[str]]:
    """The 64 steps, each done for every chain before the next one: that is what fills the gaps."""
    now = [list(state) for state in states]
    for step in range(64):
        for chain, (a, b, c, d) in enumerate(now):
            part = step // 16
            total = a
            for term in itertools.chain(summands[chain][step], _terms(text, part, b, c, d)):
                total = text.op("add", total, term)
            now[chain] = [d, text.op("add", b, text.turned(total, _SHIFTS[part][step % 4])), b, c]
    return now


def _schedule(step: int) -> tuple[int, int]:
    """(round, word of the block) of a step."""
    part = step // 16
    return part, (step, 5 * step + 1, 3 * step + 5, 7 * step)[part] % 16


def _terms(text: _Text, part: int, b: str, c: str, d: str) -> Iterator[str]:
    """The round's function of b, c, d in terms to be added, that of `b`, which is known last, at the end."""
    if part == 0:
        yield text.op("xor", d, text.op("and", b, text.op("xor", c, d)))
    elif part == 1:
        yield text.op("and", c, text.op("xor", d, text.constant(-1)))
        yield text.op("and", b, d)
    elif part == 2:
        yield text.op("xor", b, text.op("xor", c, d))
    else:
        yield text.op("xor", c, text.op("or", b, text.op("xor", d, text.constant(-1))))
