"""Pseudo-terminals: a command that has one shows colours and progress as it does for a person. Standard library only."""

from __future__ import annotations

import fcntl
import pty
import struct
import termios


def open_terminal(size: tuple[int, int]) -> tuple[int, int]:
    """A pseudo-terminal of (rows, columns): this side, and the command's. What is written there comes out unchanged."""
    ours, theirs = pty.openpty()
    mode = termios.tcgetattr(theirs)
    mode[1] &= ~termios.OPOST
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, mode)
    set_size(theirs, size)
    return ours, theirs


def set_size(fd: int, size: tuple[int, int]) -> None:
    """Tell a terminal its size; what runs there is told. Raises OSError."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", *size, 0, 0))
