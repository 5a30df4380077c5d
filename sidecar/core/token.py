"""Tokens: what a client carries to read its own writes anywhere. Opaque to clients.

A token holds the node that answered, the revision there, and the node's vector; a node that covers
the vector shows everything the client has seen. A vector is one of a partition, so a token of
another one than that of everywhere names it. A checksum tells a token that was cut short, which
would otherwise be one that asks for less.
"""

import base64
import binascii
import re
import zlib
from typing import NamedTuple

from sidecar.core.residency import GLOBAL
from sidecar.core.vector import Vector, newest_origins
from sidecar.errors import Refused

MAX_TOKEN_BYTES = 6 * 1024
MAX_ORIGINS = 64
"""Beyond it the incarnations that ended the longest ago are left out: every node has had them for
long, and a token has to fit into a header."""

_FORMAT, _FORMAT_WITH_PARTITION = "2", "3"
_SUM_BYTES = 4
_TEXT = re.compile(r"[a-z0-9-]{1,32}\|[0-9]{1,16}(\|[a-z0-9-]{1,32}\.[a-z0-9]{1,32}:[0-9]{1,16})*")
_PARTITION = re.compile(r"[a-z0-9-]{1,32}\.[0-9]{1,4}")


class Token(NamedTuple):
    """node id, revision of that node, and its vector, all in this partition."""

    node: str
    revision: int
    vector: Vector
    partition: str = GLOBAL

    def encode(self) -> str:
        """Text that is safe in headers and URLs."""
        vector = self.vector if len(self.vector) <= MAX_ORIGINS else _shortened(self.vector)
        entries = "".join([f"|{origin}:{t}" for origin, t in vector.items()])
        inner = f"{self.node}|{self.revision}{entries}".encode()
        kind = _FORMAT
        if self.partition != GLOBAL:
            kind, inner = _FORMAT_WITH_PARTITION, f"{self.partition}|".encode() + inner
        return kind + base64.urlsafe_b64encode(inner + _sum(inner)).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> "Token":
        """The token of a text that `encode` made. Raises Refused("invalid_token")."""
        kind = text[:1]
        is_known = kind in (_FORMAT, _FORMAT_WITH_PARTITION)
        if len(text) > MAX_TOKEN_BYTES or not text.isascii() or not is_known:
            raise _not_a_token()
        padded = text[1:] + "=" * (-len(text[1:]) % 4)
        try:
            raw = base64.b64decode(padded, altchars=b"-_", validate=True)
        except binascii.Error:
            raise _not_a_token() from None
        inner = raw[:-_SUM_BYTES].decode("ascii", "replace")
        partition = GLOBAL
        if kind == _FORMAT_WITH_PARTITION:
            partition, _, inner = inner.partition("|")
            if not _PARTITION.fullmatch(partition) or partition == GLOBAL:
                raise _not_a_token()
        if raw[-_SUM_BYTES:] != _sum(raw[:-_SUM_BYTES]) or not _TEXT.fullmatch(inner):
            raise _not_a_token()
        node, revision, *entries = inner.split("|")
        vector = {}
        for entry in entries:
            origin, _, timestamp = entry.partition(":")
            vector[origin] = int(timestamp)
        if max([int(revision), *vector.values()]) >= 2**53:
            raise _not_a_token()
        return cls(node, int(revision), vector, partition)


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
