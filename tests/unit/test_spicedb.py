"""The SpiceDB dialect: what its requests are, what they change, how changes are written back."""

import json
from collections.abc import Callable, Collection
from typing import Any

import pytest

from sidecar.core.relationship import Change, Identity, Operation, Relationship
from sidecar.dialects.dialect import SCHEMA_TYPE, Kind, Request, Verdict, Write
from sidecar.dialects.spicedb import FEW, PAGE, SpiceDB
from sidecar.errors import Refused

DIALECT = SpiceDB()
WRITE = "/v1/relationships/write"
DELETE = "/v1/relationships/delete"
SCHEMA = "/v1/schema/write"
CHECK = "/v1/permissions/check"


def request(path: str, message: object) -> Request:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return Request("POST", path, body=body)


def written(path: str, message: object) -> Write | None:
    call = DIALECT.call_of("POST", path)
    assert call is not None
    assert call.kind is Kind.WRITE
    assert call.looks_inside
    return DIALECT.write_of(call, request(path, message))


def update(operation: object = "OPERATION_TOUCH", **payload: object) -> dict[str, Any]:
    return {
        "operation": operation,
        "relationship": {
            "resource": {"objectType": "doc", "objectId": "a"},
            "relation": "viewer",
            "subject": {"object": {"objectType": "user", "objectId": "x"}},
            **payload,
        },
    }


def changed(message: object) -> list[Change]:
    write = written(WRITE, message)
    assert write is not None
    assert write.tenant == "default"
    assert write.matching is None
    return list(write.changes)


def one(message: dict[str, Any]) -> Change:
    (change,) = changed({"updates": [message]})
    return change


def not_replicated(path: str, message: object) -> str:
    with pytest.raises(Refused) as caught:
        written(path, message)
    assert (caught.value.code, caught.value.status) == ("not_replicated", 501)
    return caught.value.message


TUPLE = Relationship("default", "doc:a", "viewer", "user:x")


# -- calls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", WRITE, Kind.WRITE),
        ("POST", DELETE, Kind.WRITE),
        ("POST", SCHEMA, Kind.WRITE),
        ("POST", "/v1/relationships/read", Kind.READ),
        ("POST", "/v1/relationships/exportbulk", Kind.READ),
        ("POST", CHECK, Kind.READ),
        ("POST", "/v1/permissions/checkbulk", Kind.READ),
        ("POST", "/v1/permissions/expand", Kind.READ),
        ("POST", "/v1/permissions/resources", Kind.READ),
        ("POST", "/v1/permissions/subjects", Kind.READ),
        ("POST", "/v1/schema/read", Kind.READ),
        ("POST", "/v1/schema/reflectschema", Kind.READ),
        ("POST", "/v1/schema/permissions/computable", Kind.READ),
        ("POST", "/v1/schema/permissions/dependent", Kind.READ),
        ("POST", "/v1/schema/diffschema", Kind.READ),
        ("POST", "/v1/watch", Kind.READ),
        ("GET", "/healthz", Kind.CONTROL),
        ("GET", "/openapi.json", Kind.CONTROL),
        ("POST", "/v1/relationships%2Fwrite", Kind.WRITE),
        ("POST", "/v1/%72elationships/write", Kind.WRITE),
    ],
)
def test_a_listed_call_is_known_however_it_is_escaped(method: str, path: str, kind: Kind) -> None:
    call = DIALECT.call_of(method, path)
    assert call is not None
    assert call.kind is kind
    assert DIALECT.tenant_of(path) == "default"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/relationships/importbulk"),
        ("POST", "/v1/experimental/relationships/bulkimport"),
        ("POST", "/v1/experimental/registerrelationshipcounter"),
        ("POST", "/v1/relationships/write/"),
        ("PUT", WRITE),
        ("GET", "/"),
    ],
)
def test_what_is_not_listed_is_unknown(method: str, path: str) -> None:
    assert DIALECT.call_of(method, path) is None


