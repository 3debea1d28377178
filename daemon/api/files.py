"""File objects over contents: what `open` gives. They know how they were opened, so they can be pickled; each has a position of
its own, also in a forked child."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

from millpond.daemon.api.contents import Content
from millpond.daemon.api.versions import Version

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER_BYTES = 64 << 10


class RawFile(io.RawIOBase):
    """A content, read from a position. Raises OSError for what the file system refuses, MillpondError for the rest."""

    def __init__(self, content: Content, name: str) -> None:
        super().__init__()
        self._content = content
        self._at = 0
        self.name = name
        self.mode = "rb"

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer, or a part of it; 0 at the end."""
        with memoryview(buffer).cast("B") as view:
            if not len(view) or self._at >= self._content.size:
                return 0
            data = self._content.read(self._at, len(view))
            view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As io.IOBase.seek."""
        self._require_open()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._content.size}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError(f"cannot seek to {offset} (whence {whence})")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        self._require_open()
        return self._at

    def fileno(self) -> int:
        """The descriptor of a whole content. Raises io.UnsupportedOperation where there is none."""
        self._require_open()
        return self._content.fileno()

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return self._content.size

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._content.close()

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")


class ObjectFile(io.BufferedReader):
    """A file opened for bytes."""

    def __init__(self, version: Version, path: str, buffer_bytes: int = BUFFER_BYTES) -> None:
        """`path` from the repository's root. Raises as Version.open."""
        self._version = version
        self._path = path
        self._raw = RawFile(version.open(path), path)
        super().__init__(self._raw, buffer_bytes)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._raw.size

    def __reduce__(self) -> tuple[Any, ...]:
        return reopened, (self._version, self._path, self.tell())


class ObjectText(io.TextIOWrapper):
    """A file opened for text."""

    def __init__(
        self,
        version: Version,
        path: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> None:
        """`path` from the repository's root. Raises as Version.open, LookupError for an unknown encoding."""
        self._how = version, path, encoding, errors, newline
        file = ObjectFile(version, path)
        try:
            super().__init__(file, encoding=encoding, errors=errors, newline=newline)
        except BaseException:
            file.close()
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return reopened_text, (*self._how, self.tell())


def reopened(version: Version, path: str, position: int) -> ObjectFile:
    """A file that was pickled."""
    file = ObjectFile(version, path)
    file.seek(position)
    return file


def reopened_text(
    version: Version, path: str, encoding: str | None, errors: str | None, newline: str | None, position: int
) -> ObjectText:
    """A text file that was pickled; `position` as `tell` told it."""
    file = ObjectText(version, path, encoding, errors, newline)
    file.seek(position)
    return file
