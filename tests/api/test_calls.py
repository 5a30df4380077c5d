"""What the calls do, as an application sees it."""

import asyncio
import gzip
import json

import pytest

from sidecar.core.token import Token
from tests.api.conftest import Api, numbered, text_of, tuple_of


async def test_a_written_relationship_is_listed_and_decides(api: Api) -> None:
    written = await api.write("doc:1 viewer user:alice")
    assert written["relationships_written"] == 1
    assert written["revision"].isdigit()
    assert await api.listed() == ["doc:1 viewer user:alice"]
    assert await api.decides("doc:1", "viewer", "user:alice")
    assert not await api.decides("doc:1", "editor", "user:alice")


async def test_the_same_relationship_twice_in_one_write_counts_once(api: Api) -> None:
    written = await api.write("doc:1 viewer user:alice", "doc:1 viewer user:alice")
    assert written["relationships_written"] == 1
    again = await api.write("doc:1 viewer user:alice")
    assert again["relationships_written"] == 1, "what is there already is a write like any other"
    assert int(again["revision"]) > int(written["revision"])


async def test_deletes_count_what_was_visible(api: Api) -> None:
    await api.write("doc:1 viewer user:alice")
    deleted = await api.delete(
        "doc:1 viewer user:alice", "doc:1 viewer user:alice", "doc:2 viewer user:bob"
    )
    assert deleted["relationships_deleted"] == 1
    assert await api.listed() == []


async def test_an_update_is_one_transaction_with_both_counts(api: Api) -> None:
    await api.write("doc:1 viewer user:alice")
    updated = await api.update(
        "-doc:1 viewer user:alice", "-doc:9 viewer user:bob", "+doc:2 viewer user:alice"
    )
    assert updated["relationships_written"] == 1
    assert updated["relationships_deleted"] == 1
    assert await api.listed() == ["doc:2 viewer user:alice"]


async def test_conditions_and_expirations_come_back_as_they_were_meant(api: Api) -> None:
    condition = {"b": [1, 2.5, "ü\u2028\n"], "a": {"nested": True, "none": None}}
    one = {
        **tuple_of("doc:1 viewer user:alice"),
        "condition": condition,
        "expires_at": "2999-01-31T13:00:00.25+01:00",
    }
    assert (await api.post("relationships/write", {"relationships": [one]})).status == 200
    (listed,) = (await api.post("relationships/list", {})).body["relationships"]
    assert listed["condition"] == condition
    assert listed["expires_at"] == "2999-01-31T12:00:00.250000Z"
    # What was listed can be written and deleted as it is.
    assert (await api.post("relationships/write", {"relationships": [listed]})).status == 200
    deleted = await api.post("relationships/delete", {"relationships": [listed]})
    assert deleted.body["relationships_deleted"] == 1


async def test_what_has_expired_is_neither_listed_nor_granted(api: Api) -> None:
    gone = {**tuple_of("doc:1 viewer user:alice"), "expires_at": "2001-01-01T00:00:00Z"}
    written = await api.post("relationships/write", {"relationships": [gone]})
    assert written.body["relationships_written"] == 1
    assert await api.listed() == []
    assert not await api.decides("doc:1", "viewer", "user:alice")
    assert (await api.delete("doc:1 viewer user:alice"))["relationships_deleted"] == 0


async def test_a_conditional_relationship_grants_nothing_to_a_store_without_an_engine(
    api: Api,
) -> None:
    one = {**tuple_of("doc:1 viewer user:alice"), "condition": {"name": "in_office"}}
    await api.post("relationships/write", {"relationships": [one]})
    assert await api.listed() == ["doc:1 viewer user:alice"]
    assert not await api.decides("doc:1", "viewer", "user:alice")


async def test_evaluation_asks_for_exactly_one_tuple(api: Api) -> None:
    await api.write("doc:1 viewer group:eng#member", "doc:2 viewer user:*")
    assert await api.decides("doc:1", "viewer", "group:eng#member")
    assert not await api.decides("doc:1", "viewer", "group:eng")
    assert await api.decides("doc:2", "viewer", "user:*")
    assert not await api.decides("doc:2", "viewer", "user:alice"), "the wildcard is an id"


