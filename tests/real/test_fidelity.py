"""What SpiceDB answers directly it answers through a sidecar: a recorded set of every kind."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.test_proxy_fidelity import end_to_end
from tests.raw_http import Client, Message, ask, connected, read_chunk, request
from tests.real.proxied import SCHEMA, Front, fronts, update_of, wait_until_told
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("spicedb_is_here")

JSON = "Content-Type: application/json"
FULLY = {"fullyConsistent": True}
TOKEN = re.compile(rb'("token":\s*")[^"]+"')

WRITE, DELETE, READ = (f"/v1/relationships/{name}" for name in ("write", "delete", "read"))
CHECK, BULK = "/v1/permissions/check", "/v1/permissions/checkbulk"


def post(path: str, body: object, *fields: str) -> bytes:
    packed = body if isinstance(body, bytes) else json.dumps(body, indent=2).encode()
    return request(f"POST {path}", JSON, *fields, body=packed)


def updates(*texts: str) -> dict[str, Any]:
    return {"updates": [update_of(text) for text in texts]}


def asked(permission: str = "view", **more: object) -> dict[str, Any]:
    return {
        "resource": {"objectType": "document", "objectId": "kept"},
        "permission": permission,
        "subject": {"object": {"objectType": "user", "objectId": "ann"}},
        **more,
    }


def of_kept(**more: object) -> dict[str, Any]:
    filter_ = {"resourceType": "document", "optionalResourceId": "kept"}
    return {"relationshipFilter": filter_, "consistency": FULLY, **more}


SCHEMA_WITH_A_FAULT = {"schema": "definition a { relation b: nothing }"}
RECORDED: dict[str, bytes] = {
    "a check": post(CHECK, asked(consistency=FULLY)),
    "a check of whatever is at hand": post(CHECK, asked(consistency={"minimizeLatency": True})),
    "a check without a consistency": post(CHECK, asked()),
    "a packed check": post(CHECK, gzip.compress(b"{}"), "Content-Encoding: gzip"),
    "a check of no such permission": post(CHECK, asked("nothing")),
    "a check of no such type": post(
        CHECK, asked() | {"resource": {"objectType": "no", "objectId": "1"}}
    ),
    "a check of nothing": post(CHECK, {}),
    "a check that is no json": post(CHECK, b"{"),
    "a check at a token that is none": post(
        CHECK, asked(consistency={"atLeastAsFresh": {"token": ""}})
    ),
    "checks in bulk": post(BULK, {"items": [asked(), asked("nothing")], "consistency": FULLY}),
    "an expansion": post(
        "/v1/permissions/expand",
        {"resource": asked()["resource"], "permission": "view", "consistency": FULLY},
    ),
    "resources": post(
        "/v1/permissions/resources",
        {
            "resourceObjectType": "document",
            "permission": "view",
            "subject": asked()["subject"],
            "consistency": FULLY,
        },
    ),
    "subjects": post(
        "/v1/permissions/subjects",
        {
            "resource": asked()["resource"],
            "permission": "view",
            "subjectObjectType": "user",
            "consistency": FULLY,
        },
    ),
    "relationships": post(READ, of_kept()),
    "relationships of no such type": post(READ, {"relationshipFilter": {"resourceType": "no"}}),
    "a limit": post(READ, of_kept(optionalLimit=1)),
    "the schema": post("/v1/schema/read", {}),
    "a method that is not taken": request(f"GET {CHECK}"),
    "a write": post(WRITE, updates("+document:a viewer user:ann", "-document:b viewer user:bob")),
    "a packed write": post(
        WRITE,
        gzip.compress(json.dumps(updates("+document:c viewer user:ann")).encode(), mtime=0),
        "Content-Encoding: gzip",
    ),
    "what is there already": post(WRITE, updates("!document:kept viewer user:ann")),
    "a write of no such type": post(WRITE, updates("+no:a viewer user:ann")),
    "a write of no such relation": post(WRITE, updates("+document:a nothing user:ann")),
    "a write of a subject that may not be": post(WRITE, updates("+document:a viewer document:b")),
    "the same tuple twice": post(
        WRITE, updates("+document:a viewer user:ann", "-document:a viewer user:ann")
    ),
    "a write of nothing": post(WRITE, {}),
    "a write that is no json": post(WRITE, b'{"updates": ['),
    "a precondition that does not hold": post(
        WRITE,
        updates("+document:a viewer user:ann")
        | {
            "optionalPreconditions": [
                {
                    "operation": "OPERATION_MUST_NOT_MATCH",
                    "filter": of_kept()["relationshipFilter"],
                }
            ]
        },
    ),
    "a deletion of what is not there": post(
        DELETE, {"relationshipFilter": {"resourceType": "document", "optionalResourceId": "no"}}
    ),
    "a deletion of no such type": post(DELETE, {"relationshipFilter": {"resourceType": "no"}}),
    "a deletion of everything": post(DELETE, {}),
    "a schema with a fault": post("/v1/schema/write", SCHEMA_WITH_A_FAULT),
    "a schema that is no text": post("/v1/schema/write", {"schema": 1}),
    "the schema again": post("/v1/schema/write", {"schema": SCHEMA}),
}


@pytest.fixture(scope="module")
def pair(spicedb_is_here: None) -> Iterator[tuple[Front, Front]]:
    with fronts(2) as (world, (here, there)):
        world.start()
        here.write_schema(SCHEMA)
        here.write("+document:kept viewer user:ann", "+document:kept editor user:bob")
        schema = there.database.post
        wait_until(lambda: schema("/v1/schema/read").status == 200, "the schema has arrived")
        wait_until_told(here, there)
        yield here, there


@pytest.mark.parametrize("name", RECORDED)
def test_the_answer_is_that_of_the_database(pair: tuple[Front, Front], name: str) -> None:
    here, _ = pair
    raw = RECORDED[name]
    if name == "a method that is not taken":
        refused = ask(here.node.app_port, raw)
        assert json.loads(refused.body)["error"] == "not_replicated"
        return
    passed, direct = ask(here.node.app_port, raw), ask(here.database.port, raw)
    assert passed.line == direct.line
    assert end_to_end(without_date(passed)) == end_to_end(without_date(direct))
    assert lines_of(passed) == lines_of(direct)
    assert passed.one("X-Served-By") == f"{here.node.region}/{here.node.name}".encode()


def lines_of(message: Message) -> list[bytes]:
    """Without tokens, which differ; SpiceDB streams subjects in any order."""
    return sorted(TOKEN.sub(rb'\1"', message.body).splitlines(keepends=True))


def without_date(message: Message) -> Message:
    kept = [(name, value) for name, value in message.headers if name.lower() != b"date"]
    return Message(message.line, kept)


def test_a_token_of_this_database_passes_and_one_of_another_is_understood(
    pair: tuple[Front, Front],
) -> None:
    here, there = pair
    written = here.write("+document:token viewer user:ann")
    zed_token = written.body["writtenAt"]
    exactly = asked(consistency={"atExactSnapshot": zed_token}) | {
        "resource": {"objectType": "document", "objectId": "token"}
    }
    # As of just this moment: what is deleted afterwards is still there, with the token as it is.
    here.write("-document:token viewer user:ann")
    assert permission(ask(here.node.app_port, post(CHECK, exactly))) == "HAS_PERMISSION"
    assert permission(ask(here.database.port, post(CHECK, exactly))) == "HAS_PERMISSION"

    written = here.write("+document:token viewer user:bob")
    token = f"X-Revision-Token: {written.headers['X-Revision-Token']}"
    at_least = asked(consistency={"atLeastAsFresh": written.body["writtenAt"]}) | {
        "resource": {"objectType": "document", "objectId": "token"},
        "subject": {"object": {"objectType": "user", "objectId": "bob"}},
    }
    found = ask(there.node.app_port, post(CHECK, at_least, token))
    assert permission(found) == "HAS_PERMISSION", found


def permission(answer: Message) -> str:
    assert answer.status == 200, answer
    return str(json.loads(answer.body)["permissionship"]).removeprefix("PERMISSIONSHIP_")


def test_a_watch_streams(pair: tuple[Front, Front]) -> None:
    here, there = pair
    found: list[bytes] = []

    def watch(client: Client) -> None:
        # The head comes with the first change.
        assert client.head().status == 200
        while b"document:watched" not in b"".join(found).replace(b'"', b""):
            found.append(shortened(read_chunk(client.source)))

    with connected(here.node.app_port) as client:
        client.send(post("/v1/watch", {"optionalObjectTypes": ["document"]}))
        watcher = threading.Thread(target=watch, args=(client,), daemon=True)
        watcher.start()
        # Until the database has begun to watch, changes may pass it by.
        numbers = iter(range(10_000))

        def is_told() -> bool:
            there.write(f"+document:watched viewer user:u{next(numbers)}")
            return not watcher.is_alive()

        wait_until(is_told, "a change of the other region is told")
    assert found


def shortened(line: bytes) -> bytes:
    """`document:watched` for the reference to it."""
    objects = re.findall(rb'"objectType":"(\w+)","objectId":"(\w+)"', line)
    return b" ".join(b":".join(each) for each in objects)
