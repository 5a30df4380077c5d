"""What lines of an import become, and lines of an export are."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.relationship import format_expires_at
from sidecar.ndjson import (
    BATCH_RELATIONSHIPS,
    MAX_RELATIONSHIPS,
    MAX_REQUEST_BYTES,
    UPDATE_PATH,
    WRITE_PATH,
    BadLine,
    Request,
    export_line,
    requests,
    sort_key,
)

HISTORY = Path(__file__).parents[1] / "data" / "org-history.ndjson.gz"


def made(*lines: Any, tenant: str = "default") -> list[Request]:
    """The requests of lines given as text or as what JSON encodes."""
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return list(requests(enumerate(texts, 1), tenant))


def relationship(number: int, **more: Any) -> dict[str, Any]:
    return {"resource": f"doc:{number}", "relation": "viewer", "subject": "user:a", **more}


def body(request: Request) -> Any:
    return json.loads(request.body)


def complaint(*lines: Any) -> BadLine:
    with pytest.raises(BadLine) as refusal:
        made(*lines)
    assert "\n" not in refusal.value.message
    return refusal.value


def test_consecutive_relationships_share_a_write() -> None:
    (request,) = made(relationship(1), relationship(2), b"  \n", relationship(3))
    assert (request.path, request.tenant) == (WRITE_PATH, "default")
    assert body(request) == {"relationships": [relationship(n) for n in (1, 2, 3)]}
    assert request.lines == (1, 2, 4)


def test_a_write_carries_no_more_than_its_limit() -> None:
    sizes = [r.inserts for r in made(*(relationship(n) for n in range(BATCH_RELATIONSHIPS + 1)))]
    assert sizes == [BATCH_RELATIONSHIPS, 1]


def test_a_write_stays_below_the_limit_of_bytes() -> None:
    lines = [relationship(n, condition={"text": "x" * 32_000}) for n in range(200)]
    made_requests = made(*lines)
    assert len(made_requests) > 1
    assert all(len(request.body) <= MAX_REQUEST_BYTES for request in made_requests)
    assert [line for r in made_requests for line in r.lines] == list(range(1, 201))


def test_a_change_of_tenant_begins_a_new_write() -> None:
    made_requests = made(
        relationship(1), relationship(2, tenant="acme"), relationship(3, tenant="default")
    )
    assert [request.tenant for request in made_requests] == ["default", "acme", "default"]
    assert "tenant" not in body(made_requests[1])["relationships"][0]
    assert [request.tenant for request in made(relationship(1), tenant="mine")] == ["mine"]


def test_the_same_relationship_twice_goes_in_order() -> None:
    first, second = made(relationship(1), relationship(1, condition={"only": "now"}))
    assert "condition" not in body(first)["relationships"][0]
    assert body(second)["relationships"][0]["condition"] == {"only": "now"}


def test_condition_and_expiry_are_carried_as_they_are() -> None:
    line = relationship(
        1, condition={"b": [1, 2.5, None], "a": "é"}, expires_at="2031-01-01T00:00:00Z"
    )
    assert body(made(line)[0]) == {"relationships": [line]}
    nothing = relationship(2, condition=None, expires_at=None, tenant=None)
    assert body(made(nothing)[0]) == {"relationships": [relationship(2)]}


def test_a_transaction_is_one_update_and_other_keys_are_ignored() -> None:
    line = {
        "timestamp": 1,
        "insert": [["doc:1", "viewer", "user:a"]],
        "delete": [["doc:2", "viewer", "team:b#member"]],
    }
    before, request, after = made(relationship(8), line, relationship(9))
    assert (before.path, after.path) == (WRITE_PATH, WRITE_PATH)
    assert request.path == UPDATE_PATH
    assert (request.inserts, request.deletes, request.parts) == (1, 1, 1)
    operations = [update["operation"] for update in body(request)["updates"]]
    assert operations == ["insert", "delete"]
    assert body(request)["updates"][1]["relationship"]["subject"] == "team:b#member"


def test_half_a_transaction_and_an_empty_one() -> None:
    assert made({"insert": [], "delete": []}, {"delete": None, "insert": []}) == []
    (request,) = made({"delete": [["doc:1", "viewer", "user:a"]]})
    assert (request.inserts, request.deletes) == (0, 1)


def test_only_a_transaction_above_the_limit_is_cut() -> None:
    triples = [[f"doc:{n}", "viewer", "user:a"] for n in range(MAX_RELATIONSHIPS + 1)]
    assert [r.inserts for r in made({"insert": triples[:-1]})] == [MAX_RELATIONSHIPS]
    first, second = made({"insert": triples[:-1], "delete": triples[-1:]})
    assert (first.part, first.parts, second.part, second.parts) == (1, 2, 2, 2)
    assert (first.inserts, second.deletes) == (MAX_RELATIONSHIPS, 1)


def test_a_transaction_of_long_names_is_cut_by_bytes() -> None:
    triples = [[f"doc:{n}{'x' * 1000}", "viewer", f"user:{'y' * 1000}"] for n in range(4_000)]
    parts = made({"insert": triples})
    assert len(parts) > 1
    assert all(len(part.body) <= MAX_REQUEST_BYTES for part in parts)
    assert sum(part.inserts for part in parts) == 4_000


def test_a_tuple_twice_in_one_transaction_is_refused() -> None:
    triple = ["doc:1", "viewer", "user:a"]
    for line in ({"insert": [triple, triple]}, {"insert": [triple], "delete": [triple]}):
        assert "doc:1 viewer user:a a second time" in complaint(line).message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "JSON object"),
        (b"\xff{}", "is not UTF-8"),
        (b'{"resource":"doc:\\ud800","relation":"r","subject":"u:a"}', "is not UTF-8"),
        (b'{"insert":' + b"[" * 100_000, "is not JSON"),
        (b'{"resource":"doc:1","relation":"r","subject":"u:a","condition":NaN}', "is not JSON"),
        (b'{"resource":"doc:1","relation":"r","subject":"u:a","condition":1e999}', "is not JSON"),
        ({}, "neither a relationship"),
        ({"resource": "doc:1"}, "lacks relation, subject"),
        ({"resource": "doc:1", "insert": []}, "both forms"),
        (relationship(1, conditon={}), "unknown key 'conditon'"),
        (relationship(1, tenant=5), "tenant should be text"),
        (relationship(1, tenant="a b"), "tenant"),
        (relationship(1, expires_at="tomorrow"), "RFC 3339"),
        ({**relationship(1), "resource": "doc"}, "no colon"),
        ({**relationship(1), "subject": None}, "subject should be text"),
        ({"insert": {}}, "insert should be a list"),
        ({"insert": [["doc:1", "viewer"]]}, "insert[0] should be [resource, relation, subject]"),
        ({"delete": [["doc:1", "viewer", 7]]}, "delete[0] should be text"),
        ({"insert": [["doc:1", "viewer", "user"]]}, "insert[0]: "),
    ],
)
def test_a_bad_line_is_named_with_its_fault(line: Any, words: str) -> None:
    bad = complaint(relationship(0), line)
    assert bad.line == 2
    assert words in bad.message


def test_what_came_before_a_bad_line_is_sent() -> None:
    made_requests = requests([(1, json.dumps(relationship(1)).encode()), (2, b"{")], "default")
    assert next(made_requests).lines == (1,)
    with pytest.raises(BadLine):
        next(made_requests)


def test_the_history_becomes_one_request_per_transaction() -> None:
    with gzip.open(HISTORY) as file:
        made_requests = list(requests(enumerate(file, 1), "default"))
    assert len(made_requests) == 2_769
    assert sum(request.inserts for request in made_requests) == 16_179
    assert sum(request.deletes for request in made_requests) == 9_211
    assert {request.parts for request in made_requests} == {1}


# Odd on purpose: quotes, a BOM, a right-to-left mark, beyond the basic plane, the wildcard.
ODD = "aZ0*é:/|\\\"'{}[],<>&%\ufeff\u200f\u4e2d\uffee\U0001f600"
ids = st.text(ODD, min_size=1, max_size=12)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(ODD, max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(ODD, max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
relationships = st.fixed_dictionaries(
    {
        "resource": ids.map("doc:{}".format),
        "relation": st.sampled_from(["viewer", "a/b", "Z-9"]),
        "subject": ids.map("user:{}".format) | ids.map("team:{}#member".format),
    },
    optional={
        "condition": st.dictionaries(st.text(ODD, max_size=4), json_values, max_size=3),
        "expires_at": st.integers(1, 2**52).map(format_expires_at),
    },
)


@given(st.lists(relationships, max_size=30), st.sampled_from(["default", "acme"]))
def test_an_exported_line_imports_as_the_same_relationship(
    listed: list[dict[str, Any]], tenant: str
) -> None:
    lines = [export_line(tenant, each) for each in listed]
    assert all(line.count(b"\n") == 1 for line in lines)
    made_requests = list(requests(enumerate(lines, 1), "default"))
    assert [each for request in made_requests for each in body(request)["relationships"]] == listed
    assert {request.tenant for request in made_requests} <= {tenant}


def test_an_export_is_sorted_by_bytes() -> None:
    names = ["doc:a", "doc:B", "doc:é", "doc:z", "doc:\U0001f600", "doc:\uffee"]
    ordered = sorted(names, key=lambda name: sort_key({**relationship(0), "resource": name}))
    assert ordered == ["doc:B", "doc:a", "doc:z", "doc:é", "doc:\uffee", "doc:\U0001f600"]