async def test_evaluation_takes_the_optional_parts_of_the_standard(api: Api) -> None:
    await api.write("doc:1 viewer user:alice")
    body = {
        "subject": {"type": "user", "id": "alice", "properties": {"department": "sales"}},
        "action": {"name": "viewer", "properties": {"method": "GET"}},
        "resource": {"type": "doc", "id": "1", "properties": {"owner": {"name": "bob"}}},
        "context": {"time": "1985-10-26T01:22-07:00"},
    }
    assert (await api.post("evaluation", body)).body == {"decision": True}


async def test_tenants_do_not_see_each_other(api: Api) -> None:
    await api.write("doc:1 viewer user:alice", x_tenant="acme")
    assert await api.listed() == []
    assert await api.listed("acme") == ["doc:1 viewer user:alice"]
    assert not await api.decides("doc:1", "viewer", "user:alice")
    assert await api.decides("doc:1", "viewer", "user:alice", x_tenant="acme")
    await api.write("doc:2 viewer user:alice")
    tenants = await api.send("GET", "tenants")
    assert tenants.body == {"tenants": ["acme", "default"]}


async def test_listing_by_every_field(api: Api) -> None:
    tuples = [
        f"{kind}:{number} {relation} user:{user}"
        for kind in ("doc", "folder")
        for number in range(3)
        for relation in ("viewer", "editor")
        for user in ("alice", "bob")
    ]
    await api.write(*tuples)
    assert await api.listed() == sorted(tuples)
    assert await api.listed(limit=5) == sorted(tuples)
    for wanted, part in [
        ({"resource": "doc:1"}, "doc:1 "),
        ({"resource_type": "folder"}, "folder:"),
        ({"relation": "viewer"}, " viewer "),
        ({"subject": "user:bob"}, " user:bob"),
        ({"resource_type": "doc", "subject": "user:bob", "relation": "editor"}, " editor user:bob"),
        ({"resource": "doc:1", "resource_type": "doc"}, "doc:1 "),
    ]:
        expected = sorted(
            one
            for one in tuples
            if part in one and (wanted.get("resource_type") != "doc" or one.startswith("doc:"))
        )
        assert await api.listed(limit=2, **wanted) == expected


async def test_a_listing_of_many_pages_is_complete(api: Api) -> None:
    tuples = numbered(12_000)
    for start in range(0, len(tuples), 5000):
        await api.write(*tuples[start : start + 5000])
    assert await api.listed(limit=5000) == sorted(tuples)
    assert await api.listed(limit=700, subject="user:alice") == sorted(tuples)
    assert await api.listed(limit=999, relation="viewer") == sorted(tuples)


async def test_the_revision_of_a_listing_guards_a_write(api: Api) -> None:
    await api.write("doc:1 viewer user:alice")
    listing = (await api.post("relationships/list", {"resource": "doc:1"})).body
    body = {
        "relationships": [tuple_of("doc:1 viewer user:alice")],
        "expected_revision": listing["revision"],
    }
    assert (await api.post("relationships/delete", body)).status == 200
    refused = await api.post("relationships/write", body)
    assert (refused.status, refused.error) == (409, "revision_mismatch")
    update = {
        "updates": [{"operation": "insert", "relationship": body["relationships"][0]}],
        "expected_revision": listing["revision"],
    }
    assert (await api.post("relationships/update", update)).error == "revision_mismatch"
    assert await api.listed() == []


async def test_deleting_by_filter(api: Api) -> None:
    await api.write("doc:1 viewer user:alice", "doc:1 viewer user:bob", "doc:2 viewer user:bob")
    deleted = await api.post("relationships/delete", {"filter": {"resource": "doc:1"}})
    assert deleted.body["relationships_deleted"] == 2
    assert await api.listed() == ["doc:2 viewer user:bob"]


