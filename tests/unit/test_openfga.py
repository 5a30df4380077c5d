"""The OpenFGA dialect: ids of regions, what writes change, how changes are written back."""

import json
from typing import Any

import pytest

from sidecar.core.relationship import Change, Identity, Operation, Relationship
from sidecar.core.topology import RegionId
from sidecar.dialects.dialect import Ask, Call, Kind, Request, Verdict, Write
from sidecar.dialects.openfga import FEW, PAGE, OpenFGA, Store
from sidecar.errors import Refused

US, EU = RegionId("us"), RegionId("eu")
STORES = {
    "shop": {
        US: Store("SHOPUS", {"v1": "ONEUS", "v2": "TWOUS"}),
        EU: Store("SHOPEU", {"v1": "ONEEU", "v2": "TWOEU"}),
    },
    "bank": {US: Store("BANKUS", {}), EU: Store("BANKEU", {})},
    "europe": {EU: Store("EUROPE", {})},
}
DIALECT = OpenFGA(STORES, US)
TUPLE = Relationship("shop", "document:a", "viewer", "user:x")
KEY = {"user": "user:x", "relation": "viewer", "object": "document:a"}
CONDITION = '{"context":{"a":3},"name":"ip"}'


def call_of(method: str, path: str) -> Call:
    call = DIALECT.call_of(method, path)
    assert call is not None
    return call


def localized(method: str, path: str, body: bytes = b"") -> Request:
    request = Request(method, path, body=body)
    return DIALECT.localized(call_of(method, path), request, lambda token: False)


def is_untouched(method: str, path: str, body: bytes = b"") -> bool:
    request = Request(method, path, body=body)
    return DIALECT.localized(call_of(method, path), request, lambda token: False) is request


def written(message: object, store: str = "SHOPUS") -> Write | None:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    path = f"/stores/{store}/write"
    return DIALECT.write_of(call_of("POST", path), Request("POST", path, body=body))


def changed(message: object) -> list[Change]:
    write = written(message)
    assert write is not None
    assert (write.tenant, write.matching, write.is_partial) == ("shop", None, False)
    return list(write.changes)


def writes(*keys: object, **options: object) -> dict[str, Any]:
    return {"writes": {"tuple_keys": list(keys), **options}}


def deletes(*keys: object, **options: object) -> dict[str, Any]:
    return {"deletes": {"tuple_keys": list(keys), **options}}


def refusal(code: str, status: int, method: str, path: str) -> str:
    with pytest.raises(Refused) as caught:
        localized(method, path)
    assert (caught.value.code, caught.value.status) == (code, status)
    return caught.value.message


# -- calls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/stores/SHOPUS/write", Kind.WRITE),
        ("POST", "/stores/SHOPUS/read", Kind.READ),
        ("POST", "/stores/SHOPUS/check", Kind.READ),
        ("POST", "/stores/SHOPUS/batch-check", Kind.READ),
        ("POST", "/stores/SHOPUS/expand", Kind.READ),
        ("POST", "/stores/SHOPUS/list-objects", Kind.READ),
        ("POST", "/stores/SHOPUS/streamed-list-objects", Kind.READ),
        ("POST", "/stores/SHOPUS/list-users", Kind.READ),
        ("GET", "/stores/SHOPUS/changes", Kind.READ),
        ("GET", "/stores/SHOPUS", Kind.READ),
        ("GET", "/stores/SHOPUS/authorization-models", Kind.READ),
        ("GET", "/stores/SHOPUS/authorization-models/ONEUS", Kind.READ),
        ("GET", "/stores/SHOPUS/assertions/ONEUS", Kind.READ),
        ("POST", "/stores%2FSHOPUS/w%72ite", Kind.WRITE),
        ("GET", "/stores", Kind.CONTROL),
        ("GET", "/healthz", Kind.CONTROL),
    ],
)
def test_a_listed_call_is_known_however_it_is_escaped(method: str, path: str, kind: Kind) -> None:
    assert call_of(method, path).kind is kind


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/stores/SHOPUS/access/v1/evaluation"),
        ("POST", "/stores/SHOPUS/write/"),
        ("PUT", "/stores/SHOPUS/write"),
        ("PATCH", "/stores/SHOPUS"),
        ("POST", "/stores/"),
        ("GET", "/playground"),
    ],
)
def test_what_is_not_listed_is_unknown(method: str, path: str) -> None:
    assert DIALECT.call_of(method, path) is None


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("POST", "/stores", "create the store in each region"),
        ("POST", "/%73tores", "create the store in each region"),
        ("DELETE", "/stores/SHOPUS", "delete the store in each region"),
        ("POST", "/stores/SHOPUS/authorization-models", "write the model in each region"),
        ("PUT", "/stores/SHOPUS/assertions/ONEUS", "write the assertions in each region"),
    ],
)
def test_what_has_ids_of_its_own_in_each_region_is_not_replicated(
    method: str, path: str, says: str
) -> None:
    assert says in refusal("not_replicated", 501, method, path)


