"""MD5 of several streams at once, by machine code that LLVM makes when it is first wanted.

One stream's MD5 cannot be divided: each of its 64 steps a block needs the step before, so a processor that could do six things
at a time does one and a half. Streams do not need each other: two or four of them in one loop of plain instructions fill the
gaps, eight or sixteen fill a vector. On one core (GB/s, Zen 5): 0.78 as hashlib's, 1.5 with two, 2.1 with four, 2.9 with eight, 5.3
with sixteen; with AVX2 alone 2.6 and 4.8.

llvmlite is wanted for that (`pip install millpond[simd]`); without it streams are hashed one by one. The algorithm: RFC 1321.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import math
import mmap
import sys
import threading
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

BLOCK_BYTES = 64
START = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
# Streams of one call: up to so many as scalars, beyond as lanes of a vector.
WIDTHS = (1, 2, 4, 8, 16)
WIDEST = WIDTHS[-1]
_SCALARS = 4
# The one that is tried first, and does for less than so many blocks of fewer streams: others need not be made for them.
_FIRST, _WORTH_BLOCKS = 4, 1 << 14
_SHIFTS = ((7, 12, 17, 22), (5, 9, 14, 20), (4, 11, 16, 23), (6, 10, 15, 21))
_CONSTANTS = tuple(int(abs(math.sin(step + 1)) * 2**32) for step in range(64))
# Blocks a stream that a new kernel is tried on.
_TRIED = 3


class Compress(Protocol):
    """A kernel: `states` is four rows of one word a stream, `data` an address a stream, `blocks` how many to take of each (at least 1)."""

    def __call__(self, states: int, data: int, blocks: int) -> None: ...


class Kernels:
    """Kernels by their width, each made when it is first wanted, and tried before it is trusted. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[int, Compress | None] = {}
        # Machine code lives as long as the engine that made it.
        self._engines: list[Any] = []

    @classmethod
    def of_here(cls) -> Kernels | None:
        """None where they cannot be made: no llvmlite, or a processor whose numbers begin at their other end."""
        if sys.byteorder != "little" or importlib.util.find_spec("llvmlite") is None:
            return None
        return cls()

    @property
    def tried(self) -> bool | None:
        """Whether they are usable, None where that was not tried yet: the first call of a width takes up to a tenth of a second."""
        return self._made[_FIRST] is not None if _FIRST in self._made else None

    def are_usable(self) -> bool:
        """Whether streams can be hashed by them: tried at the first call."""
        return self._kernel(_FIRST) is not None

    def compress(self, states: Sequence[array[int]], addresses: Sequence[int], blocks: int) -> bool:
        """Take `blocks` blocks (at least 1) at each address into the state beside it, at most WIDEST of them; the bytes must stay
        where they are meanwhile. False, and nothing done, where there is no kernel for so many; for one there is, if they are usable."""
        width = next(width for width in WIDTHS if width >= len(states))
        if width < _FIRST and blocks < _WORTH_BLOCKS:
            width = _FIRST
        kernel = self._kernel(width)
        if kernel is None and width < _FIRST:
            width = _FIRST
            kernel = self._kernel(width)
        if kernel is None:
            return False
        idle = width - len(states)
        rows = array("I", [state[word] for word in range(4) for state in (*states, *[states[0]] * idle)])
        data = array("Q", [*addresses, *[addresses[0]] * idle])
        kernel(rows.buffer_info()[0], data.buffer_info()[0], blocks)
        for number, state in enumerate(states):
            state[:] = rows[number::width]
        return True

    def _kernel(self, width: int) -> Compress | None:
        with self._lock:
            if width not in self._made:
                self._made[width] = None
                # A library that does not load or has not all that it should, a processor that LLVM does not know.
                with contextlib.suppress(ImportError, OSError, RuntimeError, AttributeError):
                    if _may_make_code() and _is_right(kernel := self._make(width), width):
                        self._made[width] = kernel
            return self._made[width]

    def _make(self, width: int) -> Compress:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(source(width))
        module.verify()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
        )
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        self._engines.append(engine)
        made = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        return cast(Compress, made(engine.get_function_address("md5")))


def _may_make_code() -> bool:
    """Whether memory that was written may be run, which hardened systems forbid (LLVM would end the process there)."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        held = ctypes.c_char.from_buffer(page)
        protect = ctypes.CDLL(None).mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        refused: int = protect(ctypes.addressof(held), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)
        del held
    return not refused


def padding(length: int) -> bytes:
    """What ends a stream of so many bytes: a bit, zeros to a whole block, the length."""
    zeros = (55 - length) % BLOCK_BYTES
    return b"\x80" + bytes(zeros) + (length * 8 % 2**64).to_bytes(8, "little")


def _is_right(kernel: Compress, width: int) -> bool:
    """Whether a kernel finds what hashlib finds."""
    samples = [hashlib.shake_128(b"%d" % number).digest(_TRIED * BLOCK_BYTES) for number in range(width)]
    padded = [sample + padding(len(sample)) for sample in samples]
    held = [ctypes.create_string_buffer(text, len(text)) for text in padded]
    rows = array("I", [word for word in START for _ in range(width)])
    data = array("Q", [ctypes.addressof(text) for text in held])
    kernel(rows.buffer_info()[0], data.buffer_info()[0], len(padded[0]) // BLOCK_BYTES)
    return all(
        rows[number::width].tobytes() == hashlib.md5(sample, usedforsecurity=False).digest()
        for number, sample in enumerate(samples)
    )


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
    words = _words(text, bases)
    after = _rounds(text, states, words)
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


def _words(text: _Text, bases: list[str]) -> list[list[str]]:
    """The block's sixteen words for each chain."""
    if text.lanes == 1:
        places = [text.value(f"getelementptr i8, ptr {base}, i64 %offset") for base in bases]
        return [[_load(text, "i32", place, word * 4) for word in range(16)] for place in places]
    words: list[str] = []
    for first in range(0, 16, text.lanes):
        place = text.value(f"add i64 %offset, {first * 4}")
        words += _transposed(text, [_load(text, text.type, base, place) for base in bases])
    return [words]


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


def _rounds(text: _Text, states: list[list[str]], words: list[list[str]]) -> list[list[str]]:
    """The 64 steps, each done for every chain before the next one: that is what fills the gaps."""
    now = [list(state) for state in states]
    for step in range(64):
        for chain, (a, b, c, d) in enumerate(now):
            part, word = _schedule(step)
            total = text.op("add", text.op("add", a, text.constant(_CONSTANTS[step])), words[chain][word])
            for term in _terms(text, part, b, c, d):
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
