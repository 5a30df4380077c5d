"""The judge of the crash tests: what may have come of writes, and what cannot."""

from tests.real.attempts import Attempt, Outcome, Payload, violations

X = "doc:1 viewer user:a"
BEFORE: dict[str, Payload] = {X: "old"}


def attempt(
    began: float,
    payload: Payload,
    outcome: Outcome = Outcome.DONE,
    *,
    lasted: float = 1,
    is_exact: bool = True,
) -> Attempt:
    return Attempt(began, began + lasted, outcome, {X: payload}, "", is_exact)


def is_possible(found: Payload, *attempts: Attempt) -> bool:
    return not list(violations(BEFORE, attempts, {} if found is None else {X: found}))


def test_without_a_write_everything_is_as_before() -> None:
    assert is_possible("old")
    assert not is_possible(None)
    assert not is_possible("new")
    assert not is_possible("new", attempt(0, "new", Outcome.NOTHING))


def test_an_acknowledged_write_overwrites_what_was_there_when_it_began() -> None:
    writes = attempt(0, "new"), attempt(2, None)
    assert is_possible(None, *writes)
    assert not is_possible("new", *writes)
    assert not is_possible("old", *writes)


def test_of_two_at_the_same_time_either_may_stand() -> None:
    writes = attempt(0, "new", lasted=3), attempt(2, None)
    assert is_possible(None, *writes)
    assert is_possible("new", *writes)


def test_a_write_of_unknown_outcome_may_come_at_any_time_and_never() -> None:
    writes = attempt(0, "new", Outcome.UNKNOWN), attempt(2, None)
    assert is_possible(None, *writes)
    assert is_possible("new", *writes)
    assert is_possible("old", writes[0])


def test_a_deletion_by_filter_may_not_have_found_it() -> None:
    write = attempt(2, None, is_exact=False)
    assert is_possible("old", write)
    assert is_possible(None, write)
