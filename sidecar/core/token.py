"""Tokens: what a client carries to read its own writes anywhere. Opaque to clients.

A token holds the node that answered, the revision there, and the node's vector; a node that covers
the vector shows everything the client has seen. A checksum tells a token that was cut short, which
would otherwise be one that asks for less.
"""

import base64
import binascii
import re
import zlib
from typing import NamedTuple

from sidecar.core.vector import Vector, newest_origins
from sidecar.errors import Refused

MAX_TOKEN_BYTES = 6 * 1024
MAX_ORIGINS = 64
"""Beyond it the incarnations that ended the longest ago are left out: every node has had them for
long, and a token has to fit into a header."""

_FORMAT = "2"
_SUM_BYTES = 4
_TEXT = re.compile(r"[a-z0-9-]{1,32}\|[0-9]{1,16}(\|[a-z0-9-]{1,32}\.[a-z0-9]{1,32}:[0-9]{1,16})*")


class Token(NamedTuple):
    """node id, revision of that node, and its vector."""

    node: str
    revision: int
    vector: Vector

    def encode(self) -> str:
        """Text that is safe in headers and URLs."""
        vector = self.vector if len(self.vector) <= MAX_ORIGINS else _shortened(self.vector)
        entries = "".join([f"|{origin}:{t}" for origin, t in vector.items()])
        inner = f"{self.node}|{self.revision}{entries}".encode()
        return _FORMAT + base64.urlsafe_b64encode(inner + _sum(inner)).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> "Token":
        """The token of a text that `encode` made. Raises Refused("invalid_token")."""
        if len(text) > MAX_TOKEN_BYTES or not text.isascii() or not text.startswith(_FORMAT):
            raise _not_a_token()
        padded = text[1:] + "=" * (-len(text[1:]) % 4)
        try:
            raw = base64.b64decode(padded, altchars=b"-_", validate=True)
        except binascii.Error:
            raise _not_a_token() from None
        inner = raw[:-_SUM_BYTES].decode("ascii", "replace")
        if raw[-_SUM_BYTES:] != _sum(raw[:-_SUM_BYTES]) or not _TEXT.fullmatch(inner):
            raise _not_a_token()
        node, revision, *entries = inner.split("|")
        vector = {}
        for entry in entries:
            origin, _, timestamp = entry.partition(":")
            vector[origin] = int(timestamp)
        if max([int(revision), *vector.values()]) >= 2**53:
            raise _not_a_token()
        return cls(node, int(revision), vector)


def _sum(inner: bytes) -> bytes:
    return zlib.crc32(inner).to_bytes(_SUM_BYTES, "big")


def _shortened(vector: Vector) -> Vector:
    """Without the oldest of the incarnations that are not their node's newest."""
    newest = set(newest_origins(vector).values())
    older = sorted(vector.keys() - newest, key=lambda origin: origin.partition(".")[2])
    dropped = set(older[: len(vector) - MAX_ORIGINS])
    return {origin: t for origin, t in vector.items() if origin not in dropped}


def _not_a_token() -> Refused:
    return Refused(
        "invalid_token", "the revision token is not one that a sidecar of this kind has given"
    )
