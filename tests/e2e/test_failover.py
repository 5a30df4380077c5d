"""Failover of `primary_replica` on real processes, under writes through all regions.

The clients of each region write to their own node, which forwards. One more writes to the peer
listener of the first region, from where nothing is forwarded: it hears what that node itself says.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, NamedTuple

import pytest

from tests.e2e.conftest import MakeWorld
from tests.e2e.test_operations import admin_url, complaint, status, told
from tests.waiting import wait_until
from tests.world import (
    DELETE,
    OPERATOR,
    WRITE,
    Answer,
    Node,
    Triple,
    World,
    ask,
    sidecar,
    triple_of,
)

QUICK = {"probe_interval_max_s": 1}
PAUSE_S = 0.002
US, EU, AP = "us-west-1", "eu-central-1", "ap-southeast-1"
DIRECT = "direct"


class Sent(NamedTuple):
    """A write that a client tried, of a tuple of its own: when, and what it got for an answer.

    served_by: the node that answered; "" where none did.
    """

    triple: Triple
    began_s: float
    ended_s: float
    status: int
    body: Any
    served_by: str


@dataclass
class Client:
    """Writes to one port for ever, each time a tuple of its own."""

    port: int
    name: str
    sent: list[Sent] = field(default_factory=list)

    @property
    def errors(self) -> set[str]:
        return {one.body["error"] for one in tuple(self.sent) if one.status != 200}

    def write_once(self) -> None:
        triple = (f"document:{self.name}-{len(self.sent)}", "viewer", "user:alice")
        one = dict(zip(("resource", "relation", "subject"), triple, strict=True))
        began_s = time.monotonic()
        try:
            answer = ask(self.port, "POST", WRITE, {"relationships": [one]})
        except (OSError, HTTPException):
            answer = Answer(0, {}, {"error": "no_answer"})
        by = answer.headers.get("X-Served-By", "").rpartition("/")[2]
        self.sent.append(Sent(triple, began_s, time.monotonic(), answer.status, answer.body, by))


Clients = Mapping[str, Client]
"""By the name of their node; `direct` is the one at the peer listener of the first."""


@contextmanager
def writing(world: World, name: str) -> Iterator[Clients]:
    """The clients, at work while this lasts."""
    clients = {node.name: Client(node.app_port, f"{name}-{node.name}") for node in world.nodes}
    clients[DIRECT] = Client(world.nodes[0].peer_port, f"{name}-{DIRECT}")
    ending = threading.Event()

    def run(client: Client) -> None:
        while not ending.is_set():
            client.write_once()
            ending.wait(PAUSE_S)

    threads = [threading.Thread(target=run, args=(each,)) for each in clients.values()]
    for thread in threads:
        thread.start()
    try:
        yield clients
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def taken(clients: Clients, *nodes: Node) -> list[Sent]:
    """What was acknowledged, by these nodes or by any."""
    names = {node.name for node in nodes}
    sent = [one for client in clients.values() for one in tuple(client.sent)]
    return [one for one in sent if one.status == 200 and (not names or one.served_by in names)]


def takes(clients: Clients, node: Node) -> Callable[[], bool]:
    """Whether a node has taken some more writes than until now."""
    before = len(taken(clients, node))
    return lambda: len(taken(clients, node)) > before + 5


def promote(node: Node, region: str) -> Answer:
    """Ask a node for a promotion, as `sidecar promote` does."""
    return ask(node.admin_port, "POST", "/promote", {"region": region}, OPERATOR)


def epochs(world: World) -> list[tuple[str, int]]:
    shown = [ask(node.admin_port, "GET", "/status").body for node in world.nodes]
    return [(one["primary"], (one["epoch"] or {"number": 0})["number"]) for one in shown]


def fenced(node: Node) -> list[dict[str, Any]]:
    """What the node lists as not shipped before a promotion, newest first."""
    found: list[dict[str, Any]] = []
    page = ask(node.admin_port, "GET", "/conflicts?limit=1000").body
    while page["cursor"] is not None:
        found += page["conflicts"]
        page = ask(node.admin_port, "GET", f"/conflicts?limit=1000&after={page['cursor']}").body
    return [one for one in found + page["conflicts"] if one["kind"] == "fenced"]


def is_apart(node: Node) -> bool:
    return node.metric("targets_connected") == 0


def cut_off(world: World, node: Node) -> None:
    for other in world.nodes:
        if other is not node:
            world.link(node.name, other.name).cut()
            world.link(other.name, node.name).cut()


def check_equal(world: World, clients: Clients) -> None:
    """All nodes have the same, and everything of which anybody was told that it was taken."""
    world.settle()
    first = world.nodes[0]
    for node in world.nodes[1:]:
        assert node.triples() == first.triples(), node.name
        assert node.digest() == first.digest(), node.name
    assert {one.triple for one in taken(clients)} <= first.triples()


@pytest.fixture(scope="module")
def world(make_shared_world: MakeWorld) -> World:
    """us-west-1 is the primary by configuration, eu-central-1 and ap-southeast-1 are replicas."""
    settings = {"strategy": "primary_replica", **QUICK}
    return make_shared_world(3, primary=US, replication=settings).start()


def test_a_replica_takes_no_writes_and_is_healthy(world: World) -> None:
    us, eu, _ = world.nodes
    gone = {"filter": {"resource": "document:none"}}
    asked: tuple[tuple[str, object], ...] = ((WRITE, {"relationships": []}), (DELETE, gone))
    for path, body in asked:
        answer = ask(eu.peer_port, "POST", path, body)
        assert (answer.status, answer.body["error"]) == (503, "not_primary")
        assert answer.headers["Retry-After"]
        assert US in answer.body["message"]
    assert ask(eu.admin_port, "GET", "/health").body["status"] == "healthy"
    assert us.metric("epoch") == 0
    assert "us-west-1, by is_primary" in told(eu, "status", "--node-only")
    already = promote(eu, US).body
    assert (already["promoted"], already["epoch"]) == (False, 0)
    for wrong, code in (
        ({}, "invalid_request"),
        ({"region": "nowhere"}, "bad_topology"),
        ({"region": EU, "wait": True}, "invalid_request"),
        ({"region": EU, "wait_s": -1}, "invalid_request"),
    ):
        refused = ask(us.admin_port, "POST", "/promote", wrong, OPERATOR)
        assert (refused.status, refused.body["error"]) == (400, code), refused
    assert epochs(world) == [(US, 0)] * 3


def test_promoting_while_the_old_primary_is_cut_off_loses_nothing(world: World) -> None:
    us, eu, ap = world.nodes
    with writing(world, "a") as clients:
        wait_until(takes(clients, us), "the primary takes writes")
        wait_until(eu.triples, "some of them are shipped")
        cut_off(world, us)
        wait_until(lambda: is_apart(us), "it has noticed")
        wait_until(takes(clients, us), "it goes on")
        # Any node may be asked; one of the region does it.
        said = told(ap, "promote", EU)
        assert "eu-central-1 is the primary (epoch 1, raised by node2)" in said
        assert "node1 does not know it yet" in said
        wait_until(takes(clients, eu), "the new primary takes writes")
        wait_until(takes(clients, us), "and so does the old one, until it hears")
        assert epochs(world) == [(US, 0), (EU, 1), (EU, 1)]
        world.heal()
        wait_until(lambda: epochs(world) == [(EU, 1)] * 3, "all have heard")
        wait_until(takes(clients, eu), "the new primary goes on")
        old_region = {"node1": clients["node1"]}
        wait_until(lambda: taken(old_region, eu), "also for the old region")
    check_equal(world, clients)
    assert {node.name for node in world.nodes if taken(clients, node)} == {"node1", "node2"}

    # From the message on the lower epoch is refused: it takes nothing that is asked after that.
    direct = clients[DIRECT]
    assert direct.errors == {"not_primary"}
    refused_s = next(one.ended_s for one in direct.sent if one.status != 200)
    assert all(one.began_s <= refused_s for one in taken(clients, us))
    assert all(one.status != 200 for one in direct.sent if one.began_s > refused_s)

    # What had not reached the new primary before it began is listed, and nothing else.
    vector = status(us)["epoch"]["vector"]
    reached = max(int(t) for origin, t in vector.items() if origin.startswith("node1."))
    old = taken(clients, us)
    expected = {one.triple for one in old if int(one.body["revision"]) > reached}
    assert 0 < len(expected) < len(old)
    wait_until(lambda: len(fenced(us)) >= len(expected), "all of it is listed")
    listed = fenced(us)
    assert all(int(one["written"]["timestamp"]) > reached for one in listed)
    assert {(one["epoch"], one["primary"]) for one in listed} == {(1, EU)}
    # Of a write that was forwarded while the link was cut nobody knows the outcome.
    sent = [one for client in clients.values() for one in client.sent]
    unknown = {one.triple for one in sent if one.body.get("error") == "outcome_unknown"}
    named = {triple_of(one) for one in listed}
    assert len(named) == len(listed)
    assert expected <= named <= expected | unknown
    assert fenced(eu) == fenced(ap) == []
    assert "takes no writes" in us.log
    assert f"transactions={len(listed)} changes={len(listed)}" in us.log
    assert "not shipped before eu-central-1" in told(us, "conflicts", "--limit", "1")
    assert "eu-central-1, promoted, epoch 1" in told(us, "status", "--node-only")
    assert [node.metric("epoch") for node in world.nodes] == [1, 1, 1]


def test_a_restart_keeps_the_promotion_and_the_log_says_so(world: World) -> None:
    us, eu, _ = world.nodes
    listed = fenced(us)
    for node in (us, eu):
        node.kill()
    for node in (us, eu):
        node.begin()
    with writing(world, "b") as clients:
        us.wait_until_serving()
        eu.wait_until_serving()
        wait_until(takes(clients, eu), "the promoted region takes writes")
    check_equal(world, clients)
    assert taken(clients) == taken(clients, eu)
    assert epochs(world) == [(EU, 1)] * 3
    for node in (us, eu):
        assert "the region that was promoted, not that of is_primary" in node.log
    assert fenced(us) == listed


def test_a_node_that_has_lost_its_data_hears_who_the_primary_is_before_it_writes(
    world: World,
) -> None:
    us, eu, _ = world.nodes
    us.kill()
    us.forget()
    us.begin()
    with writing(world, "c") as clients:
        us.wait_until_serving()
        wait_until(lambda: "was=behind" in us.log, "it has caught up")
        wait_until(takes(clients, eu), "writes go on")
    us.wait_until_serving()
    check_equal(world, clients)
    assert taken(clients) == taken(clients, eu)
    assert epochs(world) == [(EU, 1)] * 3
    since = us.log.rindex("embedded Valkey ready")
    assert us.log.index("takes no writes", since) < us.log.index("node may write", since)


def test_two_promotions_at_once_end_with_one_primary(world: World) -> None:
    us, eu, ap = world.nodes
    results: dict[str, Answer] = {}

    def ask_for(node: Node) -> None:
        results[node.region] = promote(node, node.region)

    with writing(world, "d") as clients:
        wait_until(takes(clients, eu), "the primary takes writes")
        threads = [threading.Thread(target=ask_for, args=(node,)) for node in (us, ap)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: len(set(epochs(world))) == 1, "all agree")
        ((primary, number), *_) = epochs(world)
        agreed_s = time.monotonic()
        winner = next(node for node in world.nodes if node.region == primary)
        wait_until(takes(clients, winner), "one takes writes")
    check_equal(world, clients)
    assert epochs(world) == [(primary, number)] * 3
    assert results[primary].status == 200, results
    later = [one for one in taken(clients) if one.began_s > agreed_s]
    assert {one.served_by for one in later} == {winner.name}
    for node in world.nodes:
        assert f"primary={primary} epoch={number}" in node.log
    for region, answer in results.items():
        # The other one was told so, or had been the primary for a moment.
        if region != primary and answer.status != 200:
            assert (answer.status, answer.body["error"]) == (409, "higher_epoch"), answer


def test_waiting_drains_the_old_primary_or_changes_nothing(world: World) -> None:
    us, eu, ap = world.nodes
    promote(us, US)
    wait_until(lambda: {name for name, _ in epochs(world)} == {US}, "all agree")
    ((_, number), *_) = epochs(world)
    listed = {node.name: fenced(node) for node in world.nodes}
    with writing(world, "e") as clients:
        wait_until(takes(clients, us), "the primary takes writes")
        world.link("node2", "node1").cut()
        lost = complaint("promote", EU, "--wait", "--url", admin_url(eu))
        assert "node1 of us-west-1 cannot be asked to stop writing" in lost
        wait_until(takes(clients, us), "nothing was changed")
        world.heal()
        # What it ships does not arrive, though it can be asked.
        world.link("node1", "node2").cut()
        world.link("node1", "node3").cut()
        wait_until(takes(clients, us), "it writes what waits")
        late = complaint("promote", EU, "--wait", "--timeout", "1", "--url", admin_url(ap))
        assert "has not received all writes of us-west-1 within 1 s" in late
        wait_until(takes(clients, us), "it takes writes again")
        assert epochs(world) == [(US, number)] * 3
        world.heal()
        done = sidecar("promote", EU, "--wait", "--url", admin_url(us))
        assert (done.returncode, done.stderr) == (0, ""), done
        assert f"eu-central-1 is the primary (epoch {number + 1}" in done.stdout
        wait_until(takes(clients, eu), "the new primary takes writes")
    check_equal(world, clients)
    assert {node.name: fenced(node) for node in world.nodes} == listed, "nothing was left behind"
    assert "writes are held for a promotion" in us.log
    assert {"draining"} < clients[DIRECT].errors <= {"draining", "not_primary"}


def test_a_promotion_is_refused_where_a_higher_epoch_is_heard_of(world: World) -> None:
    us, eu, ap = world.nodes
    ((_, number), *_) = epochs(world)
    cut_off(world, ap)
    wait_until(lambda: is_apart(ap), "it has noticed")
    assert promote(us, US).status == 200
    assert epochs(world)[2] == (EU, number), "it has not heard"
    # It can ask, and nobody can tell it before it does.
    world.link("node3", "node2").heal()
    refused = promote(ap, AP)
    if refused.status == 409:
        assert refused.body["error"] == "higher_epoch"
        assert US in refused.body["message"]
    else:
        # Its session to node2 was the quicker one: it knew before it asked.
        assert (refused.status, refused.body["epoch"]) == (200, number + 2), refused
    world.heal()
    expected = {409: (US, number + 1), 200: (AP, number + 2)}[refused.status]
    wait_until(lambda: epochs(world) == [expected] * 3, "all agree")
    assert eu.metric("epoch") == expected[1]
