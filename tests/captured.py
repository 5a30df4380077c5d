"""What was said over a recorded connection, one way: as it travelled, and as it was meant.

The messages of a session travel masked (RFC 6455, section 5.3) and large ones compressed, so a name
that is not among the bytes may still have been told.
"""

import zlib
from collections.abc import Iterable, Iterator

HEAD_END = b"\r\n\r\n"
TEXT, BINARY = 1, 2


def all_said(recorded: Iterable[bytearray]) -> bytes:
    """Everything in one text, to look for names in."""
    return b"\n".join(part for stream in recorded for part in _parts(bytes(stream)))


def _parts(stream: bytes) -> Iterator[bytes]:
    yield stream
    head, _, rest = stream.partition(HEAD_END)
    if b"upgrade: websocket" in head.lower():
        yield from _messages(rest)


def _messages(stream: bytes) -> Iterator[bytes]:
    """The messages of a WebSocket, unmasked and inflated; one that was cut off is left out."""
    at, message, kind = 0, b"", 0
    while len(stream) >= at + 2:
        first, second = stream[at], stream[at + 1]
        at += 2
        length = second & 0x7F
        if length > 125:
            size = 2 if length == 126 else 8
            length = int.from_bytes(stream[at : at + size], "big")
            at += size
        mask = stream[at : at + 4] if second & 0x80 else bytes(4)
        at += 4 if second & 0x80 else 0
        payload = stream[at : at + length]
        at += length
        if len(payload) < length:
            return
        message += _unmasked(payload, mask)
        kind = first & 0x0F or kind
        if first & 0x80:
            yield zlib.decompress(message) if kind == BINARY else message
            message = b""


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    key = (mask * (len(payload) // len(mask) + 1))[: len(payload)]
    both = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return both.to_bytes(len(payload), "big")