# -- writes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "operation"),
    [
        ("OPERATION_CREATE", Operation.INSERT),
        ("OPERATION_TOUCH", Operation.INSERT),
        ("OPERATION_DELETE", Operation.DELETE),
        (1, Operation.INSERT),
        (2.0, Operation.INSERT),
        (3, Operation.DELETE),
    ],
)
def test_an_operation_goes_by_its_name_or_its_number(named: object, operation: Operation) -> None:
    assert one(update(named)) == Change(operation, TUPLE)


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ({"object": {"objectType": "user", "objectId": "*"}}, "user:*"),
        (
            {"object": {"objectType": "t/grp", "objectId": "g"}, "optionalRelation": "member"},
            "t/grp:g#member",
        ),
        ({"object": {"objectType": "user", "objectId": "x"}, "optionalRelation": ""}, "user:x"),
        (
            {"object": {"object_type": "user", "object_id": "x"}, "optional_relation": None},
            "user:x",
        ),
    ],
)
def test_subjects_may_be_wildcards_and_sets(subject: object, text: str) -> None:
    assert one(update(subject=subject)).relationship.subject == text


@pytest.mark.parametrize(
    ("caveat", "condition"),
    [
        (None, None),
        ({"caveatName": "ip"}, '{"caveat_name":"ip","context":{}}'),
        ({"caveat_name": "ip", "context": None}, '{"caveat_name":"ip","context":{}}'),
        (
            {"caveatName": "ip", "context": {"b": [True, None, 0.5], "a": 3.0}},
            '{"caveat_name":"ip","context":{"a":3,"b":[true,null,0.5]}}',
        ),
        (
            {"caveatName": "ip", "context": {"a": 12345678901234567890}},
            '{"caveat_name":"ip","context":{"a":1.2345678901234567e+19}}',
        ),
    ],
)
def test_a_caveat_is_the_condition_with_numbers_as_spicedb_keeps_them(
    caveat: object, condition: str | None
) -> None:
    assert one(update(optionalCaveat=caveat)).relationship.condition == condition


def test_an_expiration_counts_microseconds() -> None:
    change = one(update(optionalExpiresAt="2099-01-01T00:00:00.123456789Z"))
    assert change.relationship.expires_at == 4_070_908_800_123_456


def test_preconditions_and_metadata_say_nothing_of_what_is_written() -> None:
    message = {
        "updates": [update()],
        "optional_preconditions": [{"operation": 1, "filter": {"resourceType": "doc"}}],
        "optionalTransactionMetadata": {"who": "me"},
    }
    assert changed(message) == [Change(Operation.INSERT, TUPLE)]


