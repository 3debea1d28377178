"""How a caller is made known to an http server: basic, digest (RFC 7616), or a header of his own."""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.request import parse_http_list, parse_keqv_list

# The stronger first.
_HASHES = {"SHA-256": hashlib.sha256, "MD5": hashlib.md5}


class Auth(Protocol):
    """Used from any number of threads."""

    def headers(self, method: str, target: str) -> dict[str, str]:
        """What goes with a request; `target` is its path and query."""
        ...

    def challenged(self, challenges: Sequence[str]) -> bool:
        """The server answered 401 with these. Whether the same request may pass now."""
        ...


@dataclass(frozen=True, slots=True)
class Header:
    """The same with each request."""

    name: str
    value: str = field(repr=False)

    @classmethod
    def basic(cls, user: str, password: str) -> Header:
        return cls("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())

    def headers(self, method: str, target: str) -> dict[str, str]:
        return {self.name: self.value}

    def challenged(self, challenges: Sequence[str]) -> bool:
        return False


class Digest:
    """The password never goes over the wire; a nonce of the server's serves many requests."""

    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password
        self._lock = threading.Lock()
        self._challenge: dict[str, str] = {}
        self._count = 0

    def headers(self, method: str, target: str) -> dict[str, str]:
        with self._lock:
            if not self._challenge:
                return {}
            self._count += 1
            challenge, count = self._challenge, self._count
        return {"Authorization": self._answer(challenge, method, target, f"{count:08x}", secrets.token_hex(8))}

    def challenged(self, challenges: Sequence[str]) -> bool:
        found = [parsed for each in challenges if (parsed := _parse(each)) is not None]
        if not found:
            return False
        best = min(found, key=lambda each: list(_HASHES).index(_algorithm(each)))
        with self._lock:
            self._challenge, self._count = best, 0
        return True

    def _answer(self, challenge: dict[str, str], method: str, target: str, count: str, own: str) -> str:
        algorithm = _algorithm(challenge)

        def digest(*parts: str) -> str:
            made = _HASHES[algorithm](":".join(parts).encode(), usedforsecurity=False)
            return str(made.hexdigest())

        realm, nonce = challenge["realm"], challenge["nonce"]
        secret = digest(self._user, realm, self._password)
        if challenge.get("algorithm", "").upper().endswith("-SESS"):
            secret = digest(secret, nonce, own)
        asked = digest(method, target)
        fields = {"username": self._user, "realm": realm, "nonce": nonce, "uri": target}
        plain = {"algorithm": challenge.get("algorithm", "MD5")}
        if "qop" in challenge:
            fields["response"] = digest(secret, nonce, count, own, "auth", asked)
            fields["cnonce"] = own
            plain |= {"qop": "auth", "nc": count}
        else:
            fields["response"] = digest(secret, nonce, asked)
        if "opaque" in challenge:
            fields["opaque"] = challenge["opaque"]
        quoted = [f'{key}="{_escaped(value)}"' for key, value in fields.items()]
        return "Digest " + ", ".join(quoted + [f"{key}={value}" for key, value in plain.items()])


def _parse(challenge: str) -> dict[str, str] | None:
    """None for what is no digest that can be answered."""
    kind, _, rest = challenge.strip().partition(" ")
    if kind.lower() != "digest":
        return None
    try:
        found = {key.lower(): value for key, value in parse_keqv_list(parse_http_list(rest)).items()}
    except (ValueError, IndexError):
        return None
    qop = [each.strip().lower() for each in found.get("qop", "auth").split(",")]
    return found if {"realm", "nonce"} <= set(found) and _algorithm(found) in _HASHES and "auth" in qop else None


def _algorithm(challenge: dict[str, str]) -> str:
    return challenge.get("algorithm", "MD5").upper().removesuffix("-SESS")


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')
