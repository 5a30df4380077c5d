"""Two regions, a SpiceDB behind each: what is written through one is found through the other."""

from collections.abc import Iterator

import pytest

from tests.real.proxied import SCHEMA, Front, fronts, wait_until_told
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("spicedb_is_here")


@pytest.fixture(scope="module")
def pair(spicedb_is_here: None) -> Iterator[tuple[Front, Front]]:
    with fronts(2) as (world, (here, there)):
        world.start()
        here.write_schema(SCHEMA)
        wait_until(
            lambda: there.database.post("/v1/schema/read").status == 200, "the schema is there, too"
        )
        yield here, there


def test_a_write_here_is_found_there(pair: tuple[Front, Front]) -> None:
    here, there = pair
    answer = here.write("+document:1 viewer user:ann")
    assert answer.status == 200, answer
    assert answer.body["writtenAt"]["token"]
    assert here.may("document:1", "view", "user:ann")
    token = answer.headers["X-Revision-Token"]
    assert there.may("document:1", "view", "user:ann", X_Revision_Token=token)
    wait_until_told(here, there)


def test_a_delete_there_is_found_here(pair: tuple[Front, Front]) -> None:
    here, there = pair
    here.write("+document:2 viewer user:ann", "+document:2 editor user:bob")
    wait_until_told(here, there)
    there.write("-document:2 viewer user:ann")
    wait_until_told(here, there)
    assert not here.may("document:2", "view", "user:ann")
    assert here.may("document:2", "view", "user:bob")


def test_what_a_filter_matches_goes_everywhere(pair: tuple[Front, Front]) -> None:
    here, there = pair
    here.write(*(f"+document:3 viewer user:u{n}" for n in range(50)), "+document:4 viewer user:u1")
    wait_until_told(here, there)
    filter_ = {"resourceType": "document", "optionalResourceId": "3"}
    answer = there.post("/v1/relationships/delete", {"relationshipFilter": filter_})
    assert answer.status == 200, answer
    wait_until_told(here, there)
    assert [one for one in here.stored() if one.startswith("document:3 ")] == []
    assert "document:4 viewer user:u1" in here.stored()


def test_a_write_that_the_database_refuses_is_nothing(pair: tuple[Front, Front]) -> None:
    here, there = pair
    assert here.write("+document:5 nothing user:ann").status == 400
    assert here.write("!document:6 viewer user:ann").status == 200
    assert here.write("!document:6 viewer user:ann").status == 409
    wait_until_told(here, there)


def test_a_new_schema_goes_before_what_needs_it(pair: tuple[Front, Front]) -> None:
    here, there = pair
    more = SCHEMA + "definition folder {\n relation owner: user\n permission own = owner\n}\n"
    here.write_schema(more)
    here.write("+folder:1 owner user:ann")
    wait_until(
        lambda: "folder" in there.database.post("/v1/schema/read").body["schemaText"],
        "the schema has arrived",
    )
    wait_until(lambda: there.may("folder:1", "own", "user:ann"), "and what uses it")


def test_an_unknown_call_is_refused(pair: tuple[Front, Front]) -> None:
    here, _ = pair
    answer = here.post("/v1/relationships/importbulk", {})
    assert (answer.status, answer.body["error"]) == (501, "not_replicated")
