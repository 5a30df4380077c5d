"""The history of an organisation goes into SpiceDB whole, and its questions have two answers."""

from collections.abc import Iterator

import pytest

from tests.real.databases import Database, running_spicedb
from tests.real.org_schema import (
    MAX_UPDATES,
    Question,
    Writer,
    final_state,
    questions,
    transactions,
    triple_of,
    write_requests,
)

FULLY = {"fullyConsistent": True}


@pytest.fixture(scope="module")
def organisation(spicedb_is_here: None) -> Iterator[Database]:
    """A SpiceDB with the whole history, each insert as a CREATE: none was there before."""
    with running_spicedb() as database:
        writer = Writer(database.port)
        writer.write_schema()
        writer.write(transactions(), insert="CREATE")
        writer.close()
        yield database


def test_requests_keep_to_the_limit_and_lose_nothing() -> None:
    largest = max(transactions(), key=lambda one: len(one.insert) + len(one.delete))
    bodies = list(write_requests(largest))
    assert [len(body["updates"]) for body in bodies] == [MAX_UPDATES, MAX_UPDATES, 695]
    written = [triple_of(one["relationship"]) for body in bodies for one in body["updates"]]
    assert sorted(written) == sorted([*largest.insert, *largest.delete])


def test_spicedb_holds_what_the_history_leaves(organisation: Database) -> None:
    found = {
        triple_of(one["relationship"])
        for kind in ("organization", "team", "repository")
        for one in organisation.lines(
            "/v1/relationships/read",
            {"relationshipFilter": {"resourceType": kind}, "consistency": FULLY},
        )
    }
    assert found == final_state()
    assert len(found) == 6_968


def test_the_questions_are_answered_both_ways(organisation: Database) -> None:
    """Neither answer is rare, and a second asking gives the same ones."""
    asked = questions(1_000, seed=7)
    assert asked == questions(1_000, seed=7)
    writer = Writer(organisation.port)
    answers = [writer.may(one) for one in asked]
    writer.close()
    assert 250 < sum(answers) < 750


def test_a_maintainer_of_a_parent_manages_its_children(organisation: Database) -> None:
    there = final_state()
    maintainers = {team: user for team, relation, user in there if relation == "maintainer"}
    child, parent = next((r, s) for r, n, s in sorted(there) if n == "parent" and s in maintainers)
    writer = Writer(organisation.port)
    assert writer.may(Question(child, "manage", maintainers[parent]))
    assert not writer.may(Question(child, "manage", "user:nobody"))
    writer.close()
