"""What a recording is searched with finds names that travel masked, compressed or in pieces."""

import zlib

from tests.captured import all_said

HEAD = b"GET /peer/v1/session HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"
MASK = b"\x10\x20\x30\x40"


def masked(payload: bytes, first: int) -> bytes:
    """A frame of a client, RFC 6455 section 5.2."""
    length = bytes([0x80 | 126]) + len(payload).to_bytes(2, "big")
    if len(payload) < 126:
        length = bytes([0x80 | len(payload)])
    body = bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))
    return bytes([first]) + length + MASK + body


def test_names_are_found_however_they_travel() -> None:
    long = b"zebra" * 100
    compressed = zlib.compress(b"okapi" * 100)
    stream = HEAD + masked(b"quagga", 0x81) + masked(long, 0x81) + masked(compressed, 0x82)
    stream += masked(b"wom", 0x01) + masked(b"bat", 0x80) + masked(b"cut off", 0x81)[:-1]
    for name in (b"quagga", b"zebra", b"okapi", b"wombat"):
        assert name not in stream
        assert name in all_said([bytearray(stream)]), name
    assert b"cut off" not in all_said([bytearray(stream)])


def test_plain_http_is_looked_at_as_it_is() -> None:
    stream = bytearray(b"POST /peer/v1/compare HTTP/1.1\r\n\r\n{}")
    assert b"compare" in all_said([stream])
