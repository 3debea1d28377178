"""Reads by io_uring, without a library (io_uring_setup(2), io_uring_enter(2))."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct

_SETUP, _ENTER = 425, 426
_SQ_RING, _CQ_RING, _SQES = 0, 0x8000000, 0x10000000
_OP_READ, _GETEVENTS = 22, 1
_PAGE = 4096
_ENTRIES = 8


class Unavailable(Exception):
    """The kernel has no io_uring for us."""


def read(fd: int, ranges: list[tuple[int, int]]) -> list[bytes]:
    """Bytes of up to 8 (offset, length), asked for at once. Raises OSError, Unavailable."""
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(120)
    ring = libc.syscall(_SETUP, _ENTRIES, params)
    if ring < 0:
        raise Unavailable(os.strerror(ctypes.get_errno()))
    try:
        _, sq_tail, _, _, _, _, sq_array = struct.unpack_from("7I", params, 40)
        cq_head, cq_tail, cq_mask, _, _, cqes = struct.unpack_from("6I", params, 80)
        with (
            mmap.mmap(ring, _PAGE, offset=_SQ_RING) as sq,
            mmap.mmap(ring, _PAGE, offset=_CQ_RING) as cq,
            mmap.mmap(ring, _PAGE, offset=_SQES) as sqes,
        ):
            # At the beginning of pages: a disk's file read with O_DIRECT asks for it.
            buffers = [mmap.mmap(-1, length) for _, length in ranges]
            for number, ((offset, length), buffer) in enumerate(zip(ranges, buffers, strict=True)):
                request = (
                    _OP_READ,
                    0,
                    0,
                    fd,
                    offset,
                    ctypes.addressof(ctypes.c_char.from_buffer(buffer)),
                    length,
                    0,
                    number,
                )
                struct.pack_into("=BBHiQQIIQ24x", sqes, 64 * number, *request)
                struct.pack_into("I", sq, sq_array + 4 * number, number)
            struct.pack_into("I", sq, sq_tail, len(ranges))
            if libc.syscall(_ENTER, ring, len(ranges), len(ranges), _GETEVENTS, None, 0) != len(ranges):
                raise OSError(ctypes.get_errno(), "io_uring_enter")
            head, tail, mask = (struct.unpack_from("I", cq, at)[0] for at in (cq_head, cq_tail, cq_mask))
            results = dict(struct.unpack_from("Qi", cq, cqes + 16 * (each & mask)) for each in range(head, tail))
    finally:
        os.close(ring)
    if any(result < 0 for result in results.values()):
        raise OSError(-min(results.values()), errno.errorcode[-min(results.values())])
    return [buffer[: results[number]] for number, buffer in enumerate(buffers)]
