"""What a peer may say that is wrong: it is refused with a reason, and costs nothing.

The node under test is real; its peer is a raw WebSocket that speaks the session protocol as it is
written here, so that a change of the wire shows.
"""

import json
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest

from sidecar.core.clock import incarnation
from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from tests.e2e.conftest import MakeWorld
from tests.waiting import wait_until
from tests.world import HOST, Node, World, documents

MIB = 1024 * 1024
ORIGIN = f"node2.{incarnation(1_790_000_000_000, 7)}"
RULES = Rules.of(ConflictResolutionStrategy.LAST_WRITE_WINS, (), {}).fingerprint
HELLO: dict[str, Any] = {
    "type": "hello",
    "protocols": [1, 1],
    "node": "node2",
    "region": "eu-central-1",
    "partition": "global.0",
    "partitions": 1,
    "format": 1,
    "rules": RULES,
    "origin": ORIGIN,
    "to": "node1",
    "vector": {},
}
TRANSACTION: dict[str, Any] = {
    "format": 1,
    "origin": ORIGIN,
    "timestamp": "1790000000000001",
    "previous": "0",
    "context": {},
    "tenant": "default",
    "changes": [["+", "document:peer", "viewer", "user:alice", 17, 4711]],
}


@pytest.fixture(scope="module")
def world(make_shared_world: MakeWorld) -> World:
    world = make_shared_world()
    world.nodes[0].start()
    world.nodes[0].insert(*documents(range(3)))
    return world


@pytest.fixture
def node(world: World) -> Iterator[Node]:
    """The real node; whatever a test does to it, it serves what it had and nothing else."""
    node = world.nodes[0]
    had = node.triples()
    yield node
    assert node.is_serving
    assert node.triples() == had
    node.insert(*documents([1]))


@asynccontextmanager
async def link_to(node: Node) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    url = f"http://{HOST}:{node.peer_port}/peer/v1/session"
    async with (
        aiohttp.ClientSession() as client,
        client.ws_connect(url, max_msg_size=32 * MIB) as socket,
    ):
        yield socket