def test_the_gateway_reads_one_value_and_no_further() -> None:
    body = b" \n" + json.dumps({"updates": [update()]}).encode() + b"} \xff trailing"
    assert changed(body) == [Change(Operation.INSERT, TUPLE)]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xef\xbb\xbf{}",
        b'{"updates": NaN}',
        b'{"updates": "\xff"}',
        {},
        {"updates": []},
        {"updates": {}},
        {"updates": [7]},
        {"updates": [None]},
        {"updates": [update("OPERATION_UNSPECIFIED")]},
        {"updates": [update(None)]},
        {"updates": [update([])]},
        {"updates": [update(), update("OPERATION_DELETE")]},
        {"updates": [update(), update(optionalCaveat={"caveatName": "ip"})]},
        {"updates": [update(relation=7)]},
        {"updates": [update(relation=None)]},
        {"updates": [update(resource={"objectType": "doc", "objectId": "a b"})]},
        {"updates": [update(subject={})]},
        {"updates": [update(optionalExpiresAt=7)]},
        {"updates": [update(optionalCaveat={"caveatName": "ip", "context": []})]},
        {"updates": [update() | {"operation": 1} | {"relationship": None}]},
    ],
)
def test_what_changes_nothing_is_left_to_spicedb(message: object) -> None:
    assert written(WRITE, message) is None


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"updates": [update(optionalCaveat={"caveatName": "ip", "context": {"a": "x" * 40_000}})]},
         "at most 32768"),
        ({"updates": [update(optionalExpiresAt="1960-01-01T00:00:00Z")]}, "before 1970"),
        ({"updates": [update(optionalWeight=3)]}, '"optionalWeight" is not known'),
        ({"updates": [update()], "optionalDryRun": True}, '"optionalDryRun" is not known'),
        (b'{"updates": [], "updates": []}', "a key twice"),
        (b'{"x":' * 200_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_what_spicedb_might_take_and_others_could_not_get_is_refused(
    message: object, says: str
) -> None:
    assert says in not_replicated(WRITE, message)


# -- deletes by filter -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "matching"),
    [
        ({"resourceType": "doc"}, {"resourceType": "doc"}),
        ({"resource_type": "doc", "optional_resource_id": ""}, {"resourceType": "doc"}),
        ({"optionalResourceIdPrefix": "a"}, {"optionalResourceIdPrefix": "a"}),
        (
            {
                "resourceType": "doc",
                "optionalResourceId": "a",
                "optionalRelation": "viewer",
                "optional_subject_filter": {
                    "subject_type": "user",
                    "optionalSubjectId": "x",
                    "optionalRelation": {},
                },
            },
            {
                "resourceType": "doc",
                "optionalResourceId": "a",
                "optionalRelation": "viewer",
                "optionalSubjectFilter": {
                    "subjectType": "user",
                    "optionalSubjectId": "x",
                    "optionalRelation": {"relation": ""},
                },
            },
        ),
        (
            {"optionalSubjectFilter": {"subjectType": "grp", "optionalRelation": None}},
            {"optionalSubjectFilter": {"subjectType": "grp"}},
        ),
    ],
)
def test_a_delete_names_its_filter_as_find_takes_it(message: object, matching: object) -> None:
    write = written(DELETE, {"relationshipFilter": message})
    assert write == Write("default", matching=matching)  # type: ignore[arg-type]
    asked = json.loads(DIALECT.find("default", write.matching or {}, None).body)
    assert asked["relationshipFilter"] == matching


@pytest.mark.parametrize(
    ("options", "is_partial"),
    [
        ({}, False),
        ({"optionalLimit": 0}, False),
        ({"optionalLimit": 100}, True),
        ({"optional_limit": "100"}, True),
        ({"optionalAllowPartialDeletions": True}, True),
    ],
)
def test_a_limited_delete_is_partial(options: dict[str, object], is_partial: bool) -> None:
    write = written(DELETE, {"relationshipFilter": {"resourceType": "doc"}, **options})
    assert write is not None
    assert write.is_partial is is_partial


@pytest.mark.parametrize("message", [{}, {"relationshipFilter": {}}, {"relationshipFilter": 7}])
def test_a_delete_without_a_filter_is_left_to_spicedb(message: object) -> None:
    assert written(DELETE, message) is None


def test_a_filter_with_a_field_of_a_newer_version_would_match_too_much() -> None:
    message = {"relationshipFilter": {"resourceType": "doc", "optionalCaveatName": "ip"}}
    assert '"optionalCaveatName"' in not_replicated(DELETE, message)


# -- schemas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "schema"),
    [({"schema": "definition user {}\n"}, "definition user {}\n"), (b"", ""), ({}, "")],
)
def test_a_schema_travels_as_a_tuple(message: object, schema: str) -> None:
    write = written(SCHEMA, message)
    assert write is not None
    (change,) = write.changes
    assert change.operation is Operation.INSERT
    assert change.relationship.resource == f"{SCHEMA_TYPE}:current"
    assert json.loads(change.relationship.condition or "") == schema


def test_a_schema_larger_than_a_mebibyte_is_refused() -> None:
    assert written(SCHEMA, {"schema": "/" * 1_000_000}) is not None
    refused = not_replicated(SCHEMA, {"schema": "/" * 1_100_000})
    assert "the schema has 1100002 bytes" in refused
    assert written(SCHEMA, {"schema": 7}) is None
    assert written(SCHEMA, b'{"schema": "\\ud800"}') is None