# -- ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "tenant"),
    [
        ("/stores/SHOPUS/write", "shop"),
        ("/stores/SHOPEU/write", "shop"),
        ("/stores/BANKEU", "bank"),
        ("/stores/EUROPE/check", "europe"),
        ("/stores", "default"),
        ("/healthz", "default"),
    ],
)
def test_the_id_of_any_region_means_the_tenant(path: str, tenant: str) -> None:
    assert DIALECT.tenant_of(path) == tenant


def test_a_store_that_is_not_configured_is_refused() -> None:
    assert '"OTHER" is not one of' in refusal("unknown_store", 404, "POST", "/stores/OTHER/check")
    assert "europe is not in us" in refusal("unknown_store", 404, "POST", "/stores/EUROPE/check")


@pytest.mark.parametrize(
    ("method", "path", "here"),
    [
        ("POST", "/stores/SHOPEU/write", "/stores/SHOPUS/write"),
        ("POST", "/stores/SHOP%45U/write", "/stores/SHOPUS/write"),
        ("GET", "/stores/BANKEU", "/stores/BANKUS"),
        (
            "GET",
            "/stores/SHOPUS/authorization-models/TWOEU",
            "/stores/SHOPUS/authorization-models/TWOUS",
        ),
        ("GET", "/stores/SHOPEU/assertions/ONEUS", "/stores/SHOPUS/assertions/ONEUS"),
        ("GET", "/stores/BANKUS/assertions/ONEEU", "/stores/BANKUS/assertions/ONEEU"),
    ],
)
def test_a_path_gets_the_ids_of_this_region(method: str, path: str, here: str) -> None:
    assert localized(method, path).path == here


@pytest.mark.parametrize("name", ["authorization_model_id", "authorizationModelId"])
def test_a_body_gets_the_model_of_this_region(name: str) -> None:
    message = {"tuple_key": KEY, name: "TWOEU", "context": {"authorization_model_id": "TWOEU"}}
    request = localized("POST", "/stores/SHOPEU/check", json.dumps(message).encode())
    assert json.loads(request.body) == message | {name: "TWOUS"}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/stores/SHOPUS", b""),
        ("GET", "/healthz", b""),
        ("GET", "/stores", b""),
        ("POST", "/stores/SHOPUS/check", b'{"authorization_model_id":"TWOUS"}'),
        ("POST", "/stores/SHOPUS/check", b'{"authorization_model_id":"UNLISTED"}'),
        ("POST", "/stores/BANKUS/check", b'{"authorization_model_id":"ONEEU"}'),
        ("POST", "/stores/SHOPUS/check", b'{"context":{"authorization_model_id":"ONEEU"}}'),
        ("POST", "/stores/SHOPUS/check", b'{"authorization_model_id":"ONEEU"'),
        ("POST", "/stores/SHOPUS/check", b'["ONEEU"]'),
    ],
)
def test_what_names_nothing_foreign_goes_on_as_it_came(method: str, path: str, body: bytes) -> None:
    assert is_untouched(method, path, body)
    assert DIALECT.tokens_of(call_of(method, path), body) == ()


# -- writes ----------------------------------------------------------------------------------------