async def heard(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    """The head of the next frame; `{"type": "closed", "code": …}` when there is none."""
    message = await socket.receive(timeout=10)
    if message.type is aiohttp.WSMsgType.TEXT:
        head = json.loads(message.data.partition("\n")[0])
        assert isinstance(head, dict)
        return head
    return {"type": "closed", "code": socket.close_code}


async def answer_to(node: Node, said: Mapping[str, object]) -> dict[str, Any]:
    """What a hello that differs from a good one in `said` is answered."""
    async with link_to(node) as socket:
        await socket.send_str(json.dumps({**HELLO, **said}))
        return await heard(socket)


@asynccontextmanager
async def session_with(node: Node) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with link_to(node) as socket:
        await socket.send_str(json.dumps(HELLO))
        welcome = await heard(socket)
        assert welcome["type"] == "welcome", welcome
        yield socket


def batch(*lines: str) -> str:
    return "\n".join([json.dumps({"type": "batch", "batch": 1}), *lines])


async def test_a_hello_that_agrees_is_welcome(node: Node) -> None:
    welcome = await answer_to(node, {})
    assert welcome.pop("origin").startswith("node1.")
    assert welcome.pop("vector").keys() == node.vector.keys()
    assert welcome.pop("durable").keys() == node.vector.keys()
    assert int(welcome.pop("clock")) > 0
    assert int(welcome.pop("wall")) > 1_790_000_000_000_000
    assert welcome.pop("born").startswith("node1.")
    # What of node2 was heard in other tests it may tell or not.
    assert welcome.pop("rows").keys() <= {"node2"}
    assert welcome.pop("claims").keys() <= {ORIGIN}
    assert welcome == {
        "type": "welcome",
        "protocol": 1,
        "node": "node1",
        "region": "us-west-1",
        "partition": "global.0",
        "partitions": 1,
        "format": 1,
        "rules": RULES,
        "phase": "serving",
        "new": True,
        "members": ["node1", "node2"],
        "removed": {},
    }


@pytest.mark.parametrize(
    ("said", "code", "both"),
    [
        ({"protocols": [7, 9]}, "protocol_mismatch", ("[7, 9]", "[1, 1]")),
        ({"rules": "insert_wins"}, "rules_mismatch", ("'insert_wins'", f"'{RULES}'")),
        ({"region": "eu-west-1"}, "region_mismatch", ("'eu-west-1'", "'eu-central-1'")),
        ({"partition": "global.3"}, "partition_mismatch", ("'global.3'", "'global.0'")),
        ({"partitions": 8}, "partitions_mismatch", (" 8,", " 1;")),
        ({"format": 2}, "format_mismatch", (" 2,", " 1;")),
        ({"to": "node9"}, "wrong_node", ("node9", "node1")),
        ({"node": "node9"}, "unknown_node", ("node9", "node1")),
        ({"node": "node1"}, "unknown_node", ("node1", "not another node")),
    ],
)
async def test_a_hello_that_disagrees_is_refused_with_both_values(
    said: dict[str, object], code: str, both: tuple[str, str], node: Node
) -> None:
    refused = await answer_to(node, said)
    assert (refused["type"], refused["code"]) == ("refuse", code), refused
    assert all(value in refused["message"] for value in both), refused
    assert refused["message"] in node.log, "the operator of this side reads it too"


@pytest.mark.parametrize(
    "said",
    [
        {"type": "batch"},
        {"type": None},
        {"node": None},
        {"node": ["node2"]},
        {"protocols": "1"},
        {"protocols": [1]},
        {"protocols": [True, True]},
        {"origin": None},
        {"origin": "node1.x"},
        {"rows": 5},
        {"rows": {"node2": 5}},
        {"durable": 5},
        {"claims": 5},
        {"phase": "asleep"},
        {"vector": None},
        {"vector": {"node2.x": 17}},
        {"vector": {"node2.x": "²"}},
        {"vector": {"node2.x": "-1"}},
        {"vector": {"node2.x": "9" * 5_000}},
    ],
)
async def test_a_hello_of_the_wrong_types_is_refused(said: dict[str, object], node: Node) -> None:
    refused = await answer_to(node, said)
    assert refused["type"] == "refuse", refused
    assert refused["message"]


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "{",
        "[]",
        "null",
        '"hello"',
        "[" * 100_000,
        '{"type":"hello","vector":' + "9" * 5_000 + "}",
        b"",
        b"\x00\xff" * 100,
        zlib.compress(b"\xff\xfe"),
        zlib.compress(b"0" * (33 * MIB), 1),
        zlib.compress(b"{}")[:-3],
    ],
    ids=lambda frame: f"{frame[:12]!r} of {len(frame)}",
)
@pytest.mark.parametrize("when", ["instead of a hello", "in a session"])
async def test_garbage_ends_the_session_and_nothing_else(
    frame: str | bytes, when: str, node: Node
) -> None:
    opened = session_with(node) if when == "in a session" else link_to(node)
    async with opened as socket:
        if isinstance(frame, str):
            await socket.send_str(frame)
        else:
            await socket.send_bytes(frame)
        refused = await heard(socket)
        assert (refused["type"], refused.get("code")) == ("refuse", "bad_frame"), refused
        assert (await heard(socket))["type"] == "closed"
    assert "Traceback" not in node.log


async def test_a_frame_above_the_limit_ends_the_session(node: Node) -> None:
    async with session_with(node) as socket:
        # It may be cut off before it has said all of it: then it does not hear why.
        with suppress(ConnectionError):
            await socket.send_bytes(b"x" * (33 * MIB))
        ended = await heard(socket)
        assert ended["type"] == "closed"
        assert ended["code"] in {aiohttp.WSCloseCode.MESSAGE_TOO_BIG, 1006, None}, ended


