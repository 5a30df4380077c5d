"""The host of SpiceDB's engine answers as SpiceDB's own gateway does, and its faults happen."""

import contextlib
import gzip
import http.client
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.real.databases import Database, running_spicedb
from tests.waiting import wait_until

WRITE, DELETE, READ = (f"/v1/relationships/{name}" for name in ("write", "delete", "read"))
CHECK, WATCH = "/v1/permissions/check", "/v1/watch"
SCHEMA = """use expiration

caveat small(size int, max int) {
  size < max
}

definition user {}

definition group {
  relation member: user
}

definition document {
  relation viewer: user | user:* | group#member | user with small | user with expiration
  permission view = viewer
}
"""
FULLY = {"fullyConsistent": True}
Json = dict[str, Any]


def relationship(
    resource: str, subject: str, relation: str = "viewer", kind: str = "document"
) -> Json:
    return {
        "resource": {"objectType": kind, "objectId": resource},
        "relation": relation,
        "subject": {
            "object": {"objectType": "user", "objectId": subject},
            "optionalRelation": "",
        },
        "optionalCaveat": None,
        "optionalExpiresAt": None,
    }


def update(operation: str, one: Json) -> Json:
    return {"operation": f"OPERATION_{operation}", "relationship": one}


def write(database: Database, operation: str, *ones: Json, **more: Any) -> Any:
    return database.post(WRITE, {"updates": [update(operation, one) for one in ones], **more})


def read(database: Database, **filters: Any) -> list[Json]:
    asked = {"relationshipFilter": filters or {"resourceType": "document"}, "consistency": FULLY}
    return [one["relationship"] for one in database.lines(READ, asked)]


def check(database: Database, resource: str, subject: str, **more: Any) -> str:
    one = relationship(resource, subject)
    asked = {name: one[name] for name in ("resource", "subject")}
    answer = database.post(CHECK, {**asked, "permission": "view", "consistency": FULLY, **more})
    assert answer.status == 200, answer
    return str(answer.body["permissionship"]).removeprefix("PERMISSIONSHIP_")


@pytest.fixture
def documents(spicedb: Database) -> Database:
    """A SpiceDB that knows documents, and has none."""
    answer = spicedb.post("/v1/schema/write", {"schema": SCHEMA})
    assert answer.status == 200, answer
    return spicedb


def test_what_is_written_is_read_and_checked_until_it_is_deleted(documents: Database) -> None:
    anna, ben = relationship("plan", "anna"), relationship("plan", "ben")
    answer = write(documents, "CREATE", anna, ben)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.body["writtenAt"]["token"]
    assert read(documents) == [anna, ben]
    assert check(documents, "plan", "anna") == "HAS_PERMISSION"

    only_anna = {"subjectType": "user", "optionalSubjectId": "anna"}
    gone = {"resourceType": "document", "optionalSubjectFilter": only_anna}
    answer = documents.post(DELETE, {"relationshipFilter": gone})
    assert answer.body["deletionProgress"] == "DELETION_PROGRESS_COMPLETE"
    assert read(documents) == [ben]
    assert check(documents, "plan", "anna") == "NO_PERMISSION"


def test_a_create_of_what_exists_is_refused_and_a_touch_is_not(documents: Database) -> None:
    one = relationship("plan", "anna")
    assert write(documents, "CREATE", one).status == 200
    answer = write(documents, "CREATE", one)
    assert (answer.status, answer.body["code"], answer.body["details"]) == (409, 6, [])
    assert "could not CREATE relationship" in answer.body["message"]
    assert write(documents, "TOUCH", one).status == 200
    assert write(documents, "DELETE", one).status == 200
    assert write(documents, "DELETE", one).status == 200  # what is not there may be deleted


def test_preconditions_are_kept(documents: Database) -> None:
    none_yet = {
        "operation": "OPERATION_MUST_NOT_MATCH",
        "filter": {"resourceType": "document", "optionalResourceId": "plan"},
    }
    ones = relationship("plan", "anna"), relationship("plan", "ben")
    assert write(documents, "TOUCH", ones[0], optionalPreconditions=[none_yet]).status == 200
    answer = write(documents, "TOUCH", ones[1], optionalPreconditions=[none_yet])
    assert (answer.status, answer.body["code"]) == (400, 9)
    assert read(documents) == [ones[0]]


def test_a_caveat_and_an_expiration_come_back_as_written(documents: Database) -> None:
    caveat = {"caveatName": "small", "context": {"max": 3}}
    small = relationship("plan", "anna") | {"optionalCaveat": caveat}
    brief = relationship("plan", "ben") | {"optionalExpiresAt": "2099-01-02T03:04:05Z"}
    past = relationship("plan", "carl") | {"optionalExpiresAt": "2001-01-02T03:04:05Z"}
    assert write(documents, "TOUCH", small, brief, past).status == 200
    assert read(documents) == [small, brief]
    assert check(documents, "plan", "anna") == "CONDITIONAL_PERMISSION"
    assert check(documents, "plan", "anna", context={"size": 2}) == "HAS_PERMISSION"
    assert check(documents, "plan", "anna", context={"size": 9}) == "NO_PERMISSION"
    assert check(documents, "plan", "ben") == "HAS_PERMISSION"
    assert check(documents, "plan", "carl") == "NO_PERMISSION"


