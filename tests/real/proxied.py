"""Regions whose nodes stand in front of a SpiceDB each."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tests.real.databases import Database, running_spicedb
from tests.waiting import wait_until
from tests.world import Answer, Node, World, ask

SCHEMA = """use expiration
definition user {}
caveat at_night(hour int) { hour > 22 }
definition document {
  relation viewer: user | user:* | user with at_night | user with expiration
  relation editor: user
  permission view = viewer + editor
}
"""


@dataclass(frozen=True)
class Front:
    """A node and the database behind it."""

    node: Node
    database: Database

    def post(self, path: str, body: object, **headers: str) -> Answer:
        """As an application asks: through the sidecar."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask(self.node.app_port, "POST", path, body, named)

    def write_schema(self, text: str) -> None:
        answer = self.post("/v1/schema/write", {"schema": text})
        assert answer.status == 200, answer

    def write(self, *changes: str, **headers: str) -> Answer:
        """`+document:1 viewer user:a`, or `-…`; `!…` creates."""
        updates = [update_of(text) for text in changes]
        return self.post("/v1/relationships/write", {"updates": updates}, **headers)

    def may(self, resource: str, permission: str, subject: str, **headers: str) -> bool:
        return may(self.node.app_port, resource, permission, subject, **headers)

    def stored(self) -> list[str]:
        """What the database itself holds."""
        return stored(self.database)

    def shown(self) -> list[str]:
        """What the Redis of the node shows."""
        return sorted(
            f"{one['resource']} {one['relation']} {one['subject']}"
            for one in self.node.export()
            if not one["resource"].startswith("sidecar-schema:")
        )


def reference(text: str) -> dict[str, str]:
    kind, _, name = text.partition(":")
    return {"objectType": kind, "objectId": name}


def update_of(text: str) -> dict[str, Any]:
    operation = {"+": "OPERATION_TOUCH", "-": "OPERATION_DELETE", "!": "OPERATION_CREATE"}[text[0]]
    resource, relation, subject = text[1:].split(" ")
    name, _, of = subject.partition("#")
    referred = {"object": reference(name), **({"optionalRelation": of} if of else {})}
    one = {"resource": reference(resource), "relation": relation, "subject": referred}
    return {"operation": operation, "relationship": one}


def may(port: int, resource: str, permission: str, subject: str, **headers: str) -> bool:
    body = {
        "consistency": {"fullyConsistent": True},
        "resource": reference(resource),
        "permission": permission,
        "subject": {"object": reference(subject)},
    }
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = ask(port, "POST", "/v1/permissions/check", body, named)
    assert answer.status == 200, answer
    return bool(answer.body["permissionship"] == "PERMISSIONSHIP_HAS_PERMISSION")


def stored(database: Database, kind: str = "document") -> list[str]:
    filter_ = {"resourceType": kind}
    body = {"consistency": {"fullyConsistent": True}, "relationshipFilter": filter_}
    found = []
    for line in database.lines("/v1/relationships/read", body):
        one = line["relationship"]
        subject = one["subject"]
        name = f"{subject['object']['objectType']}:{subject['object']['objectId']}"
        name += f"#{subject['optionalRelation']}" if subject.get("optionalRelation") else ""
        resource = f"{one['resource']['objectType']}:{one['resource']['objectId']}"
        found.append(f"{resource} {one['relation']} {name}")
    return sorted(found)


@contextmanager
def fronts(count: int = 2, **settings: Any) -> Iterator[tuple[World, list[Front]]]:
    """A world of so many regions, each with a SpiceDB of its own; not started."""
    with ExitStack() as stack:
        databases = [stack.enter_context(running_spicedb()) for _ in range(count)]
        world = World(count, **settings)
        stack.callback(world.close)
        for node, database in zip(world.nodes, databases, strict=True):
            node.environ |= {
                "INFERADB__DATABASE__DIALECT": "spicedb",
                "INFERADB__DATABASE__URL": database.url,
            }
        yield world, [Front(n, d) for n, d in zip(world.nodes, databases, strict=True)]


def wait_until_told(*parts: Front) -> None:
    """Every database has what its Redis shows, and all show the same."""

    def is_told() -> bool:
        first, *others = [one.stored() for one in parts]
        return (
            all(one == first for one in others)
            and all(one.shown() == first for one in parts)
            and all(not pending(one) for one in parts)
        )

    wait_until(is_told, "all databases hold the same", 30)


def pending(one: Front) -> float:
    metrics = one.node.metrics()
    return (
        metrics["inferadb_sidecar_database_pending_tuples"]
        + metrics["inferadb_sidecar_database_unknown_outcomes"]
    )
