"""Two regions in front of an OpenFGA each, for which a stand-in that keeps its rules is used."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.real.databases import Database, running_openfga
from tests.waiting import wait_until
from tests.world import OPERATOR, Answer, Node, World, ask

Json = dict[str, Any]
MODEL: Json = {
    "schema_version": "1.1",
    "type_definitions": [
        {"type": "user"},
        {"type": "document", "relations": {"viewer": {"this": {}}, "editor": {"this": {}}}},
    ],
    "conditions": {"small": {"name": "small", "expression": "size < max"}},
}


def small(most: int) -> Json:
    return {"name": "small", "context": {"max": most}}


def key(number: int, user: str = "user:ann", **more: Any) -> Json:
    return {"user": user, "relation": "viewer", "object": f"document:{number}", **more}


@dataclass(frozen=True)
class Front:
    """A node, the database behind it, and what a store and its model are called there."""

    node: Node
    database: Database
    store: str
    model: str

    def call(self, call: str, body: Json | None = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        path = f"/stores/{self.store}/{call}"
        return ask(self.node.app_port, "GET" if body is None else "POST", path, body, named)

    def write(self, *keys: Json, deletes: tuple[Json, ...] = (), **flags: str) -> Answer:
        asked: Json = {}
        if keys:
            asked["writes"] = {"tuple_keys": keys, **flags}
        if deletes:
            asked["deletes"] = {"tuple_keys": deletes}
        return self.call("write", asked)

    def held(self) -> list[Json]:
        """What the database itself holds."""
        found: list[Json] = []
        token = ""
        while True:
            asked = {"page_size": 100, "continuation_token": token}
            page = self.database.post(f"/stores/{self.store}/read", asked).body
            found += [one["key"] for one in page["tuples"]]
            token = page["continuation_token"]
            if not token:
                return sorted(found, key=json.dumps)

    def waits(self) -> float:
        metrics = self.node.metrics()
        return metrics["inferadb_sidecar_database_pending_tuples"]


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Front, Front]]:
    with ExitStack() as stack:
        databases = [stack.enter_context(running_openfga()) for _ in range(2)]
        world = World(2)
        stack.callback(world.close)
        fronts, stores = [], {}
        for node, database in zip(world.nodes, databases, strict=True):
            store = database.post("/stores", {"name": "shop"}).body["id"]
            model = database.post(f"/stores/{store}/authorization-models", MODEL).body
            fronts.append(Front(node, database, store, model["authorization_model_id"]))
            stores[node.region] = {"store": store, "models": {"v1": fronts[-1].model}}
            node.environ |= {
                "INFERADB__DATABASE__DIALECT": "openfga",
                "INFERADB__DATABASE__URL": database.url,
            }
        for node in world.nodes:
            node.environ["INFERADB__DATABASE__STORES"] = json.dumps({"shop": stores})
        world.start()
        yield fronts[0], fronts[1]


def settle(*fronts: Front) -> list[Json]:
    """What all databases hold, once they hold the same."""

    def is_settled() -> bool:
        first, *others = [one.held() for one in fronts]
        return all(one == first for one in others) and not any(one.waits() for one in fronts)

    wait_until(is_settled, "both stores hold the same")
    return fronts[0].held()


def test_tuples_go_both_ways_under_the_ids_of_each_region(pair: tuple[Front, Front]) -> None:
    here, there = pair
    assert here.store != there.store
    answer = here.write(key(1), key(1, "user:bob", condition=small(3)))
    assert (answer.status, answer.body) == (200, {})
    token = answer.headers["X-Revision-Token"]
    asked = {"tuple_key": key(1), "authorization_model_id": there.model}
    assert there.call("check", asked, X_Revision_Token=token).body["allowed"] is True
    assert {(one["user"], json.dumps(one["condition"])) for one in settle(here, there)} >= {
        ("user:ann", "null"),
        ("user:bob", json.dumps(small(3))),
    }
    assert there.write(deletes=(key(1, "user:bob"),)).status == 200
    assert "user:bob" not in {one["user"] for one in settle(here, there)}


def test_the_ids_of_the_other_region_are_understood(pair: tuple[Front, Front]) -> None:
    here, there = pair
    path = f"/stores/{there.store}/check"
    asked = {"tuple_key": key(2), "authorization_model_id": there.model}
    here.write(key(2))
    answer = ask(here.node.app_port, "POST", path, asked)
    assert (answer.status, answer.body["allowed"]) == (200, True)


def test_a_condition_changed_here_is_changed_there(pair: tuple[Front, Front]) -> None:
    """OpenFGA does not overwrite: the tuple has to go first."""
    here, there = pair
    here.write(key(3, condition=small(3)))
    settle(here, there)
    here.write(deletes=(key(3),))
    here.write(key(3, condition=small(5)))
    found = [one for one in settle(here, there) if one["object"] == "document:3"]
    assert [one["condition"] for one in found] == [small(5)]


def test_more_than_a_request_may_carry_arrives(pair: tuple[Front, Front]) -> None:
    here, there = pair
    for first in range(0, 300, 100):
        answer = here.write(*(key(4, f"user:u{n}") for n in range(first, first + 100)))
        assert answer.status == 200, answer
    assert here.write(*(key(5, f"user:u{n}") for n in range(101))).status == 400
    assert sum(one["object"] == "document:4" for one in settle(here, there)) == 300


def test_a_duplicate_is_refused_and_may_be_ignored(pair: tuple[Front, Front]) -> None:
    here, there = pair
    here.write(key(6))
    assert here.write(key(6)).status == 400
    assert here.write(key(6), on_duplicate="ignore").status == 200
    settle(here, there)


def test_what_cannot_be_carried_is_refused(pair: tuple[Front, Front]) -> None:
    here, _ = pair
    answer = here.call("authorization-models", MODEL)
    assert (answer.status, answer.body["error"]) == (501, "not_replicated")
    shown = here.node.health().body["database"]
    assert shown["dialect"] == "openfga"
    assert "stand-in" in shown["proven"]


def test_what_bypassed_the_sidecar_is_adopted(pair: tuple[Front, Front]) -> None:
    here, there = pair
    before = settle(here, there)

    def past_the_sidecar(call: str, *keys: Json) -> None:
        body = {call: {"tuple_keys": keys}}
        answer = here.database.post(f"/stores/{here.store}/write", body)
        assert answer.status == 200, answer

    def adopted(query: str = "") -> Json:
        answer = ask(here.node.admin_port, "POST", f"/database/adopt{query}", None, OPERATOR)
        return dict(json.loads(answer.body.splitlines()[-1]))

    for first in range(500, 800, 100):
        past_the_sidecar("writes", *(key(number) for number in range(first, first + 100)))
    past_the_sidecar("writes", key(900, condition=small(3)))
    assert adopted("?dry_run=1")["adopted"] == 301
    done = adopted()
    assert (done["adopted"], done["missing"], done["schema"]) == (301, 0, "")
    assert len(settle(here, there)) == len(before) + 301
    past_the_sidecar("deletes", key(500), key(501))
    assert adopted()["missing"] == 2
    assert adopted("?deletions=1")["deleted"] == 2
    assert len(settle(here, there)) == len(before) + 299
    done = adopted("?deletions=1")
    assert (done["adopted"], done["missing"]) == (0, 0)