GIVEN = """use expiration
// at night
caveat at_night(hour int, day string) { hour > 22 && day != "sun // day" }
definition user {}
definition doc {
  relation viewer :user|user:* | user with at_night // who
  permission view = viewer - editor
}
"""
GIVEN_BACK = """use expiration

// at night
caveat at_night(day string, hour int) {
\thour > 22 && day != "sun // day"
}

definition doc {
\trelation viewer: user | user:* | user with at_night

\t// who
\tpermission view = viewer - editor
}

definition user {}"""


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (GIVEN, True),
        (GIVEN_BACK, True),
        (GIVEN_BACK.replace("hour int", "hour uint"), False),
        (GIVEN_BACK.replace("sun // day", "sun / day"), False),
        (GIVEN_BACK.replace("viewer - editor", "editor - viewer"), False),
        (GIVEN_BACK.replace("definition user {}", "definition users {}"), False),
        (GIVEN_BACK.replace("use expiration", ""), False),
        (GIVEN_BACK + "\ndefinition more {}", False),
        ("", False),
    ],
)
def test_a_schema_is_the_same_however_it_is_written(other: str, is_same: bool) -> None:
    assert DIALECT.is_same_schema(GIVEN, other) is is_same
    assert DIALECT.is_same_schema(other, GIVEN) is is_same


def test_a_tuple_of_another_tenant_is_not_written() -> None:
    with pytest.raises(Refused, match="no place for the tenant acme") as caught:
        DIALECT.apply("acme", [Change(Operation.INSERT, TUPLE._replace(tenant="acme"))])
    assert caught.value.code == "cannot_carry"
    assert DIALECT.tenants == ("default",)


@pytest.mark.parametrize(
    ("status", "body", "schema"),
    [
        (200, {"schemaText": "definition user {}", "readAt": {"token": "t"}}, "definition user {}"),
        (404, {"code": 5, "message": "no schema has been defined", "details": []}, ""),
    ],
)
def test_the_present_schema_is_read(status: int, body: object, schema: str) -> None:
    assert DIALECT.read_schema() == ("POST", "/v1/schema/read", b"{}")
    assert DIALECT.schema_of(status, json.dumps(body).encode()) == schema
    assert json.loads(DIALECT.apply_schema(schema).body) == {"schema": schema}


@pytest.mark.parametrize(
    ("status", "body"), [(404, b"not here"), (503, b"{}"), (200, b"{}"), (200, b"<html>")]
)
def test_what_is_no_schema_is_not_taken_for_an_empty_one(status: int, body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        DIALECT.schema_of(status, body)


# -- tokens ----------------------------------------------------------------------------------------


def issued(*tokens: str) -> Callable[[str], bool]:
    return lambda token: token in tokens


@pytest.mark.parametrize("name", ["atLeastAsFresh", "at_least_as_fresh", "atExactSnapshot"])
def test_a_token_of_another_region_becomes_fully_consistent(name: str) -> None:
    message = {"permission": "view", "consistency": {name: {"token": "t1"}}, "context": {"n": 3}}
    call = DIALECT.call_of("POST", CHECK)
    assert call is not None
    asked = request(CHECK, message)
    assert DIALECT.localized(call, asked, issued("t1")) is asked
    localized = DIALECT.localized(call, asked, issued())
    fresh = {"fullyConsistent": True}
    assert json.loads(localized.body) == message | {"consistency": fresh}
    assert localized.path == CHECK


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (CHECK, {"consistency": {"minimizeLatency": True}}),
        (CHECK, {"consistency": {"atLeastAsFresh": {"token": ""}}}),
        (CHECK, {"context": {"consistency": {"atLeastAsFresh": {"token": "t"}}}}),
        (CHECK, {"consistency": "token"}),
        (CHECK, b'{"consistency": {"atLeastAsFresh": {"token": "t"'),
        ("/v1/relationships/read", {"optionalCursor": {"token": "t"}}),
        ("/v1/watch", {"optionalStartCursor": {"token": "t"}}),
    ],
)
def test_what_holds_no_foreign_token_goes_on_as_it_came(path: str, message: object) -> None:
    call = DIALECT.call_of("POST", path)
    assert call is not None
    asked = request(path, message)
    assert DIALECT.localized(call, asked, issued()) is asked


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"writtenAt":{"token":"GhUK+/="}}', {"GhUK+/="}),
        (b'{ "checkedAt" : { "token" : "a" } , "permissionship":"X"}', {"a"}),
        (b'{"result":{"readAt":{"token":"a"}}}\n{"result":{"readAt":{"token":"b"}}}', {"a", "b"}),
        (b'{"result":{"changesThrough":{"token":"a"}}}', {"a"}),
        (b'{"afterResultCursor":{"token":"a"},"writtenAt":null}', set()),
    ],
)
def test_tokens_are_found_in_answers(body: bytes, tokens: Collection[str]) -> None:
    call = DIALECT.call_of("POST", WRITE)
    assert call is not None
    assert set(DIALECT.tokens_of(call, body)) == tokens