def test_a_write_inserts_and_deletes() -> None:
    other = KEY | {"user": "group:g#member"}
    message = writes(KEY, on_duplicate="ignore") | deletes(other, on_missing="ignore")
    assert changed(message | {"authorization_model_id": "ONEUS"}) == [
        Change(Operation.INSERT, TUPLE),
        Change(Operation.DELETE, TUPLE._replace(subject="group:g#member")),
    ]


@pytest.mark.parametrize(
    ("condition", "carried"),
    [
        (None, None),
        ({"name": "ip"}, '{"context":{},"name":"ip"}'),
        ({"name": "ip", "context": None}, '{"context":{},"name":"ip"}'),
        ({"name": "ip", "context": {"a": 3.0}}, CONDITION),
    ],
)
def test_a_condition_travels_with_its_context(condition: object, carried: str | None) -> None:
    (change,) = changed(writes(KEY | {"condition": condition, "user": "user:*"}))
    assert change.relationship == TUPLE._replace(subject="user:*", condition=carried)


def test_a_delete_ignores_a_condition_as_openfga_does() -> None:
    message = {"deletes": {"tupleKeys": [KEY | {"condition": 7}]}}
    assert changed(message) == [Change(Operation.DELETE, TUPLE)]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{",
        {},
        {"writes": None, "deletes": {}},
        {"writes": []},
        writes(),
        writes(7),
        writes({}),
        writes(KEY | {"user": "x"}),
        writes(KEY | {"object": "a"}),
        writes(KEY | {"relation": ""}),
        writes(KEY | {"relation": 7}),
        writes(KEY | {"condition": {"name": "ip", "context": []}}),
        writes(KEY, KEY),
        writes(KEY) | deletes(KEY),
    ],
)
def test_what_changes_nothing_is_left_to_openfga(message: object) -> None:
    assert written(message) is None


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (writes(KEY | {"object": "2d:a"}), "has a part that is not allowed"),
        (writes(KEY | {"relation": "can.view"}), "is not a relation"),
        (writes(KEY | {"user": "user:a\u00a0b"}), "has a part that is not allowed"),
        (writes(KEY | {"condition": {"name": "x" * 40_000}}), "at most 32768"),
        (writes(KEY | {"expires": 1}), '"expires" is not known'),
        (writes(KEY, on_conflict="x"), '"on_conflict" is not known'),
    ],
)
def test_what_openfga_might_take_and_others_could_not_get_is_refused(
    message: object, says: str
) -> None:
    with pytest.raises(Refused) as caught:
        written(message)
    assert (caught.value.code, caught.value.status) == ("not_replicated", 501)
    assert says in caught.value.message


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matching", "cursor", "asked"),
    [({}, None, {}), (KEY, "c", {"tuple_key": KEY, "continuation_token": "c"})],
)
def test_a_page_is_read_as_fresh_as_can_be(
    matching: dict[str, object], cursor: str | None, asked: dict[str, object]
) -> None:
    ask = DIALECT.find("shop", matching, cursor)
    assert (ask.method, ask.path) == ("POST", "/stores/SHOPUS/read")
    always = {"page_size": PAGE, "consistency": "HIGHER_CONSISTENCY"}
    assert json.loads(ask.body) == asked | always


