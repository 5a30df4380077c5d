"""The stand-in keeps OpenFGA's rules as its documentation and its server's messages state them."""

import http.client
from typing import Any, NamedTuple

import pytest

from tests.real.databases import Database
from tests.world import Answer

Json = dict[str, Any]
MODEL: Json = {
    "schema_version": "1.1",
    "type_definitions": [
        {"type": "user"},
        {"type": "document", "relations": {"viewer": {"this": {}}, "editor": {"this": {}}}},
        {"type": "folder", "relations": {"viewer": {"this": {}}}},
    ],
    "conditions": {"small": {"name": "small", "expression": "size < max"}},
}
SMALL: Json = {"name": "small", "context": {"max": 3}}


def key(name: str, user: str = "user:anna", relation: str = "viewer", **more: Any) -> Json:
    return {"user": user, "relation": relation, "object": name, **more}


class Store(NamedTuple):
    """A store of the stand-in, with a model."""

    database: Database
    id: str
    model: str

    def post(self, call: str, **asked: Any) -> Answer:
        return self.database.post(f"/stores/{self.id}/{call}", asked)

    def write(self, *keys: Json, deletes: tuple[Json, ...] = (), **flags: str) -> Answer:
        asked: Json = {}
        if keys:
            asked["writes"] = {"tuple_keys": keys}
        if deletes:
            asked["deletes"] = {"tuple_keys": deletes}
        for flag, part in (("on_duplicate", "writes"), ("on_missing", "deletes")):
            if flag in flags:
                asked[part][flag] = flags[flag]
        return self.post("write", **asked)

    def held(self) -> list[Json]:
        return [one["key"] for one in self.post("read").body["tuples"]]

    def changes(self, query: str = "") -> Json:
        answer = self.database.get(f"/stores/{self.id}/changes{query}")
        assert answer.status == 200, answer
        return dict(answer.body)


@pytest.fixture
def store(openfga: Database) -> Store:
    made = openfga.post("/stores", {"name": "test"})
    assert made.status == 201, made
    model = openfga.post(f"/stores/{made.body['id']}/authorization-models", MODEL)
    assert model.status == 201, model
    return Store(openfga, made.body["id"], model.body["authorization_model_id"])