@pytest.mark.parametrize(
    ("one", "status", "code", "said"),
    [
        (relationship("plan", "anna", kind="gone"), 400, 9, "object definition `gone` not found"),
        (relationship("plan", "anna", "gone"), 400, 9, "relation/permission `gone` not found"),
        (relationship("plan", "anna", "view"), 400, 3, "cannot write a relationship to permission"),
        (relationship("", "anna"), 400, 3, "does not match regex"),
    ],
    ids=["unknown type", "unknown relation", "permission", "no id"],
)
def test_what_the_schema_does_not_know_is_refused(
    documents: Database, one: Json, status: int, code: int, said: str
) -> None:
    answer = write(documents, "TOUCH", one)
    assert (answer.status, answer.body["code"]) == (status, code)
    assert said in answer.body["message"]


def test_at_most_a_thousand_updates_are_taken_at_once(documents: Database) -> None:
    ones = [relationship(f"plan{number}", "anna") for number in range(1_001)]
    answer = write(documents, "TOUCH", *ones)
    assert (answer.status, answer.body["code"]) == (400, 3)
    assert "too many updates (1001)" in answer.body["message"]
    assert write(documents, "TOUCH", *ones[:1_000]).status == 200
    assert len(read(documents)) == 1_000


def test_a_schema_is_refused_when_it_is_wrong_or_would_orphan_relationships(
    documents: Database,
) -> None:
    before = documents.post("/v1/schema/read").body["schemaText"]
    write(documents, "TOUCH", relationship("plan", "anna"))
    wrong = documents.post("/v1/schema/write", {"schema": "definition {"})
    assert (wrong.status, wrong.body["code"]) == (400, 3)
    orphaning = documents.post("/v1/schema/write", {"schema": "definition user {}"})
    assert (orphaning.status, orphaning.body["code"]) == (400, 3)
    assert "at least one relationship exists" in orphaning.body["message"]
    assert documents.post("/v1/schema/read").body["schemaText"] == before


def test_an_empty_database_has_no_schema(spicedb: Database) -> None:
    answer = spicedb.post("/v1/schema/read")
    assert (answer.status, answer.body["code"]) == (404, 5)


def test_errors_of_the_gateway_itself(documents: Database) -> None:
    missing = documents.post("/v1/nothing")
    assert (missing.status, missing.body) == (
        404,
        {"code": 5, "message": "Not Found", "details": []},
    )
    other_method = documents.get(WRITE)
    assert (other_method.status, other_method.body["message"]) == (501, "Method Not Allowed")
    for body in (b"{", b'{"updates":7}', b"\xff"):
        assert documents.post(WRITE, body).body["code"] == 3
    packed = documents.post("/v1/schema/read", gzip.compress(b"{}"), {"Content-Encoding": "gzip"})
    assert (packed.status, packed.body["code"]) == (400, 3)  # the gateway reads no compressed body
    assert documents.post("/v1/schema/read", b"").status == 200
    assert documents.post("/v1/schema/read", {"unknown": 1}).status == 200


def test_an_error_of_a_stream_is_a_line_with_its_details(documents: Database) -> None:
    with documents.opened(READ, {"relationshipFilter": {}}) as response:
        assert response.status == 400
        assert response.headers["Transfer-Encoding"] == "chunked"
    (line,) = documents.raw_lines(READ, {"relationshipFilter": {}})
    assert line["error"]["code"] == 3
    assert line["error"]["details"][0]["reason"] == "ERROR_REASON_INVALID_FILTER"


def test_pages_of_a_read_follow_a_cursor(documents: Database) -> None:
    ones = [relationship(f"plan{number}", "anna") for number in range(5)]
    write(documents, "TOUCH", *ones)
    asked: Json = {
        "relationshipFilter": {"resourceType": "document"},
        "consistency": FULLY,
        "optionalLimit": 2,
    }
    found: list[Json] = []
    while page := documents.lines(READ, asked):
        found += [one["relationship"] for one in page]
        asked["optionalCursor"] = page[-1]["afterResultCursor"]
    assert found == ones


