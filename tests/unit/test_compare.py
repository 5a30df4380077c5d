"""Which buckets of two nodes may be compared, by table."""

import pytest

from sidecar.core.compare import UNKNOWN, Reading, Received, compare, feed_start, is_outvoted
from sidecar.core.vector import Vector

A, B = "a.1", "b.1"

# the asking side's vector and sum of bucket 7, this side's, the feed here, and what is said
CASES: dict[str, tuple[Vector, int, Vector, int, list[Received] | None, str]] = {
    "the same": ({A: 5}, 1, {A: 5}, 1, [], "equal"),
    "damage": ({A: 5}, 1, {A: 5}, 2, [], "unequal"),
    "equal vectors need no feed": ({A: 5}, 1, {A: 5}, 2, None, "unequal"),
    "this side is behind": ({A: 5}, 1, {A: 4}, 2, [], "undecided"),
    "this side has not heard of an origin": ({A: 5, B: 1}, 1, {A: 5}, 2, [], "undecided"),
    "written since": ({A: 5}, 1, {A: 6}, 2, [Received(A, 6, [7])], "undecided"),
    "written since, and as it was": ({A: 5}, 1, {A: 6}, 1, [Received(A, 6, [7])], "undecided"),
    "written elsewhere": ({A: 5}, 1, {A: 6}, 2, [Received(A, 6, [8])], "unequal"),
    "by another origin": ({A: 5}, 1, {A: 5, B: 9}, 2, [Received(B, 9, [7])], "undecided"),
    "the asking side has it too": (
        {A: 5, B: 9},
        1,
        {A: 6, B: 9},
        2,
        [Received(B, 9, [7]), Received(A, 6, [])],
        "unequal",
    ),
    "it came after the reading": (
        {A: 5},
        1,
        {A: 6},
        2,
        [Received(A, 6, []), Received(B, 9, [7])],
        "unequal",
    ),
    "the feed is not whole": ({A: 5}, 1, {A: 6}, 2, None, "undecided"),
    "a transfer changed it here": (
        {A: 5},
        1,
        {A: 6},
        2,
        [Received("transfer", 8, [7], is_local=True)],
        "undecided",
    ),
    "a transfer is ahead there": ({A: 5}, UNKNOWN, {A: 5}, 2, [], "undecided"),
    "a transfer is ahead here": ({A: 5}, 1, {A: 5}, UNKNOWN, [], "undecided"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_said_of_a_bucket(case: str) -> None:
    asked, their_sum, here, my_sum, feed, said = CASES[case]
    verdict = compare(Reading(asked, {7: their_sum}), Reading(here, {7: my_sum}), feed)
    words = {"unequal": verdict.unequal, "undecided": verdict.undecided}
    assert [word for word, buckets in words.items() if buckets] == [said] * (said != "equal")
    assert verdict.unequal | verdict.undecided <= {7}


@pytest.mark.parametrize(
    ("asked", "here", "floor", "start"),
    [
        ({A: 5}, {A: 5}, {A: 5}, 0),
        ({A: 5}, {A: 9}, {}, 5),
        ({A: 5, B: 3}, {A: 9, B: 8}, {}, 3),
        ({A: 5}, {A: 9}, {A: 5}, 5),
        ({A: 5}, {A: 9}, {A: 6}, None),
        ({A: 5}, {A: 9, B: 2}, {B: 1}, None),
        ({A: 5}, {A: 5, B: 2}, {A: 9}, 0),
    ],
)
def test_where_the_feed_has_all_that_came_between(
    asked: Vector, here: Vector, floor: Vector, start: int | None
) -> None:
    assert feed_start(asked, here, floor) == start


@pytest.mark.parametrize(
    ("unequal", "outvoted"),
    [
        ({}, False),
        ({"b": [1]}, True),
        ({"b": [1], "c": []}, False),
        ({"b": [1], "c": [2]}, True),
        ({"b": [], "c": []}, False),
        ({"b": [1], "c": [1], "d": [], "e": []}, False),
    ],
)
def test_who_differs_from_most_is_in_doubt(unequal: dict[str, list[int]], outvoted: bool) -> None:
    assert is_outvoted(unequal) is outvoted