def test_what_was_written_is_found_again_with_its_payload() -> None:
    key = KEY | {"condition": {"name": "ip", "context": {"a": 3}}}
    stamp = "2026-01-01T00:00:00Z"
    answer = {
        "tuples": [
            {"key": key, "timestamp": stamp},
            {"key": KEY | {"condition": None}, "timestamp": stamp},
        ],
        "continuation_token": "next",
    }
    found = DIALECT.found("shop", json.dumps(answer).encode())
    assert found == ([TUPLE._replace(condition=CONDITION), TUPLE], "next")
    assert DIALECT.found("shop", b'{"tuples":[],"continuation_token":""}') == ([], None)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"<html>", b'{"code":"x","message":"y"}', b'{"tuples":[{}]}']
)
def test_an_answer_without_tuples_is_no_page(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        DIALECT.found("shop", body)


def test_few_tuples_are_looked_at_one_by_one_and_many_at_once() -> None:
    many: list[Identity] = [("shop", "document:a", "viewer", f"user:{i}") for i in range(FEW)]
    assert DIALECT.look([TUPLE.identity]) == [KEY]
    assert DIALECT.look([*many, ("shop", "document:a", "owner", "user:x")]) == [
        {"object": "document:a", "relation": "viewer"},
        KEY | {"relation": "owner"},
    ]
    assert DIALECT.everything("shop", None) == [{}]


# -- applying --------------------------------------------------------------------------------------


def insert(**payload: Any) -> Change:
    return Change(Operation.INSERT, TUPLE._replace(**payload))


def delete(**payload: Any) -> Change:
    return Change(Operation.DELETE, TUPLE._replace(**payload))


def test_changes_are_applied_so_that_twice_does_no_harm() -> None:
    changes = [insert(condition=CONDITION), delete(subject="group:g#member")]
    ask = DIALECT.apply("shop", changes)
    assert (ask.method, ask.path) == ("POST", "/stores/SHOPUS/write")
    message = json.loads(ask.body)
    assert message["writes"]["on_duplicate"] == message["deletes"]["on_missing"] == "ignore"
    assert changed(message) == changes


def test_a_request_has_no_empty_half_which_openfga_refuses() -> None:
    assert set(json.loads(DIALECT.apply("shop", [insert()]).body)) == {"writes"}
    assert set(json.loads(DIALECT.apply("shop", [delete()]).body)) == {"deletes"}


def test_another_condition_takes_a_delete_and_then_an_insert() -> None:
    def applied(change: Change) -> Ask:
        return DIALECT.apply("shop", [change])

    change = insert(condition=CONDITION)
    assert DIALECT.replace("shop", change) == (applied(delete()), applied(change))
    assert DIALECT.replace("shop", delete()) == (applied(delete()),)


@pytest.mark.parametrize(
    "change",
    [
        insert(expires_at=1),
        insert(condition="7"),
        insert(condition='{"name":"ip"}'),
        insert(condition='{"caveat_name":"ip","context":{}}'),
        insert(condition='{"name":"ip","context":{},"more":1}'),
    ],
)
def test_a_payload_without_a_place_cannot_be_carried(change: Change) -> None:
    with pytest.raises(Refused) as caught:
        DIALECT.apply("shop", [change])
    assert caught.value.code == "cannot_carry"


def test_the_payload_of_a_delete_is_no_obstacle() -> None:
    ask = DIALECT.apply("shop", [delete(condition="7", expires_at=1)])
    assert changed(ask.body) == [delete()]


DIFFERENT = (
    "transactional write failed due to conflict: attempted to write a tuple which already exists "
    "with a different condition: user: 'user:x', relation: 'viewer', object: 'document:a'"
)


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {}, Verdict.DONE),
        (400, {"code": "validation_error", "message": "type 'x' not found"}, Verdict.REFUSED),
        (400, {"code": "latest_authorization_model_not_found"}, Verdict.REFUSED),
        (404, {"code": "store_id_not_found", "message": "no"}, Verdict.REFUSED),
        (413, b"too large", Verdict.REFUSED),
        (409, {"code": "Aborted", "message": DIFFERENT}, Verdict.DIFFERS),
        (409, {"code": "Aborted", "message": "inserted by another transaction"}, Verdict.AGAIN),
        (401, {"code": "bearer_token_missing"}, Verdict.AGAIN),
        (403, {"code": "forbidden"}, Verdict.AGAIN),
        (422, {"code": "throttled_timeout_error"}, Verdict.AGAIN),
        (429, {"code": "rate_limit"}, Verdict.AGAIN),
        (500, {"code": "internal_error"}, Verdict.AGAIN),
        (404, b"no such page", Verdict.AGAIN),
        (400, b"7", Verdict.AGAIN),
        (503, b"", Verdict.AGAIN),
    ],
)
def test_status_and_code_of_an_answer_decide(status: int, body: object, verdict: Verdict) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert DIALECT.verdict(status, raw) is verdict
