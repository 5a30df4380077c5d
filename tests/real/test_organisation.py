"""The permissions of a large organisation, written in one region and asked about in another."""

import time
from collections.abc import Iterator

import pytest

from tests.real.org_schema import (
    SCHEMA,
    Writer,
    final_state,
    questions,
    transactions,
    triple_of,
)
from tests.real.proxied import Front, fronts, pending
from tests.waiting import wait_until

KINDS = ("organization", "team", "repository")


@pytest.fixture(scope="module")
def pair(spicedb_is_here: None) -> Iterator[tuple[Front, Front]]:
    """The whole history, written through the first of two regions."""
    with fronts(2) as (world, (here, there)):
        world.start()
        writer = Writer(here.node.app_port)
        writer.write_schema()
        began = time.monotonic()
        writer.write(transactions(), insert="CREATE")
        written_s = time.monotonic() - began
        writer.close()
        world.settle(60)
        wait_until(lambda: not pending(there), "the other database has been told", 60)
        print(
            f"\n{writer.calls - 1} writes in {written_s:.1f} s; "
            f"{time.monotonic() - began - written_s:.1f} s later the other region has them all"
        )
        yield here, there


def held(front: Front) -> set[tuple[str, str, str]]:
    consistency = {"fullyConsistent": True}
    return {
        triple_of(one["relationship"])
        for kind in KINDS
        for one in front.database.lines(
            "/v1/relationships/read",
            {"relationshipFilter": {"resourceType": kind}, "consistency": consistency},
        )
    }


def test_both_databases_hold_what_the_history_leaves(pair: tuple[Front, Front]) -> None:
    expected = final_state()
    assert [held(one) for one in pair] == [expected, expected]
    assert set(pair[1].node.triples()) - expected == {
        ("sidecar-schema:current", "is", "sidecar-schema:text")
    }


def test_a_thousand_questions_have_the_same_answers(pair: tuple[Front, Front]) -> None:
    asked = questions(1_000, seed=5)
    here, there = [Writer(one.node.app_port) for one in pair]
    answers = [(here.may(one), there.may(one)) for one in asked]
    for writer in (here, there):
        writer.close()
    assert all(first == second for first, second in answers)
    assert 250 < sum(first for first, _ in answers) < 750


def test_a_schema_changed_there_is_used_here(pair: tuple[Front, Front]) -> None:
    here, there = pair
    more = SCHEMA + "\ndefinition package {\n  relation owner: user\n  permission own = owner\n}\n"
    there.write_schema(more)
    wait_until(
        lambda: "package" in here.database.post("/v1/schema/read").body["schemaText"],
        "the schema is here",
    )
    token = here.write("+package:1 owner user:ann").headers["X-Revision-Token"]
    assert there.may("package:1", "own", "user:ann", X_Revision_Token=token)
