"""Damage behind the back of one of three nodes: found, alarmed, touched by nobody, then mended."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from sidecar.core.relationship import bucket_of
from sidecar.store.keys import Keys
from tests.e2e.conftest import MakeWorld
from tests.waiting import wait_until
from tests.world import UPDATE, Node, World, ask, documents, sidecar

REMOVED, CHANGED, ADDED = "document:1", "document:2", "document:added"
FIELD = "viewer#user:alice"
UNEQUAL = "inferadb_sidecar_digest_unequal_buckets"
DAMAGED = "inferadb_sidecar_digest_damaged_buckets"
BUCKETS = {bucket_of("default", name) for name in (REMOVED, CHANGED, ADDED)}


@pytest.fixture
def world(make_world: MakeWorld) -> Iterator[World]:
    world = make_world(3, replication={"anti_entropy_interval_s": 1}).start()
    first, second, third = world.nodes
    first.insert(*documents(range(10)))
    second.insert(*documents(range(20, 30)))
    condition = {"resource": CHANGED, "relation": "viewer", "subject": "user:alice"}
    update = {"operation": "insert", "relationship": {**condition, "condition": {"a": 1}}}
    assert third.post(UPDATE, {"updates": [update]}).status == 200
    world.settle()
    return world  # type: ignore[return-value]


def key(resource: str) -> str:
    return Keys("sidecar").tuples("default", resource)


def damage(node: Node) -> None:
    """What redis-cli does: a tuple removed, one added, and a condition changed."""
    with node.store() as call:
        some = call("HGET", key("document:3"), FIELD)
        state = call("HGET", key(CHANGED), FIELD)
        assert call("HDEL", key(REMOVED), FIELD) == 1
        call("HSET", key(ADDED), FIELD, some)
        call("HSET", key(CHANGED), FIELD, state.replace('{\\"a\\":1}', '{\\"a\\":2}'))


def verify(world: World, *words: str, code: int = 0) -> str:
    done = sidecar("verify", "--config", str(world.nodes[0].config), *words)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def verify_json(world: World, *words: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(verify(world, "--json", *words, code=code))
    return found


def reasons(node: Node) -> str:
    return "; ".join(node.health().body["reasons"])


def gauge(node: Node, target: Node) -> float:
    return node.metrics()[f"{UNEQUAL}{{{target.name}}}"]


def stored(node: Node) -> dict[str, Any]:
    """Every tuple of a node as it is in its Redis."""
    with node.store() as call:
        keys = sorted(call("KEYS", key("*").replace("default/", "*")))
        return {name: sorted(_pairs(call("HGETALL", name))) for name in keys}


def _pairs(found: Any) -> list[tuple[str, str]]:
    if isinstance(found, dict):
        return list(found.items())
    return list(zip(found[::2], found[1::2], strict=True))


def test_equal_nodes_are_said_to_be_equal(world: World) -> None:
    assert verify(world) == "all nodes store the same\n"
    wait_until(lambda: all(n.health().body["status"] == "healthy" for n in world.nodes), "healthy")
    assert verify_json(world)["equal"] is True


def alarms(node: Node, about: Node, buckets: int) -> bool:
    return gauge(node, about) == buckets


def is_healthy(node: Node) -> bool:
    return bool(node.health().body["status"] == "healthy")


def test_each_damage_is_found_and_nothing_but_a_command_mends_it(world: World) -> None:
    healthy, other, damaged = world.nodes
    before = stored(healthy), stored(other)
    damage(damaged)

    found = verify_json(world, code=1)
    # One bucket has the stray key; the bucket of no other node says anything of it.
    assert set(found["unequal"][damaged.name]) | set(found["damaged"][damaged.name]) == BUCKETS
    assert found["unequal"][other.name] == []
    assert found["damaged"][healthy.name] == found["damaged"][other.name] == []
    shown = {one["resource"]: one["shown"] for one in found["differences"]}
    assert {name: set(by_node) for name, by_node in shown.items()} == {
        REMOVED: {healthy.name, other.name},
        ADDED: {damaged.name},
        CHANGED: {healthy.name, other.name, damaged.name},
    }
    assert shown[CHANGED][healthy.name]["condition"] == '{"a":1}'
    assert shown[CHANGED][damaged.name]["condition"] == '{"a":2}'

    # The periodic comparison finds it as well, from both sides.
    changed_or_gone = len(BUCKETS) - 1
    for node in (healthy, other):
        wait_until(partial(alarms, node, damaged, changed_or_gone), f"{node.name} alarms")
        assert gauge(node, healthy if node is other else other) == 0
        assert damaged.name in reasons(node)
        assert node.health().body["status"] == "degraded"
    wait_until(lambda: gauge(damaged, healthy) == gauge(damaged, other) == changed_or_gone, "both")
    wait_until(lambda: damaged.metrics()[DAMAGED] == 2, "what is removed and what is added")
    wait_until(lambda: "gives no state transfers" in damaged.log, "it is in doubt")
    assert "gives no state transfers" not in healthy.log + other.log
    # A walk that was under way found some of it, the next one all: each finding is said once.
    told = [line.split(" ", 1)[1] for line in healthy.log.splitlines() if "something else" in line]
    assert 1 <= len(told) == len(set(told)) <= 2, "each is said once"
    assert (stored(healthy), stored(other)) == before

    planned = verify(world, "--repair", "--from", healthy.name, "--dry-run", code=1)
    assert f"appears on {damaged.name}: {REMOVED} viewer user:alice" in planned
    assert f"changes on {damaged.name}: {CHANGED} viewer user:alice" in planned
    assert f"disappears on {damaged.name}: {ADDED} viewer user:alice" in planned
    assert verify_json(world, code=1)["differences"] == found["differences"]

    said = verify(world, "--repair", "--from", healthy.name)
    assert planned.splitlines()[:3] == said.splitlines()[:3]
    assert said.splitlines()[-1] == "all nodes store the same"
    assert damaged.export() == healthy.export() == other.export()
    assert (stored(healthy), stored(other)) == before
    assert [*stored(damaged)] == [*stored(healthy)]
    for node in world.nodes:
        wait_until(partial(is_healthy, node), f"{node.name} is healthy")
    wait_until(lambda: "gives state transfers again" in damaged.log, "it is trusted again")


def test_a_comparison_under_writes_finds_no_damage(world: World) -> None:
    """Writes on every node meanwhile: nobody may be accused, and the comparison comes to an end."""
    is_over = threading.Event()
    written = 0

    def keep_writing() -> None:
        nonlocal written
        while not is_over.is_set():
            made = (f"document:{written % 90}", "editor", f"user:{written % 7}")
            node = world.nodes[written % 3]
            (node.delete if written % 5 == 0 else node.insert)(made)
            written += 1

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for _ in range(3):
            found = verify_json(world, "--wait", "20")
            assert found["equal"], found
    finally:
        is_over.set()
        writer.join()
    assert written > 100
    assert not any("stores something else" in node.log for node in world.nodes)
    assert not any("behind the back" in node.log for node in world.nodes)


def test_who_cannot_be_reached_is_named(world: World) -> None:
    first, second, third = world.nodes
    third.kill()
    text = verify(world, code=1)
    assert f"{third.name} cannot be reached" in text
    damage(second)
    found = verify_json(world, code=1)
    assert list(found["unreachable"]) == [third.name]
    assert found["unequal"][second.name] or found["damaged"][second.name]
    done = sidecar(*("verify", "--config", str(first.config), "--repair", "--from", third.name))
    assert done.returncode == 1
    assert "cannot be asked" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--repair"], "--from NODE"),
        (["--dry-run"], "--dry-run belongs to --repair"),
        (["--from", "nobody"], "none of the nodes"),
    ],
)
def test_bad_options_are_refused(words: list[str], said: str, make_world: MakeWorld) -> None:
    world = make_world(2)
    done = sidecar("verify", "--config", str(world.nodes[0].config), *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr


BAD_CALLS: list[tuple[str, object]] = [
    ("digests", {}),
    ("digests", {"first": 4096}),
    ("digests", {"first": True}),
    ("digests", []),
    ("compare", {}),
    ("compare", {"rules": "x"}),
    ("repair", {"to": "node2", "from": "node1", "pages": []}),
    ("repair", {"to": "node1", "from": "node1", "pages": []}),
    ("repair", {"to": "node1", "from": "node2", "pages": [1]}),
    ("repair", {"to": "node1", "from": "node2", "pages": ["x"]}),
]


def test_calls_that_are_none_are_refused_in_json(world: World) -> None:
    node = world.nodes[0]
    for path, body in BAD_CALLS:
        answer = ask(node.peer_port, "POST", f"/peer/v1/{path}", body)
        assert answer.status == 400, (path, body, answer)
        assert set(answer.body) == {"error", "message"}
    assert ask(node.peer_port, "GET", "/peer/v1/states/4096").status == 400
    assert node.is_serving