async def test_a_filter_that_matches_nothing_deletes_nothing(api: Api) -> None:
    written = await api.write("doc:1 viewer user:alice")
    answer = await api.post("relationships/delete", {"filter": {"resource": "doc:2"}})
    assert answer.status == 200
    assert answer.body["relationships_deleted"] == 0
    assert answer.body["revision"] == written["revision"], "where this node is; nothing was written"
    assert await api.decides("doc:1", "viewer", "user:alice", x_revision_token=answer.body["token"])


async def test_deleting_more_than_a_request_may_needs_a_limit(api: Api) -> None:
    await api.write(*numbered(5000))
    await api.write("doc:one-more viewer user:alice")
    refused = await api.post("relationships/delete", {"filter": {"subject": "user:alice"}})
    assert (refused.status, refused.error) == (413, "too_many_relationships")
    assert "limit" in refused.message
    body = {"filter": {"subject": "user:alice"}, "limit": 3000}
    counts = [
        (await api.post("relationships/delete", body)).body["relationships_deleted"]
        for _ in range(3)
    ]
    assert counts == [3000, 2001, 0]
    assert await api.listed() == []


async def test_exactly_the_most_that_one_request_may_delete(api: Api) -> None:
    await api.write(*numbered(5000))
    answer = await api.post("relationships/delete", {"filter": {"resource_type": "doc"}})
    assert answer.body["relationships_deleted"] == 5000


async def test_a_repeat_with_the_same_key_has_no_second_effect(api: Api) -> None:
    first = await api.post(
        "relationships/write",
        {"relationships": [tuple_of("doc:1 viewer user:alice")]},
        idempotency_key="k 1",
    )
    await api.delete("doc:1 viewer user:alice")
    again = await api.post(
        "relationships/write",
        {"relationships": [tuple_of("doc:1 viewer user:alice")]},
        idempotency_key="k 1",
    )
    assert again.body == first.body
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert await api.listed() == [], "the repeat must not bring the relationship back"


async def test_a_key_belongs_to_one_request_of_one_tenant(api: Api) -> None:
    await api.write("doc:1 viewer user:alice", idempotency_key="k")
    body = {"relationships": [tuple_of("doc:2 viewer user:alice")]}
    other_body = await api.post("relationships/write", body, idempotency_key="k")
    assert (other_body.status, other_body.error) == (422, "idempotency_key_reused")
    other_call = await api.post(
        "relationships/delete",
        {"relationships": [tuple_of("doc:1 viewer user:alice")]},
        idempotency_key="k",
    )
    assert other_call.status == 422
    elsewhere = await api.post("relationships/write", body, idempotency_key="k", x_tenant="acme")
    assert elsewhere.status == 200


async def test_repeating_a_delete_by_filter_deletes_only_once(api: Api) -> None:
    body = {"filter": {"subject": "user:alice"}}
    await api.write("doc:1 viewer user:alice")
    first = await api.post("relationships/delete", body, idempotency_key="a")
    assert first.body["relationships_deleted"] == 1
    nothing = await api.post("relationships/delete", body, idempotency_key="b")
    assert nothing.body["relationships_deleted"] == 0
    await api.write("doc:2 viewer user:alice")
    for key, answer in (("a", first), ("b", nothing)):
        repeat = await api.post("relationships/delete", body, idempotency_key=key)
        assert repeat.body == answer.body
        assert repeat.headers["Idempotency-Replayed"] == "true"
    assert await api.listed() == ["doc:2 viewer user:alice"]


async def test_reads_with_the_token_of_a_write_see_it(api: Api) -> None:
    answer = await api.post(
        "relationships/write", {"relationships": [tuple_of("doc:1 viewer user:alice")]}
    )
    token = answer.body["token"]
    assert answer.headers["X-Revision-Token"] == token
    assert await api.decides("doc:1", "viewer", "user:alice", x_revision_token=token)
    listing = await api.post("relationships/list", {}, x_revision_token=token)
    assert [text_of(one) for one in listing.body["relationships"]] == ["doc:1 viewer user:alice"]
    assert listing.headers["X-Revision-Token"] == listing.body["token"]


