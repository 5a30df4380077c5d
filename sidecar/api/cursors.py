"""Cursors of the app listener: opaque to clients, checked when they come back.

A list cursor is bound to the node, the tenant and the filter it was given for. A watch cursor names
a place in one node's feed: a revision, and how many changes of that transaction were passed.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from hashlib import blake2b

from sidecar.errors import Refused
from sidecar.store.calls import Filter

MAX_CURSOR_BYTES = 6 * 1024
_SEAL_BYTES = 8
_PLACE = re.compile(
    r"([a-z0-9][a-z0-9-]{0,31}\.[a-z0-9]{1,32})\|([0-9]{1,16})\|(end|[0-9]{1,6})", re.ASCII
)
_LIST, _WATCH = b"l", b"w"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a watcher is in the feed of `origin`.

    passed: how many changes of the transaction at `revision` it has had; None: all of it.
    """

    origin: str
    revision: int
    passed: int | None = None

    def encode(self) -> str:
        """Text that is safe in headers, URLs and server-sent events."""
        passed = "end" if self.passed is None else str(self.passed)
        return _encode(_WATCH + f"{self.origin}|{self.revision}|{passed}".encode())

    @property
    def after(self) -> int:
        """The revision behind which reading the feed goes on."""
        return self.revision if self.passed is None else self.revision - 1


def place_of(text: str) -> Place:
    """The place of a watch cursor. Raises Refused("invalid_cursor")."""
    decoded = _decode(text, _WATCH)
    found = _PLACE.fullmatch(decoded.decode("ascii", "replace"))
    if found is None:
        raise _invalid("it was not given by `watch`")
    passed = None if found[3] == "end" else int(found[3])
    return Place(found[1], int(found[2]), passed)


def seal(cursor: str, scope: str, wanted: Filter) -> str:
    """A list cursor for clients, of a cursor of the store; scope: of which store."""
    return _encode(_LIST + _mark(cursor, scope, wanted) + cursor.encode())


def unseal(text: str, scope: str, wanted: Filter) -> str:
    """The store's cursor again. Raises Refused("invalid_cursor")."""
    decoded = _decode(text, _LIST)
    mark, inner = decoded[:_SEAL_BYTES], decoded[_SEAL_BYTES:]
    try:
        cursor = inner.decode()
    except UnicodeDecodeError:
        raise _invalid("it was not given by `list`") from None
    if mark != _mark(cursor, scope, wanted):
        raise _invalid("it belongs to another node, tenant or filter")
    return cursor


def _mark(cursor: str, scope: str, wanted: Filter) -> bytes:
    digest = blake2b(digest_size=_SEAL_BYTES)
    parts = (wanted.tenant, wanted.resource, wanted.resource_type, wanted.relation, wanted.subject)
    for part in (scope, *parts, cursor):
        encoded = b"" if part is None else b"=" + part.encode()
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    return digest.digest()


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(text: str, kind: bytes) -> bytes:
    if len(text) > MAX_CURSOR_BYTES or not text.isascii():
        raise _invalid("it is not one this API gives")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise _invalid("it is not one this API gives") from None
    if raw[:1] != kind:
        raise _invalid("it is not one this call gives")
    return raw[1:]


def _invalid(reason: str) -> Refused:
    return Refused(
        "invalid_cursor", f"cursor: {reason}; send a cursor as it was given, or none to begin anew"
    )