def refused(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.body["code"]


def test_what_is_written_is_read_and_checked_until_it_is_deleted(store: Store) -> None:
    plan = key("document:plan")
    written = store.write(plan)
    assert (written.status, written.body) == (200, {})
    assert written.headers["Openfga-Authorization-Model-Id"] == store.model
    assert store.held() == [{**plan, "condition": None}]
    assert store.post("check", tuple_key=plan).body == {"allowed": True, "resolution": ""}
    objects = store.post("list-objects", type="document", relation="viewer", user="user:anna")
    assert objects.body == {"objects": ["document:plan"]}
    assert store.write(deletes=(plan,)).status == 200
    assert store.held() == []
    assert store.post("check", tuple_key=plan).body["allowed"] is False


def test_a_wildcard_is_for_all_users(store: Store) -> None:
    store.write(key("document:plan", "user:*"))
    assert store.post("check", tuple_key=key("document:plan")).body["allowed"] is True


def test_a_tuple_that_exists_fails_the_whole_write(store: Store) -> None:
    store.write(key("document:plan"))
    answer = store.write(key("document:map"), key("document:plan"))
    assert refused(answer) == (400, "write_failed_due_to_invalid_input")
    assert answer.body["message"] == (
        "cannot write a tuple which already exists: user: 'user:anna', relation: 'viewer', "
        "object: 'document:plan': tuple to be written already existed or the tuple to be deleted "
        "did not exist"
    )
    assert [one["object"] for one in store.held()] == ["document:plan"]


def test_a_missing_tuple_fails_the_whole_delete(store: Store) -> None:
    store.write(key("document:plan"))
    answer = store.write(deletes=(key("document:plan"), key("document:map")))
    assert refused(answer) == (400, "write_failed_due_to_invalid_input")
    assert "cannot delete a tuple which does not exist" in answer.body["message"]
    assert len(store.held()) == 1


def test_what_is_so_already_can_be_ignored(store: Store) -> None:
    one, two = key("document:plan", condition=SMALL), key("document:map")
    for _ in range(2):
        assert store.write(one, two, on_duplicate="ignore").status == 200
    for _ in range(2):
        assert store.write(deletes=(key("document:plan"),), on_missing="ignore").status == 200
    assert [one["object"] for one in store.held()] == ["document:map"]
    operations = [one["operation"] for one in store.changes()["changes"]]
    assert operations == [f"TUPLE_OPERATION_{word}" for word in ("WRITE", "WRITE", "DELETE")]


def test_another_condition_is_a_conflict_also_when_duplicates_are_ignored(store: Store) -> None:
    store.write(key("document:plan", condition=SMALL))
    for condition in (None, {"name": "small", "context": {"max": 4}}):
        other = key("document:plan", condition=condition)
        answer = store.write(other, on_duplicate="ignore")
        assert refused(answer) == (409, "Aborted")
        assert "already exists with a different condition" in answer.body["message"]
        assert refused(store.write(other)) == (400, "write_failed_due_to_invalid_input")
    assert store.held() == [key("document:plan", condition=SMALL)]


def test_a_condition_is_replaced_in_two_writes_not_in_one(store: Store) -> None:
    plain = key("document:plan")
    store.write(plain)
    at_once = store.write(key("document:plan", condition=SMALL), deletes=(plain,))
    assert refused(at_once) == (400, "cannot_allow_duplicate_tuples_in_one_request")
    assert store.write(deletes=(plain,)).status == 200
    assert store.write(key("document:plan", condition=SMALL)).status == 200
    assert store.held() == [key("document:plan", condition=SMALL)]


def test_a_tuple_may_be_named_once_in_a_write(store: Store) -> None:
    answer = store.write(key("document:plan"), key("document:plan", condition=SMALL))
    assert refused(answer) == (400, "cannot_allow_duplicate_tuples_in_one_request")


def test_at_most_a_hundred_tuples_are_taken_at_once(store: Store) -> None:
    many = [key(f"document:{number}") for number in range(101)]
    assert refused(store.write(*many)) == (400, "exceeded_entity_limit")
    assert store.write(*many[:100]).status == 200
    both = store.write(many[100], deletes=tuple(many[:100]))
    assert refused(both) == (400, "exceeded_entity_limit")


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (key("paper:plan"), "type 'paper' not found"),
        (key("document:plan", "robot:one"), "type 'robot' not found"),
        (key("document:plan", relation="owner"), "relation 'document#owner' not found"),
        (key("document:plan", condition={"name": "tall"}), "undefined condition"),
        (key("document:plan", "document:plan#viewer"), "tuple that is implicit"),
        (key("plan"), "invalid 'object' field format"),
        (key("document:a b"), "does not match regex"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_the_model_does_not_know_is_refused(store: Store, one: Json, said: str) -> None:
    answer = store.write(one)
    assert refused(answer) == (400, "validation_error")
    assert said in answer.body["message"]


def test_an_empty_write_and_unknown_flags_are_refused(store: Store) -> None:
    assert refused(store.post("write")) == (400, "invalid_write_input")
    empty = store.post("write", writes={"tuple_keys": []})
    assert refused(empty) == (400, "validation_error")
    wrong = store.write(key("document:plan"), on_duplicate="overwrite")
    assert refused(wrong) == (400, "validation_error")


def test_reads_are_filtered(store: Store) -> None:
    ben = key("folder:home", "user:ben")
    store.write(key("document:plan"), key("document:plan", relation="editor"), ben)

    def found(**wanted: str) -> int:
        return len(store.post("read", tuple_key=wanted).body["tuples"])

    assert found(object="document:plan") == 2
    assert found(object="document:plan", relation="editor") == 1
    assert found(object="document:", user="user:anna") == 2
    assert found(object="folder:", user="user:anna") == 0
    for wanted in ({}, {"object": "document:"}, {"user": "user:anna"}):
        assert refused(store.post("read", tuple_key=wanted)) == (400, "validation_error")


def test_a_read_goes_on_with_its_token(store: Store) -> None:
    store.write(*(key(f"document:{number}") for number in range(5)))
    found, token, pages = [], "", 0
    while pages == 0 or token:
        page = store.post("read", page_size=2, continuation_token=token).body
        found += [one["key"]["object"] for one in page["tuples"]]
        token, pages = page["continuation_token"], pages + 1
    assert (found, pages) == ([f"document:{number}" for number in range(5)], 3)
    wrong = store.post("read", continuation_token="what")
    assert refused(wrong) == (400, "invalid_continuation_token")
    assert refused(store.post("read", page_size=101)) == (400, "page_size_invalid")


def test_changes_go_on_with_their_token(store: Store) -> None:
    assert store.changes() == {"changes": [], "continuation_token": ""}
    store.write(key("document:plan", condition=SMALL), key("folder:home"))
    page = store.changes("?page_size=1")
    assert page["changes"][0]["tuple_key"] == key("document:plan", condition=SMALL)
    rest = store.changes(f"?continuation_token={page['continuation_token']}")
    assert [one["tuple_key"]["object"] for one in rest["changes"]] == ["folder:home"]
    token = rest["continuation_token"]
    nothing = store.changes(f"?continuation_token={token}")
    assert nothing == {"changes": [], "continuation_token": token}
    store.write(deletes=(key("document:plan"),))
    (deleted,) = store.changes(f"?continuation_token={token}")["changes"]
    assert deleted["operation"] == "TUPLE_OPERATION_DELETE"
    assert deleted["tuple_key"]["condition"] is None
    of_folders = store.changes("?type=folder")
    assert len(of_folders["changes"]) == 1
    mixed = f"/stores/{store.id}/changes?continuation_token={of_folders['continuation_token']}"
    assert refused(store.database.get(mixed))[1].endswith("continuation_token_mismatch")


def test_stores_and_models_are_known_by_id(store: Store) -> None:
    database, home = store.database, f"/stores/{store.id}"
    assert database.get(home).body["name"] == "test"
    assert [one["id"] for one in database.get("/stores").body["stores"]] == [store.id]
    models = f"{home}/authorization-models"
    newer = database.post(models, MODEL).body["authorization_model_id"]
    listed = database.get(models).body["authorization_models"]
    assert [one["id"] for one in listed] == [newer, store.model]
    assert database.get(f"{models}/{newer}").body["authorization_model"]["id"] == newer
    unknown = store.post("check", authorization_model_id=store.id, tuple_key=key("document:1"))
    assert refused(unknown) == (400, "authorization_model_not_found")


def test_a_store_that_does_not_exist(openfga: Database) -> None:
    nowhere = f"/stores/{'0' * 26}"
    assert refused(openfga.get(nowhere)) == (404, "store_id_not_found")
    write = {"writes": {"tuple_keys": [key("document:plan")]}}
    unwritten = openfga.post(f"{nowhere}/write", write)
    assert refused(unwritten) == (400, "latest_authorization_model_not_found")
    assert openfga.post(f"{nowhere}/read").body["tuples"] == []
    assert refused(openfga.post("/stores/nowhere/read")) == (400, "validation_error")
    assert refused(openfga.post(f"{nowhere}/expand")) == (404, "undefined_endpoint")
    assert refused(openfga.post(f"{nowhere}/read", b"{")) == (400, "validation_error")


def test_a_dropped_write_can_have_happened(store: Store) -> None:
    store.database.order("drop_after", f"/stores/{store.id}/write")
    with pytest.raises((OSError, http.client.HTTPException)):
        store.write(key("document:plan"))
    assert len(store.held()) == 1
