"""Nodes that know each other by a shared key, and what somebody can do who has not got it."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.security.signing import proof
from tests.e2e.conftest import MakeWorld
from tests.e2e.test_bad_peers import HELLO, heard, link_to
from tests.operating.test_security_tls import (
    AT_HOME_IN_EU,
    QUICK,
    forward,
    is_connected,
    says,
)
from tests.secured import KEY, signed, with_key
from tests.waiting import wait_until
from tests.world import LIST, WRITE, Node, World, ask, documents, sidecar

BODY = json.dumps({"limit": 1}).encode()


@pytest.fixture(scope="module")
def world(make_shared_world: Callable[..., World]) -> World:
    world = make_shared_world(replication=AT_HOME_IN_EU)
    with_key(world)
    return world.start()


def test_two_regions_replicate_forward_and_are_verified_by_a_key(world: World) -> None:
    us, eu = world.nodes
    us.insert(*documents(range(20)))
    eu.insert(*documents(range(20, 40)))
    forward(us)
    world.settle()
    assert us.triples() == eu.triples() == {*documents(range(40))}
    for node in world.nodes:
        done = sidecar("verify", "--config", str(node.config), environ=node.settings())
        assert done.returncode == 0, done.stderr + done.stdout
    for node in world.nodes:
        assert KEY not in node.log


def test_the_key_is_never_on_the_wire(make_world: MakeWorld) -> None:
    world = make_world(replication=AT_HOME_IN_EU)
    with_key(world)
    recorded = [link.record() for link in world.links]
    world.start()
    us, _ = world.nodes
    forward(us)
    world.settle()
    ways = [bytes(way) for link in recorded for way in link]
    assert any(b"X-Sidecar-Signature" in way for way in ways)
    assert not any(KEY.encode() in way for way in ways)


def refused(node: Node, headers: dict[str, str], why: str, body: bytes = BODY) -> None:
    answer = ask(node.peer_port, "POST", LIST, body, headers)
    assert (answer.status, answer.body["error"]) == (401, "peer_unauthenticated")
    assert why in answer.body["message"]
    assert says(node, "request refused", why)()


def test_a_request_that_no_node_signed_is_refused(world: World) -> None:
    us = world.nodes[0]
    good = signed("node1", "POST", LIST, BODY, by="node2")
    refused(us, {}, "it signs nothing")
    refused(us, {"X-Sidecar-Signature": "a=b"}, "not of a known form")
    refused(us, signed("node1", "POST", LIST, BODY, key="another key of a stranger"), "not made")
    refused(us, signed("node2", "POST", LIST, BODY), "another node")
    refused(us, signed("node1", "POST", WRITE, BODY), "another request")
    refused(us, signed("node1", "POST", LIST, b"{}"), "not the one that was signed")
    refused(us, signed("node1", "POST", LIST, BODY, ago_s=90), "an old one sent again")
    assert ask(us.peer_port, "POST", LIST, BODY, good).status == 200
    refused(us, good, "came a second time")
    stranger = signed("node1", "POST", LIST, BODY, by="node9")
    answer = ask(us.peer_port, "POST", LIST, BODY, stranger)
    assert (answer.status, answer.body["error"]) == (403, "unknown_node")
    assert ask(us.peer_port, "GET", "/health").status == 200


def test_a_signed_doubt_is_heard(world: World) -> None:
    """The guard reads the body first; the call must find it all the same."""
    us, eu = world.nodes
    answer = us.post_here("/peer/v1/doubt", {"node": eu.name})
    assert (answer.status, answer.body) == (200, {"health": "healthy"})


def introduction(key: str = KEY) -> dict[str, str]:
    made = proof(key.encode(), "introduce", "node2", "node1", "of-tests")
    said = {"type": "introduce", "node": "node2", "to": "node1", "nonce": "of-tests"}
    return {**said, "proof": made}


async def introduced(
    node: Node, key: str, hello: dict[str, object]
) -> tuple[dict[str, object], str]:
    """How a session ends whose proof is made with this key; and the proof."""
    async with link_to(node) as socket:
        await socket.send_str(json.dumps(introduction()))
        challenge = await heard(socket)
        assert challenge["type"] == "challenge"
        parts = ("node2", "node1", "of-tests", challenge["nonce"])
        assert challenge["proof"] == proof(KEY.encode(), "listener", *parts)
        made = proof(key.encode(), "dialler", *parts)
        await socket.send_str(json.dumps({"type": "proof", "proof": made}))
        await socket.send_str(json.dumps(hello))
        return await heard(socket), made


async def replayed(node: Node, made: str) -> dict[str, object]:
    """How a session ends that shows the proof of another one."""
    async with link_to(node) as socket:
        await socket.send_str(json.dumps(introduction()))
        await heard(socket)
        await socket.send_str(json.dumps({"type": "proof", "proof": made}))
        return await heard(socket)


async def test_a_session_without_the_key_is_refused_and_the_log_says_why(world: World) -> None:
    us = world.nodes[0]
    async with link_to(us) as socket:
        await socket.send_str(json.dumps(HELLO))
        assert (await heard(socket))["code"] == "peer_unauthenticated"
    async with link_to(us) as socket:
        await socket.send_str(json.dumps(introduction("another key of a stranger")))
        assert (await heard(socket))["code"] == "peer_unauthenticated"
    answer, _ = await introduced(us, "another key of a stranger", HELLO)
    assert answer["code"] == "peer_unauthenticated"
    assert says(us, "replication session refused", "has another shared key")()
    answer, _ = await introduced(us, KEY, {**HELLO, "node": "node3"})
    assert answer["code"] == "wrong_identity"
    assert says(us, "replication session refused", "says to be 'node3'")()


async def test_large_frames_are_taken_only_of_who_has_proved_who_it_is(world: World) -> None:
    """Or anybody could have each connection hold 32 MiB."""
    us = world.nodes[0]
    large = json.dumps({**introduction(), "padding": "x" * (2 * 1024 * 1024)})
    async with link_to(us) as socket:
        await socket.send_str(large)
        assert await heard(socket) == {"type": "closed", "code": 1009}
    rows = [
        {
            "resource": f"large:{n}",
            "relation": "viewer",
            "subject": "user:a",
            # Nothing that compression makes small.
            "condition": {"text": secrets.token_hex(15_000)},
        }
        for n in range(120)
    ]
    assert us.post(WRITE, {"relationships": rows}, X_Tenant="large").status == 200
    world.settle()
    asked = {"resource_type": "large"}
    answer = ask(
        world.nodes[1].app_port, "POST", LIST, {**asked, "limit": 200}, {"X-Tenant": "large"}
    )
    assert len(answer.body["relationships"]) == 120
    assert "broke" not in us.log


async def test_pings_do_not_keep_open_who_says_nothing(make_world: MakeWorld) -> None:
    world = make_world(replication={"agent": {"request_timeout_secs": 2}})
    with_key(world)
    world.start()
    async with link_to(world.nodes[0]) as socket:
        receiving = asyncio.create_task(heard(socket))
        for _ in range(30):
            if receiving.done():
                break
            with contextlib.suppress(ConnectionError):
                await socket.ping()
            await asyncio.sleep(0.2)
        assert receiving.done()
        assert (await receiving)["type"] == "closed"


async def test_a_proof_serves_one_session_only(world: World) -> None:
    us = world.nodes[0]
    # It agrees about who it is; about the rules of this world it does not.
    _, made = await introduced(us, KEY, {**HELLO, "rules": "another"})
    assert (await replayed(us, made))["code"] == "peer_unauthenticated"


def test_a_node_with_another_key_gets_nowhere_until_the_file_is_right(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = make_world(replication=QUICK)
    path = with_key(world)
    us, eu = world.nodes
    wrong = tmp_path / "wrong.key"
    wrong.write_text("another key of a stranger\n")
    wrong.chmod(0o644)
    eu.environ["INFERADB__SECURITY__PEER__SHARED_KEY_FILE"] = str(wrong)
    for node in world.nodes:
        node.begin()
    for node in world.nodes:
        node.wait_until_serving()
    eu.insert(*documents([1]))
    wait_until(
        says(us, "replication session refused", "'node2' has another shared key"), "node1 says why"
    )
    wait_until(says(us, "replication failed", "another shared key"), "node1 says why it ships not")
    assert says(eu, "may be read by everybody", "mode=0644")()
    assert not is_connected(us)
    assert not is_connected(eu)
    assert us.triples() == set()
    # The old key first, so that it still signs with it, and then the other way around.
    wrong.write_text(f"another key of a stranger\n{KEY}\n")
    path.write_text(f"{KEY}\nanother key of a stranger\n")
    wait_until(lambda: is_connected(us) and is_connected(eu), "both keys are believed")
    world.cut()
    wrong.write_text(f"{KEY}\n")
    path.write_text(f"{KEY}\n")
    wait_until(lambda: not is_connected(us), "the session is gone")
    world.heal()
    wait_until(lambda: is_connected(us) and is_connected(eu), "one key is left")
    assert "stranger" not in us.log + eu.log


def test_a_key_and_none_do_not_meet_and_say_why(make_world: MakeWorld) -> None:
    world = make_world(replication=QUICK)
    with_key(world)
    us, eu = world.nodes
    eu.environ.clear()
    eu.ask_peer = ask
    for node in world.nodes:
        node.begin()
    for node in world.nodes:
        node.wait_until_serving()
    wait_until(says(us, "replication session refused", "does not prove"), "node1 says why")
    wait_until(says(eu, "replication session refused", "this node has none"), "node2 says why")
    assert not is_connected(us)
    assert not is_connected(eu)
