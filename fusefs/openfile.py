"""What is behind a handle."""

from __future__ import annotations

from typing import Protocol

from millpond.daemon.store.reader import Bytes


class OpenFile(Protocol):
    """What is behind a handle."""

    def ready(self, offset: int, size: int) -> list[Bytes] | None:
        """What `read` gives, when that takes no waiting."""

    async def read(self, offset: int, size: int) -> list[Bytes]:
        """Bytes from `offset` in pieces, fewer only at the end."""

    def close(self) -> None:
        """No more reads come."""


class Text:
    """An open text of the holder's own."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    def ready(self, offset: int, size: int) -> list[Bytes]:
        return [self._text[offset : offset + size]]

    async def read(self, offset: int, size: int) -> list[Bytes]:
        return self.ready(offset, size)

    def close(self) -> None:
        """Nothing to give back."""