@pytest.mark.parametrize(
    "line",
    [
        "not JSON",
        "[]",
        "null",
        "{}",
        json.dumps(TRANSACTION | {"format": 2, "previous": None}),
        json.dumps({k: v for k, v in TRANSACTION.items() if k != "format"}),
        json.dumps(TRANSACTION | {"origin": "nobody"}),
        json.dumps(TRANSACTION | {"timestamp": 1790000000000001}),
        json.dumps(TRANSACTION | {"timestamp": "0"}),
        json.dumps(TRANSACTION | {"previous": None}),
        json.dumps(TRANSACTION | {"context": {"node1.x": 1}}),
        json.dumps(TRANSACTION | {"tenant": "with space"}),
        json.dumps(TRANSACTION | {"changes": None}),
        json.dumps(TRANSACTION | {"changes": [["+", "no colon", "viewer", "user:a", 1, 1]]}),
        json.dumps(TRANSACTION | {"changes": [["?", "a:b", "viewer", "user:a", 1, 1]]}),
        json.dumps(TRANSACTION | {"changes": [["+", "a:b", "viewer", "user:a", 4096, 1]]}),
        json.dumps(TRANSACTION | {"changes": [["+", "a:b", "viewer", "user:a", 1, 2**40]]}),
        json.dumps(TRANSACTION | {"changes": [["+", "a:b", "viewer", "user:a", 1]]}),
        json.dumps(TRANSACTION | {"changes": TRANSACTION["changes"] * 2}),
        json.dumps(TRANSACTION | {"beyond": {"1": 5}}),
    ],
)
async def test_a_batch_that_is_not_one_is_refused_as_a_whole(line: str, node: Node) -> None:
    """Also the good transaction before the bad one: it comes again when the peer is mended."""
    earlier = json.dumps(TRANSACTION | {"timestamp": "1790000000000000"})
    async with session_with(node) as socket:
        await socket.send_str(batch(earlier, line))
        refused = await heard(socket)
        assert (refused["type"], refused.get("code")) == ("refuse", "bad_batch"), refused
    assert ORIGIN not in node.vector


async def test_a_batch_with_a_gap_is_answered_with_where_to_go_back_to(node: Node) -> None:
    async with session_with(node) as socket:
        await socket.send_str(batch(json.dumps(TRANSACTION | {"previous": "1790000000000000"})))
        ack = await heard(socket)
        assert (ack["type"], ack["outcome"]) == ("ack", "gap"), ack
        assert ORIGIN not in ack["vector"]


async def test_a_batch_from_the_far_future_is_held_back_with_the_reason(node: Node) -> None:
    """It ends nothing: other origins go on over the same session."""
    async with session_with(node) as socket:
        await socket.send_str(batch(json.dumps(TRANSACTION | {"timestamp": "8" + "0" * 15})))
        ack = await heard(socket)
        assert (ack["type"], ack["outcome"]) == ("ack", "applied"), ack
        assert "ahead of the clock" in ack["parked"][ORIGIN]
        assert ORIGIN not in ack["vector"]
        await socket.send_str(json.dumps({"type": "heartbeat", "clock": "0", "vector": {}}))
        assert (await heard(socket))["type"] == "heartbeat"


async def test_a_batch_of_a_later_release_is_held_back_with_the_reason(node: Node) -> None:
    async with session_with(node) as socket:
        await socket.send_str(batch(json.dumps(TRANSACTION | {"format": 2, "changes": "new"})))
        ack = await heard(socket)
        assert (ack["type"], ack["outcome"]) == ("ack", "applied"), ack
        assert ack["parked"] == {ORIGIN: "it has format 2, this release reads 1"}


async def test_a_second_session_of_a_node_takes_the_place_of_the_first(node: Node) -> None:
    """A link can die without a word: the node that comes again must not be turned away."""
    async with session_with(node) as first, session_with(node) as second:
        assert (await heard(first))["type"] == "closed"
        await second.send_str(json.dumps({"type": "heartbeat", "clock": "0", "vector": {}}))
        assert (await heard(second))["type"] == "heartbeat"


async def test_two_nodes_that_disagree_lose_nothing_and_agree_again(make_world: MakeWorld) -> None:
    """A strategy that was changed on one side only: both say so, then all arrives."""
    world = make_world()
    us, eu = world.nodes
    eu.environ["INFERADB__REPLICATION__CONFLICT_RESOLUTION"] = "insert_wins"
    for one in world.nodes:
        one.begin()
    for one in world.nodes:
        one.wait_until_serving()
    us.insert(*documents(range(5)))

    def both_say_so() -> bool:
        reasons = [str(one.health().body["reasons"]) for one in world.nodes]
        return all("'insert_wins:" in text and f"'{RULES}'" in text for text in reasons)

    wait_until(both_say_so, "both name both strategies at /health")
    assert [one.metric("targets_connected") for one in world.nodes] == [0, 0]
    # What was merged under one strategy cannot be read under another: begin eu anew.
    eu.stop()
    eu.forget()
    del eu.environ["INFERADB__REPLICATION__CONFLICT_RESOLUTION"]
    eu.start()
    world.settle()
    assert us.triples() == eu.triples() == set(documents(range(5)))