# -- reading ---------------------------------------------------------------------------------------


def result(i: int = 0, **payload: object) -> bytes:
    relationship = update(resource={"objectType": "doc", "objectId": f"d{i}"}, **payload)
    return json.dumps(
        {
            "result": {
                "readAt": {"token": "t"},
                "relationship": relationship["relationship"],
                "afterResultCursor": {"token": f"c{i}"},
            }
        }
    ).encode()


def test_a_page_is_read_fully_consistent_and_names_the_next() -> None:
    ask = DIALECT.find("default", {"resourceType": "doc"}, "c9")
    assert (ask.method, ask.path) == ("POST", "/v1/relationships/read")
    assert json.loads(ask.body) == {
        "consistency": {"fullyConsistent": True},
        "relationshipFilter": {"resourceType": "doc"},
        "optionalLimit": PAGE,
        "optionalCursor": {"token": "c9"},
    }
    full = DIALECT.found("default", b"\n".join(map(result, range(PAGE))))
    assert (len(full.relationships), full.cursor) == (PAGE, f"c{PAGE - 1}")
    assert DIALECT.found("default", b"") == ([], None)


def test_what_was_written_is_found_again_with_its_payload() -> None:
    payload = {
        "optionalCaveat": {"caveatName": "ip", "context": {"b": 0.5, "a": 3}},
        "optionalExpiresAt": "2099-01-01T00:00:00.123456789Z",
    }
    found = DIALECT.found("default", result(1, **payload))
    sent = one(update(resource={"objectType": "doc", "objectId": "d1"}, **payload))
    assert found == ([sent.relationship], None)


