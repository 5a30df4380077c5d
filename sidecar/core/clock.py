"""Timestamps and incarnations: the arithmetic of the hybrid logical clock.

The clock itself lives in Redis, where the scripts move it; here is what it must do.
Source: Kulkarni et al., "Logical Physical Clocks", 2014, with the logical part folded into the
microseconds.
"""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_TIME_DIGITS = 8  # base 36; enough for milliseconds until the year 2059
_RANDOM_DIGITS = 4  # base 36; holds the 20 random bits
RANDOM_BITS = 20


def tick(last: int, now_us: int, seen: int = 0) -> int:
    """The next timestamp: above the wall clock, above the last one, above anything seen."""
    return max(now_us, last + 1, seen + 1)


def incarnation(now_ms: int, random_bits: int) -> str:
    """The name of an incarnation that begins now; later ones are greater, by bytes.

    Fixed width, so that the order of the bytes is the order of time.
    """
    return _base36(now_ms, _TIME_DIGITS) + _base36(random_bits, _RANDOM_DIGITS)


def is_incarnation(name: str) -> bool:
    """Whether a node can have begun under that name, and a later one can have another."""
    is_whole = len(name) == _TIME_DIGITS + _RANDOM_DIGITS and set(name) <= set(_DIGITS)
    return is_whole and name[:_TIME_DIGITS] != _DIGITS[-1] * _TIME_DIGITS


def _base36(number: int, width: int) -> str:
    digits = ""
    for _ in range(width):
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    if number:
        raise ValueError(f"does not fit into {width} digits of base 36")
    return digits
