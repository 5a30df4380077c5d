"""Failover of `primary_replica` on real processes, under writes through all regions."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import yaml

from tests.e2e.conftest import MakeWorld
from tests.e2e.test_operations import admin_url, complaint, status, told
from tests.waiting import wait_until
from tests.world import WRITE, Answer, Node, Triple, World, ask, sidecar, triple_of

QUICK = {"probe_interval_max_s": 1}
PAUSE_S = 0.002


class Sent(NamedTuple):
    """A write that a client tried, when it got its answer, and that answer; its own tuple."""

    at_s: float
    triple: Triple
    status: int
    body: Any


@dataclass
class Client:
    """Writes to one node for ever, each time a tuple of its own."""

    node: Node
    name: str
    sent: list[Sent] = field(default_factory=list)

    @property
    def acknowledged(self) -> list[Sent]:
        return [one for one in self.sent if one.status == 200]

    def write_once(self) -> None:
        triple = (f"document:{self.name}-{len(self.sent)}", "viewer", f"user:{self.node.name}")
        one = dict(zip(("resource", "relation", "subject"), triple, strict=True))
        try:
            answer = self.node.post(WRITE, {"relationships": [one]})
        except OSError:
            answer = Answer(0, {}, {"error": "no_answer"})
        self.sent.append(Sent(time.monotonic(), triple, answer.status, answer.body))


@contextmanager
def writing(world: World, name: str) -> Iterator[dict[str, Client]]:
    """A client at each node while this lasts, by the name of the node."""
    clients = {node.name: Client(node, name) for node in world.nodes}
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


def written_by(client: Client) -> Callable[[], bool]:
    """Whether a client has had more writes taken than until now."""
    before = len(client.acknowledged)
    return lambda: len(client.acknowledged) > before + 5


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


def check_equal(world: World, *clients: dict[str, Client]) -> None:
    """All nodes have the same, and everything that anybody was told was taken."""
    world.settle()
    first = world.nodes[0]
    for node in world.nodes[1:]:
        assert node.triples() == first.triples(), node.name
        assert node.digest() == first.digest(), node.name
    taken = {one.triple for each in clients for c in each.values() for one in c.acknowledged}
    assert taken <= first.triples()


@pytest.fixture(scope="module")
def world(make_shared_world: MakeWorld) -> World:
    """us-west-1 is the primary by configuration, eu-central-1 and ap-southeast-1 are replicas."""
    world = make_shared_world(3, replication={"strategy": "primary_replica", **QUICK})
    for node in world.nodes:
        settings = yaml.safe_load(node.config.read_text())
        settings["replication"]["regions"][0]["is_primary"] = True
        node.config.write_text(yaml.safe_dump(settings))
    return world.start()


def test_a_replica_takes_no_writes_and_is_healthy(world: World) -> None:
    us, eu, _ = world.nodes
    answer = eu.post(WRITE, {"relationships": []})
    assert (answer.status, answer.body["error"]) == (503, "not_primary")
    assert answer.headers["Retry-After"]
    assert "us-west-1" in answer.body["message"]
    gone = {"filter": {"resource": "document:none"}}
    assert eu.post(WRITE.replace("write", "delete"), gone).body["error"] == "not_primary"
    assert ask(eu.admin_port, "GET", "/health").body["status"] == "healthy"
    assert us.metric("epoch") == 0
    assert "us-west-1, by is_primary" in told(eu, "status")
    already = ask(eu.admin_port, "POST", "/promote", {"region": "us-west-1"}).body
    assert (already["promoted"], already["epoch"]) == (False, 0)
    for body, code in (
        ({}, "invalid_request"),
        ({"region": "nowhere"}, "bad_topology"),
        ({"region": "eu-central-1", "wait": True}, "invalid_request"),
        ({"region": "eu-central-1", "wait_s": -1}, "invalid_request"),
    ):
        refused = ask(us.admin_port, "POST", "/promote", body)
        assert (refused.status, refused.body["error"]) == (400, code), refused
    assert epochs(world) == [("us-west-1", 0)] * 3


def test_promoting_while_the_old_primary_is_cut_off_loses_nothing(world: World) -> None:
    us, eu, ap = world.nodes
    with writing(world, "a") as clients:
        wait_until(written_by(clients["node1"]), "the primary takes writes")
        cut_off(world, us)
        wait_until(lambda: is_apart(us), "it has noticed")
        wait_until(written_by(clients["node1"]), "it goes on")
        # Any node may be asked; one of the region does it.
        said = told(ap, "promote", "eu-central-1")
        assert "eu-central-1 is the primary (epoch 1, raised by node2)" in said
        assert "node1 does not know it yet" in said
        wait_until(written_by(clients["node2"]), "the new primary takes writes")
        wait_until(written_by(clients["node1"]), "and so does the old one, until it hears")
        assert epochs(world) == [("us-west-1", 0), ("eu-central-1", 1), ("eu-central-1", 1)]
        world.heal()
        wait_until(lambda: epochs(world) == [("eu-central-1", 1)] * 3, "all have heard")
        healed_s = time.monotonic()
        wait_until(written_by(clients["node2"]), "the new primary goes on")
    check_equal(world, clients)

    # From the message on the lower epoch is refused: no write is taken after one that was not.
    for client in (clients["node1"], clients["node3"]):
        refused = [one for one in client.sent if one.status != 200]
        assert {one.body["error"] for one in refused} == {"not_primary"}
        assert all(one.at_s <= healed_s for one in client.acknowledged)
        assert client.sent[-1] in refused
    assert clients["node3"].acknowledged == []
    old = clients["node1"]
    first_refused = next(i for i, one in enumerate(old.sent) if one.status != 200)
    assert all(one.status != 200 for one in old.sent[first_refused:])

    # What had not reached the new primary before it began is listed, and nothing else.
    had = {o: int(t) for o, t in status(us)["epoch"]["vector"].items() if o.startswith("node1.")}
    reached = max(had.values())
    expected = {one.triple for one in old.acknowledged if int(one.body["revision"]) > reached}
    assert expected
    assert len(expected) < len(old.acknowledged)
    wait_until(lambda: len(fenced(us)) >= len(expected), "all of it is listed")
    listed = fenced(us)
    assert len(listed) == len(expected)
    assert {triple_of(one) for one in listed} == expected
    assert {(one["epoch"], one["primary"]) for one in listed} == {(1, "eu-central-1")}
    assert fenced(eu) == fenced(ap) == []
    assert "takes no writes" in us.log
    assert f"transactions={len(expected)} changes={len(expected)}" in us.log
    assert "not shipped before eu-central-1" in told(us, "conflicts", "--limit", "1")
    assert "eu-central-1, promoted, epoch 1" in told(us, "status")
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
        wait_until(written_by(clients["node2"]), "the promoted region takes writes")
    check_equal(world, clients)
    assert clients["node1"].acknowledged == clients["node3"].acknowledged == []
    assert epochs(world) == [("eu-central-1", 1)] * 3
    for node in (us, eu):
        assert "the region that was promoted, not that of is_primary" in node.log
    assert fenced(us) == listed


def test_a_node_that_has_lost_its_data_hears_who_the_primary_is_before_it_writes(
    world: World,
) -> None:
    us, _, _ = world.nodes
    us.kill()
    us.forget()
    us.begin()
    with writing(world, "c") as clients:
        us.wait_until_serving()
        wait_until(lambda: "was=behind" in us.log, "it has caught up")
        wait_until(written_by(clients["node2"]), "writes go on")
    us.wait_until_serving()
    check_equal(world, clients)
    assert clients["node1"].acknowledged == []
    assert epochs(world) == [("eu-central-1", 1)] * 3
    since = us.log.rindex("embedded Valkey ready")
    assert us.log.index("takes no writes", since) < us.log.index("node may write", since)


def test_two_promotions_at_once_end_with_one_primary(world: World) -> None:
    us, _, ap = world.nodes
    results: dict[str, Answer] = {}

    def promote(node: Node) -> None:
        results[node.region] = ask(node.admin_port, "POST", "/promote", {"region": node.region})

    with writing(world, "d") as clients:
        wait_until(written_by(clients["node2"]), "the primary takes writes")
        threads = [threading.Thread(target=promote, args=(node,)) for node in (us, ap)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: len(set(epochs(world))) == 1, "all agree")
        ((primary, number), *_) = epochs(world)
        winner = next(node for node in world.nodes if node.region == primary)
        ended = {node.name: len(clients[node.name].acknowledged) for node in world.nodes}
        wait_until(written_by(clients[winner.name]), "one takes writes")
    check_equal(world, clients)
    assert epochs(world) == [(primary, number)] * 3
    assert primary in results
    assert results[primary].status == 200, results
    for node in world.nodes:
        others = len(clients[node.name].acknowledged) - ended[node.name]
        assert (others > 0) == (node is winner), node.name
        assert f"primary={primary} epoch={number}" in node.log
    for region, answer in results.items():
        # The other one was told so, or had been the primary for a moment.
        if region != primary and answer.status != 200:
            assert (answer.status, answer.body["error"]) == (409, "higher_epoch"), answer


def test_waiting_drains_the_old_primary_or_changes_nothing(world: World) -> None:
    us, eu, ap = world.nodes
    ask(us.admin_port, "POST", "/promote", {"region": "us-west-1"})
    wait_until(lambda: {name for name, _ in epochs(world)} == {"us-west-1"}, "all agree")
    ((_, number), *_) = epochs(world)
    listed = {node.name: fenced(node) for node in world.nodes}
    with writing(world, "e") as clients:
        wait_until(written_by(clients["node1"]), "the primary takes writes")
        world.link("node2", "node1").cut()
        lost = complaint("promote", "eu-central-1", "--wait", "--url", admin_url(eu))
        assert "node1 of us-west-1 cannot be asked to stop writing" in lost
        wait_until(written_by(clients["node1"]), "nothing was changed")
        world.heal()
        # What it ships does not arrive, though it can be asked.
        world.link("node1", "node2").cut()
        world.link("node1", "node3").cut()
        wait_until(written_by(clients["node1"]), "it writes what waits")
        words = ("promote", "eu-central-1", "--wait", "--timeout", "1", "--url", admin_url(ap))
        late = complaint(*words)
        assert "has not received all writes of us-west-1 within 1 s" in late
        wait_until(written_by(clients["node1"]), "it takes writes again")
        assert epochs(world) == [("us-west-1", number)] * 3
        world.heal()
        done = sidecar("promote", "eu-central-1", "--wait", "--url", admin_url(us))
        assert (done.returncode, done.stderr) == (0, ""), done
        assert f"eu-central-1 is the primary (epoch {number + 1}" in done.stdout
        wait_until(written_by(clients["node2"]), "the new primary takes writes")
    check_equal(world, clients)
    assert {node.name: fenced(node) for node in world.nodes} == listed, "nothing was left behind"
    assert "writes are held for a promotion" in us.log
    assert {one.body["error"] for one in clients["node1"].sent if one.status != 200} <= {
        *("draining", "not_primary"),
    }


def test_a_promotion_is_refused_where_a_higher_epoch_is_heard_of(world: World) -> None:
    us, eu, ap = world.nodes
    ((_, number), *_) = epochs(world)
    cut_off(world, ap)
    wait_until(lambda: is_apart(ap), "it has noticed")
    assert ask(us.admin_port, "POST", "/promote", {"region": "us-west-1"}).status == 200
    assert epochs(world)[2] == ("eu-central-1", number), "it has not heard"
    # It can ask, and nobody can tell it before it does.
    world.link("node3", "node2").heal()
    refused = ask(ap.admin_port, "POST", "/promote", {"region": "ap-southeast-1"})
    if refused.status == 409:
        assert refused.body["error"] == "higher_epoch"
        assert "us-west-1" in refused.body["message"]
    else:
        # Its session to node2 was the quicker one: it knew before it asked.
        assert (refused.status, refused.body["epoch"]) == (200, number + 2), refused
    world.heal()
    expected = {409: ("us-west-1", number + 1), 200: ("ap-southeast-1", number + 2)}
    wait_until(lambda: epochs(world) == [expected[refused.status]] * 3, "all agree")
    assert eu.metric("epoch") == expected[refused.status][1]
