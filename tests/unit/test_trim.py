"""What of the feed may go: a table, and what must hold whatever the numbers are."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.trim import Feed, Keep, Trim, due, is_left_behind

S = 1_000_000
NOW = 10_000 * S
HOUR = Keep(3_600 * S, 1_000)
NOTHING = 0


class Case(NamedTuple):
    """cursors: of the targets. newest: seconds before now. wanted: `up_to`, `most`."""

    story: str
    wanted: tuple[int, int]
    cursors: tuple[int, ...] = ()
    length: int = 500
    newest: int = 5
    keep: Keep = HOUR
    is_full: bool = False
    held: int | None = None


CASES = [
    Case("alone, what is older than the retention goes", (3_600, 100)),
    Case("alone and full, all of it goes", (5, 100), is_full=True),
    Case("alone, without a retention all of it goes", (5, 100), keep=Keep(0, 1_000)),
    Case("a target has all: as if it were not there", (3_600, 100), cursors=(5,)),
    Case("full, and a target has all", (5, 100), cursors=(5,), is_full=True),
    Case("a state transfer holds what follows its start", (4_000, 100), held=4_000),
    Case("also of a feed that is too long", (300, 7), held=300, cursors=(-1,), length=1_007),
    Case("a target is behind the retention: it holds the feed", (5_000, 100), cursors=(5_000,)),
    Case("a target is within it: the retention holds the feed", (3_600, 100), cursors=(300,)),
    Case("full: only what a target needs is held", (300, 100), cursors=(300,), is_full=True),
    Case("the slowest of several counts", (4_000, 100), cursors=(10, 4_000, 3_700)),
    Case("a target that has never been there holds it all", (NOW // S, NOTHING), cursors=(-1,)),
    Case("the same, full", (NOW // S, NOTHING), cursors=(10, -1), is_full=True),
    Case("a target is ahead of a store that has lost writes", (3_600, 100), cursors=(1,)),
    Case("too long: the oldest go, whoever needs them", (5, 7), cursors=(-1,), length=1_007),
    Case("far too long: as much as one call takes", (5, 100), cursors=(-1,), length=9_000),
    Case("just as long as allowed", (NOW // S, NOTHING), cursors=(-1,), length=1_000),
    Case("no more than there is", (3_600, 40), length=40),
    Case("nothing is left", (3_600, NOTHING), length=0),
    Case(
        "the machine is younger than its retention", (NOW // S, NOTHING), keep=Keep(2 * NOW, 9_999)
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.story))
def test_what_may_go(case: Case) -> None:
    def at(seconds: int) -> int:
        return NOW - seconds * S if seconds >= 0 else 0

    todo = due(
        Feed(case.length, at(case.newest)),
        case.keep,
        [at(cursor) for cursor in case.cursors],
        held=None if case.held is None else at(case.held),
        now_us=NOW,
        is_full=case.is_full,
        most=100,
    )
    up_to, most = case.wanted
    assert todo == Trim(at(up_to), most)


numbers = st.integers(0, 20)


@given(st.builds(Feed, numbers, numbers), st.lists(numbers, max_size=3), st.booleans())
def test_what_a_target_needs_goes_only_when_the_feed_is_too_long(
    feed: Feed, cursors: list[int], is_full: bool
) -> None:
    keep = Keep(3, 10)
    todo = due(feed, keep, cursors, now_us=15, is_full=is_full, most=5)
    assert 0 <= todo.most <= min(feed.length, 5)
    if feed.length > keep.max_entries:
        assert feed.length - todo.most >= keep.max_entries
    elif todo.most:
        assert todo.up_to <= feed.newest
        assert all(todo.up_to <= cursor for cursor in cursors)
        assert is_full or todo.up_to <= 15 - keep.retention_us


@pytest.mark.parametrize(
    ("cursor", "floor", "expected"), [(0, 0, False), (0, 1, True), (5, 5, False), (6, 5, False)]
)
def test_who_is_left_behind(cursor: int, floor: int, expected: bool) -> None:
    assert is_left_behind(cursor, floor) is expected