@pytest.mark.parametrize(
    "body",
    [
        result() + b'\n{"error":{"code":14,"message":"gone","details":[]}}',
        b'{"code":9,"message":"object definition `doc` not found"}',
        b'{"result":{}}',
        b"<html>",
    ],
)
def test_an_answer_without_relationships_is_no_page(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        DIALECT.found("default", body)


def identities(count: int, relation: str = "viewer") -> list[Identity]:
    return [("default", "doc:a", relation, f"user:u{i}") for i in range(count)]


def test_few_tuples_are_looked_at_one_by_one_and_many_at_once() -> None:
    group: Identity = ("default", "doc:a", "viewer", "grp:g#member")
    of = {"resourceType": "doc", "optionalResourceId": "a", "optionalRelation": "viewer"}
    assert DIALECT.look([group, *identities(1)]) == [
        of
        | {
            "optionalSubjectFilter": {
                "subjectType": kind,
                "optionalSubjectId": identifier,
                "optionalRelation": {"relation": relation},
            }
        }
        for kind, identifier, relation in [("grp", "g", "member"), ("user", "u0", "")]
    ]
    filters = DIALECT.look([*identities(FEW), *identities(1, "owner")])
    assert filters[0] == of
    assert len(filters) == 2


SCHEMA_TEXT = """use expiration
/* definition nope1 {} */
caveat ip(a string) { a == "definition nope2" && a != 'definition nope3' }
definition user {} // it's a definition nope4
definition t/doc {
    relation definition: user
    permission view = definition + definition
}
definition grp{}"""


@pytest.mark.parametrize(
    ("schema", "types"), [(SCHEMA_TEXT, ["user", "t/doc", "grp"]), ("", []), (None, [])]
)
def test_all_there_is_lies_below_the_definitions(schema: str | None, types: list[str]) -> None:
    assert DIALECT.everything("default", schema) == [{"resourceType": name} for name in types]


# -- applying --------------------------------------------------------------------------------------

CONDITION = '{"caveat_name":"ip","context":{"a":3}}'


@pytest.mark.parametrize(
    "relationship",
    [
        TUPLE,
        TUPLE._replace(subject="t/grp:g#member"),
        TUPLE._replace(subject="user:*", condition=CONDITION, expires_at=4_070_908_800_123_456),
    ],
)
def test_an_insert_is_applied_as_a_touch_that_means_the_same(relationship: Relationship) -> None:
    change = Change(Operation.INSERT, relationship)
    ask = DIALECT.apply("default", [change])
    assert (ask.method, ask.path) == ("POST", WRITE)
    assert json.loads(ask.body)["updates"][0]["operation"] == "OPERATION_TOUCH"
    assert changed(ask.body) == [change]
    assert DIALECT.replace("default", change) == (ask,)


def test_a_delete_is_applied_without_payload_which_the_schema_may_not_know() -> None:
    payload = TUPLE._replace(condition=CONDITION, expires_at=1)
    ask = DIALECT.apply("default", [Change(Operation.DELETE, payload)])
    assert changed(ask.body) == [Change(Operation.DELETE, TUPLE)]


@pytest.mark.parametrize("condition", ["7", "[]", '{"caveat_name":"ip"}', '{"name":"ip"}'])
def test_a_condition_that_is_no_caveat_cannot_be_carried(condition: str) -> None:
    with pytest.raises(Refused) as caught:
        DIALECT.apply("default", [Change(Operation.INSERT, TUPLE._replace(condition=condition))])
    assert caught.value.code == "cannot_carry"


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"writtenAt": {"token": "t"}}, Verdict.DONE),
        (400, {"code": 3, "message": "subjects of type `x` are not allowed"}, Verdict.REFUSED),
        (400, {"code": 9, "message": "object definition `x` not found"}, Verdict.REFUSED),
        (400, {"error": "m", "code": 9, "message": "m"}, Verdict.REFUSED),
        (500, {"code": 2, "message": "unknown parameter `foo`"}, Verdict.REFUSED),
        (
            500,
            {"code": 2, "message": "could not convert context parameter `limit`: for int"},
            Verdict.REFUSED,
        ),
        (500, {"code": 2, "message": "something"}, Verdict.AGAIN),
        (503, {"code": 14, "message": "unavailable"}, Verdict.AGAIN),
        (504, {"code": 4}, Verdict.AGAIN),
        (429, {"code": 8, "message": "too much"}, Verdict.AGAIN),
        (409, {"code": 10, "message": "serialization"}, Verdict.AGAIN),
        (401, {"code": 16, "message": "who?"}, Verdict.AGAIN),
        (403, {"code": 7, "message": "no"}, Verdict.AGAIN),
        (500, {"code": 13, "message": "oh"}, Verdict.AGAIN),
        (200, b"", Verdict.DONE),
        (200, result() + b"\n", Verdict.DONE),
        (200, result() + b'\n{"error":{"code":14,"message":"gone"}}\n', Verdict.AGAIN),
        (200, b'{"error":{"code":9,"message":"no definition"}}', Verdict.REFUSED),
        (413, b"too large", Verdict.REFUSED),
        (404, b"no such page", Verdict.AGAIN),
        (502, b"<html>", Verdict.AGAIN),
    ],
)
def test_the_code_of_an_answer_decides(status: int, body: object, verdict: Verdict) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert DIALECT.verdict(status, raw) is verdict
