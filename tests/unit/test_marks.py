"""How many entries follow a place in a feed that cannot be asked for it."""

import pytest

from sidecar.core.marks import MOST, Marks


def test_at_a_mark_the_count_is_exact_and_in_between_it_grows_evenly() -> None:
    marks = Marks()
    marks.begin(1_000)
    marks.note(2_000, 10)
    marks.note(3_000, 110)
    assert marks.after(999, 110) == 110
    assert marks.after(2_000, 110) == 100
    assert marks.after(2_500, 110) == 50
    assert marks.after(3_000, 110) == 0
    # What came since the last mark counts, too.
    assert marks.after(3_000, 117) == 7
    assert marks.after(4_000, 110) == 0


def test_what_was_trimmed_does_not_change_how_much_follows() -> None:
    marks = Marks()
    marks.note(1_000, 100)
    marks.note(2_000, 200, gone=150)
    marks.note(3_000, 60)
    assert marks.after(2_000, 60) == 10
    assert marks.after(1_000, 60) == 60, "no more than there is"


def test_of_what_lies_before_the_first_mark_rather_too_much_is_said() -> None:
    marks = Marks()
    marks.note(5_000, 40)
    assert marks.after(10, 50) == 50
    assert Marks().after(10, 50) == 50


def test_the_feed_of_another_incarnation_begins_anew() -> None:
    marks = Marks()
    marks.note(5_000, 40)
    marks.note(6_000, 3)
    assert marks.after(6_000, 5) == 2
    assert marks.after(5_000, 5) == 5


@pytest.mark.parametrize("rate", [1, 250])
def test_far_back_it_is_rougher_and_never_forgotten(rate: int) -> None:
    marks = Marks()
    for second in range(10 * MOST):
        marks.note(second * 1_000, second * rate)
    newest = (10 * MOST - 1) * rate
    for second in (0, 1, MOST, 9 * MOST, 10 * MOST - 2):
        assert marks.after(second * 1_000, newest) == pytest.approx(newest - second * rate, abs=1)
