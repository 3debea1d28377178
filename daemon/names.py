"""Names of objects as DVC and Git know them, and their short byte form."""

from __future__ import annotations

from dataclasses import dataclass

# Byte values are part of the store's format (DESIGN.md, "Names"): never reuse one.
ALGORITHMS = {"md5": 1, "md5-dos2unix": 2, "git-sha1": 3, "git-sha256": 4}
_BY_BYTE = {value: name for name, value in ALGORITHMS.items()}
DIR_FLAG = 0x80
DIR_SUFFIX = ".dir"
_TAGS = {name: bytes([value]) for name, value in ALGORITHMS.items()}
_DIR_TAGS = {name: bytes([value | DIR_FLAG]) for name, value in ALGORITHMS.items()}


@dataclass(frozen=True, slots=True)
class ObjectName:
    """One content's name: `algo` is a key of ALGORITHMS; `value` is lower-case hex, with `.dir` for a manifest."""

    algo: str
    value: str

    def __hash__(self) -> int:
        # A digest names nearly always one content, whatever the algorithm; and names are looked up by the ten thousand.
        return hash(self.value)

    @property
    def is_dir(self) -> bool:
        return self.value.endswith(DIR_SUFFIX)

    @property
    def hex(self) -> str:
        """The digest without the `.dir` suffix."""
        return self.value.removesuffix(DIR_SUFFIX)

    @property
    def is_sound_dir(self) -> bool:
        """Whether it names a manifest, and its digest is one: what stands in a user's file may be anything."""
        try:
            return self.is_dir and len(self.key()) > 1
        except (KeyError, ValueError):
            return False

    def key(self) -> bytes:
        """One byte of algorithm (bit 7: a manifest), then the digest: 17, 21 or 33 bytes. The key in the index."""
        value = self.value
        if value.endswith(DIR_SUFFIX):
            return _DIR_TAGS[self.algo] + bytes.fromhex(value[: -len(DIR_SUFFIX)])
        return _TAGS[self.algo] + bytes.fromhex(value)

    @classmethod
    def from_key(cls, key: bytes) -> ObjectName:
        suffix = DIR_SUFFIX if key[0] & DIR_FLAG else ""
        return cls(_BY_BYTE[key[0] & ~DIR_FLAG], key[1:].hex() + suffix)

    def __str__(self) -> str:
        return f"{self.algo}:{self.value}"
