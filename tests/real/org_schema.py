"""The history of a large organisation as SpiceDB takes it: a schema, and its writes in order.

    python -m tests.real.org_schema [PORT]: write it all into a SpiceDB (one of its own without
    PORT), ask a thousand questions, and say how long that takes

Roles are relations; permissions go up the team tree (`parent`), across groups and through arrows,
so that the answer to a check needs tuples of several types and of long ago.
"""

import contextlib
import gzip
import http.client
import json
import random
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.real.databases import running_spicedb
from tests.world import HOST, Triple

Json = dict[str, Any]
HISTORY = Path(__file__).parents[1] / "data" / "org-history.ndjson.gz"
MAX_UPDATES = 1_000  # SpiceDB refuses a call with more
WRITE = "/v1/relationships/write"

SCHEMA = """definition user {}

definition organization {
  relation admin: user
  relation member: user
  permission administer = admin
  permission belong = admin + member
}

definition team {
  relation member: user
  relation maintainer: user
  relation parent: team
  permission manage = maintainer + parent->manage
  permission belong = member + maintainer
  permission reach = belong + parent->reach
}

definition repository {
  relation read: team#member
  relation triage: team#member
  relation write: team#member
  relation maintain: team#member
  relation admin: team#member
  permission administer = admin
  permission keep = administer + maintain
  permission push = keep + write
  permission sort = push + triage
  permission view = sort + read
}
"""
PERMISSIONS = {
    "organization": ("administer", "belong"),
    "team": ("manage", "belong", "reach"),
    "repository": ("administer", "keep", "push", "sort", "view"),
}


class Transaction(NamedTuple):
    """One line of the history; it inserts nothing that is there and deletes nothing that is not."""

    timestamp: int
    insert: tuple[Triple, ...]
    delete: tuple[Triple, ...]


def transactions() -> Iterator[Transaction]:
    with gzip.open(HISTORY, "rt", encoding="utf-8") as lines:
        for line in lines:
            one = json.loads(line)
            inserted, deleted = (
                tuple((r, n, s) for r, n, s in one[name]) for name in ("insert", "delete")
            )
            yield Transaction(one["timestamp"], inserted, deleted)


def reference(name: str) -> Json:
    kind, _, rest = name.partition(":")
    return {"objectType": kind, "objectId": rest}


def relationship(triple: Triple) -> Json:
    resource, relation, subject = triple
    name, _, of_subject = subject.partition("#")
    return {
        "resource": reference(resource),
        "relation": relation,
        "subject": {"object": reference(name), "optionalRelation": of_subject},
    }


def triple_of(shown: Json) -> Triple:
    """A relationship of a read, as the history writes it."""
    resource, subject = shown["resource"], shown["subject"]
    relation = subject.get("optionalRelation")
    return (
        f"{resource['objectType']}:{resource['objectId']}",
        shown["relation"],
        f"{subject['object']['objectType']}:{subject['object']['objectId']}"
        + (f"#{relation}" if relation else ""),
    )


def write_requests(one: Transaction, insert: str = "TOUCH") -> Iterator[Json]:
    """The bodies that write a transaction: one, or several where SpiceDB's limit demands it."""
    updates = [
        {"operation": f"OPERATION_{operation}", "relationship": relationship(triple)}
        for operation, triples in (("DELETE", one.delete), (insert, one.insert))
        for triple in triples
    ]
    for start in range(0, len(updates), MAX_UPDATES):
        yield {"updates": updates[start : start + MAX_UPDATES]}


def final_state() -> set[Triple]:
    """What is there at the end of the history."""
    there: set[Triple] = set()
    for one in transactions():
        there -= set(one.delete)
        there |= set(one.insert)
    return there


class Question(NamedTuple):
    resource: str
    permission: str
    user: str

    def body(self, consistency: Json | None = None) -> Json:
        return {
            "resource": reference(self.resource),
            "permission": self.permission,
            "subject": {"object": reference(self.user)},
            "consistency": consistency or {"fullyConsistent": True},
        }


def questions(count: int, seed: int) -> list[Question]:
    """Random questions about what the history names; about half ask about users who have a part."""
    chance = random.Random(seed)
    there = sorted(final_state())
    users = sorted({s for _, _, s in there if s.startswith("user:")})
    resources = sorted({r for r, _, _ in there})
    members: dict[str, list[str]] = {}
    for resource, _, subject in there:
        members.setdefault(resource, []).append(subject)
    asked = []
    for _ in range(count):
        resource = chance.choice(resources)
        user = chance.choice(users) if chance.random() < 0.5 else _part(members, resource, chance)
        kind = resource.partition(":")[0]
        asked.append(Question(resource, chance.choice(PERMISSIONS[kind]), user or users[0]))
    return asked


def _part(members: dict[str, list[str]], resource: str, chance: random.Random) -> str:
    """Some user who is reached from a resource by going down its subjects; empty if none is."""
    place = resource
    for _ in range(10):  # the deepest way down is shorter
        subject = chance.choice(members.get(place, [""])).partition("#")[0]
        if not subject or subject.startswith("user:"):
            return subject
        place = subject
    return ""


class Writer:
    """Writes the history to a port, over one connection: a sidecar or a database listens there."""

    def __init__(self, port: int) -> None:
        self._client = http.client.HTTPConnection(HOST, port, timeout=60)
        self.calls = 0

    def post(self, path: str, body: Json) -> Json:
        """The body of the answer, which must be a 200."""
        self._client.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        with self._client.getresponse() as response:
            text = response.read().decode()
            assert response.status == 200, f"{path}: {response.status} {text}"
        self.calls += 1
        return dict(json.loads(text))

    def write_schema(self) -> None:
        self.post("/v1/schema/write", {"schema": SCHEMA})

    def write(self, ones: Iterable[Transaction], insert: str = "TOUCH") -> None:
        for one in ones:
            for body in write_requests(one, insert):
                self.post(WRITE, body)

    def may(self, question: Question, consistency: Json | None = None) -> bool:
        answer = self.post("/v1/permissions/check", question.body(consistency))
        return str(answer["permissionship"]) == "PERMISSIONSHIP_HAS_PERMISSION"

    def close(self) -> None:
        self._client.close()


def main() -> None:
    with contextlib.ExitStack() as stack:
        port = (
            int(sys.argv[1]) if len(sys.argv) > 1 else stack.enter_context(running_spicedb()).port
        )
        writer = Writer(port)
        stack.callback(writer.close)
        writer.write_schema()
        began = time.monotonic()
        writer.write(transactions(), insert="CREATE")
        print(f"{writer.calls - 1} writes in {time.monotonic() - began:.1f} s")
        asked = questions(1_000, seed=1)
        began = time.monotonic()
        yes = sum(map(writer.may, asked))
        print(f"{len(asked)} checks in {time.monotonic() - began:.1f} s, {yes} of them yes")


if __name__ == "__main__":
    main()