def test_who_may_and_what_they_may(documents: Database) -> None:
    write(documents, "TOUCH", relationship("plan", "anna"), relationship("map", "anna"))
    anna = {"object": {"objectType": "user", "objectId": "anna"}}
    plan = {"objectType": "document", "objectId": "plan"}
    asked = {"permission": "view", "consistency": FULLY}
    resources = documents.lines(
        "/v1/permissions/resources", {**asked, "resourceObjectType": "document", "subject": anna}
    )
    assert {one["resourceObjectId"] for one in resources} == {"plan", "map"}
    subjects = documents.lines(
        "/v1/permissions/subjects", {**asked, "resource": plan, "subjectObjectType": "user"}
    )
    assert [one["subject"]["subjectObjectId"] for one in subjects] == ["anna"]
    items = [{"resource": plan, "permission": "view", "subject": anna}]
    pairs = documents.post("/v1/permissions/checkbulk", {"items": items, "consistency": FULLY})
    assert pairs.body["pairs"][0]["item"]["permissionship"] == "PERMISSIONSHIP_HAS_PERMISSION"
    tree = documents.post("/v1/permissions/expand", {**asked, "resource": plan})
    assert tree.body["treeRoot"]["expandedObject"] == plan


@pytest.mark.parametrize(
    "path", ["/v1/relationships/importbulk", "/v1/schema/reflectschema", "/v1/schema/diffschema"]
)
def test_what_the_engines_library_lacks_is_501(documents: Database, path: str) -> None:
    answer = documents.post(path)
    assert (answer.status, answer.body["code"]) == (501, 12)


def test_a_watch_tells_changes_as_they_come(documents: Database) -> None:
    token = write(documents, "TOUCH", relationship("plan", "anna")).body["writtenAt"]
    write(documents, "DELETE", relationship("plan", "anna"))
    with documents.opened(WATCH, {"optionalStartCursor": token}) as response:
        line = response.readline()
    assert b"OPERATION_DELETE" in line
    assert b"plan" in line


def test_a_token_of_another_datastore_asks_for_full_consistency(documents: Database) -> None:
    with running_spicedb() as other:
        token = other.post("/v1/schema/write", {"schema": SCHEMA}).body["writtenAt"]
    write(documents, "TOUCH", relationship("plan", "anna"))
    foreign = {"atLeastAsFresh": token}
    assert check(documents, "plan", "anna", consistency=foreign) == "HAS_PERMISSION"


def test_the_preshared_key_is_asked_for(spicedb_is_here: None) -> None:
    with running_spicedb(token="secret") as database:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = database.post("/v1/schema/read", headers=headers)
            assert (answer.status, answer.body["code"]) == (401, 16)
        right = database.post("/v1/schema/read", headers={"Authorization": "Bearer secret"})
        assert right.status == 404  # there is no schema yet


@pytest.mark.parametrize(("kind", "is_written"), [("drop_before", False), ("drop_after", True)])
def test_a_dropped_write_leaves_its_caller_without_an_answer(
    documents: Database, kind: str, is_written: bool
) -> None:
    documents.order(kind, WRITE)
    one = relationship("plan", "anna")
    with pytest.raises((OSError, http.client.HTTPException)):
        write(documents, "TOUCH", one)
    assert read(documents) == [one] * is_written
    assert write(documents, "TOUCH", one).status == 200  # an order holds for one call
    assert documents.calls[WRITE] == 2


@contextlib.contextmanager
def writing_aside(database: Database, one: Json) -> Iterator[list[int]]:
    """A write in a thread; the list holds the status of its answer once there is one."""
    answered: list[int] = []
    writer = threading.Thread(target=lambda: answered.append(write(database, "TOUCH", one).status))
    writer.start()
    yield answered
    writer.join(timeout=10)


@pytest.mark.parametrize(("kind", "is_written"), [("hold_before", False), ("hold_after", True)])
def test_a_held_write_waits_for_its_release(
    documents: Database, kind: str, is_written: bool
) -> None:
    documents.order(kind, WRITE)
    one = relationship("plan", "anna")
    with writing_aside(documents, one) as answered:
        documents.wait_until_held()
        assert read(documents) == [one] * is_written
        assert answered == []
        documents.release()
        wait_until(lambda: answered == [200], "the held write is answered")
    assert read(documents) == [one]


def test_a_database_can_be_unavailable_for_some_calls(documents: Database) -> None:
    documents.order("unavailable", WRITE, count=2)
    one = relationship("plan", "anna")
    assert [write(documents, "TOUCH", one).status for _ in range(3)] == [503, 503, 200]
    documents.order("delay", WRITE, delay_ms=1)
    assert write(documents, "TOUCH", one).status == 200


@pytest.mark.parametrize(
    "order", [{}, {"kind": "explode", "path": WRITE}, {"kind": "delay", "path": WRITE, "count": 0}]
)
def test_an_order_that_says_nothing_is_refused(documents: Database, order: Json) -> None:
    assert documents.post("/-/faults", order).status == 400


def test_writes_at_the_same_time_are_all_kept(documents: Database) -> None:
    ones = [relationship(f"plan{number}", "anna") for number in range(40)]
    with contextlib.ExitStack() as writers:
        answers = [writers.enter_context(writing_aside(documents, one)) for one in ones]
    assert answers == [[200]] * 40
    assert len(read(documents)) == 40
