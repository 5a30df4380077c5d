"""The largest request that is taken in one region arrives in the other, whole."""

import json
import random
from typing import Any

import pytest

from tests.e2e.conftest import MakeWorld
from tests.world import DELETE, WRITE, World

MAX_CHANGES, MAX_BYTES = 5_000, 4 * 1024 * 1024


@pytest.fixture(scope="module")
def world(make_shared_world: MakeWorld) -> World:
    return make_shared_world().start()


def hexadecimal(size: int) -> str:
    """Text that hardly compresses."""
    return random.Random(4711).randbytes((size + 1) // 2).hex()[:size]


def body_of(count: int, filler: str) -> bytes:
    """A write of `count` relationships with conditions cut from `filler`; nearly full."""

    def body(share: int) -> bytes:
        relationships = [
            {
                "resource": f"document:{number}",
                "relation": "viewer",
                "subject": "user:alice",
                "condition": {"text": filler[number : number + share]},
            }
            for number in range(count)
        ]
        return json.dumps({"relationships": relationships}, ensure_ascii=False).encode()

    room = MAX_BYTES - len(body(0))
    width = len(json.dumps(filler, ensure_ascii=False).encode()) / len(filler)
    largest = body(int(room / count / width) - 1)
    assert MAX_BYTES - 50_000 < len(largest) <= MAX_BYTES, len(largest)
    return largest


@pytest.mark.parametrize(
    ("count", "filler"),
    [
        (MAX_CHANGES, hexadecimal(10_000)),
        (MAX_CHANGES, '"\\' * 5_000),
        (MAX_CHANGES, "ж€𝄞" * 3_000),
        (MAX_CHANGES, "\x01\x7f\u2028" * 3_000),
        (130, hexadecimal(40_000)),
    ],
    ids=["hardly compressible", "quotes and backslashes", "other alphabets", "escapes", "large"],
)
def test_a_request_at_both_limits_arrives_whole(count: int, filler: str, world: World) -> None:
    """5,000 changes and 4 MiB, then their deletion, each as one transaction."""
    us, eu = world.nodes
    failures = [node.metric("failures_total") for node in world.nodes]
    body = body_of(count, filler)
    written = us.post(WRITE, body)
    assert written.status == 200, written
    assert written.body["relationships_written"] == count
    transactions = eu.feed_length()
    waited_s = world.settle()
    print(f"{len(body):,} bytes settled in {waited_s:.2f} s")
    assert eu.feed_length() <= transactions + 1
    sent: list[dict[str, Any]] = json.loads(body)["relationships"]
    arrived = sorted(eu.relationships(), key=lambda one: int(one["resource"].partition(":")[2]))
    assert arrived == sent
    assert us.digest() == eu.digest()
    gone = [{name: one[name] for name in ("resource", "relation", "subject")} for one in sent]
    deleted = eu.post(DELETE, {"relationships": gone})
    assert (deleted.status, deleted.body["relationships_deleted"]) == (200, count)
    world.settle()
    assert us.triples() == set()
    assert us.metric("conflicts_total") == 0
    assert [node.metric("failures_total") for node in world.nodes] == failures


def test_one_above_either_limit_is_refused_and_nothing_of_it_is_written(world: World) -> None:
    us, _ = world.nodes
    one = {"resource": "document:1", "relation": "viewer", "subject": "user:alice"}
    too_many = [one | {"subject": f"user:{number}"} for number in range(MAX_CHANGES + 1)]
    for body in (
        json.dumps({"relationships": too_many}).encode(),
        json.dumps({"relationships": [one]}).encode().ljust(MAX_BYTES + 1),
        json.dumps({"relationships": [one]}).encode().ljust(5 * 1024 * 1024),
    ):
        refused = us.post(WRITE, body)
        assert refused.status == 413, refused
        assert refused.body["error"]
    assert us.triples() == set()
