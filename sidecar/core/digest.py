"""The number of 40 bits that stands for one visible tuple; a bucket's digest is their sum.

`lua/lib/digest.lua` maintains the sums; this is the same arithmetic, for checks and repair.
Squaring modulo a prime is not linear, so two tuples that swap a timestamp, an origin or a hash
change the sum.

The maintained sum knows neither payloads nor what was changed behind our back. Two nodes compare
`content` instead, computed from what is stored at the moment.
"""

from functools import lru_cache
from hashlib import blake2b

from sidecar.core.relationship import Identity
from sidecar.core.vector import Version

MODULUS = 2**40
"""Sums are compared modulo this."""

_PRIME = 67_108_859  # the greatest below 2^26: every product stays below 2^52 in Lua's doubles
_HALF = 2**20


def mix(tuple_hash: int, timestamp: int, origin: str) -> int:
    """The number of one visible tuple whose winner has this version; below 2^40."""
    upper, lower = divmod(tuple_hash, _HALF)
    late, soon = divmod(timestamp, 2**26)
    h = 1
    for limb in (upper, lower, late, soon, _origin_hash(origin)):
        h = _stir(h, limb)
    g = h + 65_537
    for limb in (soon, lower, upper):
        g = _stir(g, limb)
    return h % _HALF * _HALF + g % _HALF


def content(identity: Identity, version: Version, condition: str, expires_at: str) -> int:
    """The number of one visible tuple with all that its readers see of it; below 2^40.

    condition, expires_at: as stored, "" for none. What lost and what is deleted has no number:
    they are collected on each node at another moment.
    """
    timestamp, origin = version
    parts = (*identity, str(timestamp), origin, condition, expires_at)
    text = b"".join(b"%d:%b" % (len(raw), raw) for raw in (_bytes(part) for part in parts))
    return int.from_bytes(blake2b(text, digest_size=5).digest())


def _bytes(text: str) -> bytes:
    # What was written behind our back need not be UTF-8.
    return text.encode("utf-8", "surrogateescape")


def _stir(h: int, limb: int) -> int:
    h = (h + limb) % _PRIME
    return (h * h + h * 31 + 7) % _PRIME


@lru_cache(maxsize=1_024)
def _origin_hash(origin: str) -> int:
    h = 5381
    for byte in origin.encode():
        h = (h * 33 + byte) % _PRIME
    return h
