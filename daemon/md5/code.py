"""Machine code that is made once and kept: taken out of the object that LLVM makes, run from memory of this process.

Kept beside the interpreter's own compiled modules (`__pycache__`), because it is the same kind of thing: made of a module's text. A file is
named by what it was made of and for which processor, says so inside, too, and is run only if it is this user's or root's and nobody else may write
to it: a folder may be open to more people than may give each other programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import mmap
import os
import stat
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# A file: magic, SHA-256 of what it was made of and of what is behind it, where the function begins, the image. What was torn, damaged or
# renamed must not be run.
_MAGIC = b"MPCODE02"
_HEAD = struct.Struct("<8s32sQ")
# Of files that are kept, for all processors that share the folder; an image has about 10 kB.
_MOST_FILES = 40
_MOST_BYTES = 1 << 20
# An object as the ELF specification has it (64 bits, little endian): the fields that are needed.
_ELF = struct.Struct("<4sBB12xH20xQ10xHH")
_SECTION, _SYMBOL, _RELOCATION = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ"), struct.Struct("<QQq")
_X86_64 = 62
_PROGBITS, _SYMTAB, _RELA = 1, 2, 4
_ALLOC, _EXECUTABLE = 2, 4
# Places that are told as a distance (R_X86_64_PC32, R_X86_64_PLT32): the only ones in code that may lie anywhere.
_DISTANCES = (2, 4)


@dataclass(frozen=True, slots=True)
class Code:
    """A function's machine code with its constants, which runs wherever it lies (at a multiple of a page); `entry`: where it begins."""

    image: bytes
    entry: int

    def placed(self) -> tuple[int, mmap.mmap]:
        """(the function's address, its memory: it runs as long as that is kept). Raises OSError where memory that was written may not be run."""
        memory = mmap.mmap(-1, max(len(self.image), mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[: len(self.image)] = self.image
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        if libc.mprotect(address, len(memory), mmap.PROT_READ | mmap.PROT_EXEC):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return address + self.entry, memory


@dataclass(frozen=True, slots=True)
class _Section:
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


def linked(data: bytes, function: str) -> Code | None:
    """The code of a function in an object; None where that needs a linker that knows more than this one (other processors than
    x86-64, places outside the object)."""
    magic, width, order, machine, at, entry_size, count = _ELF.unpack_from(data)
    if (magic, width, order, machine, entry_size) != (b"\x7fELF", 2, 1, _X86_64, _SECTION.size):
        return None
    sections = [_Section(*_SECTION.unpack_from(data, at + number * _SECTION.size)) for number in range(count)]
    symbols = next((section for section in sections if section.type == _SYMTAB), None)
    if symbols is None:
        return None
    first_symbol = symbols.offset
    tables = {section.info: section for section in sections if section.type == _RELA}
    code = {number for number, section in enumerate(sections) if section.flags & _EXECUTABLE and section.size}

    def symbol(number: int) -> tuple[int, int, int]:
        """(name, section, place in it)"""
        name, _, _, section, value, _ = _SYMBOL.unpack_from(data, first_symbol + number * _SYMBOL.size)
        return name, section, value

    def relocations() -> Iterator[tuple[int, int, int, int]]:
        """(section, place in it, what is to be there: a symbol, and how far behind it)"""
        for number in code & tables.keys():
            table = tables[number]
            for start in range(table.offset, table.offset + table.size, _RELOCATION.size):
                place, info, behind = _RELOCATION.unpack_from(data, start)
                yield number, place, info if info & 0xFFFFFFFF in _DISTANCES else -1, behind

    wanted = list(relocations())
    used = code | {symbol(info >> 32)[1] for _, _, info, _ in wanted if info >= 0}
    # Constants that hold addresses are nothing that may lie anywhere.
    if (used - code) & tables.keys():
        return None
    if any(info < 0 for _, _, info, _ in wanted) or not all(
        0 < number < count and sections[number].type == _PROGBITS and sections[number].flags & _ALLOC for number in used
    ):
        return None
    image, places = bytearray(), {}
    for number in sorted(used):
        section = sections[number]
        image += bytes(-len(image) % max(section.align, 1))
        places[number] = len(image)
        image += data[section.offset : section.offset + section.size]
    for number, place, info, behind in wanted:
        _, section_number, value = symbol(info >> 32)
        here = places[number] + place
        struct.pack_into("<i", image, here, places[section_number] + value + behind - here)
    names = sections[symbols.link].offset
    wanted_name = function.encode() + b"\0"
    for number in range(symbols.size // _SYMBOL.size):
        name, section_number, value = symbol(number)
        if section_number in code and data.startswith(wanted_name, names + name):
            return Code(bytes(image), places[section_number] + value)
    return None


class Kept:
    """Code in files of a folder. Nothing that goes wrong with them is an error: the code is made anew then."""

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        """`writes`: whether more is kept."""
        self._folder = folder
        self._writes = writes

    @classmethod
    def beside(cls, module: str) -> Kept:
        """Where the interpreter keeps what it made of a module, given its file; nothing more is kept if the interpreter shall not."""
        return cls(Path(importlib.util.cache_from_source(module)).parent, writes=not sys.dont_write_bytecode)

    def find(self, name: str, text: str) -> Code | None:
        """What was made of a text here."""
        with contextlib.suppress(OSError, struct.error):
            key = self._key(text)
            data = _read_trusted(self._path(name, key))
            magic, digest, entry = _HEAD.unpack_from(data)
            image = data[_HEAD.size :]
            if magic == _MAGIC and digest == _digest(name, key, entry, image) and entry < len(image):
                return Code(image, entry)
        return None

    def keep(self, name: str, text: str, code: Code) -> None:
        """For the next process that wants it."""
        if not self._writes:
            return
        with contextlib.suppress(OSError):
            key = self._key(text)
            path = self._path(name, key)
            self._folder.mkdir(exist_ok=True)
            # A name that nobody else has or knows: others may write here at the same time, and perhaps mean ill.
            fd, temp = tempfile.mkstemp(prefix=f"{path.name}.", dir=self._folder)
            try:
                with open(fd, "wb") as file:
                    file.write(_HEAD.pack(_MAGIC, _digest(name, key, code.entry, code.image), code.entry) + code.image)
                    # For whoever may run the module, as the module's own file is.
                    os.fchmod(fd, 0o644)
                os.rename(temp, path)
            except OSError:
                os.unlink(temp)
                raise
            self._bound()

    def _bound(self) -> None:
        """Also what a process left that was killed while it wrote."""
        found = sorted(self._folder.glob("*.code*"), key=lambda path: path.lstat().st_mtime)
        for path in found[:-_MOST_FILES]:
            path.unlink(missing_ok=True)

    def _key(self, text: str) -> bytes:
        """What code of a text is known by. Raises OSError."""
        return hashlib.sha256((self._processor + text).encode()).digest()

    @functools.cached_property
    def _processor(self) -> str:
        return _processor()

    def _path(self, name: str, key: bytes) -> Path:
        return self._folder / f"{name}.{key.hex()[:24]}.code"


def _read_trusted(path: Path) -> bytes:
    """A file that is going to be run, if it was written by this user or root, and others could not. Raises OSError."""
    # Not waited for: it may be a pipe.
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"'{path}' is no file that only one user may write to")
        if found.st_uid not in (0, os.geteuid()) or found.st_size > _MOST_BYTES:
            raise PermissionError(f"'{path}' is another user's, or too large")
        return file.read(_MOST_BYTES)


def _digest(name: str, key: bytes, entry: int, image: bytes) -> bytes:
    return hashlib.sha256(b"%b %b %d " % (name.encode(), key, entry) + image).digest()


def _processor() -> str:
    """What says which instructions there are: the first processor's lines, but for those that change."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        first = file.read(16 << 10).partition("\n\n")[0]
    changing = ("processor", "cpu MHz", "bogomips", "BogoMIPS", "apicid", "initial apicid", "core id", "physical id")
    lines = [line for line in first.splitlines() if line.partition("\t")[0].strip() not in changing]
    return "\n".join([*os.uname()[4:], *lines, ""])
