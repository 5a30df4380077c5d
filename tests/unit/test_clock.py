"""Timestamps only grow, and the names of incarnations sort as they began."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.clock import RANDOM_BITS, incarnation, tick

TIMES = st.integers(0, 2**52)
LAST_MS = 36**8 - 1
MOMENTS_MS = st.integers(0, LAST_MS)
BITS = st.integers(0, 2**RANDOM_BITS - 1)


@given(TIMES, TIMES, TIMES)
def test_a_timestamp_is_above_all_that_is_known(last: int, now_us: int, seen: int) -> None:
    timestamp = tick(last, now_us, seen)
    assert timestamp >= now_us
    assert timestamp > last
    assert timestamp > seen
    # And no further ahead than that takes.
    assert timestamp == now_us or timestamp - 1 in {last, seen}


def test_the_clock_moves_on_when_the_wall_clock_steps_back() -> None:
    clock, given_out = 0, []
    for now_us in (1_000, 1_001, 900, 500, 1_002, 5_000, 0):
        clock = tick(clock, now_us)
        given_out.append(clock)
    assert given_out == [1_000, 1_001, 1_002, 1_003, 1_004, 5_000, 5_001]


@given(MOMENTS_MS, MOMENTS_MS, BITS, BITS)
def test_later_incarnations_are_greater_by_bytes(a: int, b: int, x: int, y: int) -> None:
    one, two = incarnation(a, x), incarnation(b, y)
    assert (one.encode() < two.encode()) == ((a, x) < (b, y))
    assert (one == two) == ((a, x) == (b, y))


def test_names_of_incarnations_are_what_they_have_always_been() -> None:
    """Twelve characters: nodes compare them by bytes, also with those of older releases."""
    assert incarnation(1_790_000_000_000, 0) == "mubbs7i80000"
    assert incarnation(1_790_000_000_000, 2**RANDOM_BITS - 1) == "mubbs7i8mh33"
    assert incarnation(0, 0) == "000000000000"
    assert incarnation(LAST_MS, 0) == "zzzzzzzz0000"


def test_what_does_not_fit_is_refused_rather_than_cut() -> None:
    """It would sort before everything that has been."""
    with pytest.raises(ValueError, match="does not fit"):
        incarnation(LAST_MS + 1, 0)
    with pytest.raises(ValueError, match="does not fit"):
        incarnation(0, 36**4)
