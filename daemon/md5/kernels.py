"""MD5 of several streams at once, by machine code that LLVM makes when it is first wanted, and that is kept for later (code.py).

One stream's MD5 cannot be divided: each of its 64 steps a block needs the step before, so a processor that could do six things
at a time does one and a half. Streams do not need each other: two to four of them in one loop of plain instructions fill the
gaps, eight or sixteen fill a vector. On one core (GB/s, Zen 5, where hashlib has 0.8): 0.94 with one, 1.86 with two, 2.6 with three or
four, 3.3 with eight, 6.4 with sixteen.

llvmlite is wanted for that (`pip install millpond[simd]`); without it streams are hashed one by one.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import mmap
import sys
import threading
from array import array
from collections.abc import Sequence
from typing import Any, Protocol, cast

from millpond.daemon.md5.code import Code, Kept, linked
from millpond.daemon.md5.source import BLOCK_BYTES, WIDTHS, source

START = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
WIDEST = WIDTHS[-1]
# The one that is tried first, and does for less than so many blocks of fewer streams: others need not be made for them.
_FIRST, _WORTH_BLOCKS = 4, 1 << 14
# Blocks a stream that a new kernel is tried on.
_TRIED = 3


class Compress(Protocol):
    """A kernel: `states` is four rows of one word a stream, `data` an address a stream, `blocks` how many to take of each (at least 1)."""

    def __call__(self, states: int, data: int, blocks: int) -> None: ...


class Kernels:
    """Kernels by their width, each made when it is first wanted, and tried before it is trusted. Safe in threads."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._made: dict[int, Compress | None] = {}
        self._sought = False
        # Machine code lives as long as the memory it lies in, or the engine that placed it.
        self._owners: list[Any] = []

    @classmethod
    def of_here(cls) -> Kernels | None:
        """None where they cannot be made: no llvmlite, or a processor whose numbers begin at their other end."""
        if sys.byteorder != "little" or importlib.util.find_spec("llvmlite") is None:
            return None
        return cls(Kept.beside(__file__))

    @property
    def tried(self) -> bool | None:
        """Whether they are usable, None where they were not made yet, neither here nor before: making one takes up to a tenth of a second."""
        with self._lock:
            # Looked for once: this is asked for each content.
            if not self._sought and _FIRST not in self._made:
                self._sought = True
                if (found := self._found(_FIRST, source(_FIRST))) is not None:
                    self._made[_FIRST] = found
            return self._made[_FIRST] is not None if _FIRST in self._made else None

    def are_usable(self) -> bool:
        """Whether streams can be hashed by them: tried at the first call."""
        return self._kernel(_FIRST) is not None

    def compress(self, states: Sequence[array[int]], addresses: Sequence[int], blocks: int) -> bool:
        """Take `blocks` blocks (at least 1) at each address into the state beside it, at most WIDEST of them; the bytes must stay
        where they are meanwhile. False, and nothing done, where there is no kernel for so many; for one there is, if they are usable."""
        width = next(width for width in WIDTHS if width >= len(states))
        if width < _FIRST and blocks < _WORTH_BLOCKS and width not in self._made:
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
                text = source(width)
                self._made[width] = self._found(width, text) or self._new(width, text)
            return self._made[width]

    def _found(self, width: int, text: str) -> Compress | None:
        """One that was made before."""
        code = self._kept.find(_name(width), text)
        if code is not None:
            with contextlib.suppress(OSError):
                return self._placed(code, width)
        return None

    def _placed(self, code: Code, width: int) -> Compress | None:
        """A kernel's code as a function, if that is right. Raises OSError."""
        address, memory = code.placed()
        self._owners.append(memory)
        return _right(address, width)

    def _new(self, width: int, text: str) -> Compress | None:
        """One that is made now; None for a library that does not load or has not all that it should, a
        processor that LLVM does not know."""
        with contextlib.suppress(ImportError, OSError, RuntimeError, AttributeError):
            if not _may_make_code():
                return None
            machine, made = _compiled(text)
            code = linked(made, "md5")
            if code is None:
                return _right(self._placed_by_llvm(machine, made), width)
            kernel = self._placed(code, width)
            if kernel is not None:
                self._kept.keep(_name(width), text, code)
            return kernel
        return None

    def _placed_by_llvm(self, machine: Any, made: bytes) -> int:
        """The address of what only LLVM's own linker can place."""
        import llvmlite.binding as llvm

        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(made))
        engine.finalize_object()
        self._owners.append(engine)
        return int(engine.get_function_address("md5"))


def _name(width: int) -> str:
    """Of its file."""
    return f"md5x{width}"


def _compiled(text: str) -> tuple[Any, bytes]:
    """(LLVM's notion of this machine, an object of a kernel's text). Raises ImportError, OSError, RuntimeError."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(text)
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=2,
        reloc="pic",
        codemodel="small",
    )
    return machine, machine.emit_object(module)


def _right(address: int, width: int) -> Compress | None:
    """The kernel at an address, if it finds what hashlib finds."""
    kernel = cast(Compress, ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(address))
    return kernel if _is_right(kernel, width) else None


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