async def test_a_token_of_writes_that_have_not_arrived_is_waited_for_and_then_refused(
    api: Api,
) -> None:
    ahead = Token("node2", 5, {"node2.abc": 5}).encode()
    began = asyncio.get_running_loop().time()
    refused = await api.post(
        "relationships/list", {}, x_revision_token=ahead, x_consistency_timeout_ms="150"
    )
    assert (refused.status, refused.error) == (409, "token_not_reached")
    assert 0.14 < asyncio.get_running_loop().time() - began < 2
    at_once = await api.post(
        "relationships/list", {}, x_revision_token=ahead, x_consistency_timeout_ms="0"
    )
    assert at_once.status == 409


async def test_a_watch_with_a_token_begins_behind_what_it_names(api: Api) -> None:
    written = await api.write("doc:1 viewer user:alice")
    async with api.watch(x_revision_token=written["token"]) as events:
        await api.write("doc:2 viewer user:alice")
        (change,) = await events.changes(1)
    assert change.text == "+doc:2 viewer user:alice"
    ahead = Token("node2", 5, {"node2.abc": 5}).encode()
    answer = await api.post("watch", {}, x_revision_token=ahead, x_consistency_timeout_ms="0")
    assert (answer.status, answer.error) == (409, "token_not_reached")


@pytest.mark.parametrize("concern", ["local", "majority", "all"])
async def test_in_a_single_region_every_write_concern_is_met_at_once(
    api: Api, concern: str
) -> None:
    body = {"relationships": [tuple_of("doc:1 viewer user:alice")]}
    for key in ("first", "first", "second"):
        answer = await api.post(
            "relationships/write",
            body,
            x_write_concern=concern,
            x_write_concern_timeout_ms="0",
            idempotency_key=key,
        )
        assert (answer.status, answer.body["relationships_written"]) == (200, 1)
    assert await api.listed() == ["doc:1 viewer user:alice"]


async def test_a_compressed_body_is_taken(api: Api) -> None:
    raw = json.dumps({"relationships": [tuple_of("doc:1 viewer user:alice")]}).encode()
    answer = await api.send(
        "POST", "relationships/write", gzip.compress(raw), {"Content-Encoding": "gzip"}
    )
    assert answer.status == 200


async def test_the_largest_legal_transaction_arrives(api: Api) -> None:
    """5,000 changes and 4 MiB to the byte, also when the client asks first."""
    updates = [
        {
            "operation": "insert",
            "relationship": {
                **tuple_of(f"doc:{number} viewer user:{'x' * 600}"),
                "condition": {"text": "y" * 100},
            },
        }
        for number in range(5000)
    ]
    raw = json.dumps({"updates": updates}, separators=(",", ":")).encode()
    raw += b" " * (4 * 1024 * 1024 - len(raw))
    assert len(raw) == 4 * 1024 * 1024
    for headers in ({}, {"Expect": "100-continue"}):
        answer = await api.send("POST", "relationships/update", raw, headers)
        assert answer.status == 200, answer.body
        assert answer.body["relationships_written"] == 5000
    assert len(await api.listed(limit=5000)) == 5000


async def test_concurrent_single_writes_all_count(api: Api) -> None:
    answers = await asyncio.gather(*(api.write(one) for one in numbered(300)))
    assert len({answer["revision"] for answer in answers}) == 300
    assert len(await api.listed()) == 300


async def test_health_in_both_moods(api: Api) -> None:
    healthy = await api.send("GET", "/health")
    assert healthy.status == 200
    assert healthy.body == {
        "status": "healthy",
        "node": "node1",
        "region": "us-west-1",
        "version": "test",
    }
    api.health["reasons"] = ["Redis does not answer"]
    unhealthy = await api.send("GET", "/health")
    assert unhealthy.status == 503
    assert unhealthy.body["status"] == "unhealthy"
    assert unhealthy.message == "Redis does not answer"
    assert unhealthy.headers["Retry-After"] == "1"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "GET"])
async def test_a_path_says_which_method_it_takes(api: Api, method: str) -> None:
    answer = await api.send(method, "relationships/write")
    assert (answer.status, answer.error) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"
